"""The stages of reasoning rewards, each a LightningModule."""

from .base import RewardsModule
from .distill import RationaleDistillModule
from .evaluation import RewardEvaluationModule
from .rationalize import RationalizeModule
from .refine import RefineLoop
from .reward_rl import NoResolutionError, RewardRLModule

__all__ = [
    "NoResolutionError",
    "RationaleDistillModule",
    "RationalizeModule",
    "RefineLoop",
    "RewardEvaluationModule",
    "RewardRLModule",
    "RewardsModule",
]
