"""Batches as a function of (seed, epoch): the same on every machine, after every resume, for every rank's share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch.distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from rationalrewards.components.generation.noise import seed_for

T = TypeVar("T")


def world() -> tuple[int, int]:
    """``(rank, processes)`` of this process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class BatchPlan(DistributedSampler, Generic[T]):  # type: ignore[type-arg]
    """Yields this rank's batches of an epoch.

    It is a ``DistributedSampler`` so that Lightning leaves it in place and tells it the epoch.

    Args:
        plan: Gives all batches of an epoch, for every rank alike, as ``plan(epoch, rank, processes)``.
        length: Number of batches of one rank, as ``length(processes)``.
    """

    def __init__(self, plan: Callable[[int, int, int], Sequence[T]], length: Callable[[int], int]) -> None:
        self.plan = plan
        self.length = length
        self.epoch = 0
        self.done = (-1, 0)
        """Epoch of a resume, and how many of its batches were given before."""

    @property
    def skipped(self) -> int:
        """How many batches of the current epoch were given before a resume."""
        epoch, batches = self.done
        return batches if epoch == self.epoch else 0

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        return iter(self.plan(self.epoch, *world())[self.skipped :])

    def __len__(self) -> int:
        return self.length(world()[1])

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch


class Identity(Dataset[T]):
    """A data set whose items are what the sampler yields."""

    def __init__(self, fetch: Callable[[Any], T], length: int) -> None:
        self.fetch = fetch
        self.length = length

    def __getitem__(self, item: Any) -> T:
        return self.fetch(item)

    def __len__(self) -> int:
        return self.length


class PlannedLoader(DataLoader[Any]):
    """A loader of whole batches in the plan's order, which goes on where it was when a run is resumed in the middle of an epoch.

    Lightning keeps ``state_dict`` in its checkpoints and hands it back before the first batch.

    Args:
        plan: What to give, and when.
        fetch: Makes a batch of what the plan yields.
        num_workers: Processes that fetch ahead.
    """

    def __init__(self, plan: BatchPlan[Any], fetch: Callable[[Any], Any], num_workers: int = 0) -> None:
        super().__init__(Identity(fetch, len(plan)), batch_size=None, sampler=plan, num_workers=num_workers)
        self.batches = plan
        self._given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that nothing is planned or fetched before the first batch is wanted: after a resume Lightning makes
        # the iterator before it tells the plan its epoch.
        self._given = self.batches.skipped
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given."""
        return {"epoch": self.batches.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out what was given before, should that epoch go on."""
        self.batches.done = (state["epoch"], state["given"])


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
