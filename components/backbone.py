"""Loading a vision-language model for training: what is frozen, what a LoRA goes on, how its weights are split.

For modules that train a model that :class:`~rationalrewards.components.chat.TransformersChat` asks; nothing here knows what is learnt.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModel

from .checkpoints import resolve


def load_backbone(path: str, dtype: str = "float32", attention: str = "sdpa", revision: str | None = None) -> Any:
    """A vision-language model without its language head: what gives hidden states and no logits.

    Args:
        path: Folder, hub id or ``embedded:`` name; of a model with a head, its head is left out.
        dtype: Weight type as torch names it, or ``"auto"`` for the checkpoint's.
        attention: Attention implementation as transformers names it.
        revision: Hub revision to pin.
    """
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    return AutoModel.from_pretrained(resolve(path), dtype=kind, attn_implementation=attention, revision=revision)


def is_projector(name: str) -> bool:
    """Whether a weight of this name projects what the vision tower sees into the language model."""
    return "merger" in name or "multi_modal_projector" in name


def is_vision(name: str) -> bool:
    """Whether a weight of this name is of the vision tower; in some models that is also true of projectors."""
    return "visual." in name or "vision_tower" in name


def freeze(model: torch.nn.Module, vision: bool, projector: bool) -> None:
    """Freeze the vision tower, the projector, both or neither; all else stays as it is."""
    for name, parameter in model.named_parameters():
        if is_projector(name):
            parameter.requires_grad_(not projector)
        elif is_vision(name):
            parameter.requires_grad_(not vision)


def language_linears(model: torch.nn.Module, path: str) -> list[str]:
    """Names of the language model's linear layers, without the one that gives logits.

    Args:
        model: The model.
        path: How to call it in a message.

    Raises:
        ValueError: If there are none.
    """
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not is_vision(name) and not is_projector(name) and "lm_head" not in name
    ]
    if not found:
        raise ValueError(f"{path}: found no linear layer of the language model to put a LoRA on")
    return found


@contextmanager
def whole_new_weights() -> Iterator[None]:
    """Under ZeRO-3, leave new weights whole until the strategy splits them: parts cannot be initialised."""
    partition = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    if partition is not None:
        partition.shutdown_init_context()
    try:
        yield
    finally:
        if partition is not None:
            partition.restore_init_context()


def add_lora(model: Any, rank: int, alpha: int, path: str) -> Any:
    """The model with a LoRA on its language model's linear layers; only that trains."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=language_linears(model, path))
    with whole_new_weights():
        return get_peft_model(model, config)


def checkpoint_gradients(model: Any) -> None:
    """Keep only the inputs of each block for the backward pass, and compute the rest again."""
    # the first name is the one of transformers 5.23 and later, which warns of the second
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.enable_input_require_grads()


def blocks_of(model: torch.nn.Module) -> set[str]:
    """Names of the classes of a model's repeated blocks, wherever in it transformers' models are."""
    return {name for module in model.modules() for name in (getattr(module, "_no_split_modules", None) or ())}


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Split a model's weights with FSDP2: each block, the vision tower (which generation also runs by itself), and the rest."""
    from torch.distributed.fsdp import fully_shard

    blocks = blocks_of(model)
    for name, module in reversed(list(model.named_modules())):  # inner ones first
        if type(module).__name__ in blocks or name.endswith(("visual", "vision_tower")):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model._is_fsdp_managed_module = True  # `generate` then keeps processes in step whose answers differ in length
