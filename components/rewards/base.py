"""What a reward model gives: values per aspect, and whether they hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..critic import CritiqueRequest
from ..records import Critique


@dataclass
class Rewards:
    """Rewards of n pictures.

    Args:
        total: One reward per picture in [0, 1] for critiques, any scale for other models; ``float32 [n]``, NaN where unscored.
        aspects: Names of the columns of ``values``.
        values: Aspect scores ``float32 [n, a]``; NaN where not applicable or unscored.
        reasons: Why a picture is unscored; empty where it is scored.
        critiques: What was said about each picture, where the model says anything.
    """

    total: Tensor
    aspects: tuple[str, ...]
    values: Tensor
    reasons: list[str]
    critiques: list[Critique] | None = None

    @property
    def valid(self) -> Tensor:
        """Whether a picture is scored, ``bool [n]``. Only scored ones may enter a statistic or a loss."""
        return ~torch.isnan(self.total)


class RewardModel(ABC):
    """Scores pictures for their requests. Built as a recipe; weights come with :meth:`load`."""

    @abstractmethod
    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        """Score pictures, in order. What cannot be scored is marked, not raised."""

    def load(self, device: Any = None) -> None:  # noqa: B027 - optional hook
        """Load weights or connect; called before the first request, safe to call again."""
