"""A critic as a reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..chat import ChatModel
from ..critic import Critic, CritiqueRequest
from ..critique import CritiqueFormat
from ..records import Critique, Unscored
from .base import RewardModel, Rewards


class CritiqueReward(RewardModel):
    """The mean of a critique's applicable aspect scores, mapped to [0, 1] (arXiv 2604.11626, Eq. 13; all four for edits).

    Args:
        chat: The critic's model.
        rubric: Rubric that the critic was trained on: a shipped name or the path of a YAML file.
        max_tokens: Most tokens of one critique.
        temperature: Sampling temperature of the first ask.
        reasks: How often an unreadable answer is asked for again.
        samples: Critiques per picture; the scores are their mean, which has fewer ties and less noise than one. A critique that stays
            unreadable is left out of the mean; a picture is unscored if all its critiques are.
        sample_temperature: Sampling temperature of every critique but the first.
        constrained: Whether answers are forced into the form that can be read; see :class:`~rationalrewards.components.critic.Critic`.
        prose_tokens: Most tokens of each piece of prose of a constrained answer.
    """

    def __init__(
        self,
        chat: ChatModel,
        rubric: str = "default",
        max_tokens: int = 2048,
        temperature: float = 0.0,
        reasks: int = 1,
        samples: int = 1,
        sample_temperature: float = 1.0,
        constrained: bool = False,
        prose_tokens: int | None = None,
    ) -> None:
        if samples < 1 or (samples > 1 and sample_temperature <= 0):
            raise ValueError(
                f"samples is at least 1 and sample_temperature above 0 (else all are the same), got {samples}, {sample_temperature:g}"
            )
        self.samples = samples
        self.sample_temperature = sample_temperature
        self.critic = Critic(
            chat,
            CritiqueFormat(rubric),
            max_tokens,
            temperature,
            reasks,
            constrained=constrained,
            prose_tokens=prose_tokens,
        )

    def load(self, device: Any = None) -> None:
        self.critic.load(device)

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        critiques = [self.critic.critique(requests, refinement=False)]
        for seed in range(1, self.samples):
            critiques.append(self.critic.critique(requests, False, seed, self.sample_temperature))
        return critique_rewards(*critiques)


def critique_rewards(critiques: Sequence[Critique], *others: Sequence[Critique]) -> Rewards:
    """Critiques as reward tensors; aspects that a task does not judge are NaN.

    Args:
        critiques: One per picture.
        others: Further critiques of the same pictures; totals and aspect scores become the means over those that are scored.
    """
    aspects = tuple(dict.fromkeys(key for critique in critiques for key in critique.aspects))
    totals, values = [], []
    for sampled in (critiques, *others):
        rewards = [critique.reward() for critique in sampled]
        totals.append([float("nan") if isinstance(reward, Unscored) else reward for reward in rewards])
        values.append([[score if isinstance(score := c.score(key), float) else float("nan") for key in aspects] for c in sampled])
    total = torch.tensor(totals, dtype=torch.float32).nanmean(dim=0)
    return Rewards(
        total=total,
        aspects=aspects,
        values=torch.tensor(values, dtype=torch.float32).reshape(len(totals), len(critiques), len(aspects)).nanmean(dim=0),
        reasons=[
            critique.failure if math.isnan(value) else "" for critique, value in zip(critiques, total.tolist(), strict=True)
        ],
        critiques=list(critiques),
    )
