"""The stages of reasoning rewards, each a LightningModule."""

from .attack import RewardAttackModule
from .base import RewardsModule
from .distill import RationaleDistillModule
from .evaluation import RewardEvaluationModule
from .preference_reward import PreferenceRewardModule
from .rationalize import RationalizeModule
from .refine import RefineLoop
from .resolution import NoResolutionError
from .reward_rl import RewardRLModule

__all__ = [
    "NoResolutionError",
    "PreferenceRewardModule",
    "RationaleDistillModule",
    "RationalizeModule",
    "RefineLoop",
    "RewardAttackModule",
    "RewardEvaluationModule",
    "RewardRLModule",
    "RewardsModule",
]
