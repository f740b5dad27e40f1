"""Batches are a function of (seed, epoch): complete, divisible among processes, and Lightning leaves them alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from rationalrewards.datamodules.batches import BatchPlan, PlannedLoader, length_grouped, world


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
    return BatchPlan(lambda epoch, rank, processes: [[epoch, rank, processes, index] for index in range(4)], lambda processes: 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plan_is_told_the_epoch_and_its_share(workers: int) -> None:
    assert world() == (0, 1)
    plan = _plan()
    loader = PlannedLoader(plan, _fetched, workers)
    assert len(plan) == len(loader) == 4
    assert list(loader) == [["fetched", 0, 0, 1, index] for index in range(4)]
    plan.set_epoch(4)
    assert [item[1] for item in loader] == [4, 4, 4, 4]


def _fetched(item: list[int]) -> list[Any]:
    return ["fetched", *item]


@pytest.mark.parametrize("given", range(5))
def test_an_interrupted_epoch_goes_on_with_the_next_batch(given: int) -> None:
    loader = PlannedLoader(_plan(), list)
    loader.sampler.set_epoch(2)
    batches = iter(loader)
    before = [next(batches) for _ in range(given)]
    state = loader.state_dict()

    resumed = PlannedLoader(_plan(), list)
    resumed.load_state_dict(state)
    following = iter(resumed)  # made before the epoch is told, as Lightning does
    resumed.sampler.set_epoch(2)
    after = list(following)
    assert before + after == [[2, 0, 1, index] for index in range(4)]
    assert resumed.state_dict() == {"epoch": 2, "given": 4}  # a second interruption would count from the start
    resumed.sampler.set_epoch(3)
    assert len(list(resumed)) == 4  # the next epoch is whole


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


def _trainer(**settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(accelerator="cpu", **{**quiet, **settings})


def test_lightning_keeps_the_plan_and_tells_it_the_epoch() -> None:
    module = _Listener()
    _trainer(max_epochs=3).fit(module, PlannedLoader(_plan(), list))
    assert module.seen == [[epoch, 0, 1, index] for epoch in range(3) for index in range(4)]


class _Save(Callback):
    """Saves in the middle of a run, as a checkpoint every so many steps does, and has no state of its own."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 8])
def test_lightning_resumes_in_the_middle_of_an_epoch(tmp_path: Path, steps: int) -> None:
    path = tmp_path / "middle.ckpt"
    whole, rest = _Listener(), _Listener()
    _trainer(max_epochs=3, callbacks=[_Save(steps, path)]).fit(whole, PlannedLoader(_plan(), list))
    _trainer(max_epochs=3).fit(rest, PlannedLoader(_plan(), list), ckpt_path=str(path))
    assert len(whole.seen) == 12
    assert rest.seen == whole.seen[steps:]


@pytest.mark.parametrize("size", [1, 3])
def test_nothing_to_batch(size: int) -> None:
    assert length_grouped([], size, 0, 0) == []
