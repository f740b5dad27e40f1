"""``python -m rationalrewards.components.shapes.make_data --out FOLDER``: the data of the shapes world's main job."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..generation import FlowGenerator
from .pairs import write_preferences, write_prompts
from .tiny_generator import PIPELINE_KWARGS

SOURCE_SIZE = 64
"""Flux2Klein pipelines refuse source pictures below 64 pixels; they are enlarged to it."""


def shapes_generator(steps: int = 8) -> FlowGenerator:
    """The embedded base generator, not loaded yet."""
    return FlowGenerator("embedded:shapes-generator", steps, pipeline_kwargs=dict(PIPELINE_KWARGS), source_size=SOURCE_SIZE)


def make_data(
    folder: str | Path,
    seed: int = 42,
    pairs: int = 2400,
    test_pairs: int = 300,
    rl_prompts: int = 512,
    eval_prompts: int = 128,
) -> None:
    """Write training pairs (human-like labels), held-out pairs (true labels), requests for RL and held-out requests.

    Args:
        folder: Where to: ``train/``, ``test/``, ``rl/`` and ``heldout/`` are made in it.
        seed: Seed; every set gets another one derived from it.
        pairs: Training pairs.
        test_pairs: Held-out pairs, ties included.
        rl_prompts: Requests for RL.
        eval_prompts: Held-out requests, for measuring RL and refinement.
    """
    folder = Path(folder)
    generator = shapes_generator()
    generator.load()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # pictures this small give a second thread nothing to do but to wait for the first
    try:
        # drawn pictures cost next to nothing, and to learn to compare takes many that differ in many places, letters included
        write_preferences(
            folder / "train", pairs, 10 * seed + 1, generator, generated_share=0.25, changes=(0, 1, 2, 3, 4), letter_rate=0.6
        )
        write_preferences(folder / "test", test_pairs, 10 * seed + 2, generator, label_noise=0.0)
        write_prompts(folder / "rl", rl_prompts, 10 * seed + 3)
        write_prompts(folder / "heldout", eval_prompts, 10 * seed + 4)
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    """Parse arguments and write the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--pairs", type=int, default=2400, help="training pairs")
    parser.add_argument("--test-pairs", type=int, default=300, help="held-out pairs")
    parser.add_argument("--rl-prompts", type=int, default=512, help="requests for RL")
    parser.add_argument("--eval-prompts", type=int, default=128, help="held-out requests")
    options = parser.parse_args()
    make_data(options.out, options.seed, options.pairs, options.test_pairs, options.rl_prompts, options.eval_prompts)


if __name__ == "__main__":
    main()
