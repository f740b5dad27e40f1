"""Policy, old policy and reference in one model: two LoRA adapters of one base, or none of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

POLICY, OLD = "default", "old"


def add_policies(denoiser: nn.Module, rank: int, alpha: int, targets: Sequence[str], seed: int) -> None:
    """Put the trained adapter and the old policy's into a denoiser; both start as the base model.

    Args:
        denoiser: A diffusers model with ``add_adapter``.
        rank: Rank of the LoRA matrices.
        alpha: Scale; the update is multiplied by ``alpha / rank``.
        targets: Suffixes of the names of the linear layers to adapt.
        seed: Seed of the Gaussian initialisation.

    Raises:
        ValueError: If no layer has one of the names.
    """
    # by full name: the same suffix may name a container elsewhere, which PEFT refuses
    names = [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and any(f".{name}".endswith(f".{target}") for target in targets)
    ]
    if not names:
        raise ValueError(f"{type(denoiser).__name__} has no linear layer named {', '.join(targets)}; give other `targets`")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=names,
        init_lora_weights="gaussian",
        lora_dropout=0.0,
    )
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is what we want
            for name in (POLICY, OLD):
                denoiser.add_adapter(config, adapter_name=name)  # type: ignore[operator]
    for name, parameter in denoiser.named_parameters():
        if ".lora_" in name:  # of a half-precision base: steps of 2e-4 and averages of 0.1 % would be rounded away
            parameter.data = parameter.data.float()
    sync_old(denoiser, decay=0.0)
    _activate(denoiser, POLICY)


def _layers(denoiser: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]


def parameters_of(denoiser: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter by name."""
    return {name: parameter for name, parameter in denoiser.named_parameters() if f".{adapter}." in name and ".lora_" in name}


def _activate(denoiser: nn.Module, adapter: str | None) -> None:
    for layer in _layers(denoiser):
        layer.enable_adapters(adapter is not None)
        if adapter is not None:
            layer.set_adapter(adapter)
    # PEFT couples the active adapter with requires_grad (huggingface/peft#905): what trains is decided here alone
    for name, parameter in denoiser.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(f".{POLICY}." in name)


@contextmanager
def use(denoiser: nn.Module, adapter: str | None) -> Iterator[None]:
    """Run as another policy inside the ``with`` block: ``"default"``, ``"old"``, or ``None`` for the base (the reference)."""
    layer = next(iter(_layers(denoiser)), None)
    before = None if layer is None or layer.disable_adapters else layer.active_adapters[0]
    _activate(denoiser, adapter)
    try:
        yield
    finally:
        _activate(denoiser, before)


@contextmanager
def mixed(denoiser: nn.Module, adapters: Sequence[str | None]) -> Iterator[None]:
    """Run every sample of a batch as its own policy inside the ``with`` block, in one forward.

    Args:
        denoiser: A denoiser with policies.
        adapters: Per sample ``"default"``, ``"old"`` or ``None`` for the base.

    A layer that sees the batch along another axis than its first makes PEFT raise an error about lengths.
    """
    names = ["__base__" if adapter is None else adapter for adapter in adapters]

    def choose(
        layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        return args, {**kwargs, "adapter_names": names}

    hooks = [layer.register_forward_pre_hook(choose, with_kwargs=True) for layer in _layers(denoiser)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def sync_old(denoiser: nn.Module, decay: float) -> None:
    """``old <- decay * old + (1 - decay) * policy``, in place."""
    policy = parameters_of(denoiser, POLICY)
    for name, old in parameters_of(denoiser, OLD).items():
        old.lerp_(policy[name.replace(f".{OLD}.", f".{POLICY}.")], 1.0 - decay)


def adapter_state(denoiser: nn.Module, adapter: str) -> dict[str, Tensor]:
    """A copy of an adapter's weights, by parameter name."""
    return {name: parameter.detach().cpu().clone() for name, parameter in parameters_of(denoiser, adapter).items()}


@torch.no_grad()
def load_adapter_state(denoiser: nn.Module, adapter: str, state: dict[str, Tensor]) -> None:
    """Put saved weights back into an adapter.

    Raises:
        ValueError: If the saved weights are not exactly this adapter's.
    """
    parameters = parameters_of(denoiser, adapter)
    # by shape too: a matrix of rank 1 would be copied into one of any rank
    differing = sorted(
        name
        for name in set(parameters) | set(state)
        if name not in parameters or name not in state or parameters[name].shape != state[name].shape
    )
    if differing:
        raise ValueError(
            f"the checkpoint's {adapter!r} adapter does not fit: {len(differing)} parameters differ, first {differing[0]!r}; was it "
            "trained with other LoRA targets or another base?"
        )
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
