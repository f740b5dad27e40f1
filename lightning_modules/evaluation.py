"""Judging judges: a reward model's accuracy on preference pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from rationalrewards.components.critic import ComparisonRequest, Critic, CritiqueRequest
from rationalrewards.components.metrics import PairAccuracy
from rationalrewards.components.records import PairCritique, Preference, Unscored, Verdict, open_pictures
from rationalrewards.components.rewards import RewardModel

from .base import RewardsModule

Judged = Verdict | Unscored
Scores = tuple[dict[str, float | None], dict[str, float | None]]
"""Aspect scores of both pictures; ``None`` where unscored or not applicable."""
_Judgement = tuple[Preference, dict[str, Any], float, float]
"""A pair, its row, and the codes of the verdicts with A and with B shown first."""


class RewardEvaluationModule(RewardsModule):
    """Accuracy on decided pairs: every pair that could not be judged counts as wrong.

    Give either ``reward`` (each picture is scored alone and the totals are compared) or ``judge`` (both pictures are shown
    together, in both orders). Every pair counts once, also on several processes, where the sampler that Lightning puts into a plain
    ``DataLoader`` gives some pairs to two of them; each process then has all judgements in ``rows``, in the order of the pairs.

    Args:
        reward: Any reward model.
        judge: A critic that compares pairs.
    """

    def __init__(self, reward: RewardModel | None = None, judge: Critic | None = None) -> None:
        super().__init__()
        if (reward is None) == (judge is None):
            raise ValueError("give either `reward` (pointwise) or `judge` (pairwise), not both and not neither")
        self.reward = reward
        self.judge = judge
        self.accuracy = PairAccuracy()
        self.rows: list[dict[str, Any]] = []
        self._judged: list[_Judgement] = []

    def configure_model(self) -> None:
        """Load the judge."""
        (self.reward or self.judge).load()  # type: ignore[union-attr]

    def on_test_start(self) -> None:
        """Move a judge that runs in this process to this rank's device, and start a new count."""
        (self.reward or self.judge).load(self.device)  # type: ignore[union-attr]
        self.rows, self._judged = [], []

    def test_step(self, batch: Sequence[Preference], batch_idx: int) -> None:
        """Judge a batch of pairs."""
        first, second, scores = self._pointwise(batch) if self.reward is not None else self._pairwise(batch)
        for pair, one, other, scored in zip(batch, first, second, scores, strict=True):
            row = {
                "id": pair.id,
                "group": pair.group,
                "label": pair.label,
                "verdict": _name(one),
                "swapped": _name(other),
                "scores": scored,
            }
            self._judged.append((pair, row, _code(one), _code(other)))

    def _pointwise(self, pairs: Sequence[Preference]) -> tuple[list[Judged], list[Judged], list[Scores]]:
        assert self.reward is not None
        requests = []
        for pair in pairs:
            sources = open_pictures(pair, pair.sources)
            requests += [
                CritiqueRequest(pair.task, pair.prompt, image, sources) for image in open_pictures(pair, pair.candidates)
            ]
        rewards = self.reward.score(requests)
        verdicts: list[Judged] = []
        for i in range(0, len(requests), 2):
            a, b = float(rewards.total[i]), float(rewards.total[i + 1])
            reason = rewards.reasons[i] or rewards.reasons[i + 1]
            verdicts.append(Unscored(reason) if reason else ("tie" if a == b else ("A" if a > b else "B")))
        named = [_named(rewards.aspects, row) for row in rewards.values.tolist()]
        scores = list(zip(named[::2], named[1::2], strict=True))
        return verdicts, verdicts, scores  # scoring alone has no order

    def _pairwise(self, pairs: Sequence[Preference]) -> tuple[list[Judged], list[Judged], list[Scores]]:
        assert self.judge is not None
        requests = []
        for pair in pairs:
            sources = open_pictures(pair, pair.sources)
            a, b = open_pictures(pair, pair.candidates)
            requests += [ComparisonRequest(pair.task, pair.prompt, order, sources) for order in ((a, b), (b, a))]
        answers: list[PairCritique] = self.judge.compare(requests)
        flip: dict[str, Verdict] = {"A": "B", "B": "A", "tie": "tie"}
        swapped = [verdict if isinstance(verdict := answer.verdict(), Unscored) else flip[verdict] for answer in answers[1::2]]
        scores = []
        for answer in answers[::2]:
            both = {key: answer.scores(key) for key in answer.aspects}
            scores.append(tuple({key: s[i] if isinstance(s[i], float) else None for key, s in both.items()} for i in (0, 1)))
        return [answer.verdict() for answer in answers[::2]], list(swapped), scores  # type: ignore[return-value]

    def on_test_epoch_end(self) -> None:
        """Log accuracy, its interval, the unscored share and, of a judge of pairs, order consistency."""
        judged = list({entry[0]: entry for entry in _of_all_processes(self._judged)}.values())
        self.rows = [row for _, row, _, _ in judged]
        share = judged[self.global_rank :: self.trainer.world_size]  # the metric adds up the processes' shares
        self.accuracy.update(
            torch.tensor([pair.label for pair, _, _, _ in share], device=self.device),
            torch.tensor([code for _, _, code, _ in share], device=self.device),
            torch.tensor([code for _, _, _, code in share], device=self.device),
            torch.tensor([int(row["group"], 16) % 2**62 for _, row, _, _ in share], device=self.device),
        )
        result = self.accuracy.compute()
        self.accuracy.reset()
        if self.judge is None:  # scoring alone has no order
            del result["order_consistency"]
        for name, value in result.items():
            self.log(f"test/{name}", value, rank_zero_only=False)


def _of_all_processes(judged: list[_Judgement]) -> list[_Judgement]:
    """Every process's judgements; in turn, as the pairs were dealt out, which puts them back into their order."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return judged
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, judged)
    return [one for turn in zip_longest(*gathered) for one in turn if one is not None]


def _code(verdict: Judged) -> float:
    """Probability that A is preferred as a judge's verdict; NaN for unscored."""
    return float("nan") if isinstance(verdict, Unscored) else {"A": 1.0, "B": 0.0, "tie": 0.5}[verdict]


def _name(verdict: Judged) -> str:
    return f"unscored: {verdict.reason}" if isinstance(verdict, Unscored) else verdict


def _named(aspects: Sequence[str], row: Sequence[float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in zip(aspects, row, strict=True)}
