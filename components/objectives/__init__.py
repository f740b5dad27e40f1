"""Training objectives for flow generators and for scalar reward models: pure functions, and small classes that name their settings."""

from .awm import AWM, MatchingWeight, awm_loss, matching_log_probability
from .base import Chosen, NoisedBatch, Objective, StochasticSteps, Velocities
from .bradley_terry import bradley_terry_loss, gaussian_loss, rao_kupper_log_probabilities, rao_kupper_loss
from .dpo import DPO, best_and_worst, dpo_loss
from .grpo import FlowGRPO, clipped_surrogate, grpo_loss, guard_log_ratio, guard_loss, transition_kl
from .nft import NFT, kl_loss, nft_loss, optimality
from .savers import reference_scale, same_weights

__all__ = [
    "AWM",
    "DPO",
    "NFT",
    "Chosen",
    "FlowGRPO",
    "MatchingWeight",
    "NoisedBatch",
    "Objective",
    "StochasticSteps",
    "Velocities",
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
    "optimality",
    "rao_kupper_log_probabilities",
    "rao_kupper_loss",
    "reference_scale",
    "same_weights",
    "transition_kl",
]
