"""Rationales as supervised rows for distillation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from rationalrewards.components.conversations import (
    Conversation,
    Kind,
    SupervisedRow,
    Wording,
    check_data_fingerprint,
    check_written_in,
    is_conversation,
    read_conversations,
    recognised,
    supervised_rows,
)
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.critique.formats import Message
from rationalrewards.components.records import Preference, Rationale, Task, Unscored, read_jsonl
from rationalrewards.components.seeds import seed_for
from torch.utils.data import DataLoader

from .batches import Batch, BatchPlan, PlannedLoader, StepBatch, length_grouped
from .readers import CONVERSATION_SETS, ConversationSet, read_preferences
from .readers.sets import is_named_like

Row = SupervisedRow | Conversation
Share = tuple[list[Row], list[Row] | None]
"""Rows of a micro-batch, and those of the later ones of its optimizer step; ``None`` if it is one of these."""


class RationaleDataModule(LightningDataModule):
    """Pointwise and pairwise rows (both orders) of rationales, in batches of similar length that know their optimizer step.

    Files may hold rationales or conversations. Rationales are ``rationales.jsonl`` of PARROT. Conversations are rows of sharegpt with
    OpenAI's tags, as JSON, JSON lines or parquet: what :func:`rationalrewards.components.parrot.export.export` writes, and others'. A
    public set of them (``TIGER-Lab/RationalRewards-SFTData``) is named by its id, with a folder or with a commit on the hub. They are
    learnt in their own words. Of a folder its ``rationales.jsonl`` is read or, without
    one, the parquet files in it. Where the fingerprint of a format lies beside conversations, it is checked; else every answer must be one
    that ``format`` can read, and rows whose answer is not are left out with a warning.

    Args:
        train: What to learn from: a file, a folder or a public set (``{id: OWNER/NAME, revision: COMMIT}``), or several.
        format: The student's format, which must be the one that the rationales were written in; the default rubric if omitted.
        val: Likewise, for the teacher-forced validation loss.
        val_preferences: Preference pairs for the generated pair accuracy in validation.
        batch_size: Rows per batch of each process; with ``accumulate_grad_batches``, several such make a step.
        pairwise: Whether pairwise rows are used.
        pointwise: Whether pointwise rows are used.
        both_orders: Whether every pair appears in both orders. Conversations of others do not say which is which and stay.
        pairwise_share: Share of the pairs that give pairwise rows, which are long; all give pointwise rows.
        val_batch_size: Rows or pairs per batch in validation, which needs no memory for gradients; as ``batch_size`` if omitted.
        length_pool: Batches that are sorted by length together, so that rows of a batch are of similar length. That saves padding; of a
            student that packs rows there is none to save, and 1 keeps batches, and so processes, equally long.
        limit_val: Take only the first so many pairs of each validation file; of others' conversations, so many rows.
        pictures_root: Folder that relative names of pictures in JSON conversations start from; that of the file if omitted.
        num_workers: Worker processes that read pictures.
        seed: Seed of the batches.
    """

    def __init__(
        self,
        train: str | ConversationSet | Sequence[str | ConversationSet],
        format: CritiqueFormat | None = None,
        val: str | ConversationSet | Sequence[str | ConversationSet] | None = None,
        val_preferences: str | None = None,
        batch_size: int = 16,
        pairwise: bool = True,
        pointwise: bool = True,
        both_orders: bool = True,
        pairwise_share: float = 1.0,
        val_batch_size: int | None = None,
        length_pool: int = 16,
        limit_val: int | None = None,
        pictures_root: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (pairwise or pointwise):
            raise ValueError("both pairwise and pointwise are off: there is nothing to learn from")
        self.train_from = _several(train)
        self.format = format or CritiqueFormat()
        self.val_from = _several(val)
        self.val_preferences_path = val_preferences
        self.batch_size = batch_size
        self.pairwise = pairwise
        self.pointwise = pointwise
        self.both_orders = both_orders
        self.pairwise_share = pairwise_share
        self.val_batch_size = val_batch_size or batch_size
        self.length_pool = length_pool
        self.limit_val = limit_val
        self.pictures_root = pictures_root
        self.num_workers = num_workers
        self.seed = seed
        self.rows: list[Row] = []
        self.val_rows: list[Row] = []
        self.val_preferences: list[Preference] = []

    def setup(self, stage: str) -> None:
        """Read the files and check that they follow the student's format.

        Raises:
            ValueError: If a file was written in another format, no row of a file can be used, or the format's template has no wording for
                what is asked for.
        """
        if self.rows:
            return
        self.rows = [row for one in self.train_from for row in self._expand(one)]
        self.val_rows = [row for one in self.val_from for row in self._expand(one, self.limit_val)]
        if self.val_preferences_path is not None:
            self.val_preferences = read_preferences(self.val_preferences_path)[: self.limit_val]
            self._check_wording(self.val_preferences_path, "point", {pair.task for pair in self.val_preferences})

    def _expand(self, one: str | ConversationSet, limit: int | None = None) -> list[Row]:
        if isinstance(one, ConversationSet):
            return self._conversations(one.id, [(False, one.read())], limit)
        if is_named_like(one, CONVERSATION_SETS):
            raise ValueError(
                f"{one} is no file but a public set: give {{id: OWNER/NAME, revision: COMMIT}}, or root (a folder with its files) in place "
                f"of revision; known sets: {', '.join(CONVERSATION_SETS)}"
            )
        files = _files(Path(one))
        if not is_conversation(files[0]):
            return self._rationales(files[0], limit)
        fingerprint = self.format.fingerprint
        parts = (
            (check_data_fingerprint(file, self.format, fingerprint), read_conversations(file, self.pictures_root))
            for file in files
        )
        return self._conversations(one, parts, limit)

    def _rationales(self, path: Path, limit: int | None) -> list[Row]:
        rationales = read_jsonl(path, Rationale)[:limit]
        rows: list[Row] = []
        fingerprint = self.format.fingerprint
        for number, rationale in enumerate(rationales, start=1):
            check_written_in(rationale, self.format, fingerprint, f"{path}, row {number}")
            kinds: list[Kind] = ["point"] if self.pointwise else []
            kinds += ["pair"] if self.pairwise and self._shares(rationale.pair.id) else []
            rows += supervised_rows(rationale, kinds, self.both_orders)
        if not rows:
            raise ValueError(f"{path}: no rationales; did every pair fall out? See the ledger beside it for the reasons")
        tasks = {rationale.pair.task for rationale in rationales}
        if self.pointwise:
            self._check_wording(str(path), "point", tasks)
        if self.pairwise and self.pairwise_share > 0:
            self._check_wording(str(path), "pair", tasks)
        return rows

    def _shares(self, pair: str) -> bool:
        return seed_for(self.seed, "pairwise", pair) % 10**6 < self.pairwise_share * 10**6

    def _conversations(self, path: str, parts: Iterable[tuple[bool, Iterable[Conversation]]], limit: int | None) -> list[Row]:
        """The rows of what one name stands for; each part says whether it is known to be in the student's format."""
        rows: list[Row] = []
        pairs: set[str] = set()
        unread: list[str] = []
        read = strange = 0
        wording = Wording(self.format)
        for same, conversations in parts:
            for row in conversations:
                pairs.add(row.pair)
                if limit is not None and len(pairs) > limit:
                    break
                read += 1
                if row.kind is None or not same:
                    found = recognised(row, self.format)
                    if isinstance(found, Unscored):
                        unread.append(f"{row.where}: {found.reason}")
                        continue
                    row = found
                    strange += not wording.asks(row)
                if self._wants(row):
                    rows.append(row)
        if read and len(unread) == read:
            raise ValueError(
                f"{path}: no answer is one that the student's format ({self.format.rubric!r}) can read; is it for another rubric? "
                f"{unread[0]}"
            )
        if not rows:
            raise ValueError(f"{path}: none of {read} conversations are of the kinds that are asked for")
        if unread:
            rank_zero_warn(
                f"{path}: {len(unread)} of {read} conversations are left out, as their answers cannot be read; {unread[0]}"
            )
        if strange:
            rank_zero_warn(
                f"{path}: {strange} of {read - len(unread)} conversations ask in other words than format {self.format.rubric!r}, in which "
                "the critic will be asked; give their words as the format's `template`"
            )
        rows[0].load(self.format)  # pictures that are not there are missed now, and not in the first epoch
        return rows

    def _wants(self, row: Conversation) -> bool:
        if row.kind == "point":
            return self.pointwise
        return self.pairwise and (self.both_orders or not row.index) and self._shares(row.pair)

    def _check_wording(self, path: str, kind: Kind, tasks: set[Task]) -> None:
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

    def _fetch(self, rows: list[Row]) -> list[tuple[list[Message], str]]:
        return [row.load(self.format) for row in rows]

    def _fetch_share(self, share: Share) -> StepBatch[tuple[list[Message], str]]:
        rows, later = share
        return StepBatch(self._fetch(rows), None if later is None else [_answer(row, self.format) for row in later])

    def _micro_batches(self) -> tuple[int, bool]:
        """Micro-batches of an optimizer step, and whether an epoch must hold whole steps: DeepSpeed counts on across epochs."""
        trainer = self.trainer
        if trainer is None:
            return 1, False
        return trainer.accumulate_grad_batches, trainer.strategy.handles_gradient_accumulation

    def train_dataloader(self) -> PlannedLoader:
        """:class:`StepBatch` es of ``(messages, answer)``; every rank gets its own, equally many."""
        lengths = [row.length for row in self.rows]

        def count(processes: int) -> int:
            batches = -(-len(self.rows) // self.batch_size) // processes
            several, whole = self._micro_batches()
            if whole and batches < several:
                raise ValueError(
                    f"an epoch has {batches} batches for each process, less than one step of {several}; lower accumulate_grad_batches"
                )
            return batches - batches % several * whole

        def plan(epoch: int, rank: int, processes: int) -> list[Share]:
            batches = length_grouped(lengths, self.batch_size, self.seed, epoch, self.length_pool)
            mine = [[self.rows[i] for i in batch] for batch in batches[rank::processes][: count(processes)]]
            several, _ = self._micro_batches()
            return [
                (rows, None if number % several else [row for later in mine[number + 1 : number + several] for row in later])
                for number, rows in enumerate(mine)
            ]

        return PlannedLoader(BatchPlan(plan, count), self._fetch_share, self.num_workers)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """First the rationales (teacher-forced loss), then the preference pairs (generated accuracy); either may be empty."""
        rows: DataLoader[Any] = DataLoader(
            self.val_rows,  # type: ignore[arg-type]
            batch_size=self.val_batch_size,
            collate_fn=self._fetch,
        )
        pairs: DataLoader[Any] = DataLoader(self.val_preferences, batch_size=self.val_batch_size, collate_fn=Batch)  # type: ignore[arg-type]
        return [rows, pairs]


def _several(given: str | ConversationSet | Sequence[str | ConversationSet] | None) -> list[str | ConversationSet]:
    return [given] if isinstance(given, str | ConversationSet) else list(given or ())


def _answer(row: Row, format: CritiqueFormat) -> str:
    """What a row teaches to answer, without its pictures."""
    return row.answer if isinstance(row, Conversation) else row.render(format, lambda names: [None] * len(names))[1]


def _files(path: Path) -> list[Path]:
    """The files of a path: itself, or what is read of a folder."""
    if not path.is_dir():
        return [path]
    if (path / "rationales.jsonl").is_file():
        return [path / "rationales.jsonl"]
    found = sorted(path.glob("data/*.parquet")) or sorted(path.glob("*.parquet"))
    if not found:
        raise ValueError(f"{path} has neither a rationales.jsonl nor parquet files; give the path of a file")
    return found
