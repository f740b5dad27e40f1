"""Advantage Weighted Matching (arXiv 2509.25050): the flow-matching error stands in for the log-probability of a picture.

Like NFT it trains on clean latents alone, noised anew: any sampler, no recorded steps.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .base import NoisedBatch, Objective, Velocities
from .grpo import clipped_surrogate
from .nft import kl_loss

MatchingWeight = Literal["uniform", "sigma", "sigma_squared", "huber", "general_huber"]
MATCHING_WEIGHTS: tuple[MatchingWeight, ...] = get_args(MatchingWeight)


def matching_log_probability(
    v: Tensor, x0: Tensor, eps: Tensor, sigma: Tensor, weight: MatchingWeight = "uniform", power: float = 0.25
) -> Tensor:
    r"""Minus the weighted flow-matching error ``e = mean((v - (eps - x0))^2)``, what AWM takes for ``log p``.

    =================  ==========================================================================================
    ``uniform``        ``-e``
    ``sigma``          ``-sigma e``
    ``sigma_squared``  ``-sigma^2 e``: the error of the predicted x0
    ``huber``          ``-sigma (sqrt(e + 1e-10) - 1e-5)``
    ``general_huber``  ``-sigma ((e + 1e-10)^p - 1e-10^p) / p``
    =================  ==========================================================================================

    (The weights of the authors' code and of Flow-Factory's ``awm.py``, there called Uniform, t, t**2, huber and ghuber.)

    Args:
        v: Velocity ``[B, ...]``.
        x0: Clean latents.
        eps: The noise in ``x_t = (1 - sigma) x0 + sigma eps``.
        sigma: Noise levels ``[B]``.
        weight: Which of the five.
        power: p of ``general_huber``.

    Returns:
        ``float64 [B]``, 0 for a perfect velocity and negative otherwise.

    Raises:
        ValueError: If there is no such weight.
    """
    if weight not in MATCHING_WEIGHTS:
        raise ValueError(f"weight is one of {', '.join(MATCHING_WEIGHTS)}, got {weight!r}")
    # a ratio's exponent is a small difference of two of these: errors are summed up in double precision
    error = (v.double() - (eps.double() - x0.double())).square().flatten(1).mean(dim=1)
    sigma = sigma.double()
    if weight == "sigma":
        error = sigma * error
    elif weight == "sigma_squared":
        error = sigma**2 * error
    elif weight == "huber":
        error = sigma * (torch.sqrt(error + 1e-10) - 1e-5)
    elif weight == "general_huber":
        error = sigma * ((error + 1e-10) ** power - 1e-10**power) / power
    return -error


def awm_loss(
    v: Tensor,
    v_old: Tensor | None,
    x0: Tensor,
    eps: Tensor,
    sigma: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    weight: MatchingWeight = "uniform",
    adv_clip_max: float = 5.0,
) -> Tensor:
    """The policy loss of one (sample, time) pair: the clipped surrogate of ``rho = exp(log p - log p_old)`` at the same noise.

    Args:
        v: Velocity of the trained policy ``[B, ...]`` at ``x_t = (1 - sigma) x0 + sigma eps``.
        v_old: Velocity of the old policy there, no gradient; ``None`` while the two are equal, which saves a forward.
        x0: Clean latents.
        eps: The noise.
        sigma: Noise levels ``[B]``.
        advantages: ``[B]``; clipped to ``[-adv_clip_max, adv_clip_max]``.
        clip_range: Of the ratio. Not Flow-GRPO's: an error's difference is not small, and ranges up to 1 are in use. Without it,
            something else has to hold the policy, e.g. :func:`~rationalrewards.components.objectives.kl_loss` to ``v_old``.
        weight: See :func:`matching_log_probability`.
        adv_clip_max: Largest advantage.

    Returns:
        Loss per sample, ``float64 [B]``. With an advantage of 0 the gradient is zero.
    """
    log_probability = matching_log_probability(v, x0, eps, sigma, weight)
    with torch.no_grad():
        before = log_probability if v_old is None else matching_log_probability(v_old, x0, eps, sigma, weight)
    return clipped_surrogate(log_probability - before.detach(), advantages.clamp(-adv_clip_max, adv_clip_max), clip_range)


class AWM(Objective):
    """Advantage Weighted Matching: :func:`awm_loss` of every picture, held by the distances to the old policy and to the base.

    Args:
        clip_range: Of the ratio; 1.0 in Flow-Factory's SD3.5 recipe.
        weight: See :func:`matching_log_probability`.
        old_kl_weight: Weight of the distance to the old policy, 1.0 there. Without it and with a wide clip range nothing holds the policy.
        kl_weight: See :class:`Objective`; 1e-4 there.
        adv_clip_max: Largest advantage; 1.0 there.
        old_decay_rate: See :class:`Objective`.
        old_decay_max: See :class:`Objective`.
    """

    uses_old = True

    def __init__(
        self,
        clip_range: float = 1.0,
        weight: MatchingWeight = "uniform",
        old_kl_weight: float = 1.0,
        kl_weight: float = 1e-4,
        adv_clip_max: float = 1.0,
        old_decay_rate: float = 0.001,
        old_decay_max: float = 0.5,
    ) -> None:
        super().__init__(kl_weight, adv_clip_max, old_decay_rate, old_decay_max)
        if weight not in MATCHING_WEIGHTS:
            raise ValueError(f"weight is one of {', '.join(MATCHING_WEIGHTS)}, got {weight!r}")
        if not clip_range > 0 or old_kl_weight < 0:
            raise ValueError(
                f"clip_range must be above 0 and old_kl_weight not negative, got {clip_range:g} and {old_kl_weight:g}"
            )
        self.clip_range = clip_range
        self.weight: MatchingWeight = weight
        self.old_kl_weight = old_kl_weight

    def policy_loss(self, batch: NoisedBatch, v: Velocities) -> Tensor:
        """``[B]``."""
        assert v.old is not None and batch.eps is not None
        loss = awm_loss(
            v.policy,
            v.old,
            batch.x0,
            batch.eps,
            batch.sigma,
            batch.advantages,
            clip_range=self.clip_range,
            weight=self.weight,
            adv_clip_max=self.adv_clip_max,
        )
        return loss + self.old_kl_weight * kl_loss(v.policy, v.old)

    @torch.no_grad()
    def diagnostics(self, batch: NoisedBatch, v: Velocities) -> dict[str, Tensor]:
        """``ratio`` and ``clipped`` (1 where it is out of range)."""
        assert v.old is not None and batch.eps is not None
        new, old = (matching_log_probability(u, batch.x0, batch.eps, batch.sigma, self.weight) for u in (v.policy, v.old))
        ratio = (new - old).exp()
        return {"ratio": ratio, "clipped": ((ratio - 1).abs() > self.clip_range).double()}
