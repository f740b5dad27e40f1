"""Weights that a strategy has split: what a process holds of them, and how they are put together.

All of ZeRO-3's and FSDP2's ways, and of none; nothing here knows what is learnt.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def gathered(value: Tensor) -> Tensor:
    """A weight, whole, however a strategy has split it; all processes take part."""
    if hasattr(value, "ds_id"):
        import deepspeed  # `deepspeed.zero` is an attribute, no module of its own

        with deepspeed.zero.GatheredParameters([value]):
            return value.detach().clone()
    if isinstance(value, DTensor):
        whole: Tensor = value.full_tensor()
        return whole.detach()
    return value.detach()


def held(value: Tensor) -> Tensor:
    """What this process holds of a weight: all of it, or its part of a split one."""
    if hasattr(value, "ds_tensor"):
        part: Tensor = value.ds_tensor
        return part.detach()
    if isinstance(value, DTensor):
        return value.to_local().detach()
    return value.detach()


@torch.no_grad()
def hold(value: Any, part: Tensor) -> None:
    """Change what this process holds of a weight; of split weights, all processes do so."""
    held(value).copy_(part)
    if hasattr(value, "ds_tensor") and value.ds_status.name == "AVAILABLE":
        value.partition()  # gathered before: the next forward gathers what is new


def whole_of(value: Any, part: Tensor) -> Tensor:
    """Parts that are split as a weight is, put together; all processes take part.

    Args:
        value: The weight.
        part: This process's part of something of its shape, as :func:`held` gives it of the weight itself.
    """
    if hasattr(value, "ds_tensor"):
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part.contiguous())
        together: Tensor = torch.cat(parts)[: value.ds_numel].view(value.ds_shape)
        return together
    if isinstance(value, DTensor):
        local = DTensor.from_local(part, value.device_mesh, value.placements, shape=value.shape, stride=value.stride())
        whole: Tensor = local.full_tensor()
        return whole
    return part


def part_of(value: Any, whole: Tensor) -> Tensor:
    """This process's part of something that is to be split as a weight is; undoes :func:`whole_of`."""
    if hasattr(value, "ds_tensor"):
        size = value.ds_tensor.numel()
        padded = nn.functional.pad(whole.flatten(), (0, size * torch.distributed.get_world_size() - whole.numel()))
        return padded.split(size)[torch.distributed.get_rank()]
    if isinstance(value, DTensor):
        return distribute_tensor(whole.to(value.device), value.device_mesh, value.placements).to_local()
    return whole


def whole_weights(module: torch.nn.Module, keep: bool, only: str = "") -> dict[str, Tensor]:
    """A module's weights on the CPU, whole, however a strategy has split them; all processes have to call this.

    Args:
        module: The module.
        keep: Whether this process gets them; the others get nothing, and hold no more than one weight at a time.
        only: Part of the names of the weights that are wanted; all by default.
    """
    whole: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if only not in name:
            continue
        if id(value) in first:  # tied weights stay one, and are gathered once
            if keep:
                whole[name] = whole[first[id(value)]]
            continue
        first[id(value)] = name
        all_of_it = gathered(value)
        if keep:
            whole[name] = all_of_it.cpu()
    return whole
