"""Test-time refinement as a predict-step module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rationalrewards.components.chat import ChatModel
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.generation import FlowGenerator
from rationalrewards.components.records import PromptRecord
from rationalrewards.components.refine import ARMS, RefineOptions, Studio, Trace, run_arm

from .base import RewardsModule


class RefineLoop(RewardsModule):
    """Generates, critiques, rewrites and regenerates; see :mod:`rationalrewards.components.refine` for the arms.

    Run with ``predict`` and a ``RefinementWriter`` callback, which writes pictures, records and the gallery.

    Args:
        generator: The generator; nothing of it is trained.
        chat: The critic's model.
        rubric: Rubric that the critic was trained on.
        arms: What to run, on the same pictures.
        options: Budget, threshold and seed.
        max_tokens: Most tokens of a critique.
        reasks: How often an unreadable critique is asked for again.
    """

    def __init__(
        self,
        generator: FlowGenerator,
        chat: ChatModel,
        rubric: str = "default",
        arms: Sequence[str] = ("refine_keep_best",),
        options: RefineOptions | None = None,
        max_tokens: int = 2048,
        reasks: int = 1,
    ) -> None:
        super().__init__()
        unknown = [arm for arm in arms if arm not in ARMS]
        if unknown:
            raise ValueError(f"unknown arm {unknown[0]!r}; known: {', '.join(ARMS)}")
        self.generator = generator
        self.critic = Critic(chat, CritiqueFormat(rubric), max_tokens, reasks=reasks)
        self.arms: list[Any] = list(arms)
        self.options = options or RefineOptions()

    def configure_model(self) -> None:
        """Load generator and critic."""
        self.generator.load()
        self.critic.load()

    def on_predict_start(self) -> None:
        """Move them to this rank's device."""
        self.generator.load(self.device)
        self.critic.load(self.device)

    def predict_step(self, batch: Sequence[PromptRecord], batch_idx: int) -> list[Trace]:
        """Take a batch of requests through every arm."""
        studio = Studio(self.generator, self.critic, self.options.seed, self.options.blank)
        return [trace for arm in self.arms for trace in run_arm(arm, batch, studio, self.options)]
