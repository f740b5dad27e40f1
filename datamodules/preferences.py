"""Preference pairs for rationalization and evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

from lightning.pytorch import LightningDataModule
from rationalrewards.components.records import Preference
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .batches import Batch, world
from .readers import PreferenceSet, iter_preferences
from .splits import Fold


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
    """

    paths: tuple[str, ...] = ()
    sets: tuple[PreferenceSet, ...] = ()
    limit: int | None = None
    decided_only: bool = False
    min_agreement: float = 0.5
    fold: Fold | None = None

    def __iter__(self) -> Iterator[Preference]:
        """All pairs that pass.

        Raises:
            ValueError: On a row that cannot be read, and in the end if there was no pair.
        """
        rows = chain(*map(iter_preferences, self.paths), *(one.read() for one in self.sets))
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
        share = islice(self.pairs, self.rank, None, self.processes)
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

    Pairs come in the order of files and sets, and are dealt out to the processes one by one, none twice. Every process reads all rows
    but keeps none, so that a set of any length takes the same memory, and a given number of processes the same batches.

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
        num_workers: Processes that read ahead. Each reads all rows, so that one does as much as many.

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
    ) -> None:
        super().__init__()
        files = (paths,) if isinstance(paths, str) else tuple(paths or ())
        if not files and not sets:
            raise ValueError("give `data.paths`: files of preference pairs, or `data.sets`: public sets of them")
        if not 0.5 <= min_agreement <= 1.0:
            raise ValueError(f"min_agreement is between 0.5 (a coin flip) and 1 (all agree), got {min_agreement}")
        given = [_rows_of(one) for one in sets or ()]
        for rows in given:
            if given.count(rows) > 1:
                raise ValueError(
                    f"set {' '.join(filter(None, rows))} is given twice; its pairs would have the same ids: take one out"
                )
        self.pairs = PairStream(files, tuple(sets or ()), limit, decided_only, min_agreement, fold)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.count: int | None = None
        """Pairs over all processes, at most; ``None`` where only reading a set, or the pictures for a fold, would tell."""

    def setup(self, stage: str) -> None:
        """Look through all files and into the sets, so that what is wrong with them comes up before a model is loaded.

        Raises:
            ValueError: If a file has a bad row, two files share an id, a set cannot be read, or there are no pairs.
        """
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

    def predict_dataloader(self) -> PairLoader:
        """All pairs, in order."""
        return self._loader()

    def test_dataloader(self) -> PairLoader:
        """All pairs, in order."""
        return self._loader()


def _rows_of(one: PreferenceSet) -> tuple[str, str, str]:
    """Which rows a set gives, wherever its files are."""
    return one.id, one.subset or one.format.subsets[0], one.split or one.format.splits[0]
