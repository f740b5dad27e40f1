"""When the guard stops a run whose metrics are scripted, and when it lets it go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
import tiny
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import RandomDataset
from lightning.pytorch.loggers import MLFlowLogger
from rationalrewards.callbacks import ResolutionGuard
from torch.utils.data import DataLoader

pytestmark = [*tiny.QUIET, pytest.mark.filterwarnings("ignore:The number of training batches")]

RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
LOST = [0.5, 0.4, 0.3, 0.0, 0.0, 0.0]
"""Correlations: the mean of two is below 0.05 for the first time in round 4."""
NAN = math.nan


class Scripted(LightningModule):
    """Logs, in round n, the n-th value of every metric; None logs nothing."""

    def __init__(self, script: Mapping[str, Sequence[float | None]]) -> None:
        super().__init__()
        self.script = script
        self.layer = torch.nn.Linear(4, 1)

    def on_train_epoch_start(self) -> None:
        for name, values in self.script.items():
            value = values[self.current_epoch]
            if value is not None:
                self.log(f"train/{name}", value)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(RandomDataset(4, 1))


def fit(guard: ResolutionGuard, script: Mapping[str, Sequence[float | None]], **options: Any) -> int:
    """Train for as many rounds as the script has; how many were finished."""
    ckpt_path, callbacks = options.pop("ckpt_path", None), options.pop("callbacks", [])
    rounds = options.pop("max_epochs", len(next(iter(script.values()))))
    trainer: Trainer = tiny.trainer(max_epochs=rounds, callbacks=[guard, *callbacks], **options)
    trainer.fit(Scripted(script), ckpt_path=ckpt_path)
    return trainer.current_epoch


def test_stops_when_the_reward_rises_on_noise() -> None:
    for witness, moved in (
        ([0.5] * 6, "from 0.500 to 0.500"),
        (RISING, "from 0.250 to 0.450"),
        (RISING[::-1], "from 0.450 to 0.250"),
    ):
        guard = ResolutionGuard(window=2)
        # window of rounds 1 and 2 against that of 3 and 4, whatever the witness does
        assert fit(guard, {"reward": RISING, "truth": witness, "within_group_corr": LOST}) == 5
        assert guard.stopped.startswith("stopped at round 4: the reward rose from 0.250 to 0.450")
        assert "correlation with the witness is 0.00, below 0.05" in guard.stopped
        assert f"(the witness went {moved})" in guard.stopped


@pytest.mark.parametrize(
    ("reward", "correlation"),
    [(RISING, [0.5] * 6), (RISING, [0.0, 0.0, 0.2, 0.2, 0.2, 0.2]), (RISING[::-1], [0.0] * 6), ([0.5] * 6, [0.0] * 6)],
    ids=["resolution is fine", "resolution came", "the reward falls", "the reward stays"],
)
def test_goes_on(reward: list[float], correlation: list[float]) -> None:
    guard = ResolutionGuard(window=2)
    # flat groups are no reason of their own where a witness says what the rest is worth
    script = {"reward": reward, "truth": [0.5] * 6, "within_group_corr": correlation, "flat_groups": [1.0] * 6}
    assert fit(guard, script) == 6
    assert guard.stopped == ""


def test_two_windows_are_needed() -> None:
    guard = ResolutionGuard(window=3)
    assert fit(guard, {"reward": RISING[:5], "truth": [0.5] * 5, "within_group_corr": [0.0] * 5}) == 5
    assert guard.stopped == ""


def test_stops_without_a_witness_when_the_groups_are_flat() -> None:
    script = {"reward": RISING, "flat_groups": [0.5, 1.0, 0.5, 1.0, 0.875, 0.875]}
    guard = ResolutionGuard(window=2, max_flat=0.75)
    # means of two: three times 0.75, which is not above it, then 0.9375
    assert fit(guard, script) == 5
    assert guard.stopped == (
        "stopped at round 4: in 94 % of the groups of the last 2 rounds all pictures got the same reward: nothing is left to learn from"
    )
    assert ResolutionGuard().max_flat == 0.9
    for options in ({"max_flat": 0.9375}, {"window": 6}):
        patient = ResolutionGuard(**{"window": 2, "max_flat": 0.8, **options})
        assert fit(patient, script) == 6
        assert patient.stopped == ""


def test_with_a_witness_groups_that_are_all_flat_have_no_correlation() -> None:
    guard = ResolutionGuard(window=2)
    script = {
        "reward": [1.0] * 6,
        "truth": [0.5] * 6,
        "within_group_corr": [0.5, NAN, 0.5, NAN, NAN, NAN],
        "flat_groups": [1.0] * 6,
    }
    # the flat round 1 is not consecutive with round 3
    assert fit(guard, script) == 5
    assert "stopped at round 4" in guard.stopped and "nothing is left to learn from" in guard.stopped


def test_rounds_without_numbers_are_skipped() -> None:
    guard = ResolutionGuard(window=1)
    # nothing scored in rounds 1 and 2: round 3 is compared with round 0
    script = {"reward": [0.1, NAN, NAN, 0.2, 0.3], "truth": [0.5] * 5, "within_group_corr": [0.5, 0.0, NAN, 0.0, 0.0]}
    assert fit(guard, {**script, "flat_groups": [0.0, 1.0, 1.0, 0.0, 0.0]}) == 4
    assert "rose from 0.100 to 0.200" in guard.stopped
    silent = ResolutionGuard(window=1)
    assert fit(silent, {"loss": [1.0] * 3}) == 3
    assert fit(silent, {"reward": RISING[:3]}) == 3
    assert silent.stopped == ""


def test_a_resumed_run_goes_on_with_the_window(tmp_path: Path) -> None:
    script = {"reward": RISING, "truth": [0.5] * 6, "within_group_corr": LOST}
    kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    options: dict[str, Any] = {"callbacks": [kept], "enable_checkpointing": True}
    assert fit(ResolutionGuard(window=2), script, max_epochs=3, **options) == 3
    guard = ResolutionGuard(window=2)
    # without the three rounds of the first run, round 4 would be the second of a first window
    assert fit(guard, script, ckpt_path=tmp_path / "epoch=2.ckpt", **options) == 5
    assert "stopped at round 4: the reward rose from 0.250 to 0.450" in guard.stopped
    stored = torch.load(tmp_path / "epoch=4.ckpt", weights_only=False)["callbacks"]["ResolutionGuard"]
    assert stored["stopped"] == guard.stopped
    assert stored["rounds"] == [(pytest.approx(RISING[i]), 0.5, pytest.approx(LOST[i])) for i in (1, 2, 3, 4)]


def test_a_resumed_run_without_a_witness_goes_on_with_the_window(tmp_path: Path) -> None:
    script = {"reward": [0.5] * 4, "flat_groups": [1.0] * 4}
    kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    options: dict[str, Any] = {"callbacks": [kept], "enable_checkpointing": True}
    assert fit(ResolutionGuard(window=3), script, max_epochs=2, **options) == 2
    assert fit(ResolutionGuard(window=3), script, ckpt_path=tmp_path / "epoch=1.ckpt", **options) == 3


def test_the_run_in_mlflow_says_why(mlflow_uri: str, tmp_path: Path) -> None:
    tags = []
    for flat in (1.0, 0.5):
        logger = MLFlowLogger("tests", tracking_uri=mlflow_uri, artifact_location=(tmp_path / "artifacts").as_uri())
        guard = ResolutionGuard(window=2)
        fit(guard, {"reward": [0.5] * 3, "flat_groups": [flat] * 3}, logger=logger)
        tags.append(mlflow.MlflowClient(mlflow_uri).get_run(logger.run_id or "").data.tags.get("rationalrewards.stopped"))
    # the second run went through
    assert tags[0] is not None and tags[0].startswith("stopped at round 1: in 100 % of the groups")
    assert tags[1] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"window": 0}, "window must be at least 1, got 0"), ({"max_flat": 1.1}, "max_flat is a share between 0 and 1, got 1.1")],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResolutionGuard(**options)
