"""Reward models and what is made of their scores."""

from .advantages import Advantages, group_advantages, within_group_correlation
from .base import RewardModel, Rewards
from .best_of_n import best_of_n, turning_point
from .clip_reward import CLIPReward
from .critique_reward import CritiqueReward, critique_rewards
from .function_reward import FunctionReward
from .preference_head import PreferenceHeadReward
from .sanity import SanityError, SanityGate, SanityReport

__all__ = [
    "Advantages",
    "CLIPReward",
    "CritiqueReward",
    "FunctionReward",
    "PreferenceHeadReward",
    "RewardModel",
    "Rewards",
    "SanityError",
    "SanityGate",
    "SanityReport",
    "best_of_n",
    "critique_rewards",
    "group_advantages",
    "turning_point",
    "within_group_correlation",
]
