"""``torch.compile`` for the part of a student that is worth it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch


def compile_blocks(student: Any) -> None:
    """Compile the language model's repeated layers, each once and for all lengths.

    Not the whole model: vision tower, packing and loss differ from batch to batch, and layers that are alike share what is compiled.
    """
    blocks = set(student._no_split_modules or [])
    for module in student.get_decoder().modules():
        if type(module).__name__ in blocks:
            module.compile(dynamic=True)


def eager() -> AbstractContextManager[Any]:
    """Within, nothing is compiled: generation meets a new length at every token."""
    return torch.compiler.set_stance("force_eager")
