"""Counter-based randomness: every random number is a function of what it is for.

So resuming, batching and the number of processes change nothing.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_for(*key: int | str) -> int:
    """A 63-bit seed from a key such as ``(seed, epoch, group, copy, "train noise", step)``."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


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
