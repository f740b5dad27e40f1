"""Test-time refinement as a predict-step module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rationalrewards.components.critic import Critic
from rationalrewards.components.generation import FlowGenerator
from rationalrewards.components.records import PromptRecord
from rationalrewards.components.refine import ARMS, RefineOptions, Studio, Trace, run_arm
from rationalrewards.components.rewards import CritiqueReward, SanityGate

from .base import RewardsModule

SANITY = SanityGate()


class RefineLoop(RewardsModule):
    """Generates, critiques, rewrites and regenerates; see :mod:`rationalrewards.components.refine` for the arms.

    Run with ``predict`` and a ``RefinementWriter`` callback, which writes pictures, records and the gallery.

    Args:
        generator: The generator; nothing of it is trained.
        critic: The critic.
        arms: What to run, on the same pictures.
        options: Budget, threshold and seed.
        sanity: Refuses a critic that does not look at pictures or does not read requests, before anything is made; ``None`` takes any.
    """

    def __init__(
        self,
        generator: FlowGenerator,
        critic: Critic,
        arms: Sequence[str] = ("refine_keep_best",),
        options: RefineOptions | None = None,
        sanity: SanityGate | None = SANITY,
    ) -> None:
        super().__init__()
        unknown = [arm for arm in arms if arm not in ARMS]
        if unknown:
            raise ValueError(f"unknown arm {unknown[0]!r}; known: {', '.join(ARMS)}")
        self.generator = generator
        self.critic = critic
        self.arms: list[Any] = list(arms)
        self.options = options or RefineOptions()
        self.sanity = sanity
        self._checked = CritiqueReward(critic, sanity=sanity)

    def configure_model(self) -> None:
        """Load generator and critic."""
        self.generator.load()
        self.critic.load()

    def on_predict_start(self) -> None:
        """Move them to this rank's device.

        Raises:
            SanityError: If the critic cannot tell pictures or requests apart.
        """
        self._checked.load(self.device)
        self.generator.load(self.device)

    def predict_step(self, batch: Sequence[PromptRecord], batch_idx: int) -> list[Trace]:
        """Take a batch of requests through every arm."""
        studio = Studio(self.generator, self.critic, self.options.seed, self.options.blank)
        return [trace for arm in self.arms for trace in run_arm(arm, batch, studio, self.options)]
