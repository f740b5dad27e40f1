"""Training objectives for flow generators and for scalar reward models, as pure functions."""

from .bradley_terry import bradley_terry_loss, gaussian_loss, rao_kupper_log_probabilities, rao_kupper_loss
from .nft import kl_loss, nft_loss, old_policy_decay, optimality

__all__ = [
    "bradley_terry_loss",
    "gaussian_loss",
    "kl_loss",
    "nft_loss",
    "old_policy_decay",
    "optimality",
    "rao_kupper_log_probabilities",
    "rao_kupper_loss",
]
