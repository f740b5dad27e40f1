"""Reward models and what is made of their scores."""

from .advantages import Advantages, group_advantages, within_group_correlation
from .base import RewardModel, Rewards
from .critique_reward import CritiqueReward, critique_rewards
from .sanity import SanityError, SanityGate, SanityReport

__all__ = [
    "Advantages",
    "CritiqueReward",
    "RewardModel",
    "Rewards",
    "SanityError",
    "SanityGate",
    "SanityReport",
    "critique_rewards",
    "group_advantages",
    "within_group_correlation",
]
