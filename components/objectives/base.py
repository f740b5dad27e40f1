"""What a training objective is: which pictures of a round it takes, which velocities it needs, and a loss for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..generation import SDEStep


@dataclass(frozen=True)
class Velocities:
    """The velocities of the policies at the same latents, each ``[B, ...]``.

    Args:
        policy: Of the policy that is trained, with gradient.
        old: Of the policy that sampled the pictures; ``None`` where the objective does without.
        reference: Of the base model; ``None`` likewise.
    """

    policy: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None


@dataclass(frozen=True)
class NoisedBatch:
    """B pictures at one noise level each.

    Args:
        x0: Clean latents ``[B, ...]``.
        eps: The noise in ``x_t = (1 - sigma) x0 + sigma eps``; ``None`` for a recorded step.
        sigma: Noise levels ``[B]`` in (0, 1].
        x_t: Noisy latents.
        advantages: ``[B]``.
        step: The recorded step to ``x_t``'s successor, for objectives that train on stochastic steps; ``x_t`` and ``sigma`` are its own.
    """

    x0: Tensor
    eps: Tensor | None
    sigma: Tensor
    x_t: Tensor
    advantages: Tensor
    step: SDEStep | None = None


@dataclass(frozen=True)
class Chosen:
    """What of a micro-batch is trained on.

    Args:
        rows: Positions of the pictures.
        planned: How many losses a batch of this size has at most: pictures, or pairs of them.
        valid: How many it has.
    """

    rows: list[int]
    planned: int
    valid: int


@dataclass(frozen=True)
class StochasticSteps:
    """Which sampling steps are drawn from a distribution, so that they have a probability; see ``stochastic_steps``.

    Args:
        size: Successive steps that are drawn in a round, and trained on.
        first: First step that may be.
        last: Last step that may be; ``None`` is the sampler's last but one.
        eta: Amount of noise.
        form: ``"flow"`` or ``"cps"``.
    """

    size: int
    first: int
    last: int | None
    eta: float
    form: Literal["flow", "cps"]


class Objective(ABC):
    """Turns scored pictures into a loss.

    Args:
        kl_weight: Weight of the mean squared distance of velocities to the base model's; 0 saves its forward.
        adv_clip_max: Advantages are clipped to ``[-adv_clip_max, adv_clip_max]``.
        old_decay_rate: After a round the policy that samples becomes ``d old + (1 - d) policy``; d grows by this per optimizer step ...
        old_decay_max: ... up to this. 0: the policy itself samples.
    """

    uses_old: ClassVar[bool] = False
    """Whether :meth:`policy_loss` needs the old policy's velocity."""
    uses_pairs: ClassVar[bool] = False
    """Whether it takes pairs of pictures of a group; both get the same noise and level."""

    def __init__(
        self, kl_weight: float = 0.0, adv_clip_max: float = 5.0, old_decay_rate: float = 0.0, old_decay_max: float = 0.0
    ) -> None:
        if not adv_clip_max > 0:
            raise ValueError(f"adv_clip_max must be above 0, got {adv_clip_max:g}")
        if kl_weight < 0:
            raise ValueError(f"kl_weight must not be negative, got {kl_weight:g}")
        if not 0 <= old_decay_max <= 1:
            raise ValueError(f"old_decay_max must be between 0 and 1, got {old_decay_max:g}")
        self.kl_weight = kl_weight
        self.adv_clip_max = adv_clip_max
        self.old_decay_rate = old_decay_rate
        self.old_decay_max = old_decay_max

    @property
    def stochastic(self) -> StochasticSteps | None:
        """The sampling steps that must be stochastic; ``None`` for an objective of clean latents alone."""
        return None

    @property
    def uses_reference(self) -> bool:
        """Whether the loss itself, apart from the KL term, needs the base model's velocity."""
        return False

    def choose(self, rewards: Tensor, weights: Tensor, groups: Sequence[str]) -> Chosen:
        """Which pictures of a micro-batch to train on.

        Args:
            rewards: ``[B]``, NaN where unscored.
            weights: ``bool [B]``, whether a picture may enter the loss.
            groups: Group of every picture.
        """
        rows = torch.nonzero(weights).flatten().tolist()
        return Chosen(rows, len(groups), len(rows))

    @abstractmethod
    def policy_loss(self, batch: NoisedBatch, v: Velocities) -> Tensor:
        """The loss without the KL term: one number per picture, or per pair.

        Args:
            batch: The chosen pictures; of an objective of pairs first all better ones, then the worse ones in the same order.
            v: Velocities at ``batch.x_t``.
        """

    def diagnostics(self, batch: NoisedBatch, v: Velocities) -> dict[str, Tensor]:
        """Numbers per picture to log beside the loss, by name; none here."""
        return {}

    def old_decay(self, step: int) -> float:
        """Decay of the old policy after an optimizer step: ``min(rate * step, maximum)`` (type 1 in DiffusionNFT's code)."""
        return min(self.old_decay_rate * step, self.old_decay_max)
