"""What to say when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def explain_out_of_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn an allocator's error into one that names the work and the setting to change; nothing is retried at a guessed size.

    Args:
        what: The work and its size, e.g. ``"16 requests at once"``.
        remedy: What to do about it.

    Raises:
        MemoryError: If memory ran out inside, on an accelerator or the CPU.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator has none of its own
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not (
            isinstance(error, torch.OutOfMemoryError)
            or "not enough memory" in str(error)
            or "can't allocate memory" in str(error)
        ):
            raise
        raise MemoryError(f"{what}: more memory than there is ({first}); {remedy}") from error
