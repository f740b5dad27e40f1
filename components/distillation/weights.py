"""A student's weights: which part they belong to, and how a strategy splits and gathers them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor


def is_projector(name: str) -> bool:
    """Whether a weight is of the projector between vision and text, by its name in transformers."""
    return "merger" in name or "multi_modal_projector" in name


def is_vision(name: str) -> bool:
    """Whether a weight is of the vision tower (in the Qwen-VL family the projector is inside), by its name in transformers."""
    return "visual." in name or "vision_tower" in name


def freeze(student: nn.Module, vision: bool, projector: bool) -> None:
    """Freeze or train vision tower and projector; all else is left as it is."""
    for name, parameter in student.named_parameters():
        if is_projector(name):
            parameter.requires_grad_(not projector)
        elif is_vision(name):
            parameter.requires_grad_(not vision)


def language_linears(student: nn.Module) -> list[str]:
    """Names of the language model's linear layers, which a LoRA is put on."""
    return [
        name
        for name, module in student.named_modules()
        if isinstance(module, nn.Linear) and not is_vision(name) and not is_projector(name) and "lm_head" not in name
    ]


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


def shard(student: Any, mesh: DeviceMesh) -> None:
    """Split a student's weights with FSDP2: each block, the vision tower (which generation also runs by itself), and the rest."""
    from torch.distributed.fsdp import fully_shard

    blocks = set(student._no_split_modules or [])  # names of the classes of its repeated blocks
    for name, module in reversed(list(student.named_modules())):  # inner ones first
        if type(module).__name__ in blocks or name.endswith(("visual", "vision_tower")):
            fully_shard(module, mesh=mesh)
    fully_shard(student, mesh=mesh)
    student._is_fsdp_managed_module = True  # `generate` then keeps processes in step whose answers differ in length


@contextmanager
def whole_new_weights() -> Iterator[None]:
    """Under ZeRO-3, leave new weights whole until the strategy splits them: PEFT cannot initialise the parts."""
    partition = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    if partition is not None:
        partition.shutdown_init_context()
    try:
        yield
    finally:
        if partition is not None:
            partition.restore_init_context()
