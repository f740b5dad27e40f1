"""Counter-based randomness: every random number is a function of what it is for.

So resuming, batching and the number of processes change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..seeds import seed_for

__all__ = ["generator_for", "normal", "seed_for"]


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator seeded from a key."""
    return torch.Generator().manual_seed(seed_for(*key))


def normal(like: Tensor, keys: list[tuple[int | str, ...]]) -> Tensor:
    """Standard normal noise, one key per sample.

    Args:
        like: Gives shape ``[B, ...]`` and device.
        keys: B keys.

    Returns:
        ``float32``, the shape of ``like``. Drawn on the CPU, so that devices agree.
    """
    rows = [torch.randn(like.shape[1:], generator=generator_for(*key)) for key in keys]
    return torch.stack(rows).to(like.device)
