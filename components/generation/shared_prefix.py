"""Below the first adapted layer all policies of one base compute the same: once is enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


class SharedPrefix:
    """Keeps what a denoiser computes before its first adapted layer, for further forwards with the same inputs.

    A unit is a part of the model without adapters whose parent has some, e.g. a patch embedding, or a block that is not among the LoRA's
    targets. Those that ran before the first adapted layer answer from memory. With the same inputs (only the policy differs) the result
    is the same to the last bit; how much is saved depends on where the LoRA begins.

    Args:
        denoiser: A denoiser with policies.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._adapted = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
        self._units = list(_units(denoiser))
        self._kept: list[tuple[int, Any, list[int]]] = []

    def forget(self) -> None:
        """Free what is kept."""
        self._kept = []

    @contextmanager
    def record(self) -> Iterator[None]:
        """Remember what the units of a forward give, up to its first adapted layer."""
        self._kept = []
        below = True

        def keep(number: int) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if below:
                    self._kept.append((number, output, _versions(output)))

            return hook

        def stop(module: nn.Module, args: Any) -> None:
            nonlocal below
            below = False

        hooks = [unit.register_forward_hook(keep(number)) for number, unit in enumerate(self._units)]
        hooks += [layer.register_forward_pre_hook(stop) for layer in self._adapted]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Answer the recorded calls from memory, in the same order; all later ones are computed."""
        # what a model went on to change in place is no answer any more, and neither is what came after it
        usable = takewhile(lambda kept: _versions(kept[1]) == kept[2], self._kept)
        waiting = iter(list(usable))
        following = next(waiting, None)

        def answering(number: int, unit: nn.Module) -> Any:
            compute = unit.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal following
                if following is None or following[0] != number:
                    return compute(*args, **kwargs)
                output, following = following[1], next(waiting, None)
                return output

            return forward

        numbers = {number for number, *_ in self._kept}
        changed = [self._units[number] for number in numbers]
        for number in numbers:
            self._units[number].forward = answering(number, self._units[number])
        try:
            yield
        finally:
            for unit in changed:
                del unit.forward  # the instance's; the class has its own


def _units(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, BaseTunerLayer):
            continue
        adapted = any(isinstance(inner, BaseTunerLayer) for inner in child.modules())
        if adapted or isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _units(child)
        else:
            yield child


def _versions(output: Any) -> list[int]:
    """How often the tensors of an output were changed in place."""
    if isinstance(output, Tensor):
        return [output._version]
    if isinstance(output, dict):
        output = list(output.values())
    return [version for part in output for version in _versions(part)] if isinstance(output, (list, tuple)) else []
