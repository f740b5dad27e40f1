"""A critic as a reward model."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from typing import Any

import torch

from ..chat import CachedChat, OpenAIChat
from ..critic import Critic, CritiqueRequest
from ..records import Critique, Scale, Unscored
from .base import RewardModel, Rewards
from .repeats import repeated
from .sanity import SanityGate, SanityReport

log = logging.getLogger(__name__)

_checking = threading.Lock()


class CritiqueReward(RewardModel):
    """The mean of a critique's applicable aspect scores, mapped to [0, 1] (arXiv 2604.11626, Eq. 13; all four for edits).

    Args:
        critic: The critic.
        samples: Critiques per picture; the scores are their mean, which has fewer ties than one. A critique that stays unreadable is
            left out of the mean; a picture is unscored if all its critiques are.
        sample_temperature: Sampling temperature of every critique but the first. Low ones repeat the first, high ones garble a weak
            critic. On 245 pairs of the shapes world one greedy critique was right in 0.87, the mean of three at 0.4 in 0.88, of five at
            0.7 in 0.91 and at 1 in 0.92; with a critic of fewer steps on 446 others, one in 0.86, four at 0.5 in 0.90 and at 1 in 0.88.
        sanity: Refuses a critic that does not look or does not read, before its first score: when it is loaded to a device, as every
            module does, or else when it is first asked. ``None`` takes any critic: to evaluate one is to find that out.
    """

    def __init__(
        self, critic: Critic, samples: int = 1, sample_temperature: float = 0.8, sanity: SanityGate | None = None
    ) -> None:
        if samples < 1 or (samples > 1 and sample_temperature <= 0):
            raise ValueError(
                f"samples is at least 1 and sample_temperature above 0 (else all are the same), got {samples}, {sample_temperature:g}"
            )
        self.critic = critic
        self.samples = samples
        self.sample_temperature = sample_temperature
        self.sanity = sanity
        self.sanity_report: SanityReport | None = None

    def load(self, device: Any = None) -> None:
        """Load the critic; with a device, also ask it the gate's questions, once.

        Raises:
            SanityError: If the gate refuses the critic.
        """
        self.critic.load(device)
        if device is not None:  # without one, weights may still have to move to where they can answer
            self._check_sanity()

    def _check_sanity(self) -> None:
        with _checking:  # threads may score for the first time at once
            if self.sanity is None or self.sanity_report is not None:
                return
            self.sanity_report = self.sanity.check(
                lambda requests: critique_rewards(self.critic.critique(requests, refinement=False))
            )
            log.info("sanity gate passed: mean rewards %s", self.sanity_report)

    @property
    def remote(self) -> bool:
        """Whether the critic is a server."""
        chat: Any = self.critic.chat
        return isinstance(chat.chat if isinstance(chat, CachedChat) else chat, OpenAIChat)

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        self._check_sanity()
        return self._scored(requests, 0)

    def again(self, requests: Sequence[CritiqueRequest], number: int) -> Rewards:
        """As :meth:`RewardModel.again`, with other sampling seeds as well."""
        self._check_sanity()
        return self._scored(repeated(requests, number), number * self.samples)

    def _scored(self, requests: Sequence[CritiqueRequest], seed: int) -> Rewards:
        critiques = [self.critic.critique(requests, False, seed)]
        for sample in range(1, self.samples):
            critiques.append(self.critic.critique(requests, False, seed + sample, self.sample_temperature))
        return critique_rewards(*critiques)


def critique_rewards(critiques: Sequence[Critique], *others: Sequence[Critique]) -> Rewards:
    """Critiques as reward tensors; aspects that a task does not judge are NaN.

    Every aspect of a critique counts alike in its total: of an edit all four, image faithfulness too, which the official RL code reads
    and drops.

    Args:
        critiques: One per picture.
        others: Further critiques of the same pictures; totals and aspect scores become the means over those that are scored, so that
            what a critique said before it broke off does not count beside whole ones.
    """
    aspects = tuple(dict.fromkeys(key for critique in critiques for key in critique.aspects))
    totals, values = [], []
    for sampled in (critiques, *others):
        rewards = [critique.reward() for critique in sampled]
        totals.append([float("nan") if isinstance(reward, Unscored) else reward for reward in rewards])
        values.append([[score if isinstance(score := c.value(key), float) else float("nan") for key in aspects] for c in sampled])
    sampled_totals = torch.tensor(totals, dtype=torch.float32)
    total = sampled_totals.nanmean(dim=0)
    sampled_values = torch.tensor(values, dtype=torch.float32).reshape(len(totals), len(critiques), len(aspects))
    broken = sampled_totals.isnan() & ~total.isnan()
    scale = critiques[0].scale if critiques else Scale()
    return Rewards(
        total=total,
        aspects=aspects,
        values=sampled_values.masked_fill(broken[:, :, None], math.nan).nanmean(dim=0),
        reasons=[
            critique.failure if math.isnan(value) else "" for critique, value in zip(critiques, total.tolist(), strict=True)
        ],
        critiques=list(critiques),
        weights=(1.0,) * len(aspects),
        bounds=((scale.low, scale.high),) * len(aspects),
    )
