"""Reward models and what is made of their scores."""

from .advantages import Advantages, group_advantages, within_group_correlation
from .base import RewardModel, Rewards
from .critique_reward import CritiqueReward, critique_rewards

__all__ = [
    "Advantages",
    "CritiqueReward",
    "RewardModel",
    "Rewards",
    "critique_rewards",
    "group_advantages",
    "within_group_correlation",
]
