"""Groups of rows: their ids, their sums, and values with the group's mean taken out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def group_ids(names: Sequence[str]) -> Tensor:
    """Names of groups as integers, for the ``group`` of a metric.

    The same in every process and every run, which Python's own ``hash`` of a string is not; two names in a million get the same
    id with a probability below 1e-6.

    Args:
        names: A name per row, n in all.

    Returns:
        ``int64 [n]``, 0 or more.

    Example:
        >>> from rationalrewards.components.metrics import group_ids
        >>> ids = group_ids(["a red cube", "a blue ball", "a red cube"])
        >>> bool(ids[0] == ids[2]), bool(ids[0] == ids[1])
        (True, False)
    """
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64)


def group_index(groups: Tensor) -> tuple[Tensor, int]:
    """Group ids as positions ``int64 [n]`` from 0 up, in the order of the ids, and how many groups there are.

    Args:
        groups: Ids ``[n]``, or ``[n, k]`` where k ids together name a group.
    """
    found, index = groups.unique(return_inverse=True, dim=None if groups.ndim == 1 else 0)
    return index, len(found)


def group_sums(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Sums ``float64 [count, ...]`` of the rows ``[n, ...]`` of each group.

    Args:
        values: ``[n, ...]``.
        index: The group of each row, ``int64 [n]`` in ``[0, count)``.
        count: Number of groups.
    """
    sums = torch.zeros((count, *values.shape[1:]), dtype=torch.float64, device=values.device)
    return sums.index_add_(0, index, values.double())


def group_centred(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Values ``float64 [n]`` with the mean of their group taken out; arguments as in :func:`group_sums`, without NaN."""
    means = group_sums(values, index, count) / group_sums(torch.ones_like(values), index, count)
    return values.double() - means[index]
