"""Test-time refinement as a predict-step module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rationalrewards.components.critic import Critic
from rationalrewards.components.generation import FlowGenerator
from rationalrewards.components.records import PromptRecord
from rationalrewards.components.refine import ARMS, UNWRITTEN, RefineOptions, Studio, Trace, run_arm
from rationalrewards.components.rewards import CritiqueReward, RewardModel, SanityGate

from .base import RewardsModule

SANITY = SanityGate()


class RefineLoop(RewardsModule):
    """Generates, critiques, rewrites and regenerates; see :mod:`rationalrewards.components.refine` for the arms.

    Run with ``predict`` and a ``RefinementWriter`` callback, which writes pictures, records and the gallery.

    Args:
        generator: The generator; nothing of it is trained.
        critic: The critic; may be left out of the arms ``base`` and ``best_of_n``, where ``reward`` picks.
        arms: What to run, on the same pictures.
        options: Budget, threshold and seed.
        sanity: Refuses a critic that does not look at pictures or does not read requests, before anything is made; ``None`` takes any.
        reward: Any reward model that picks the best picture instead of the critic, which then only rewrites and accepts.

    Raises:
        ValueError: If an arm is unknown, or needs a critic and there is none.
    """

    def __init__(
        self,
        generator: FlowGenerator,
        critic: Critic | None = None,
        arms: Sequence[str] = ("refine_keep_best",),
        options: RefineOptions | None = None,
        sanity: SanityGate | None = SANITY,
        reward: RewardModel | None = None,
    ) -> None:
        super().__init__()
        unknown = [arm for arm in arms if arm not in ARMS]
        if unknown:
            raise ValueError(f"unknown arm {unknown[0]!r}; known: {', '.join(ARMS)}")
        if critic is None:
            if reward is None:
                raise ValueError("give `critic`, or for the arms that rewrite nothing any `reward`")
            if writing := [arm for arm in arms if arm not in UNWRITTEN]:
                raise ValueError(
                    f"arm {writing[0]!r} rewrites requests: give `critic`; without one there are: {', '.join(UNWRITTEN)}"
                )
        self.generator = generator
        self.critic = critic
        self.reward = reward
        self.arms: list[Any] = list(arms)
        self.options = options or RefineOptions()
        self.sanity = sanity
        self._checked = None if critic is None else CritiqueReward(critic, sanity=sanity)

    def configure_model(self) -> None:
        """Load generator, critic and reward."""
        self.generator.load()
        if self.critic is not None:
            self.critic.load()
        if self.reward is not None:
            self.reward.load()

    def on_predict_start(self) -> None:
        """Move them to this rank's device.

        Raises:
            SanityError: If the critic cannot tell pictures or requests apart.
        """
        if self._checked is not None:
            self._checked.load(self.device)
        if self.reward is not None:
            self.reward.load(self.device)
        self.generator.load(self.device)

    def predict_step(self, batch: Sequence[PromptRecord], batch_idx: int) -> list[Trace]:
        """Take a batch of requests through every arm."""
        studio = Studio(self.generator, self.critic, self.options.seed, self.options.blank, self.reward)
        return [trace for arm in self.arms for trace in run_arm(arm, batch, studio, self.options)]
