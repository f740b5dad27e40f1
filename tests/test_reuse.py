"""Another project, with its own plain LightningCLI, uses our parts by ``class_path``."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import tiny
from rationalrewards.callbacks import read_history
from support import run_python

PROJECT = '''
"""Another project: its own command line, its own reward, our module, data and callback."""

import torch
from lightning.pytorch.cli import LightningCLI
from rationalrewards.components.rewards import RewardModel, Rewards


class Reddish(RewardModel):
    """How red a picture is."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def score(self, requests):
        reds = [sum(request.image.resize((1, 1)).getpixel((0, 0))[:1]) / 255 * self.weight for request in requests]
        return Rewards(torch.tensor(reds), ("red",), torch.tensor(reds)[:, None], [""] * len(reds))


if __name__ == "__main__":
    LightningCLI(subclass_mode_model=True, subclass_mode_data=True)
'''

CONFIG = """
seed_everything: 3
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  num_sanity_val_steps: 0
  callbacks:
    - class_path: rationalrewards.callbacks.RewardLogging
      init_args: {output_dir: out}
model:
  class_path: rationalrewards.lightning_modules.RewardRLModule
  init_args:
    generator:
      class_path: rationalrewards.components.generation.FlowGenerator
      init_args:
        path: embedded:shapes-generator
        steps: 2
        rank: 2
        targets: [to_q]
        pipeline_kwargs:
          {height: 32, width: 32, guidance_scale: 1.0, max_sequence_length: 40, text_encoder_out_layers: [1, 2, 3]}
    reward: {class_path: project.Reddish, init_args: {weight: 0.5}}
    witness: {class_path: rationalrewards.components.shapes.truth.ShapesTruth}
    min_resolution: null
data:
  class_path: rationalrewards.datamodules.PromptDataModule
  init_args: {train: prompts/prompts.jsonl, groups_per_epoch: 2, group_size: 2, batch_size: 4, visits: 1}
"""


@pytest.mark.slow
def test_a_foreign_project_runs_our_module_reward_and_callback(tmp_path: Path) -> None:
    tiny.requests(tmp_path / "prompts", 2)
    (tmp_path / "project.py").write_text(PROJECT)
    (tmp_path / "small.yaml").write_text(textwrap.dedent(CONFIG))
    done = run_python(["project.py", "fit", "--config", "small.yaml"], timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = read_history(tmp_path / "out" / "history.jsonl")
    assert line["step"] == 1
    # the foreign reward, under its weight, and our witness beside it
    assert 0.0 < line["train/aspect/red"] <= 0.5
    assert line["train/reward"] == pytest.approx(line["train/aspect/red"], rel=1e-6)
    assert 0.0 <= line["train/truth"] <= 1.0

    typo = run_python(
        ["project.py", "fit", "--config", "small.yaml", "--model.init_args.witness.init_args.wieght=1"],
        timeout=300,
        cwd=tmp_path,
    )
    assert typo.returncode == 2
    assert "wieght" in typo.stderr
    assert json.loads((tmp_path / "out" / "history.jsonl").read_text()) == line
