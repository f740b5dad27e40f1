"""The command line: ``rationalrewards fit|validate|test|predict -c CONFIG``."""

from __future__ import annotations

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningCLI

import rationalrewards.callbacks
import rationalrewards.components.chat
import rationalrewards.components.rewards
import rationalrewards.components.shapes.teacher
import rationalrewards.components.shapes.truth
import rationalrewards.datamodules
import rationalrewards.lightning_modules  # noqa: F401 - classes that are imported can be named without their path
from rationalrewards import __version__
from rationalrewards.callbacks.mlflow import MLflowSaveConfig
from rationalrewards.lightning_modules import RewardsModule

MLFLOW_SQLITE = {
    "class_path": "lightning.pytorch.loggers.MLFlowLogger",
    "init_args": {"tracking_uri": "sqlite:///mlflow.db", "experiment_name": "rationalrewards"},
}


class RationalRewardsCLI(LightningCLI):
    """LightningCLI, with the command line winning over what a checkpoint stores."""

    def _parse_ckpt_path(self) -> None:
        """Do not read hyper-parameters from checkpoints: they would silently override the command line (Lightning #21455)."""


def run(args: ArgsType = None) -> RationalRewardsCLI:
    """Parse, build and run: the way in from a notebook, and for tests.

    Args:
        args: Arguments as a list of strings; those of the process if omitted.
    """
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # "omegaconf+" needs it under subcommands
    return RationalRewardsCLI(
        RewardsModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=MLflowSaveConfig,
        seed_everything_default=42,
        trainer_defaults={"logger": MLFLOW_SQLITE},
        parser_kwargs={"parser_mode": "omegaconf+", "version": f"rationalrewards {__version__}"},
        args=args,
    )


def main() -> None:
    """Console script: returns nothing, because ``sys.exit`` would print a returned object and fail."""
    run()
