"""Any function of a request and its picture as a reward model."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from ..critic import CritiqueRequest
from .base import RewardModel, Rewards

Function = Callable[[str, Image.Image, tuple[Image.Image, ...]], float]
"""``(prompt, image, sources) -> float``; the larger the better."""


class FunctionReward(RewardModel):
    """The number that a function gives each picture.

    Whatever the function raises, and anything that it returns but one finite number, leaves its picture unscored with that as the reason;
    so does a ``None``, for what it cannot judge. An interrupt or an exit goes through.

    Args:
        function: ``(prompt, image, sources) -> float``: an object, or in a config its dotted path, e.g. ``my_package.my_module.my_reward``;
            an instance of a class with ``__call__`` is given by ``class_path`` and ``init_args``. It may have a ``load(device)``, or a
            ``to(device)`` as a ``torch.nn.Module``, to which the device goes.
        name: Name of the score's column.
        batch_size: ``None`` calls the function once per picture. Else it is called with lists of up to so many prompts, pictures and
            tuples of source pictures, and returns a sequence of as many numbers; a batch that raises is asked again one by one.

    Raises:
        ValueError: If a dotted path leads to nothing that can be called.
    """

    def __init__(self, function: Function | str, name: str = "score", batch_size: int | None = None) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is at least 1, or null for a function of one picture, got {batch_size}")
        self.function: Callable[..., Any] = imported(function) if isinstance(function, str) else function
        self.name = name
        self.batch_size = batch_size

    def load(self, device: Any = None) -> None:
        """Hand the device to a function that has a use for it."""
        if callable(place := getattr(self.function, "load", None)):
            place(device)
        elif device is not None and callable(move := getattr(self.function, "to", None)):
            move(device)

    @torch.no_grad()
    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        total: list[float] = []
        reasons: list[str] = []
        size = self.batch_size or 1
        for start in range(0, len(requests), size):
            batch = list(requests[start : start + size])
            for value, reason in self._batch(batch) if self.batch_size else map(self._one, batch):
                total.append(value)
                reasons.append(reason)
        scores = torch.tensor(total, dtype=torch.float32)
        return Rewards(scores, (self.name,), scores[:, None].clone(), reasons)

    def _one(self, request: CritiqueRequest) -> tuple[float, str]:
        try:
            found = self.function(request.prompt, request.image, request.sources)
        except Exception as error:
            return math.nan, f"{type(error).__name__}: {error}"
        return _number(found)

    def _batch(self, batch: list[CritiqueRequest]) -> list[tuple[float, str]]:
        try:
            found = self.function([r.prompt for r in batch], [r.image for r in batch], [r.sources for r in batch])
            values = list(found)
        except Exception as error:
            if len(batch) == 1:
                return [(math.nan, f"{type(error).__name__}: {error}")]
            return [one for request in batch for one in self._batch([request])]
        if len(values) != len(batch):
            return [(math.nan, f"the function gave {len(values)} scores for {len(batch)} pictures")] * len(batch)
        return [_number(value) for value in values]


def _number(found: Any) -> tuple[float, str]:
    if isinstance(found, (str, bool)) or found is None:
        return math.nan, f"the function gave {found!r}, no number"
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        return math.nan, f"the function gave {type(found).__name__}, no number: {error}"
    if not abs(value) <= torch.finfo(torch.float32).max:  # a NaN too
        return math.nan, f"the function gave {value}, no finite number"
    return value, ""


def imported(path: str) -> Callable[..., Any]:
    """What a dotted path leads to: ``package.module.function``, or ``package.module.Class.method``.

    Raises:
        ValueError: If it leads to nothing that can be called; the message says at which part it ends.
    """
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue  # not a module but something in one, perhaps; else a module that it needs is missing
            raise
        for part in parts[cut:]:
            if not hasattr(found, part):
                raise ValueError(f"function {path!r}: {name} has no {part!r}")
            found, name = getattr(found, part), f"{name}.{part}"
        if not callable(found):
            raise ValueError(f"function {path!r} is a {type(found).__name__}, nothing that can be called")
        return found
    raise ValueError(f"function {path!r}: there is no module {parts[0]!r}; give package.module.function")
