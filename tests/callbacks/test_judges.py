"""What diagnostics of the judge log of a real run whose reward has a known noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rationalrewards.callbacks.judges import JudgeDiagnostics
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.rewards import RewardModel, Rewards, judge_diagnostics
from rationalrewards.components.shapes.truth import ShapesTruth

pytestmark = tiny.QUIET


class Wavering(RewardModel):
    """The truth, which says 0.1 less when asked again: a noise of 0.1 / sqrt(2). It remembers whom it was asked about."""

    def __init__(self) -> None:
        self.again_asked: list[tuple[int, list[CritiqueRequest]]] = []

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        return ShapesTruth().score(requests)

    def again(self, requests: Sequence[CritiqueRequest], number: int) -> Rewards:
        self.again_asked.append((number, list(requests)))
        rewards = ShapesTruth().score(requests)
        rewards.total = rewards.total - 0.1
        return rewards


class Metrics(Callback):
    """What was logged in each round."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rounds.append({name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("judge/")})


def fit(train: Path, diagnostics: JudgeDiagnostics, reward: RewardModel, rounds: int) -> tuple[Any, Metrics]:
    metrics, module = Metrics(), tiny.rl_module(reward=reward, min_resolution=None)
    tiny.trainer(max_epochs=rounds, accumulate_grad_batches=4, callbacks=[diagnostics, metrics]).fit(module, tiny.rl_data(train))
    return module, metrics


def test_the_noise_of_a_run_is_found(tmp_path: Path) -> None:
    reward = Wavering()
    module, metrics = fit(tiny.requests(tmp_path, 4, edit_share=0.5), JudgeDiagnostics(every_n_epochs=2, groups=1), reward, 3)
    rollout = module.last_rollout
    # rounds 0 and 2, one group of four pictures each
    assert [(number, len(asked)) for number, asked in reward.again_asked] == [(1, 4), (3, 4)]
    last = reward.again_asked[-1][1]
    assert [request.prompt for request in last] == rollout.prompts[:4]
    assert [request.image for request in last] == rollout.images[:4]
    assert [len(request.sources) for request in last] == [len(record.sources) for record in rollout.records[:4]]
    expected = judge_diagnostics(rollout.rewards, rollout.groups, reward.again(last, 3), range(4))
    found = metrics.rounds[-1]
    # Lightning keeps float32
    assert found == {f"judge/{name}": pytest.approx(value, rel=1e-5) for name, value in expected.items()}
    assert found["judge/noise/total"] == pytest.approx(0.1 / 2**0.5, rel=1e-5)
    assert found["judge/noise/text_faithfulness"] == 0.0 and found["judge/unscored_again"] == 0.0


def test_without_repeats_nothing_is_scored_again(tmp_path: Path) -> None:
    reward = Wavering()
    _, metrics = fit(tiny.requests(tmp_path, 4), JudgeDiagnostics(every_n_epochs=1, groups=0), reward, 1)
    assert reward.again_asked == []
    assert "judge/spread/total" in metrics.rounds[0] and not any("noise" in name for name in metrics.rounds[0])


def test_diagnostics_leave_no_trace_in_the_training(tmp_path: Path) -> None:
    train = tiny.requests(tmp_path, 4)
    alone = tiny.rl_module(min_resolution=None)
    tiny.trainer(max_epochs=2, accumulate_grad_batches=4).fit(alone, tiny.rl_data(train))
    watched, _ = fit(train, JudgeDiagnostics(every_n_epochs=1), ShapesTruth(), 2)
    first, second = tiny.adapters(alone), tiny.adapters(watched)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_options_are_checked() -> None:
    for options in ({"every_n_epochs": 0}, {"groups": -1}):
        with pytest.raises(ValueError, match="every_n_epochs must be at least 1 and groups at least 0"):
            JudgeDiagnostics(**options)
