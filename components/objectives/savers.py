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
