"""Lightning data modules: they read, nothing else."""

from rationalrewards.components.conversations import SupervisedRow

from .batches import Batch, StepBatch
from .preferences import PreferenceDataModule
from .prompts import PromptDataModule, RolloutBatch
from .rationales import RationaleDataModule
from .readers import PreferenceSet, PromptSet
from .splits import Fold

__all__ = [
    "Batch",
    "Fold",
    "PreferenceDataModule",
    "PreferenceSet",
    "PromptDataModule",
    "PromptSet",
    "RationaleDataModule",
    "RolloutBatch",
    "StepBatch",
    "SupervisedRow",
]
