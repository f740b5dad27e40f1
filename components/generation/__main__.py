"""Try a diffusers pipeline: ``python -m rationalrewards.components.generation FOLDER``.

Loads any pipeline that ``DiffusionPipeline.from_pretrained`` loads, records a short sample and prints what was learned from it and
proved, or why the pipeline is refused. Exit code 0 where it can be trained, 1 where not.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ..checkpoints import resolve
from .tape import GuidedPipelineError, PipelineTape, Recording, UnprovenPipelineError

PROMPTS = ("a red circle", "a small green square to the left of a large blue triangle")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rationalrewards.components.generation",
        description="Records a short sample of a diffusers pipeline, and prints what was learned and proved, or why it is refused.",
    )
    parser.add_argument("folder", help="folder (or hub id) of the pipeline")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="source picture, for editing; may be repeated"
    )
    parser.add_argument("--steps", type=int, default=3, help="sampling steps to record (default: 3)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the pipeline's call, the value as JSON, e.g. height=512; may be repeated",
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="weight type (default: float32)"
    )
    parser.add_argument("--device", default="cpu", help="device (default: cpu)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest replay difference to accept (default: 0)")
    return parser


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found:
            raise SystemExit(f"--set takes NAME=VALUE, got {pair!r}")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def _without_guidance(pipe: Any, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """As asked for, and then with the switches of classifier-free guidance that diffusers' pipelines have, one after the other."""
    yield {}
    known = inspect.signature(pipe.__call__).parameters
    off: list[dict[str, Any]] = [
        {"guidance_scale": 1.0},
        {"true_cfg_scale": 1.0},
        {"guidance_scale": 1.0, "true_cfg_scale": 1.0},
        {"guidance_scale": 0.0},
    ]
    yield from (change for change in off if change.keys() <= known.keys() and not change.keys() & settings.keys())


def _record(
    tape: PipelineTape, settings: dict[str, Any], steps: int, images: list[Image.Image]
) -> tuple[Recording, dict[str, Any]]:
    """A recording, and the arguments that it needed."""
    refusal: UnprovenPipelineError | None = None
    for change in _without_guidance(tape.pipe, settings):
        arguments = {**settings, **change, "num_inference_steps": steps}
        if images:
            arguments["image"] = images[0] if len(images) == 1 else images
        try:
            return _record_batch(tape, arguments), change
        except GuidedPipelineError as error:
            refusal = error
    assert refusal is not None
    raise refusal


def _record_batch(tape: PipelineTape, arguments: dict[str, Any]) -> Recording:
    def record(prompts: Sequence[str]) -> Recording:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        return tape.record(**arguments, prompt=list(prompts), generator=generators)

    try:
        return record(PROMPTS)
    except UnprovenPipelineError:
        raise
    except ValueError:  # some take one prompt per call
        return record(PROMPTS[:1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(argv)
    settings = _settings(options.set)
    try:
        pipe = DiffusionPipeline.from_pretrained(resolve(options.folder), dtype=getattr(torch, options.dtype))
    except (OSError, ValueError) as error:
        missing = (
            "" if Path(resolve(options.folder)).exists() else " (there is no such folder here, so it was taken for a hub id)"
        )
        print(f"refused: {options.folder} does not load as a diffusers pipeline{missing}: {error}")
        return 1
    pipe.set_progress_bar_config(disable=True)
    pipe.to(options.device)
    images = []
    for path in options.image:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    try:
        tape = PipelineTape(pipe, options.tolerance)
        recording, change = _record(tape, settings, options.steps, images)
        difference = recording.prove()
    except UnprovenPipelineError as error:
        print(f"refused: {error}")
        return 1
    arguments = ", ".join(f"{name}={value}" for name, value in {**settings, **change}.items()) or "none"
    parts = ", ".join(type(part).__name__ for part in (pipe.transformer, pipe.scheduler))
    levels = ", ".join(f"{sigma:.3f}" for sigma in recording.sigmas)
    print(f"pipeline      {tape.name} ({parts})")
    print(f"arguments     {arguments}{' (classifier-free guidance had to be switched off)' if change else ''}")
    print(f"learned       {recording.rule}")
    print(f"proved        {len(recording.sigmas)} recorded steps replayed, largest difference {difference:g}")
    print(f"latents       {tuple(recording.x0.shape)}, noise levels {levels}")
    print(f"prompts       {'several' if len(recording.x0) > 1 else 'one'} per call")
    print(
        f"adapters      saved for {'load_lora_weights' if hasattr(pipe, 'load_lora_weights') else 'PEFT, no LoRA loader of its own'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
