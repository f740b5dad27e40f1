"""A program: distil the embedded critic on two CPU processes, under the strategy of a shipped trainer fragment.

``fit_distill.py FRAGMENT RATIONALES PAIRS OUT STEPS [--lora] [--resume CHECKPOINT]``; Lightning starts the second process. Two batches of
each process make a step.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported

import tiny
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, Strategy
from rationalrewards.callbacks import CriticExport, WeightEMA
from support import ROOT


class DeepSpeedOnCpu(DeepSpeedStrategy):
    """What Lightning asks of a CUDA device, answered for the CPU (Lightning refuses DeepSpeed there; DeepSpeed itself does not)."""

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)  # DeepSpeed wants an index


def strategy(fragment: str) -> Strategy:
    """The fragment's strategy with the fragment's settings, on two processes."""
    settings = yaml.safe_load((ROOT / "configs" / "trainer" / f"{fragment}.yaml").read_text())["trainer"]["strategy"]
    options = {**settings.get("init_args", {}), **settings.get("dict_kwargs", {})}
    if settings["class_path"].endswith("DeepSpeedStrategy"):
        return DeepSpeedOnCpu(process_group_backend="gloo", **options)
    if settings["class_path"].endswith("DDPStrategy"):
        return DDPStrategy(process_group_backend="gloo", **options)
    return ModelParallelStrategy(process_group_backend="gloo", **{**options, "data_parallel_size": 2})


class Losses(Callback):
    """This process's loss at every step, and the share of the weights that it holds."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.held = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))
        self.held = sum(_local(parameter) for parameter in pl_module.parameters())


def _local(parameter: torch.nn.Parameter) -> int:
    if hasattr(parameter, "ds_tensor"):
        return int(parameter.ds_tensor.numel())
    return int(parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel())


def main() -> None:
    """Train, validate at the end, export, and say on the first process what happened."""
    parser = argparse.ArgumentParser()
    for name in ("fragment", "rationales", "pairs", "out", "steps"):
        parser.add_argument(name)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--resume")
    given = parser.parse_args()
    out, steps, losses = Path(given.out), int(given.steps), Losses()
    # frozen parts, as in the recipe for the 8B critic: they are left out of DeepSpeed's checkpoints
    options: dict[str, Any] = {"freeze_vision": True, "freeze_projector": True, "val_max_tokens": 8}
    if given.lora:
        options["lora_rank"] = 2
    module = tiny.distill_module(optimizer=tiny.smooth, **options)
    trainer = tiny.trainer(
        devices=2,
        strategy=strategy(given.fragment),
        max_steps=steps,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        val_check_interval=2 * steps,
        check_val_every_n_epoch=None,
        enable_checkpointing=True,
        callbacks=[
            losses,
            ModelCheckpoint(out / "checkpoints", "{step}", save_top_k=-1, every_n_train_steps=1),
            CriticExport(str(out / "critic")),
            WeightEMA(0.5, output_dir=str(out / "average")),
        ],
    )
    data = tiny.distill_data(Path(given.rationales), pairwise=False, val_preferences=given.pairs)
    trainer.fit(module, data, ckpt_path=given.resume)
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        said = {"steps": trainer.global_step, "losses": losses.values, "held": losses.held, "metrics": metrics}
        (out / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
