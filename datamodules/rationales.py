"""Rationales as supervised rows for distillation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from PIL import Image
from rationalrewards.components.critique import CritiqueFormat, swap_pair
from rationalrewards.components.critique.formats import Message
from rationalrewards.components.generation.noise import seed_for
from rationalrewards.components.records import Preference, Rationale, Task, open_pictures, read_jsonl
from torch.utils.data import DataLoader

from .batches import Batch, BatchPlan, PlannedLoader, length_grouped
from .readers import read_preferences


@dataclass(frozen=True)
class SupervisedRow:
    """One thing for a student to learn: a request, and the critique it should answer with.

    Args:
        kind: ``"pair"`` or ``"point"``.
        rationale: Where it comes from.
        index: For a pair: 0 the pair's own order, 1 swapped. For a point: which picture.
    """

    kind: Literal["pair", "point"]
    rationale: Rationale
    index: int

    def load(self, format: CritiqueFormat) -> tuple[list[Message], str]:
        """``(messages, answer)``; reads the pictures."""
        pair = self.rationale.pair
        sources = open_pictures(pair, pair.sources)
        if self.kind == "point":
            (image,) = open_pictures(pair, [pair.candidates[self.index]])
            messages = format.pointwise_messages(pair.task, pair.prompt, sources, image)
            return messages, self.rationale.point_texts[self.index]
        first, second = open_pictures(pair, pair.candidates)
        critique = format.parse_pair(self.rationale.pair_text, pair.task)
        if self.index:
            first, second, critique = second, first, swap_pair(critique)
        return format.pairwise_messages(pair.task, pair.prompt, sources, (first, second)), format.render_pair(critique, pair.task)

    @property
    def length(self) -> float:
        """Estimated length in characters, a picture counting as 100; only its order matters."""
        text = self.rationale.pair_text if self.kind == "pair" else self.rationale.point_texts[self.index]
        pictures = len(self.rationale.pair.sources) + (2 if self.kind == "pair" else 1)
        return len(text) + 100.0 * pictures


class RationaleDataModule(LightningDataModule):
    """Pointwise and pairwise rows (both orders) of rationales, in batches of similar length.

    Args:
        train: ``rationales.jsonl`` to learn from.
        format: The student's format, which must be the one that the rationales were written in; the default rubric if omitted.
        val: Rationales for the teacher-forced validation loss.
        val_preferences: Preference pairs for the generated pair accuracy in validation.
        batch_size: Rows per batch.
        pairwise: Whether pairwise rows are used.
        pointwise: Whether pointwise rows are used.
        both_orders: Whether every pair appears in both orders.
        pairwise_share: Share of the pairs that give pairwise rows, which are long; all give pointwise rows.
        limit_val: Take only the first so many pairs of each validation file.
        num_workers: Worker processes that read pictures.
        seed: Seed of the batches.
    """

    def __init__(
        self,
        train: str,
        format: CritiqueFormat | None = None,
        val: str | None = None,
        val_preferences: str | None = None,
        batch_size: int = 16,
        pairwise: bool = True,
        pointwise: bool = True,
        both_orders: bool = True,
        pairwise_share: float = 1.0,
        limit_val: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (pairwise or pointwise):
            raise ValueError("both pairwise and pointwise are off: there is nothing to learn from")
        self.train_path = train
        self.format = format or CritiqueFormat()
        self.val_path = val
        self.val_preferences_path = val_preferences
        self.batch_size = batch_size
        self.pairwise = pairwise
        self.pointwise = pointwise
        self.both_orders = both_orders
        self.pairwise_share = pairwise_share
        self.limit_val = limit_val
        self.num_workers = num_workers
        self.seed = seed
        self.rows: list[SupervisedRow] = []
        self.val_rows: list[SupervisedRow] = []
        self.val_preferences: list[Preference] = []

    def setup(self, stage: str) -> None:
        """Read the files and check that they follow the student's format.

        Raises:
            ValueError: If a rationale was written in another format, or the format's template has no wording for what is asked for.
        """
        if self.rows:
            return
        self.rows = self._expand(self.train_path)
        if self.val_path is not None:
            self.val_rows = self._expand(self.val_path, self.limit_val)
        if self.val_preferences_path is not None:
            self.val_preferences = read_preferences(self.val_preferences_path)[: self.limit_val]
            self._check_wording(self.val_preferences_path, "point", {pair.task for pair in self.val_preferences})

    def _expand(self, path: str, limit: int | None = None) -> list[SupervisedRow]:
        rationales = read_jsonl(Path(path), Rationale)[:limit]
        rows: list[SupervisedRow] = []
        fingerprint = self.format.fingerprint
        for number, rationale in enumerate(rationales, start=1):
            if rationale.format != fingerprint:
                template = "" if self.format.template is None else f" with template {self.format.template!r}"
                raise ValueError(
                    f"{path}, row {number}: written in format {rationale.format}, but the student learns {self.format.rubric!r}"
                    f"{template} ({fingerprint}); set `format` to the one it was written in, or rationalize again"
                )
            if self.pointwise:
                rows += [SupervisedRow("point", rationale, index) for index in (0, 1)]
            if self.pairwise and seed_for(self.seed, "pairwise", rationale.pair.id) % 10**6 < self.pairwise_share * 10**6:
                rows += [SupervisedRow("pair", rationale, index) for index in ((0, 1) if self.both_orders else (0,))]
        if not rows:
            raise ValueError(f"{path}: no rationales; did every pair fall out? See the ledger beside it for the reasons")
        tasks = {rationale.pair.task for rationale in rationales}
        if self.pointwise:
            self._check_wording(path, "point", tasks)
        if self.pairwise and self.pairwise_share > 0:
            self._check_wording(path, "pair", tasks)
        return rows

    def _check_wording(self, path: str, kind: Literal["pair", "point"], tasks: set[Task]) -> None:
        """Ask once, of a blank picture: a section that a template lacks is found now and not in the middle of an epoch."""
        blank = Image.new("RGB", (1, 1))
        for task in sorted(tasks):
            sources = [blank] * (task == "edit")
            try:
                if kind == "point":
                    self.format.pointwise_messages(task, "", sources, blank)
                else:
                    self.format.pairwise_messages(task, "", sources, (blank, blank))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error

    def _fetch(self, rows: list[SupervisedRow]) -> list[tuple[list[Message], str]]:
        return [row.load(self.format) for row in rows]

    def train_dataloader(self) -> PlannedLoader:
        """Batches of ``(messages, answer)``; every rank gets its own, equally many."""
        lengths = [row.length for row in self.rows]

        def plan(epoch: int, rank: int, processes: int) -> list[list[SupervisedRow]]:
            batches = length_grouped(lengths, self.batch_size, self.seed, epoch)
            usable = len(batches) // processes * processes
            return [[self.rows[i] for i in batch] for batch in batches[rank:usable:processes]]

        def count(processes: int) -> int:
            return -(-len(self.rows) // self.batch_size) // processes

        return PlannedLoader(BatchPlan(plan, count), self._fetch, self.num_workers)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """First the rationales (teacher-forced loss), then the preference pairs (generated accuracy); either may be empty."""
        rows: DataLoader[Any] = DataLoader(
            self.val_rows,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            collate_fn=self._fetch,
        )
        pairs: DataLoader[Any] = DataLoader(self.val_preferences, batch_size=self.batch_size, collate_fn=Batch)  # type: ignore[arg-type]
        return [rows, pairs]
