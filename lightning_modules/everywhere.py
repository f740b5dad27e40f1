"""The values of all processes."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def gather(values: list[T]) -> list[T]:
    """Every process's values, in the order of the processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return values
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, values)
    return [value for part in gathered for value in part]


def everywhere(values: Tensor) -> Tensor:
    """One tensor of every process's ``[n]``."""
    return torch.tensor(gather(values.tolist()))
