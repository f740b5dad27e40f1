"""A program: train a preference head on two CPU processes, under DDP or the strategy of a shipped trainer fragment.

``fit_preference.py STRATEGY PAIRS VAL OUT [--lora] [--loss NAME]``; Lightning starts the second process.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported

import tiny
from fit_distill import Losses, strategy
from rationalrewards.callbacks import CriticExport
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.lightning_modules import PreferenceRewardModule


def module(loss: str = "ties", **options: Any) -> PreferenceRewardModule:
    """The embedded base, its vision frozen as in the recipe for the 8B model."""
    return PreferenceRewardModule(
        "embedded:shapes-critic", CritiqueFormat("shapes"), loss, optimizer=tiny.smooth, max_length=512, **options
    )


def data(pairs: str | Path, val: str | Path | None = None) -> PreferenceDataModule:
    """Batches of two pairs."""
    return PreferenceDataModule(train=str(pairs), val=None if val is None else str(val), batch_size=2, seed=1)


def main() -> None:
    """Train, validate at the end, export, and say on the first process what happened."""
    parser = argparse.ArgumentParser()
    for name in ("strategy", "pairs", "val", "out"):
        parser.add_argument(name)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--loss", default="ties")
    given = parser.parse_args()
    losses = Losses()
    trainer = tiny.trainer(
        devices=2,
        strategy="ddp" if given.strategy == "ddp" else strategy(given.strategy),
        max_steps=2,
        gradient_clip_val=1.0,
        val_check_interval=2,
        callbacks=[losses, CriticExport(str(Path(given.out) / "head"))],
    )
    trainer.fit(module(given.loss, **({"lora_rank": 2} if given.lora else {})), data(given.pairs, given.val))
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        said = {"steps": trainer.global_step, "losses": losses.values, "held": losses.held, "metrics": metrics}
        (Path(given.out) / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
