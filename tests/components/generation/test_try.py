"""``python -m rationalrewards.components.generation FOLDER``: any pipeline, tried."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rationalrewards.components.generation.__main__ import main

SMALL = ["--set", "height=16", "--set", "width=16", "--set", "max_sequence_length=32"]


def _saved(build: Callable[[str], Any], name: str, folder: Path) -> str:
    build(name).save_pretrained(folder / name)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "learned", "switched"),
    [
        ("sd3", "sample = hidden_states (whole), time = timestep (t), velocity = output", "guidance_scale=1.0"),
        ("z-image", "sample = x (list), time = t ((1000-t)/1000), velocity = -stacked list", "guidance_scale=0.0"),
    ],
)
def test_what_was_learned_and_proved_is_printed(
    build: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, learned: str, switched: str
) -> None:
    assert main([_saved(build, name, tmp_path), *SMALL, "--steps", "2"]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["pipeline"].startswith(type(build(name)).__name__)
    assert printed["learned"] == learned
    assert printed["proved"] == "2 recorded steps replayed, largest difference 0"
    assert switched in printed["arguments"] and "had to be switched off" in printed["arguments"]
    assert printed["latents"].startswith("(2, 4, 8, 8), noise levels 1.000") and printed["prompts"] == "several per call"
    assert printed["adapters"] == "saved for load_lora_weights"


def test_an_editing_pipeline_of_one_prompt_per_call(
    build: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "source.png")
    folder = _saved(build, "qwen-edit-plus", tmp_path)
    options = ["--set", "height=16", "--set", "width=16", "--image", str(tmp_path / "source.png")]
    assert main([folder, *options]) == 0
    printed = capsys.readouterr().out
    assert "velocity = first tokens of output" in printed and "one per call" in printed
    # asked for guidance, so it is not switched off
    assert main([folder, *options, "--set", "true_cfg_scale=4.0", "--set", "negative_prompt=blurred"]) == 1
    assert capsys.readouterr().out.startswith(
        "refused: QwenImageEditPlusPipeline called its denoiser 6 times for 3 steps; switch"
    )


def test_why_a_pipeline_is_refused(
    build: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["generation", _saved(build, "sdxl", tmp_path)])
    monkeypatch.delitem(sys.modules, main.__module__)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("rationalrewards.components.generation", run_name="__main__")
    assert stopped.value.code == 1
    assert capsys.readouterr().out.startswith(
        "refused: StableDiffusionXLPipeline with DDIMScheduler (prediction_type 'epsilon') is not"
    )
    assert main([str(tmp_path / "nothing here")]) == 1
    said = capsys.readouterr().out
    assert "does not load as a diffusers pipeline (there is no such folder here" in said
    with pytest.raises(SystemExit, match="--set takes NAME=VALUE, got 'height'"):
        main([str(tmp_path), "--set", "height"])
