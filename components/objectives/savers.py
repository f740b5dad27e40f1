"""Doing less per update: what is left out is either proved to be nothing, or made up for so that the expectation is the same."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def same_weights(first: Iterable[Tensor], second: Iterable[Tensor]) -> bool:
    """Whether two adapters are equal to the last bit: then the old policy's velocity is the policy's own, and its forward is saved.

    That holds from a synchronisation with decay 0 (and from the start) to the next optimizer step. NaN equals nothing.

    Args:
        first: Parameters of one adapter.
        second: Parameters of the other in the same order.

    Raises:
        ValueError: If they are not equally many.
    """
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def reference_scale(index: int, every: int, offset: int = 0) -> float:
    """Weight of the KL term of one micro-batch if the reference runs in every n-th one only: ``every`` there, 0 elsewhere.

    Over a uniformly drawn ``offset`` the expected weight of each micro-batch is 1, so the KL term's gradient stays unbiased and grows
    noisier; (every - 1) of ``every`` reference forwards are saved. Draw the offset per round, e.g. ``seed_for(seed, epoch,
    "reference") % every``: a fixed one would meet the same noise levels or the same prompts again and again.

    Args:
        index: Number of the micro-batch in the round.
        every: n, at least 1; 1 runs the reference always.
        offset: Which residue runs it.

    Raises:
        ValueError: If ``every`` is below 1.
    """
    if every < 1:
        raise ValueError(f"the reference runs in every n-th micro-batch, n at least 1; got {every}")
    return float(every) if (index - offset) % every == 0 else 0.0


def several_times(x0: Tensor, eps: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noise a batch to K levels at once, for one forward instead of K: the same FLOPs in fewer, larger kernels.

    Args:
        x0: Clean latents ``[B, ...]``.
        eps: Noise ``[K, B, ...]``.
        sigmas: Noise levels ``[K, B]``.

    Returns:
        ``x_t``, ``x0`` and ``eps`` of shape ``[K B, ...]`` and ``sigma`` ``[K B]``, level by level: row ``k B + b`` is sample b at its
        level k. Repeat what belongs to samples (advantages, conditioning) K times in the same order; ``loss.view(K, B)`` undoes it.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if eps.shape[1:] != x0.shape or sigmas.shape != eps.shape[:2]:
        raise ValueError(
            f"x0 {tuple(x0.shape)} at K levels needs eps [K, *x0.shape] and sigmas [K, B]; got {tuple(eps.shape)} and "
            f"{tuple(sigmas.shape)}"
        )
    levels = len(eps)
    clean = x0.unsqueeze(0).expand(levels, *x0.shape).flatten(0, 1)
    noise, sigma = eps.flatten(0, 1), sigmas.flatten()
    wide = sigma.view(-1, *([1] * (x0.ndim - 1)))
    return (1 - wide) * clean + wide * noise, clean, noise, sigma
