"""The ground truth as a reward model: for measuring, and as the witness that RL watches but never trains on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..critic import CritiqueRequest
from ..rewards import RewardModel, Rewards
from . import judge
from .phrases import Asked

ASPECTS = ("text_faithfulness", "image_faithfulness", "physical_quality", "text_rendering")


class ShapesTruth(RewardModel):
    """Scores pictures of the shapes world by what they really show.

    ``values`` holds the four aspects (1 to 4) and a fifth column ``exact``: 1 where every place is as asked for, else 0.
    """

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        aspects = (*ASPECTS, "exact")
        seen = judge.read([request.image for request in requests])
        rows, totals, reasons = [], [], []
        for request, reading in zip(requests, seen, strict=True):
            source = judge.read(request.sources[:1])[0].scene if request.sources else None
            try:
                asked = Asked(request.prompt, source)
            except ValueError as error:
                rows.append([float("nan")] * len(aspects))
                totals.append(float("nan"))
                reasons.append(str(error))
                continue
            scores = asked.scores(reading)
            row = [float("nan") if (value := scores.get(key)) is None else value for key in ASPECTS]
            rows.append([*row, float(asked.exact(reading))])
            totals.append(judge.reward(scores))
            reasons.append("")
        return Rewards(torch.tensor(totals), aspects, torch.tensor(rows).reshape(len(requests), len(aspects)), reasons)
