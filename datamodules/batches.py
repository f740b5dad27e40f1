"""Batches as a function of (seed, epoch): the same on every machine, after every resume, for every rank's share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch.distributed
from rationalrewards.components.seeds import seed_for
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")


def world() -> tuple[int, int]:
    """``(rank, processes)`` of this process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class Batch(Generic[T]):
    """Records that go through a step together.

    Neither a ``Sequence`` nor a dataclass, on purpose: with bf16-true, ZeRO and FSDP2 Lightning looks through those for tensors to
    convert, and stops at our frozen records.

    Args:
        records: The records.
    """

    def __init__(self, records: Iterable[T]) -> None:
        self.records = tuple(records)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[T]:
        return iter(self.records)

    def __getitem__(self, index: int) -> T:
        return self.records[index]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class StepBatch(Batch[T]):
    """A micro-batch that knows what an optimizer step is of.

    Args:
        records: Its rows, ready for the model.
        later: Answers of the rows that this process has in the later micro-batches of the same step; ``None`` in those themselves.
    """

    def __init__(self, records: Iterable[T], later: Iterable[str] | None = ()) -> None:
        super().__init__(records)
        self.later = None if later is None else tuple(later)


class BatchPlan(Generic[T]):
    """Yields this rank's batches of an epoch.

    Args:
        plan: Gives all batches of an epoch, for every rank alike, as ``plan(epoch, rank, processes)``.
        length: Number of batches of one rank, as ``length(processes)``.
    """

    def __init__(self, plan: Callable[[int, int, int], Sequence[T]], length: Callable[[int], int]) -> None:
        self.plan = plan
        self.length = length
        self.epoch = 0
        self.done = (-1, 0)
        """Epoch in which a run was interrupted, and how many of its batches were given by then."""

    @property
    def skipped(self) -> int:
        """How many batches of the current epoch were given before the run was interrupted."""
        epoch, batches = self.done
        return batches if epoch == self.epoch else 0

    def __iter__(self) -> Iterator[T]:
        return iter(self.plan(self.epoch, *world())[self.skipped :])

    def __len__(self) -> int:
        return self.length(world()[1])

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch


class _Fetch(Dataset[T]):
    """A data set whose items are made of what the plan yields."""

    def __init__(self, fetch: Callable[[Any], T], length: int) -> None:
        self.fetch = fetch
        self.length = length

    def __getitem__(self, item: Any) -> T:
        return self.fetch(item)

    def __len__(self) -> int:
        return self.length


class PlannedLoader:
    """Whole batches in a plan's order; resumed in the middle of an epoch it goes on with the next batch.

    No ``DataLoader`` itself, so that Lightning leaves plan and batches in place under every strategy. It tells ``sampler`` the epoch,
    keeps ``state_dict`` in its checkpoints, and hands it back before the first batch.

    Args:
        plan: What to give, and when.
        fetch: Makes a batch of what the plan yields.
        num_workers: Processes that fetch ahead.
    """

    def __init__(self, plan: BatchPlan[Any], fetch: Callable[[Any], Any], num_workers: int = 0) -> None:
        self.sampler = plan
        self.num_workers = num_workers
        self._fetch = fetch
        self._given = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that nothing is planned or fetched before the first batch is wanted: after a resume Lightning makes the
        # iterator before it tells the plan its epoch.
        self._given = self.sampler.skipped
        data = _Fetch(self._fetch, len(self.sampler))
        for batch in DataLoader(data, batch_size=None, sampler=self.sampler, num_workers=self.num_workers):
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given."""
        return {"epoch": self.sampler.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out what was given before, should that epoch go on."""
        self.sampler.done = (state["epoch"], state["given"])


def length_grouped(lengths: Sequence[float], batch_size: int, seed: int, epoch: int, pool: int = 16) -> list[list[int]]:
    """Batches of indices of similar length, in random order.

    Args:
        lengths: Estimated length of every row.
        batch_size: Rows per batch; a last incomplete batch is kept.
        seed: Seed.
        epoch: Epoch; every epoch has other batches.
        pool: Batches that are sorted by length together; larger pools waste less padding and mix less.
    """
    rng = random.Random(seed_for(seed, "rows", epoch))
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * pool):
        part = sorted(order[start : start + batch_size * pool], key=lambda index: lengths[index])
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    rng.shuffle(batches)
    return batches
