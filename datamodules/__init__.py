"""Lightning data modules: they read, nothing else."""

from .preferences import PreferenceDataModule
from .prompts import PromptDataModule, RolloutBatch
from .rationales import RationaleDataModule, SupervisedRow

__all__ = ["PreferenceDataModule", "PromptDataModule", "RationaleDataModule", "RolloutBatch", "SupervisedRow"]
