"""Batches are a function of (seed, epoch): complete, divisible among processes, and Lightning leaves them alone."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from rationalrewards.datamodules.batches import BatchPlan, length_grouped, planned_loader, world
from torch.utils.data import DistributedSampler


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 500), max_size=120), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3), st.integers(1, 5))
def test_length_grouped_batches_hold_every_row_once(lengths: list[int], size: int, seed: int, epoch: int, pool: int) -> None:
    batches = length_grouped(lengths, size, seed, epoch, pool)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert sum(len(batch) < size for batch in batches) <= 1
    assert batches == length_grouped(lengths, size, seed, epoch, pool)


def test_length_grouping_saves_padding_and_still_mixes() -> None:
    rng = random.Random(0)
    lengths = [rng.choice((50, 200, 900)) + rng.random() * 50 for _ in range(512)]

    def padding(batches: list[list[int]]) -> float:
        return sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches)

    grouped = length_grouped(lengths, 8, seed=1, epoch=0)
    shuffled = length_grouped(lengths, 8, seed=1, epoch=0, pool=1)
    assert padding(grouped) < padding(shuffled) / 4
    # short and long batches alternate instead of following each other, and every epoch has other batches
    means = [sum(lengths[i] for i in batch) / 8 for batch in grouped]
    assert means != sorted(means) and max(means[:16]) > 800 and min(means[:16]) < 200
    assert {frozenset(batch) for batch in grouped}.isdisjoint(
        {frozenset(batch) for batch in length_grouped(lengths, 8, seed=1, epoch=1)}
    )
    assert grouped != length_grouped(lengths, 8, seed=2, epoch=0)


def _plan() -> BatchPlan[list[int]]:
    return BatchPlan(lambda epoch, rank, processes: [[epoch, rank, processes, index] for index in range(3)], lambda processes: 3)


def test_a_plan_is_told_the_epoch_and_its_share() -> None:
    assert world() == (0, 1)
    plan = _plan()
    loader = planned_loader(plan, lambda item: ("fetched", *item))
    assert len(plan) == len(loader) == 3
    assert list(loader) == [("fetched", 0, 0, 1, index) for index in range(3)]
    plan.set_epoch(4)
    assert [item[1] for item in loader] == [4, 4, 4]


class _Listener(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[Any] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.seen.append(batch)
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_keeps_the_plan_and_tells_it_the_epoch() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = _Listener()
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    plan = _plan()
    assert isinstance(plan, DistributedSampler)  # what Lightning never replaces
    trainer.fit(module, planned_loader(plan, list))
    assert module.seen == [[epoch, 0, 1, index] for epoch in range(3) for index in range(3)]


@pytest.mark.parametrize("size", [1, 3])
def test_nothing_to_batch(size: int) -> None:
    assert length_grouped([], size, 0, 0) == []
