"""Each trainer and logger fragment, as a further `-c` of a plain LightningCLI."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from support import ROOT, needs, run_python

TRAINERS = ROOT / "configs" / "trainer"
FRAGMENTS = sorted([*TRAINERS.glob("*.yaml"), *(ROOT / "configs" / "logger").glob("*.yaml")])


def trainer_from(fragment: Path, *arguments: str) -> Trainer:
    cli = LightningCLI(
        BoringModel,
        BoringDataModule,
        run=False,
        seed_everything_default=0,
        save_config_callback=None,
        args=["--trainer.logger=false", f"--config={fragment}", *arguments],
    )
    return cli.trainer


def test_the_documented_fragments_exist() -> None:
    expected = ["cpu", "ddp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "fsdp2"]
    assert [path.stem for path in sorted(TRAINERS.glob("*.yaml"))] == expected


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda path: path.stem)
def test_a_fragment_speaks_of_the_trainer_only(fragment: Path) -> None:
    # another key would override a recipe's model or data when given as a further -c
    assert list(yaml.safe_load(fragment.read_text())) == ["trainer"]


def test_cpu() -> None:
    trainer = trainer_from(TRAINERS / "cpu.yaml")
    assert trainer.num_devices == 1
    assert trainer.strategy.root_device.type == "cpu"
    assert trainer.precision == "32-true"


def test_ddp() -> None:
    strategy = trainer_from(TRAINERS / "ddp.yaml").strategy
    assert type(strategy) is DDPStrategy
    passed = {"find_unused_parameters": False, "gradient_as_bucket_view": True}
    assert strategy._ddp_kwargs.items() >= passed.items()


@needs("deepspeed")
@pytest.mark.parametrize(("name", "stage"), [("deepspeed_zero1", 1), ("deepspeed_zero2", 2), ("deepspeed_zero3", 3)])
def test_deepspeed(name: str, stage: int) -> None:
    strategy = trainer_from(TRAINERS / f"{name}.yaml").strategy
    assert isinstance(strategy, DeepSpeedStrategy)
    assert isinstance(strategy.config, dict)
    zero: dict[str, Any] = strategy.config["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"], zero["contiguous_gradients"]) == (stage, stage > 1, True)
    # Lightning refuses both in DeepSpeed's config: they come from the Trainer
    assert not {"gradient_accumulation_steps", "gradient_clipping"} & strategy.config.keys()
    assert strategy.exclude_frozen_parameters
    # so far it constructs anywhere; from here on it wants a GPU. If this stops raising, our CPU subclass may go.
    with pytest.raises(RuntimeError, match="only supported on CUDA GPUs"):
        strategy.setup_environment()


@needs("deepspeed")
def test_a_fragment_can_be_overridden() -> None:
    strategy = trainer_from(TRAINERS / "deepspeed_zero3.yaml", "--trainer.strategy.init_args.offload_optimizer=true").strategy
    assert isinstance(strategy, DeepSpeedStrategy) and isinstance(strategy.config, dict)
    assert strategy.config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_fsdp2_splits_over_all_devices() -> None:
    strategy = trainer_from(TRAINERS / "fsdp2.yaml", "--trainer.accelerator=cpu").strategy
    assert isinstance(strategy, ModelParallelStrategy)
    devices = strategy.num_processes * strategy.num_nodes
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (devices, 1)


def test_mlflow_logger_writes_to_sqlite(mlflow_uri: str) -> None:
    # mlflow_uri put an empty store where the fragment's relative URI points
    logger = trainer_from(ROOT / "configs" / "logger" / "mlflow.yaml").logger
    assert isinstance(logger, MLFlowLogger)
    logger.log_metrics({"train/loss": 0.5}, step=3)
    client = mlflow.MlflowClient(mlflow_uri)
    assert [(m.step, m.value) for m in client.get_metric_history(logger.run_id, "train/loss")] == [(3, 0.5)]
    assert client.get_experiment(logger.experiment_id).name == "rationalrewards"


SCRIPT = """
    import sys
    import torch
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel


    class Model(BoringModel):
        def configure_model(self):
            if self.device_mesh is not None:
                from torch.distributed.fsdp import fully_shard

                fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])


    if __name__ == "__main__":
        cli = LightningCLI(Model, BoringDataModule, save_config_callback=None)
        print("steps", cli.trainer.global_step)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("cpu", []),
        ("ddp", ["--trainer.precision=32-true"]),
        ("fsdp2", ["--trainer.devices=1", "--trainer.strategy.init_args.data_parallel_size=1"]),
    ],
)
def test_a_fragment_trains(name: str, overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(textwrap.dedent(SCRIPT))
    small = ["--trainer.accelerator=cpu", "--trainer.max_steps=2", "--trainer.logger=false", *overrides]
    done = run_python(["project.py", "fit", "-c", TRAINERS / f"{name}.yaml", *small], timeout=300)
    assert done.returncode == 0, done.stderr
    assert "steps 2" in done.stdout
