"""The schedule against its formula, and as an init arg of a config."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LRSchedulerCallable
from rationalrewards.lightning_modules.schedules import CosineWithWarmup
from torch.optim.lr_scheduler import LRScheduler


def rates(scheduler: LRScheduler, steps: int) -> list[float]:
    """The learning rate of each of the first steps."""
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def sgd(lr: float = 2.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def test_warms_up_then_falls_along_the_cosine() -> None:
    seen = rates(CosineWithWarmup(sgd(2.0), total_steps=20, warmup=0.2), 23)
    # by hand: 4 steps of warm-up; the peak at step 4, half at step 12, nothing at step 20 and after
    assert seen[:5] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert seen[12] == pytest.approx(1.0)
    assert seen[8] == pytest.approx(2.0 * (1 + math.sqrt(0.5)) / 2)
    # cos(pi) + 1 is exact to rounding only
    assert seen[20:] == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)


def test_equals_the_schedule_of_transformers() -> None:
    from transformers import get_cosine_schedule_with_warmup

    # 7 % of 53 steps is no whole number: both round the warm-up up
    steps, ratio = 53, 0.07
    ours = rates(CosineWithWarmup(sgd(1e-5), steps, ratio), steps)
    theirs = rates(get_cosine_schedule_with_warmup(sgd(1e-5), math.ceil(steps * ratio), steps), steps)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_keeps_the_final_share_and_may_start_at_the_top() -> None:
    seen = rates(CosineWithWarmup(sgd(1.0), total_steps=10, warmup=0.0, final=0.1), 12)
    assert seen[0] == 1.0
    assert seen[5] == pytest.approx(0.1 + 0.9 / 2)
    assert seen[10:] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
        ({"total_steps": -1}, "give the optimizer steps of the whole run"),
        ({"total_steps": 5, "warmup": 1.0}, "warmup is the share"),
        ({"total_steps": 5, "final": 1.5}, "final is the share"),
    ],
)
def test_refuses_what_is_no_schedule(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CosineWithWarmup(sgd(), **arguments)


def test_is_an_init_arg_of_a_config() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--scheduler", type=LRSchedulerCallable)
    path = "rationalrewards.lightning_modules.schedules.CosineWithWarmup"
    config = parser.parse_object({"scheduler": {"class_path": path, "init_args": {"total_steps": 10, "warmup": 0.5}}})
    scheduler = parser.instantiate(config).scheduler(sgd(2.0))
    assert rates(scheduler, 6) == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6, 2.0])
