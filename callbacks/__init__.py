"""Callbacks: they write."""

from .attacks import AttackWriter
from .canary import HackCanary
from .cost import CostLogging
from .ema import WeightEMA
from .export import AdapterEMA, AdapterExport, CriticExport, RationaleExport
from .guard import ResolutionGuard
from .judges import JudgeDiagnostics
from .mlflow import MLflowArtifacts, MLflowParent, MLflowSaveConfig, MLflowSystemMetrics, parent_run
from .parrot import RationaleProgress, RationaleReport
from .rewards import RewardLogging, read_history
from .writers import EvaluationWriter, RationaleWriter, RefinementWriter

__all__ = [
    "AdapterEMA",
    "AdapterExport",
    "AttackWriter",
    "CostLogging",
    "CriticExport",
    "EvaluationWriter",
    "HackCanary",
    "JudgeDiagnostics",
    "MLflowArtifacts",
    "MLflowParent",
    "MLflowSaveConfig",
    "MLflowSystemMetrics",
    "RationaleExport",
    "RationaleProgress",
    "RationaleReport",
    "RationaleWriter",
    "RefinementWriter",
    "ResolutionGuard",
    "RewardLogging",
    "WeightEMA",
    "parent_run",
    "read_history",
]
