"""Callbacks: they write."""

from .export import AdapterEMA, AdapterExport, CriticExport
from .guard import ResolutionGuard
from .mlflow import MLflowArtifacts, MLflowParent, MLflowSaveConfig, MLflowSystemMetrics, parent_run
from .rewards import RewardLogging, read_history
from .writers import EvaluationWriter, RationaleWriter, RefinementWriter

__all__ = [
    "AdapterEMA",
    "AdapterExport",
    "CriticExport",
    "EvaluationWriter",
    "MLflowArtifacts",
    "MLflowParent",
    "MLflowSaveConfig",
    "MLflowSystemMetrics",
    "RationaleWriter",
    "RefinementWriter",
    "ResolutionGuard",
    "RewardLogging",
    "parent_run",
    "read_history",
]
