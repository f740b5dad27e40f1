"""Scoring the same pictures again: how much of a score is chance?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ..critic import CritiqueRequest
from ..pictures import pixel_digest
from ..seeds import seed_for

Sums = Mapping[str, tuple[float, float]]
"""Of each column, half the squared differences of two scores of a picture, summed, and how many pictures they are of."""


def with_invisible_noise(image: Image.Image, seed: int) -> Image.Image:
    """The picture with every value moved by at most 2 of 255."""
    noise = np.random.default_rng(seed).integers(-2, 3, size=(image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image.convert("RGB")).astype(int) + noise, 0, 255).astype(np.uint8))


def repeated(requests: Sequence[CritiqueRequest], number: int) -> list[CritiqueRequest]:
    """The same requests with pictures that nobody can tell from theirs.

    The noise is a function of request, picture and ``number``: batches and processes change nothing.

    Args:
        requests: What was scored.
        number: Number of the repeat, each with other noise.
    """
    return [
        replace(r, image=with_invisible_noise(r.image, seed_for("repeat", number, r.prompt, pixel_digest(r.image))))
        for r in requests
    ]


class RepeatNoise:
    r"""The standard deviation of one score of one picture, learnt from pictures that were scored twice.

    With scores :math:`y_1, y_2` of a picture, :math:`E (y_1 - y_2)^2 / 2 = \sigma^2`: what the scores would vary by if only chance changed.
    It is pooled over pictures and rounds; a round that is n rounds old counts ``memory ** n`` times, since the noise of a judge
    depends on what it is shown, and the pictures change.

    The sums that go in come from :func:`~rationalrewards.components.rewards.repeat_sums`, those of all processes in the order of the
    processes, so that all hold the same numbers.

    Args:
        memory: How much an older round weighs against the next, in (0, 1]; 1 never forgets.

    Raises:
        ValueError: If ``memory`` is out of range.
    """

    def __init__(self, memory: float = 0.9) -> None:
        if not 0.0 < memory <= 1.0:
            raise ValueError(f"memory must be above 0 and at most 1 (never forget), got {memory:g}")
        self.memory = memory
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, parts: Iterable[Sums]) -> None:
        """Take up one round.

        Args:
            parts: What each process found, in the order of the processes.
        """
        self._sums = {name: (squares * self.memory, count * self.memory) for name, (squares, count) in self._sums.items()}
        for part in parts:
            for name, (squares, count) in part.items():
                known = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = (known[0] + squares, known[1] + count)

    def std(self) -> dict[str, float]:
        """Standard deviation of one score by column, of those that were seen."""
        return {name: (squares / count) ** 0.5 for name, (squares, count) in self._sums.items() if count > 0}

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {"sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._sums = {name: (float(squares), float(count)) for name, (squares, count) in state["sums"].items()}
