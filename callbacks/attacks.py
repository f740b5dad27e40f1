"""What attacks on a reward model have gained, written down."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rationalrewards.components.rewards.attacks import table

from .writers import writable_folder

FILES = ("attacks.json", "attacks.txt", "scores.jsonl")


class AttackWriter(Callback):
    """Writes what a ``RewardAttackModule`` found.

    ``attacks.json`` has one object per attack (see :class:`~rationalrewards.components.rewards.attacks.AttackResult`; ``null`` where
    there is nothing to take a rate over), ``attacks.txt`` the same as a table, ``scores.jsonl`` all rewards of each pair, or in place
    of one the reason why there is none, ``null`` where an attack did not apply.

    Args:
        output_dir: Where to.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder, without what an earlier run left in it."""
        folder = writable_folder(self.output_dir)
        if trainer.is_global_zero:
            for name in FILES:
                (folder / name).unlink(missing_ok=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write on the first process, whose module knows the pairs of all. No process goes on before it is done."""
        if trainer.is_global_zero:
            folder = Path(self.output_dir)
            results: list[Any] = pl_module.results  # type: ignore[assignment]
            rows: list[dict[str, Any]] = pl_module.rows  # type: ignore[assignment]
            found = [
                {key: _plain(value) for key, value in dataclasses.asdict(one).items()} | {"fooled": one.fooled} for one in results
            ]
            (folder / "attacks.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            (folder / "attacks.txt").write_text(table(results), encoding="utf-8")
            (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            rank_zero_info(table(results))
        trainer.strategy.barrier("attacks written")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
