"""The ground truth as a reward model: for measuring, and as the witness that RL watches but never trains on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..critic import CritiqueRequest
from ..pictures import open_picture
from ..records import Preference
from ..rewards import RewardModel, Rewards
from . import judge
from .phrases import Asked, read_comparison
from .scenes import describe_quality

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


def faithful(comparison: str, pair: Preference) -> bool:
    """Whether a comparison says of both pictures what they show, place by place, and how damaged they are to half a point.

    Args:
        comparison: The text of a pairwise critique, of the shapes world.
        pair: The pair that it is about.
    """
    claims = read_comparison(comparison)
    if claims is None:
        return False
    shown = judge.read([open_picture(path) for path in pair.candidates])
    return all(
        claim.scene == seen.scene and describe_quality(claim.quality) == describe_quality(seen.quality)
        for claim, seen in zip(claims, shown, strict=True)
    )


def true_difference(pair: Preference) -> float:
    """True reward (0...1) of a pair's first picture less that of its second."""
    (first, second) = judge.read([open_picture(path) for path in pair.candidates])
    source = judge.read([open_picture(pair.sources[0])])[0].scene if pair.sources else None
    asked = Asked(pair.prompt, source)
    return asked.reward(first) - asked.reward(second)
