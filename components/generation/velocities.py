"""The velocities of policy, old policy and reference at the same latents, and ways to compute less for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..objectives.base import Velocities
from . import policies
from .shared_prefix import SharedPrefix
from .tape import Recording

OneForward = Literal["no", "frozen", "all"]


@dataclass(frozen=True)
class Savers:
    """Ways to do less per update; what each one costs and claims is in ``docs/objectives.md``.

    Args:
        skip_equal_old: Leave out the old policy's forward while its weights are the policy's to the last bit: its velocity is known then.
        drop_unused: Leave pictures that do not enter the loss (unscored, of flat or starved groups, of no pair) out of the forwards. Off,
            they are computed and left out of the sum.
        share_prefix: Compute what lies below the first adapted layer once for all policies.
        one_forward: ``"frozen"`` computes old policy and reference in one forward of twice the batch, ``"all"`` those and the policy in one
            of three times the batch: fewer, larger kernels. The backward of ``"all"`` goes through all of it, at a cost.
        reference_every: Compute the reference, for the KL term, in every n-th micro-batch only, and weigh it n times there.

    Raises:
        ValueError: If an option is none.
    """

    skip_equal_old: bool = True
    drop_unused: bool = True
    share_prefix: bool = True
    one_forward: OneForward = "no"
    reference_every: int = 1

    def __post_init__(self) -> None:
        if self.one_forward not in get_args(OneForward):
            raise ValueError(f"one_forward is one of {', '.join(get_args(OneForward))}, got {self.one_forward!r}")
        if self.reference_every < 1:
            raise ValueError(f"reference_every must be at least 1, got {self.reference_every}")


class PolicyVelocities:
    """Computes :class:`Velocities` with a denoiser that holds all policies.

    Args:
        denoiser: The denoiser.
        savers: What to leave out or share.
    """

    def __init__(self, denoiser: nn.Module, savers: Savers) -> None:
        self.denoiser = denoiser
        self.savers = savers
        self._prefix = SharedPrefix(denoiser) if savers.share_prefix else None

    def __call__(
        self, recording: Recording, x_t: Tensor, sigma: Tensor, *, old: bool = False, reference: bool = False
    ) -> Velocities:
        """The velocities at noisy latents.

        Args:
            recording: The conditioning.
            x_t: Noisy latents ``[B, ...]``.
            sigma: Noise levels ``[B]``.
            old: Whether the old policy's is needed.
            reference: Whether the base model's is.

        Returns:
            The policy's with gradient, the others without.
        """
        frozen = [policy for policy, needed in ((policies.OLD, old), (None, reference)) if needed]
        if self.savers.one_forward == "all" and frozen:
            v, *others = self._in_one(recording, x_t, sigma, [policies.POLICY, *frozen])
            others = [other.detach() for other in others]
        else:
            v, others = self._policy_first(recording, x_t, sigma, frozen)
        found = dict(zip(frozen, others, strict=True))
        return Velocities(v, found.get(policies.OLD), found.get(None))

    def _policy_first(
        self, recording: Recording, x_t: Tensor, sigma: Tensor, frozen: list[str | None]
    ) -> tuple[Tensor, list[Tensor]]:
        with nullcontext() if self._prefix is None or not frozen else self._prefix.record():
            v = recording.velocity(x_t, sigma)
        with torch.no_grad():
            if self.savers.one_forward == "frozen" and len(frozen) == 2:
                others = self._in_one(recording, x_t, sigma, frozen)
            else:
                others = []
                for policy in frozen:
                    with policies.use(self.denoiser, policy), self._again():
                        others.append(recording.velocity(x_t, sigma))
        if self._prefix is not None:
            self._prefix.forget()
        return v, others

    def _again(self) -> AbstractContextManager[None]:
        return nullcontext() if self._prefix is None else self._prefix.replay()

    def _in_one(self, recording: Recording, x_t: Tensor, sigma: Tensor, names: Sequence[str | None]) -> list[Tensor]:
        count = len(x_t)
        wide = recording.select(list(range(count)) * len(names))
        with policies.mixed(self.denoiser, [name for name in names for _ in range(count)]):
            velocities = wide.velocity(torch.cat([x_t] * len(names)), sigma.repeat(len(names)))
        return list(velocities.split(count))
