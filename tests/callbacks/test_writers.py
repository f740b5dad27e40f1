"""What writers leave of files that an earlier run left."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import RandomDataset
from rationalrewards.callbacks import RefinementWriter
from rationalrewards.components.refine import Trace
from torch.utils.data import DataLoader

pytestmark = tiny.QUIET


class Refines(LightningModule):
    """Nothing to refine."""

    def predict_step(self, batch: torch.Tensor, index: int) -> list[Trace]:
        return []


def test_refinements_of_a_killed_run_on_more_processes_are_not_merged(tmp_path: Path) -> None:
    for rank in (1, 12):
        (tmp_path / f"refinements.rank{rank}.jsonl").write_text('{"of": "a killed run"}\n')
    (tmp_path / "refinements.jsonl").write_text('{"of": "a killed run"}\n')
    trainer = tiny.trainer(callbacks=[RefinementWriter(str(tmp_path))])
    trainer.predict(Refines(), DataLoader(RandomDataset(4, 1)))
    assert [path.name for path in tmp_path.glob("refinements*")] == ["refinements.jsonl"]
    assert (tmp_path / "refinements.jsonl").read_text() == ""
