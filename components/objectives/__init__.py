"""Training objectives for flow generators, as pure functions."""

from .nft import kl_loss, nft_loss, old_policy_decay, optimality

__all__ = ["kl_loss", "nft_loss", "old_policy_decay", "optimality"]
