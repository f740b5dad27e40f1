"""Distillation under the shipped DDP, DeepSpeed and FSDP2 settings on two real CPU processes: train, save, resume, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rationalrewards.components.critique import CritiqueFormat, check_fingerprint
from rationalrewards.lightning_modules import RationaleDistillModule
from support import needs, needs_compiler, run_python
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

pytestmark = [*tiny.QUIET, pytest.mark.slow]

PROGRAM = Path(__file__).with_name("fit_distill.py")
DEEPSPEED = [needs("deepspeed"), needs_compiler]
STRATEGIES = [
    pytest.param("ddp"),
    pytest.param("deepspeed_zero1", marks=DEEPSPEED),
    pytest.param("deepspeed_zero2", marks=DEEPSPEED),
    pytest.param("deepspeed_zero3", marks=DEEPSPEED),
    pytest.param("fsdp2"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Rationales for 8 batches of two rows, four for each process, and pairs to validate on."""
    folder = tmp_path_factory.mktemp("data")
    written = tiny.rationales(folder, 24)
    lines = written.read_text().splitlines()
    assert len(lines) >= 8
    written.write_text("".join(line + "\n" for line in lines[:8]))
    return written, tiny.pairs(folder / "pairs", 4)


def alone(rationales: Path, **options: Any) -> RationaleDistillModule:
    """Four steps in one process: four batches a step are twice two of two processes."""
    module = tiny.distill_module(optimizer=tiny.smooth, freeze_vision=True, freeze_projector=True, **options)
    trainer = tiny.trainer(max_steps=4, accumulate_grad_batches=4, gradient_clip_val=1.0)
    trainer.fit(module, tiny.distill_data(rationales, pairwise=False))
    return module


def run(fragment: str, data: tuple[Path, Path], out: Path, *more: str | Path) -> dict[str, Any]:
    out.mkdir()
    arguments = [PROGRAM, fragment, *data, out, "4", *more]
    done = run_python(arguments, timeout=580, env={"PYTHONPATH": str(Path(__file__).parents[1])})
    assert done.returncode == 0, done.stderr[-6000:]
    return dict(json.loads((out / "said.json").read_text()))


def weights(folder: Path) -> dict[str, Tensor]:
    """The exported critic's weights, by way of what anybody would load it with."""
    assert AutoProcessor.from_pretrained(str(folder)).tokenizer.padding_side == "left"
    check_fingerprint(folder, CritiqueFormat("shapes"))
    return dict(AutoModelForImageTextToText.from_pretrained(str(folder)).state_dict())


def furthest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("fragment", STRATEGIES)
def test_trains_saves_resumes_and_exports(fragment: str, data: tuple[Path, Path], tmp_path: Path) -> None:
    straight = run(fragment, data, tmp_path / "straight")
    assert straight["steps"] == 4
    # untrained, and cut off after eight tokens: nothing to read, but both processes generated to the end
    assert straight["metrics"]["val/unscored_rate"] == 1.0
    module = alone(data[0])
    whole = sum(parameter.numel() for parameter in module.parameters())
    if fragment in ("ddp", "deepspeed_zero1", "deepspeed_zero2"):
        assert straight["held"] == whole
    else:  # half, but for what does not divide by two
        assert straight["held"] == pytest.approx(whole / 2, rel=0.02)
    trained, plain = weights(tmp_path / "straight" / "critic"), dict(module.student.state_dict())
    moved = furthest(weights_before(), plain)
    # float32 sums in another order, over four steps of at most 1e-3 each
    assert furthest(trained, plain) < 2e-6 < 1e-3 * moved
    average = weights(tmp_path / "straight" / "average")
    assert 0.1 * moved < furthest(average, plain) < moved

    checkpoint = tmp_path / "straight" / "checkpoints" / "step=3.ckpt"
    assert checkpoint.is_dir() != (fragment == "ddp")
    resumed = run(fragment, data, tmp_path / "resumed", "--resume", checkpoint)
    assert (resumed["steps"], len(resumed["losses"])) == (4, 2)
    assert resumed["losses"] == straight["losses"][6:]
    assert furthest(weights(tmp_path / "resumed" / "critic"), trained) == 0.0
    assert furthest(weights(tmp_path / "resumed" / "average"), average) == 0.0


def weights_before() -> dict[str, Tensor]:
    module = tiny.distill_module()
    module.configure_model()
    return dict(module.student.state_dict())


@needs("deepspeed")
@needs_compiler
def test_a_lora_starts_as_nothing_under_zero3_and_is_merged_on_export(data: tuple[Path, Path], tmp_path: Path) -> None:
    run("deepspeed_zero3", data, tmp_path / "lora", "--lora")
    plain = alone(data[0], lora_rank=2)
    plain.export(str(tmp_path / "plain"))
    trained, expected = weights(tmp_path / "lora" / "critic"), weights(tmp_path / "plain")
    before = weights_before()
    changed = {name for name in before if not torch.equal(before[name], trained[name])}
    assert changed == {name for name in before if not torch.equal(before[name], expected[name])}
    # the processes' LoRAs start from other random numbers than the one of this process, but at zero: three small steps away
    assert 0 < furthest(trained, before) < 10 * furthest(expected, before)
