"""Scoring in batches, where one bad request costs itself and no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..critic import CritiqueRequest
from .base import Rewards

REFUSALS = (ValueError, OSError, ZeroDivisionError)
"""What processors and decoders raise on an input that they cannot take. Running out of memory or a broken device is none of these:
it would happen to the next request as well."""

Scored = tuple[Tensor, Tensor]
"""Totals ``[n]`` and aspect values ``[n, a]``."""


def score_in_batches(
    requests: Sequence[CritiqueRequest],
    batch_size: int,
    aspects: tuple[str, ...],
    score: Callable[[Sequence[CritiqueRequest]], Scored],
) -> Rewards:
    """Rewards of all requests, in order.

    A batch that is refused is asked again one by one, so that those that can be scored are. A score that is no finite number leaves its
    picture unscored too.

    Args:
        requests: What to score.
        batch_size: Requests at once.
        aspects: Names of the columns.
        score: Totals ``[n]`` and values ``[n, a]`` of up to ``batch_size`` requests.
    """
    total = torch.full((len(requests),), float("nan"))
    values = torch.full((len(requests), len(aspects)), float("nan"))
    reasons = [""] * len(requests)

    def fill(start: int, batch: Sequence[CritiqueRequest]) -> None:
        try:
            found, columns = score(batch)
        except REFUSALS as error:
            if len(batch) > 1:
                for offset, request in enumerate(batch):
                    fill(start + offset, [request])
                return
            reasons[start] = f"{type(error).__name__}: {error}"
            return
        for offset, (one, row) in enumerate(zip(found.detach().float().cpu(), columns.detach().float().cpu(), strict=True)):
            if one.isfinite():
                total[start + offset], values[start + offset] = one, row
            else:
                reasons[start + offset] = f"the score is {float(one)}, no finite number"

    for start in range(0, len(requests), batch_size):
        fill(start, requests[start : start + batch_size])
    return Rewards(total, aspects, values, reasons)
