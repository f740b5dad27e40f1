"""Training objectives for flow generators and for scalar reward models, as pure functions."""

from .awm import MatchingWeight, awm_loss, matching_log_probability
from .bradley_terry import bradley_terry_loss, gaussian_loss, rao_kupper_log_probabilities, rao_kupper_loss
from .dpo import best_and_worst, dpo_loss
from .grpo import clipped_surrogate, grpo_loss, guard_log_ratio, guard_loss, transition_kl
from .nft import kl_loss, nft_loss, old_policy_decay, optimality
from .savers import reference_scale, same_weights, several_times

__all__ = [
    "MatchingWeight",
    "awm_loss",
    "best_and_worst",
    "bradley_terry_loss",
    "clipped_surrogate",
    "dpo_loss",
    "gaussian_loss",
    "grpo_loss",
    "guard_log_ratio",
    "guard_loss",
    "kl_loss",
    "matching_log_probability",
    "nft_loss",
    "old_policy_decay",
    "optimality",
    "rao_kupper_log_probabilities",
    "rao_kupper_loss",
    "reference_scale",
    "same_weights",
    "several_times",
    "transition_kl",
]
