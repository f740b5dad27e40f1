"""Test-time refinement as a predict-step module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rationalrewards.components.critic import Critic
from rationalrewards.components.generation import FlowGenerator
from rationalrewards.components.records import PromptRecord
from rationalrewards.components.refine import ImageSource, RefineOptions, Shelf, Studio, Trace, check_arms, run_arms
from rationalrewards.components.rewards import CritiqueReward, RewardModel, SanityGate

from .base import RewardsModule

SANITY = SanityGate()


class RefineLoop(RewardsModule):
    """Generates, critiques, rewrites and regenerates; see :mod:`rationalrewards.components.refine` for the arms.

    Run with ``predict`` and a ``RefinementWriter`` callback, which gives the module its shelf (what is on it is not made again) and
    writes records, gallery and the comparison of the arms. On several processes every process takes its share of the requests.

    Args:
        generator: The generator, or another source of pictures; nothing of it is trained.
        critic: The critic; may be left out of the arms that rewrite nothing, where ``reward`` picks.
        arms: What to run, on the same pictures.
        options: Budgets, threshold, seed and search.
        sanity: Refuses a critic that does not look at pictures or does not read requests, before anything is made; ``None`` takes any.
        reward: Any reward model that picks the best picture instead of the critic, which then only rewrites and accepts.
        judge: Any reward model that has no part in the loop: arms are compared by it, and the arm ``oracle`` picks by it.

    Raises:
        ValueError: If an arm is unknown, or needs a critic and there is none.
    """

    def __init__(
        self,
        generator: FlowGenerator | ImageSource,
        critic: Critic | None = None,
        arms: Sequence[str] = ("refine_keep_best",),
        options: RefineOptions | None = None,
        sanity: SanityGate | None = SANITY,
        reward: RewardModel | None = None,
        judge: RewardModel | None = None,
    ) -> None:
        super().__init__()
        check_arms(arms, critic is not None, judge is not None)
        if critic is None and reward is None:
            raise ValueError("give `critic`, or for the arms that rewrite nothing any `reward`")
        self.generator = generator
        self.critic = critic
        self.reward = reward
        self.judge = judge
        self.arms: list[Any] = list(arms)
        self.options = options or RefineOptions()
        self.sanity = sanity
        self.shelf: Shelf | None = None
        self._checked = None if critic is None else CritiqueReward(critic, sanity=sanity)

    def configure_model(self) -> None:
        """Load generator, critic and reward models."""
        self.generator.load()
        for part in (self.critic, self.reward, self.judge):
            if part is not None:
                part.load()

    def on_predict_start(self) -> None:
        """Move them to this rank's device.

        Raises:
            SanityError: If the critic cannot tell pictures or requests apart.
        """
        if self._checked is not None:
            self._checked.load(self.device)
        for part in (self.reward, self.judge):
            if part is not None:
                part.load(self.device)
        self.generator.load(self.device)

    def predict_step(self, batch: Sequence[PromptRecord], batch_idx: int) -> list[Trace]:
        """Take a batch of requests through every arm."""
        studio = Studio(
            self.generator,
            self.critic,
            self.options.seed,
            self.options.blank,
            self.reward,
            self.judge,
            self.shelf,
            self.options.pictures_per_call or len(batch),
        )
        return run_arms(self.arms, batch, studio, self.options)
