"""Lightning data modules: they read, nothing else."""

from .batches import Batch
from .preferences import PreferenceDataModule
from .prompts import PromptDataModule, RolloutBatch
from .rationales import RationaleDataModule, SupervisedRow

__all__ = ["Batch", "PreferenceDataModule", "PromptDataModule", "RationaleDataModule", "RolloutBatch", "SupervisedRow"]
