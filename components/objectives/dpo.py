"""Online Diffusion-DPO (arXiv 2311.12908) for flows: the best picture of a group against its worst."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import Chosen, NoisedBatch, Objective, Velocities


def best_and_worst(rewards: Tensor, groups: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The pair of every group that has one: its highest and its lowest reward, the first of equal ones.

    Args:
        rewards: ``[n]``; NaN marks an unscored sample, which is neither.
        groups: Group identity per sample.

    Returns:
        Positions of the better and of the worse samples, each ``int64 [pairs]``, in the order in which groups first appear. A group
        with fewer than two scored members, or with all rewards equal, has no pair.
    """
    better, worse = [], []
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        if not torch.isnan(rewards[position]):
            members.setdefault(group, []).append(position)
    for indices in members.values():
        scores = [float(rewards[index]) for index in indices]
        if min(scores) < max(scores):
            better.append(indices[scores.index(max(scores))])
            worse.append(indices[scores.index(min(scores))])
    return torch.tensor(better, dtype=torch.int64), torch.tensor(worse, dtype=torch.int64)


def dpo_loss(
    v_better: Tensor,
    v_worse: Tensor,
    v_reference_better: Tensor,
    v_reference_worse: Tensor,
    x0_better: Tensor,
    x0_worse: Tensor,
    eps: Tensor,
    *,
    dpo_beta: float,
) -> Tensor:
    """``-log sigmoid(-b/2 [(e_w - e_w_ref) - (e_l - e_l_ref)])`` per pair, with e the mean squared error of a velocity.

    Both pictures of a pair are noised by the same ``eps`` to the same sigma, so that the noise's share of the errors cancels. The factor
    1/2 is in the code of Diffusion-DPO and of Flow-Factory (``dpo.py``), so that their betas can be taken over.

    Args:
        v_better: Velocity of the trained policy on the noised better pictures ``[pairs, ...]``.
        v_worse: On the noised worse ones.
        v_reference_better: Of the reference, no gradient.
        v_reference_worse: Likewise.
        x0_better: Clean latents.
        x0_worse: Clean latents.
        eps: The noise of both.
        dpo_beta: b, how hard the policy is held to the reference; neither NFT's beta nor the KL weight.

    Returns:
        Loss per pair, ``float64 [pairs]``; ``log 2`` where the policy is the reference.
    """
    better = _error(v_better, x0_better, eps) - _error(v_reference_better, x0_better, eps)
    worse = _error(v_worse, x0_worse, eps) - _error(v_reference_worse, x0_worse, eps)
    return -logsigmoid(-0.5 * dpo_beta * (better - worse))


def _error(v: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    # beta is in the hundreds or thousands: the four errors' difference is taken in double precision
    return (v.double() - (eps.double() - x0.double())).square().flatten(1).mean(dim=1)


class DPO(Objective):
    """Online Diffusion-DPO: :func:`dpo_loss` of each group's best picture against its worst; the others are not trained on.

    Every micro-batch has to hold whole groups (``batch_size`` a multiple of ``group_size``).

    Args:
        dpo_beta: How hard the policy is held to the base model; 100 (Flow-GRPO, SD3.5) to 2000 (Flow-Factory, FLUX.1).
    """

    uses_pairs = True

    def __init__(self, dpo_beta: float) -> None:
        super().__init__()
        if not dpo_beta > 0:
            raise ValueError(f"dpo_beta must be above 0, got {dpo_beta:g}")
        self.dpo_beta = dpo_beta

    @property
    def uses_reference(self) -> bool:
        """Always."""
        return True

    def choose(self, rewards: Tensor, weights: Tensor, groups: Sequence[str]) -> Chosen:
        """The best and the worst of every group that gives a signal."""
        better, worse = best_and_worst(rewards.masked_fill(~weights, float("nan")), groups)
        return Chosen([*better.tolist(), *worse.tolist()], len(set(groups)), len(better))

    def policy_loss(self, batch: NoisedBatch, v: Velocities) -> Tensor:
        """``[B / 2]``."""
        assert v.reference is not None and batch.eps is not None
        half = len(batch.x0) // 2
        better, worse = slice(half), slice(half, None)
        return dpo_loss(
            v.policy[better],
            v.policy[worse],
            v.reference[better],
            v.reference[worse],
            batch.x0[better],
            batch.x0[worse],
            batch.eps[better],
            dpo_beta=self.dpo_beta,
        )
