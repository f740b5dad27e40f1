"""A preference head on two real CPU processes, whole or split: what one process learns, from the same pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.records import Preference, read_jsonl
from rationalrewards.components.rewards import PreferenceHeadReward
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.lightning_modules import PreferenceRewardModule
from support import needs, needs_compiler, run_python
from torch import Tensor

pytestmark = [*tiny.QUIET, pytest.mark.slow]

PROGRAM = Path(__file__).with_name("fit_preference.py")
DEEPSPEED = [needs("deepspeed"), needs_compiler]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Eight pairs to learn, and five to validate: an odd number for two processes."""
    folder = tmp_path_factory.mktemp("pairs")
    return tiny.pairs(folder / "train", 8), tiny.pairs(folder / "val", 5, seed=4)


def module(loss: Any = "ties") -> PreferenceRewardModule:
    """The program's."""
    return PreferenceRewardModule("embedded:shapes-critic", CritiqueFormat("shapes"), loss, optimizer=tiny.smooth, max_length=512)


def weights(folder: Path) -> dict[str, Tensor]:
    reward = PreferenceHeadReward(str(folder), CritiqueFormat("shapes"))
    reward.load("cpu")
    assert reward.model is not None
    return dict(reward.model.state_dict())


def furthest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        "fsdp2",
        pytest.param("deepspeed_zero2", marks=DEEPSPEED),
        pytest.param("deepspeed_zero3", marks=DEEPSPEED),
    ],
)
def test_two_processes_learn_what_one_does(strategy: str, pairs: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = [PROGRAM, strategy, *pairs, tmp_path]
    done = run_python(arguments, timeout=580, env={"PYTHONPATH": str(Path(__file__).parents[1])})
    assert done.returncode == 0, done.stderr[-6000:]
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["steps"] == 2
    # two batches a step are the two batches of two processes
    alone = module()
    alone.configure_model()
    before = {name: value.detach().clone() for name, value in alone.model.state_dict().items()}  # type: ignore[union-attr]
    trainer = tiny.trainer(max_steps=2, accumulate_grad_batches=2, gradient_clip_val=1.0, val_check_interval=4)
    trainer.fit(alone, PreferenceDataModule(train=str(pairs[0]), val=str(pairs[1]), batch_size=2, seed=1))
    plain = {name: value.detach() for name, value in alone.model.state_dict().items()}  # type: ignore[union-attr]
    # float32 sums in another order, over two steps of at most 1e-3 each
    assert furthest(weights(tmp_path / "head"), plain) < 2e-6 < 2e-3 * furthest(before, plain)
    decided = sum(pair.winner != "tie" for pair in read_jsonl(pairs[1], Preference))
    for name in ("val/pair_accuracy", "val/loss"):
        # each pair once, though Lightning's sampler fills up the odd one; losses in float32, in other batches
        assert said["metrics"][name] == pytest.approx(float(trainer.callback_metrics[name]), abs=1e-4)
    assert said["metrics"]["val/pair_accuracy"] * decided == pytest.approx(
        round(said["metrics"]["val/pair_accuracy"] * decided), abs=1e-4
    )
    whole = sum(parameter.numel() for parameter in alone.parameters())
    # a share of what does not divide by two is filled up
    assert said["held"] == (whole if strategy in ("ddp", "deepspeed_zero2") else pytest.approx(whole / 2, rel=0.02))


@needs("deepspeed")
@needs_compiler
def test_a_lora_and_an_uncertainty_under_zero3(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = [PROGRAM, "deepspeed_zero3", *pairs, tmp_path, "--lora", "--loss", "gaussian"]
    done = run_python(arguments, timeout=580, env={"PYTHONPATH": str(Path(__file__).parents[1])})
    assert done.returncode == 0, done.stderr[-6000:]
    start = module("gaussian")
    start.configure_model()
    before = dict(start.model.state_dict())  # type: ignore[union-attr]
    trained = weights(tmp_path / "head")
    moved = {name for name in before if not torch.equal(before[name], trained[name])}
    assert any(name.startswith("head.") for name in moved) and any(".language_model." in name for name in moved)
    assert not any(".visual." in name for name in moved)
    # two steps of at most 1e-3, of the head and of a LoRA that starts at zero
    assert furthest(before, trained) < 0.01
