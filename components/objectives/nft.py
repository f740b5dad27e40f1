"""DiffusionNFT (arXiv 2509.16117) as the code of RationalRewards (arXiv 2604.11626) trains with it.

Algorithm 1 of that paper leaves out the weights of the errors and the distance to the reference; its code has both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import NoisedBatch, Objective, Velocities


def optimality(advantages: Tensor, adv_clip_max: float = 5.0) -> Tensor:
    """Advantages to optimality probabilities ``r = clip(A / (2 A_max) + 1/2, 0, 1)``, the shape of ``advantages``."""
    return (advantages / adv_clip_max / 2 + 0.5).clamp(0, 1)


def _weighted_error(v: Tensor, x_t: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Mean squared error of the predicted ``x0``, divided by its own mean absolute error (stop-gradient, double, floor 1e-5)."""
    difference = (x_t - sigma * v) - x0
    inner = tuple(range(1, difference.ndim))
    with torch.no_grad():
        weight = difference.double().abs().mean(dim=inner, keepdim=True).clamp(min=1e-5)
    return (difference**2 / weight).mean(dim=inner)


def nft_loss(
    v: Tensor,
    v_old: Tensor,
    x_t: Tensor,
    x0: Tensor,
    sigma: Tensor,
    r: Tensor,
    *,
    nft_beta: float,
    adv_clip_max: float = 5.0,
) -> Tensor:
    """The policy loss of one (sample, time) pair.

    ``v+ = b v + (1 - b) v_old``, ``v- = (1 + b) v_old - b v``; both predict x0, each error is divided by its own size, and
    ``L = A_max (r L+ + (1 - r) L-) / b``.

    Args:
        v: Velocity of the trained policy ``[B, ...]``.
        v_old: Velocity of the old policy, no gradient.
        x_t: Noisy latents.
        x0: Clean latents.
        sigma: Noise levels ``[B]``.
        r: Optimality probabilities ``[B]`` in [0, 1]; see :func:`optimality`.
        nft_beta: Mixing weight b; not the KL weight.
        adv_clip_max: ``A_max``, the scale of the loss.

    Returns:
        Per-sample loss ``[B]``. Where r is 1/2 and v equals v_old its gradient is zero.
    """
    sigma = sigma.view(-1, *([1] * (x_t.ndim - 1)))
    positive = _weighted_error(nft_beta * v + (1 - nft_beta) * v_old, x_t, x0, sigma)
    negative = _weighted_error((1 + nft_beta) * v_old - nft_beta * v, x_t, x0, sigma)
    return adv_clip_max * (r * positive + (1 - r) * negative) / nft_beta


def kl_loss(v: Tensor, v_reference: Tensor) -> Tensor:
    """Distance to the reference policy, mean squared velocity difference per sample ``[B]``."""
    return ((v - v_reference) ** 2).mean(dim=tuple(range(1, v.ndim)))


class NFT(Objective):
    """DiffusionNFT: :func:`nft_loss` of every picture, plus the distance to the base model.

    Args:
        nft_beta: Mixing weight of the implicit policies; not the KL weight. 1.0 in RationalRewards, 0.1 or 1.0 in DiffusionNFT.
        kl_weight: See :class:`Objective`; 1e-4 in both.
        adv_clip_max: Largest advantage, and scale of the loss.
        old_decay_rate: See :class:`Objective`.
        old_decay_max: See :class:`Objective`.
    """

    uses_old = True

    def __init__(
        self,
        nft_beta: float = 1.0,
        kl_weight: float = 1e-4,
        adv_clip_max: float = 5.0,
        old_decay_rate: float = 0.001,
        old_decay_max: float = 0.5,
    ) -> None:
        super().__init__(kl_weight, adv_clip_max, old_decay_rate, old_decay_max)
        if not nft_beta > 0:
            raise ValueError(f"nft_beta must be above 0, got {nft_beta:g}")
        self.nft_beta = nft_beta

    def policy_loss(self, batch: NoisedBatch, v: Velocities) -> Tensor:
        """``[B]``."""
        assert v.old is not None
        r = optimality(batch.advantages, self.adv_clip_max)
        return nft_loss(
            v.policy, v.old, batch.x_t, batch.x0, batch.sigma, r, nft_beta=self.nft_beta, adv_clip_max=self.adv_clip_max
        )
