"""Canaries in a real run whose reward can be hacked: it pays for brightness."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from PIL import Image
from rationalrewards.callbacks.canary import HackCanary
from rationalrewards.components.rewards import CanaryRule, FunctionReward
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.lightning_modules import RewardRLModule

pytestmark = tiny.QUIET

ROUNDS = 4


def brightness(prompt: str, image: Image.Image, sources: Any) -> float:
    """Mean value, 0 to 1."""
    return float(np.asarray(image).mean()) / 255


def darkness(prompt: str, image: Image.Image, sources: Any) -> float:
    """What brightness costs."""
    return 1 - brightness(prompt, image, sources)


def steep(parameters: Any) -> torch.optim.Optimizer:
    """Steps that show after one round."""
    return torch.optim.AdamW(parameters, lr=1e-2)


def module(**changes: Any) -> RewardRLModule:
    options = {"reward": FunctionReward(brightness), "optimizer": steep, "min_resolution": None, **changes}
    return tiny.rl_module(**options)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("prompts")
    return tiny.requests(folder / "train", 4), tiny.requests(folder / "canaries", 4, edit_share=0.5, seed=6)


def fit(canary: HackCanary, train: Path, rounds: int = ROUNDS, trained: RewardRLModule | None = None, **options: Any) -> Any:
    resume, callbacks = options.pop("ckpt_path", None), options.pop("callbacks", [])
    trainer = tiny.trainer(max_epochs=rounds, accumulate_grad_batches=4, callbacks=[canary, *callbacks], **options)
    trainer.fit(trained or module(), tiny.rl_data(train), ckpt_path=resume)
    return trainer


@pytest.mark.slow
def test_a_policy_that_only_pleases_its_reward_is_stopped(prompts: tuple[Path, Path], mlflow_uri: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"held_out": FunctionReward(darkness), "every_n_epochs": 1, "rule": CanaryRule(patience=1)}
    logger = MLFlowLogger("tests", tracking_uri=mlflow_uri, artifact_location=(tmp_path / "artifacts").as_uri())
    canary = HackCanary(str(prompts[1]), output_dir=str(tmp_path / "out"), **options)
    trainer = fit(canary, prompts[0], rounds=12, logger=logger, log_every_n_steps=1)
    assert trainer.current_epoch < 12  # stopped
    first, last = canary.checks[0], canary.checks[-1]
    assert (first.epoch, last.epoch) == (0, trainer.current_epoch)
    # nothing is trained yet: the adapter adds exactly nothing
    assert first.kl == 0.0 < last.kl
    assert torch.allclose(first.reward + first.held_out, torch.ones(8, dtype=torch.float64), atol=1e-6)
    assert last.reward.mean() > first.reward.mean()
    assert canary.stopped.startswith(f"stopped after round {last.epoch - 1}: since round ")
    assert "the training reward of the canaries rose by" in canary.stopped

    lines = [json.loads(line) for line in (tmp_path / "out" / "canaries.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(last.epoch + 1))
    assert all(line["bad"] == "" for line in lines[:-1]) and lines[-1]["bad"] in canary.stopped
    assert lines[-1]["reward"] == pytest.approx(float(last.reward.mean())) and lines[-1]["kl"] == last.kl
    with Image.open(tmp_path / "out" / f"canaries_{last.epoch:05d}.png") as sheet:
        assert sheet.height > 4 * 100  # a row for each request
    client, run_id = mlflow.MlflowClient(mlflow_uri), logger.run_id or ""
    assert client.get_run(run_id).data.tags["rationalrewards.stopped"] == canary.stopped
    assert f"canaries/{last.epoch:05d}_pictures.png" in [entry.path for entry in client.list_artifacts(run_id, "canaries")]
    history = client.get_metric_history(run_id, "canary/reward")
    assert [point.value for point in sorted(history, key=lambda point: point.step)] == pytest.approx(
        [line["reward"] for line in lines], abs=1e-6
    )


def test_canaries_leave_no_trace_in_the_training(prompts: tuple[Path, Path]) -> None:
    alone, watched = module(), module()
    tiny.trainer(max_epochs=2, accumulate_grad_batches=4).fit(alone, tiny.rl_data(prompts[0]))
    canary = HackCanary(str(prompts[1]), FunctionReward(darkness), every_n_epochs=1, stop=False, rule=CanaryRule(patience=1))
    fit(canary, prompts[0], 2, watched)
    assert [check.epoch for check in canary.checks] == [0, 1, 2]
    first, second = tiny.adapters(alone), tiny.adapters(watched)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_resumed_run_has_the_checks_of_an_uninterrupted_one(prompts: tuple[Path, Path], tmp_path: Path) -> None:
    def canary() -> HackCanary:
        return HackCanary(str(prompts[1]), ShapesTruth(), every_n_epochs=2, limit=2, copies=1)

    whole, half, rest = canary(), canary(), canary()
    fit(whole, prompts[0])
    kept = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    fit(half, prompts[0], 2, callbacks=[kept], enable_checkpointing=True)
    path = shutil.copy(tmp_path / "last.ckpt", tmp_path / "half.ckpt")
    fit(rest, prompts[0], ckpt_path=path, callbacks=[kept], enable_checkpointing=True)
    assert [check.epoch for check in rest.checks] == [0, 2, 4]
    for one, other in zip(whole.checks, rest.checks, strict=True):
        assert torch.equal(one.reward, other.reward) and torch.equal(one.held_out, other.held_out) and one.kl == other.kl
    wider = HackCanary(str(prompts[1]), ShapesTruth(), limit=3, copies=1)
    with pytest.raises(ValueError, match="drawn for other requests than .* has now: give the same file and limit"):
        fit(wider, prompts[0], ckpt_path=path, callbacks=[kept], enable_checkpointing=True)


def test_the_witness_is_held_out_where_no_other_judge_is_given(prompts: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="needs a judge that is not trained on"):
        fit(HackCanary(str(prompts[1])), prompts[0])
    canary = HackCanary(str(prompts[1]), every_n_epochs=1, limit=2, copies=1)
    trainer = fit(canary, prompts[0], 1, module(witness=ShapesTruth()))
    assert float(trainer.callback_metrics["canary/held_out"]) == pytest.approx(float(canary.checks[-1].held_out.mean()))


def test_options_are_checked(prompts: tuple[Path, Path]) -> None:
    for name in ("every_n_epochs", "limit", "copies", "levels"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            HackCanary("prompts.jsonl", **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has 1 requests; HackCanary compares over at least 2"):
        fit(HackCanary(str(prompts[1]), ShapesTruth(), limit=1), prompts[0])
