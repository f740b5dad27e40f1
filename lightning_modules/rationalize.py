"""PARROT's teacher stages as a predict-step module."""

from __future__ import annotations

from collections.abc import Sequence

from rationalrewards.components.chat import ChatModel
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.parrot import Ledger, Outcome, ParrotOptions, Price, rationalize
from rationalrewards.components.parrot.linter import check_student_prompts
from rationalrewards.components.records import TASKS, Preference

from .base import RewardsModule


class RationalizeModule(RewardsModule):
    """Writes rationales for preference pairs and keeps those that predict the preference (arXiv 2604.11626, 2.1).

    Run with ``predict`` and a ``RationaleWriter`` callback, which gives the module its ledger and writes what survives. On several
    processes or nodes every process takes its share of the pairs, with a ledger of its own.

    Args:
        teacher: The teacher.
        format: The student's format, in which rationales are written; the default rubric if omitted.
        options: How the stages work.
        price: What the teacher's tokens cost, for ledger, progress and report; ``None`` where nobody charges for them.
    """

    def __init__(
        self,
        teacher: ChatModel,
        format: CritiqueFormat | None = None,
        options: ParrotOptions | None = None,
        price: Price | None = None,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.format = format or CritiqueFormat()
        self.options = options or ParrotOptions()
        self.price = price
        self.ledger = Ledger()

    def setup(self, stage: str) -> None:
        """Refuse a template that words no rationale, or gives the student words of the teacher's, before the teacher is loaded.

        Raises:
            ValueError: If the template has, for no task, both the sections that the stages ask with, or speaks of a label.
        """
        check_student_prompts(self.format)
        wording = self.format.wording
        if wording is not None and not any({("pairwise", task), ("pointwise", task)} <= set(wording.turns) for task in TASKS):
            raise ValueError(
                f"template {wording.name} has no task with both a pairwise and a pointwise section, and a rationale is a comparison and "
                "two critiques; add the section that is missing"
            )

    def configure_model(self) -> None:
        """Load or connect the teacher."""
        self.teacher.load()

    def on_predict_start(self) -> None:
        """Move a teacher that runs in this process to this rank's device."""
        self.teacher.load(self.device)

    def predict_step(self, batch: Sequence[Preference], batch_idx: int) -> list[Outcome]:
        """Take a batch of pairs through all stages."""
        return rationalize(batch, self.teacher, self.format, self.options, self.ledger, self.price)
