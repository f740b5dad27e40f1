"""A critic as a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..chat import ChatModel
from ..critic import Critic, CritiqueRequest
from ..critique import CritiqueFormat
from ..records import Critique, Unscored
from .base import RewardModel, Rewards


class CritiqueReward(RewardModel):
    """The mean of a critique's applicable aspect scores, mapped to [0, 1] (``paper.md`` 1.9; all four aspects for edits).

    Args:
        chat: The critic's model.
        rubric: Rubric that the critic was trained on: a shipped name or the path of a YAML file.
        max_tokens: Most tokens of one critique.
        temperature: Sampling temperature of the first ask.
        reasks: How often an unreadable answer is asked for again.
    """

    def __init__(
        self,
        chat: ChatModel,
        rubric: str = "default",
        max_tokens: int = 2048,
        temperature: float = 0.0,
        reasks: int = 1,
    ) -> None:
        self.critic = Critic(chat, CritiqueFormat(rubric), max_tokens, temperature, reasks)

    def load(self, device: Any = None) -> None:
        self.critic.load(device)

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        return critique_rewards(self.critic.critique(requests, refinement=False))


def critique_rewards(critiques: Sequence[Critique]) -> Rewards:
    """Critiques as reward tensors; aspects that a task does not judge are NaN."""
    aspects = tuple(dict.fromkeys(key for critique in critiques for key in critique.aspects))
    rewards = [critique.reward() for critique in critiques]
    values = [[score if isinstance(score := c.score(key), float) else float("nan") for key in aspects] for c in critiques]
    return Rewards(
        total=torch.tensor([float("nan") if isinstance(reward, Unscored) else reward for reward in rewards], dtype=torch.float32),
        aspects=aspects,
        values=torch.tensor(values, dtype=torch.float32).reshape(len(critiques), len(aspects)),
        reasons=[reward.reason if isinstance(reward, Unscored) else "" for reward in rewards],
        critiques=list(critiques),
    )
