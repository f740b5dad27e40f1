"""What a reward model gives: values per aspect, and whether they hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..critic import CritiqueRequest
from ..records import Critique
from .repeats import repeated

Bounds = tuple[float, float]
"""The worst and the best score of a column."""


@dataclass
class Rewards:
    """Rewards of n pictures.

    A picture is scored as a whole or not at all: where ``total`` is a number, a NaN in ``values`` says that the aspect does not apply
    to that picture; where ``total`` is NaN, nothing in its row may be used. :attr:`valid` and :attr:`applicable` tell the two apart.

    Args:
        total: One reward per picture in [0, 1] for critiques, any scale for other models; ``float32 [n]``, NaN where unscored.
        aspects: Names of the columns of ``values``.
        values: Aspect scores ``float32 [n, a]``; NaN where not applicable or unscored.
        reasons: Why a picture is unscored; empty where it is scored.
        critiques: What was said about each picture, where the model says anything.
        weights: How much each column counts where ``total`` is the mean of the applicable ones of :meth:`scaled`; ``None`` where it is
            something else.
        bounds: Worst and best score of each column, ``None`` for one without; ``None`` if no column has any.
    """

    total: Tensor
    aspects: tuple[str, ...]
    values: Tensor
    reasons: list[str]
    critiques: list[Critique] | None = None
    weights: tuple[float, ...] | None = None
    bounds: tuple[Bounds | None, ...] | None = None

    @property
    def valid(self) -> Tensor:
        """Whether a picture is scored, ``bool [n]``. Only scored ones may enter a statistic or a loss."""
        return ~torch.isnan(self.total)

    @property
    def applicable(self) -> Tensor:
        """Whether an aspect of a scored picture has a score, ``bool [n, a]``: it does not apply, or the picture is unscored, elsewhere."""
        return self.valid[:, None] & ~torch.isnan(self.values)

    def select(self, rows: Sequence[int]) -> Rewards:
        """Those of some of the pictures."""
        at = list(rows)
        critiques = None if self.critiques is None else [self.critiques[row] for row in at]
        return replace(
            self, total=self.total[at], values=self.values[at], reasons=[self.reasons[row] for row in at], critiques=critiques
        )

    def scaled(self) -> Tensor:
        """Values as shares of the way from worst to best, where a column has bounds: ``float64 [n, a]``, NaN where not applicable."""
        columns = self.values.double().where(self.applicable, torch.nan)
        for index, bounds in enumerate(self.bounds or ()):
            if bounds is not None:
                low, high = bounds
                columns[:, index] = (columns[:, index].clamp(low, high) - low) / (high - low)
        return columns


def joined(parts: Sequence[Rewards]) -> Rewards:
    """Rewards of several batches by one model, one after the other; a column that a batch does not have is NaN there.

    Raises:
        ValueError: If there is no batch, or two of them weigh or bound a column differently: they are of different models.
    """
    if not parts:
        raise ValueError("no rewards to join")
    aspects = tuple(dict.fromkeys(name for part in parts for name in part.aspects))
    values = []
    for part in parts:
        columns = torch.full((len(part.total), len(aspects)), torch.nan, dtype=part.values.dtype)
        for index, name in enumerate(part.aspects):
            columns[:, aspects.index(name)] = part.values[:, index]
        values.append(columns)
    weights = _agreed([(part.aspects, part.weights) for part in parts], aspects, "weights")
    bounds = _agreed([(part.aspects, part.bounds) for part in parts], aspects, "bounds")
    said = [part.critiques for part in parts]
    return Rewards(
        torch.cat([part.total for part in parts]),
        aspects,
        torch.cat(values),
        [reason for part in parts for reason in part.reasons],
        None if any(one is None for one in said) else [critique for one in said for critique in one or ()],
        weights,
        bounds,
    )


def _agreed(parts: Sequence[tuple[tuple[str, ...], tuple[Any, ...] | None]], aspects: tuple[str, ...], what: str) -> Any:
    known = [dict(zip(names, given, strict=True)) for names, given in parts if given is not None]
    if not known:
        return None
    found: dict[str, Any] = {}
    for part in known:
        for name, value in part.items():
            if found.setdefault(name, value) != value:
                raise ValueError(f"two batches have different {what} for {name!r}: join what one reward model gave")
    if len(found) < len(aspects):
        raise ValueError(f"only some batches have {what}: join what one reward model gave")
    return tuple(found[name] for name in aspects)


class RewardModel(ABC):
    """Scores pictures for their requests. Built as a recipe; weights come with :meth:`load`."""

    @property
    def remote(self) -> bool:
        """Whether :meth:`score` spends its time waiting for another machine, so that others may compute meanwhile."""
        return False

    @abstractmethod
    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        """Score pictures, in order. What cannot be scored is marked, not raised."""

    def load(self, device: Any = None) -> None:  # noqa: B027 - optional hook
        """Load weights or connect; called before the first request, safe to call again."""

    def again(self, requests: Sequence[CritiqueRequest], number: int) -> Rewards:
        """Score the same pictures once more, with other random numbers: what differs is the judge's noise.

        By default as pictures under noise that nobody sees (every value moved by at most 2 of 255), which also shows the noise of
        a judge that always answers alike.

        Args:
            requests: What was scored.
            number: Number of the repeat, at least 1; each differs by chance only.
        """
        return self.score(repeated(requests, number))
