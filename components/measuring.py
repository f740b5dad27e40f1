"""What a piece of work costs, in numbers that do not depend on what else the machine does."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


class PeakBytes(TorchDispatchMode):
    """Within, follows the memory of tensors that operators make, on any device.

    What a single operator needs for itself and gives back before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        """The most bytes that tensors made within held at a time."""
        self._followed: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (storage := _storage(leaf))._cdata not in known | self._followed:
                self._follow(storage)
        self.peak = max(self.peak, self.live)
        return made

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def forget() -> None:
            self.live -= size
            self._followed.discard(key)

        self._followed.add(key)
        self.live += size
        weakref.finalize(storage, forget)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter of floating-point operations, which by itself leaves out attention on the CPU.

    Counted are matrix products, a multiplication and an addition as two; attention as if nothing was masked, which is what runs but for
    blocks above the diagonal.
    """

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    ops = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            ops._scaled_dot_product_flash_attention_for_cpu: forward,
            ops._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        },
    )
