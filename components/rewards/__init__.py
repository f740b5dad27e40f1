"""Reward models and what is made of their scores."""

from .advantages import (
    AdvantageOptions,
    Advantages,
    group_advantages,
    repeat_sums,
    reward_advantages,
    within_group_correlation,
)
from .base import RewardModel, Rewards, joined
from .best_of_n import best_of_n, turning_point
from .canaries import CanaryRule, Change, Check, paired_change
from .clip_reward import CLIPReward
from .critique_reward import CritiqueReward, critique_rewards
from .curriculum import GroupScore, PromptCurriculum, group_scores
from .diagnostics import judge_diagnostics
from .function_reward import FunctionReward
from .preference_head import PreferenceHeadReward
from .repeats import RepeatNoise, with_invisible_noise
from .sanity import SanityError, SanityGate, SanityReport
from .weighted import RewardPart, WeightedReward

__all__ = [
    "AdvantageOptions",
    "Advantages",
    "CLIPReward",
    "CanaryRule",
    "Change",
    "Check",
    "CritiqueReward",
    "FunctionReward",
    "GroupScore",
    "PreferenceHeadReward",
    "PromptCurriculum",
    "RepeatNoise",
    "RewardModel",
    "RewardPart",
    "Rewards",
    "SanityError",
    "SanityGate",
    "SanityReport",
    "WeightedReward",
    "best_of_n",
    "critique_rewards",
    "group_advantages",
    "group_scores",
    "joined",
    "judge_diagnostics",
    "paired_change",
    "repeat_sums",
    "reward_advantages",
    "turning_point",
    "with_invisible_noise",
    "within_group_correlation",
]
