"""Preference pairs for rationalization and evaluation, and to learn from."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from lightning.pytorch import LightningDataModule
from PIL import Image
from rationalrewards.components.records import Preference, open_pictures
from rationalrewards.components.seeds import seed_for
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .batches import Batch, BatchPlan, PlannedLoader, world
from .readers import PreferenceSet, iter_preferences
from .splits import Fold


@dataclass(frozen=True)
class ShownPair:
    """A pair with its pictures, read. In one batch a picture that several pairs name is one object.

    Args:
        pair: The pair.
        images: Its candidates.
        sources: Its source pictures.
    """

    pair: Preference
    images: tuple[Image.Image, Image.Image]
    sources: tuple[Image.Image, ...] = ()


def show(pairs: Sequence[Preference]) -> Batch[ShownPair]:
    """Read the pictures of some pairs, each once.

    Raises:
        ValueError: If one cannot be read; the message names it and its pair.
    """
    seen: dict[str, Image.Image] = {}

    def pictures(pair: Preference, names: Sequence[str]) -> tuple[Image.Image, ...]:
        for name in names:
            if name not in seen:
                (seen[name],) = open_pictures(pair, [name])
        return tuple(seen[name] for name in names)

    shown = []
    for pair in pairs:
        first, second = pictures(pair, pair.candidates)
        shown.append(ShownPair(pair, (first, second), pictures(pair, pair.sources)))
    return Batch(shown)


def grouped_batches(groups: Sequence[Any], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of indices in random order, in which the members of a group follow each other.

    Args:
        groups: What each row belongs to; every row its own group gives a plain shuffle.
        batch_size: Rows per batch; one of them may be smaller.
        seed: Seed.
        epoch: Epoch; every epoch has another order.
    """
    rng = random.Random(seed_for(seed, "pairs", epoch))
    members: dict[Any, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    drawn = list(members.values())
    rng.shuffle(drawn)
    order = []
    for rows in drawn:
        rng.shuffle(rows)
        order += rows
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rng.shuffle(batches)  # or the small one would always come last
    return batches


@dataclass(frozen=True)
class PairStream:
    """Pairs of files, then of public sets, read one at a time and always in the same order.

    Args:
        paths: Files of pairs.
        sets: Public sets.
        limit: See :class:`PreferenceDataModule`, here and below.
        decided_only: Leave out ties.
        min_agreement: Smallest agreement.
        fold: Part of a split.
        report: Whether to tell what was left out of the sets, when all of them have been read.
    """

    paths: tuple[str, ...] = ()
    sets: tuple[PreferenceSet, ...] = ()
    limit: int | None = None
    decided_only: bool = False
    min_agreement: float = 0.5
    fold: Fold | None = None
    report: bool = True

    def __iter__(self) -> Iterator[Preference]:
        """All pairs that pass.

        Raises:
            ValueError: On a row that cannot be read, and in the end if there was no pair.
        """
        rows = chain(*map(iter_preferences, self.paths), *(one.read(self.report) for one in self.sets))
        pair = None
        for pair in islice(filter(self.keeps, rows), self.limit):
            yield pair
        if pair is None:
            names = ", ".join([*self.paths, *(one.id for one in self.sets)])
            raise ValueError(f"{names}: no pairs" + "".join(self._filters()))

    def keeps(self, pair: Preference) -> bool:
        """Whether a pair passes ``decided_only``, ``min_agreement`` and ``fold``."""
        if self.decided_only and pair.winner == "tie":
            return False
        if max(pair.label, 1.0 - pair.label) < self.min_agreement - 1e-9:  # 1 - 0.3 is 0.7 but for the last bit
            return False
        return self.fold is None or self.fold.holds(pair)

    def _filters(self) -> Iterator[str]:
        if self.decided_only:
            yield " without a tie"
        if self.min_agreement > 0.5:
            yield f" with an agreement of {self.min_agreement:g}"
        if self.fold is not None:
            yield f" in part {self.fold.part!r} of the fold"


class _Share(IterableDataset[Batch[Preference]]):
    """One process's batches of a stream, and of those one worker's.

    The pairs are dealt out one by one, as Lightning's sampler deals those of a list, but none is given twice to fill up the last
    round. The batches of a process are dealt out to its workers, from which ``DataLoader`` takes them in turn: they are the same
    with any number of workers.
    """

    def __init__(self, pairs: PairStream, batch_size: int, rank: int, processes: int) -> None:
        self.pairs = pairs
        self.batch_size = batch_size
        self.rank = rank
        self.processes = processes

    def __iter__(self) -> Iterator[Batch[Preference]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        # all read the same rows, and one who tells what was left out is enough
        pairs = self.pairs if (self.rank, first) == (0, 0) else replace(self.pairs, report=False)
        share = islice(pairs, self.rank, None, self.processes)
        batches = iter(lambda: tuple(islice(share, self.batch_size)), ())
        return map(Batch, islice(batches, first, None, step))


class PairLoader:
    """This process's batches of a stream, with a length where the stream's is known.

    No ``DataLoader`` itself, so that Lightning leaves the shares in place under every strategy.

    Args:
        pairs: The stream.
        batch_size: Pairs per batch.
        count: Pairs in the stream, at most; ``None`` if unknown.
        num_workers: Processes that read ahead.
    """

    def __init__(self, pairs: PairStream, batch_size: int, count: int | None = None, num_workers: int = 0) -> None:
        self.pairs = pairs
        self.batch_size = batch_size
        self.count = count
        self.num_workers = num_workers

    def __iter__(self) -> Iterator[Batch[Preference]]:
        # a generator, so that nothing is read before the first batch is wanted: Lightning makes an iterator only to see whether it can
        yield from DataLoader(_Share(self.pairs, self.batch_size, *world()), batch_size=None, num_workers=self.num_workers)

    def __len__(self) -> int:
        """Batches of the process that gets most, as all should count alike.

        Raises:
            TypeError: If that is unknown; what asks for a length takes this for "has none".
        """
        if self.count is None:
            raise TypeError("how many pairs there are is unknown before all are read")
        return math.ceil(math.ceil(self.count / world()[1]) / self.batch_size)


class PreferenceDataModule(LightningDataModule):
    """Batches of :class:`~rationalrewards.components.records.Preference`, read while they are used.

    To judge (``predict``, ``test``), pairs come in the order of files and sets, and are dealt out to the processes one by one, none
    twice. Every process reads all rows but keeps none, so that a set of any length takes the same memory, and a given number of
    processes the same batches.

    To learn from (``fit``), pairs of ``train`` come as :class:`ShownPair` in an order that is a function of ``seed`` and epoch, and go
    on with the next batch after a run was interrupted. The records are held in memory, a kilobyte each, and the pictures are read when
    their batch is made: unpack sets for it whose pictures lie in parquet, where a picture cannot be read without those before it.

    Args:
        paths: Files that ``read_preferences`` reads: our records as JSONL or parquet, ranked images, or edits. An id may stand in one
            of them only.
        sets: Public sets, after the files; each once.
        batch_size: Pairs per batch.
        limit: Take only the first so many pairs of those that nothing below leaves out.
        decided_only: Leave out ties (used for evaluation on decided pairs).
        min_agreement: Leave out pairs on which fewer agree. The agreement is the larger one of P(A preferred) and P(B preferred): 0.5
            is a coin flip or a tie, 0.7 says that 7 of 10 preferred the same picture, and a label without votes counts as 1.
        fold: Take one part of a split, in which no request with its source pictures is in two parts. Of edits it reads the source
            pictures.
        num_workers: Processes that read ahead. Each reads all rows, so that one does as much as many; of those of ``train`` it reads the
            pictures, so that many do more.
        train: Files or sets to learn from. ``limit``, ``decided_only``, ``min_agreement`` and ``fold`` hold for them as for the others.
        val: Files or sets to validate on, of which none of the four leaves anything out.
        val_fold: Take one part of a split of ``val``, e.g. the part ``val`` of the file whose part ``train`` is trained on.
        limit_val: Take only the first so many pairs of ``val``.
        together: Whether pairs of one request with the same source pictures follow each other in training, so that they share batches
            and a picture that is in several of them is looked at once. Batches then say less about many requests than shuffled pairs.
        seed: Seed of the order of ``train``.

    Raises:
        ValueError: If there is nothing to read, a set is given twice, or ``min_agreement`` is not between 0.5 and 1.
    """

    def __init__(
        self,
        paths: str | list[str] | None = None,
        batch_size: int = 64,
        limit: int | None = None,
        decided_only: bool = False,
        sets: list[PreferenceSet] | None = None,
        min_agreement: float = 0.5,
        fold: Fold | None = None,
        num_workers: int = 0,
        train: str | PreferenceSet | list[str | PreferenceSet] | None = None,
        val: str | PreferenceSet | list[str | PreferenceSet] | None = None,
        val_fold: Fold | None = None,
        limit_val: int | None = None,
        together: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        files = (paths,) if isinstance(paths, str) else tuple(paths or ())
        if not files and not sets and train is None and val is None:
            raise ValueError(
                "give `data.paths`: files of preference pairs, or `data.sets`: public sets of them; `data.train` to learn from"
            )
        if not 0.5 <= min_agreement <= 1.0:
            raise ValueError(f"min_agreement is between 0.5 (a coin flip) and 1 (all agree), got {min_agreement}")
        given = [_rows_of(one) for one in sets or ()]
        for rows in given:
            if given.count(rows) > 1:
                raise ValueError(
                    f"set {' '.join(filter(None, rows))} is given twice; its pairs would have the same ids: take one out"
                )
        self.pairs = PairStream(files, tuple(sets or ()), limit, decided_only, min_agreement, fold)
        self.train_pairs = replace(self.pairs, **_sources(train))
        self.val_pairs = PairStream(**_sources(val), limit=limit_val, fold=val_fold)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.together = together
        self.seed = seed
        self.count: int | None = None
        """Pairs over all processes, at most; ``None`` where only reading a set, or the pictures for a fold, would tell."""
        self.train_rows: list[Preference] = []
        self.val_rows: list[Preference] = []

    def setup(self, stage: str) -> None:
        """Look through all files and into the sets, so that what is wrong with them comes up before a model is loaded.

        To learn from and to validate on, all of them are read.

        Raises:
            ValueError: If a file has a bad row, two files share an id, a set cannot be read, there are no pairs, or nothing was given for
                this stage.
        """
        if stage in ("fit", "validate"):
            self._set_up_fit(stage)
            return
        if not self.pairs.paths and not self.pairs.sets:
            raise ValueError(f"give `data.paths` or `data.sets`: there is nothing to {stage} on")
        found: dict[str, str] = {}
        kept = 0
        cheap = replace(self.pairs, fold=None)
        for path in self.pairs.paths:
            for pair in iter_preferences(path):
                if found.setdefault(pair.id, path) != path:
                    raise ValueError(
                        f"id {pair.id!r} is in {found[pair.id]} and in {path}; ids name pairs in ledgers and results: rename it in one"
                    )
                kept += cheap.keeps(pair)
        for one in self.pairs.sets:
            next(one.read(), None)
        next(iter(self.pairs))
        self.count = self._count(kept)

    def _set_up_fit(self, stage: str) -> None:
        if stage == "fit" and not self.train_rows:
            if not self.train_pairs.paths and not self.train_pairs.sets:
                raise ValueError("give `data.train`: files of preference pairs to learn from, or public sets of them")
            self.train_rows = list(self.train_pairs)
        if not self.val_rows and (self.val_pairs.paths or self.val_pairs.sets):
            self.val_rows = list(self.val_pairs)
            trained = {pair.id for pair in self.train_rows}
            known = next((pair.id for pair in self.val_rows if pair.id in trained), None)
            if known is not None:
                raise ValueError(f"pair {known!r} is in `data.train` and in `data.val`; take other pairs, or give both a fold")
        if stage == "validate" and not self.val_rows:
            raise ValueError("give `data.val`: files of preference pairs to validate on, or public sets of them")

    def _count(self, kept: int) -> int | None:
        """How many pairs there are at most, where the files have ``kept``."""
        pairs = self.pairs
        known = pairs.fold is None and (not pairs.sets or not (pairs.decided_only or pairs.min_agreement > 0.5))
        counts = [kept, *(one.count() for one in pairs.sets)] if known else [None]
        whole = [count for count in counts if count is not None]
        if len(whole) < len(counts):
            return pairs.limit
        return min(sum(whole), sum(whole) if pairs.limit is None else pairs.limit)

    def _loader(self) -> PairLoader:
        return PairLoader(self.pairs, self.batch_size, self.count, self.num_workers)

    def train_dataloader(self) -> PlannedLoader:
        """Batches of :class:`ShownPair`; every process gets its own, equally many."""
        rows = self.train_rows
        # paths, not pixels: what is read once is read once, and nothing is lost where two names lead to one picture
        groups = [(pair.prompt, pair.sources) if self.together else index for index, pair in enumerate(rows)]

        def plan(epoch: int, rank: int, processes: int) -> list[list[Preference]]:
            batches = grouped_batches(groups, self.batch_size, self.seed, epoch)
            usable = len(batches) // processes * processes
            return [[rows[index] for index in batch] for batch in batches[rank:usable:processes]]

        def count(processes: int) -> int:
            return -(-len(rows) // self.batch_size) // processes

        return PlannedLoader(BatchPlan(plan, count), show, self.num_workers)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """All pairs of ``val`` as :class:`ShownPair`, in order; nothing if none were given.

        A plain loader, so that every process gets as many batches, as split weights need; Lightning's sampler gives some pairs to two
        processes for that.
        """
        if not self.val_rows:
            return []
        return DataLoader(self.val_rows, batch_size=self.batch_size, collate_fn=show, num_workers=self.num_workers)  # type: ignore[arg-type]

    def predict_dataloader(self) -> PairLoader:
        """All pairs, in order."""
        return self._loader()

    def test_dataloader(self) -> PairLoader:
        """All pairs, in order."""
        return self._loader()


def _sources(given: str | PreferenceSet | list[str | PreferenceSet] | None) -> dict[str, Any]:
    """Files and sets among what was given, as the fields of a :class:`PairStream`."""
    several = [] if given is None else given if isinstance(given, list) else [given]
    files = tuple(one for one in several if isinstance(one, str))
    return {"paths": files, "sets": tuple(one for one in several if not isinstance(one, str))}


def _rows_of(one: PreferenceSet) -> tuple[str, str, str]:
    """Which rows a set gives, wherever its files are."""
    return one.id, one.subset or one.format.subsets[0], one.split or one.format.splits[0]
