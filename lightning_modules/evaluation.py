"""Judging judges: a reward model's accuracy on preference pairs, and its numbers by named protocols."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from rationalrewards.components.critic import ComparisonRequest, Critic, CritiqueRequest
from rationalrewards.components.metrics import PairAccuracy
from rationalrewards.components.protocols import (
    Judge,
    Judgement,
    Mode,
    Place,
    Protocol,
    Result,
    Ties,
    TieThreshold,
    TokenCount,
    counting,
    critic_of,
    describe,
    evaluate,
    find_protocol,
    to_row,
)
from rationalrewards.components.records import PairCritique, Preference, Unscored, Verdict, open_pictures
from rationalrewards.components.rewards import RewardModel

from .base import RewardsModule

Judged = Verdict | Unscored
Rewards = tuple[float, float] | Unscored
"""Rewards of A and of B, or why there are none."""
Scores = tuple[dict[str, float | None], dict[str, float | None]]
"""Aspect scores of both pictures; ``None`` where unscored or not applicable."""


@dataclass
class _Judged:
    """A judged pair: its judgement, its row, and the codes of the verdicts with A and with B shown first."""

    pair: Preference
    judgement: Judgement
    row: dict[str, Any]
    codes: tuple[float, float]


class RewardEvaluationModule(RewardsModule):
    """Accuracy on decided pairs, and any number of named protocols: every pair that could not be judged counts as wrong.

    Give ``reward`` (each picture is scored alone and the totals are compared), or ``judge`` (both pictures are shown together, in
    both orders), or both, each of which then has numbers of its own. Every pair counts once, also on several processes, where the
    sampler that Lightning puts into a plain ``DataLoader`` gives some pairs to two of them; each process then has all judgements in
    ``rows`` and all result rows in ``results``, in the order of the pairs.

    Args:
        reward: Any reward model.
        judge: A critic that compares pairs. If the reward is a critic's with the same weights, one copy of them serves both.
        protocol: Names of :data:`rationalrewards.components.protocols.PROTOCOLS` to count the pairs by; what the pairs are is checked
            before they are judged.
        compare_too: Where ``reward`` has a critic, let that critic be the ``judge`` as well; other rewards are evaluated alone.
        tie_threshold: Where protocols with ties take their threshold from; without one, a tie is exact equality. Pairs that it was
            fitted on are refused.

    Raises:
        ValueError: If there is no judge, one too many, an unknown or ambiguous protocol, or a threshold that no protocol uses.
    """

    def __init__(
        self,
        reward: RewardModel | None = None,
        judge: Critic | None = None,
        protocol: str | list[str] | None = None,
        compare_too: bool = False,
        tie_threshold: TieThreshold | None = None,
    ) -> None:
        super().__init__()
        if reward is None and judge is None:
            raise ValueError("give `reward` (pointwise) or `judge` (pairwise), or both")
        if compare_too and judge is not None:
            raise ValueError("give either `judge` or `compare_too`, which takes the reward's critic for one")
        self.reward = reward
        self.judge = critic_of(reward) if compare_too else judge
        names = [protocol] if isinstance(protocol, str) else protocol or []
        self.protocols: list[Protocol] = [find_protocol(name) for name in names]
        if len({rule.name for rule in self.protocols}) < len(names):
            raise ValueError(f"protocol: a name is there twice: {', '.join(names)}")
        self.tie_threshold = tie_threshold
        if tie_threshold is not None and not any(rule.fits_ties for rule in self.protocols):
            raise ValueError("tie_threshold: none of the protocols uses one; leave it out")
        if tie_threshold is not None and tie_threshold.value is not None and len(self._modes) == 2:
            raise ValueError(
                "tie_threshold: a value holds for one way of judging, and here are two; give `judgements`, files of both ways"
            )
        self.accuracy = PairAccuracy()
        self.rows: list[dict[str, Any]] = []
        """Of each pair its judgement as a row; pointwise ones first where both ways are judged."""
        self.results: list[Result] = []
        self._judged: dict[Mode, list[_Judged]] = {}
        self._ties: dict[tuple[str, Mode], Ties] = {}
        self._places: dict[str, Place] = {}
        self._asked: dict[Mode, Any] = {}
        self._tokens: dict[Mode, TokenCount | None] = {}

    @property
    def _modes(self) -> list[Mode]:
        return [*(["pointwise"] if self.reward is not None else []), *(["pairwise"] if self.judge is not None else [])]  # type: ignore[list-item]

    def configure_model(self) -> None:
        """Load the judges and the judgements that a tie threshold is fitted on."""
        if self.tie_threshold is not None and not self._ties:
            read = self.tie_threshold.read()
            for rule in self.protocols:
                for mode in self._modes if rule.fits_ties else []:
                    self._ties[rule.name, mode] = self.tie_threshold.ties(read, mode, rule.ties == "half")
        own = critic_of(self.reward)
        if self.judge is not None and own is not None and own.chat is not self.judge.chat:
            one, other = own.chat, self.judge.chat
            if type(one) is type(other) and one.weights is not None and one.fingerprint == other.fingerprint:
                self.judge.chat = one
        for judge in (self.reward, self.judge):
            if judge is not None:
                judge.load()

    def on_test_start(self) -> None:
        """Move judges that run in this process to this rank's device, and start a new count."""
        for judge in (self.reward, self.judge):
            if judge is not None:
                judge.load(self.device)
        self.rows, self.results, self._places = [], [], {}
        self._judged = {mode: [] for mode in self._modes}
        for mode in self._modes:
            self._asked[mode], self._tokens[mode] = counting(self.reward if mode == "pointwise" else self.judge)

    def test_step(self, batch: Sequence[Preference], batch_idx: int) -> None:
        """Judge a batch of pairs.

        Raises:
            ValueError: If a pair is not of a protocol's rows, or one that the tie threshold was fitted on.
        """
        for rule in self.protocols:
            for pair in batch:
                before = self._places.get(rule.name)
                self._places[rule.name] = rule.admit(pair.id, pair.origin, before)
        for ties in self._ties.values():
            ties.refuse_overlap([pair.id for pair in batch])
        for mode, judged in self._judged.items():
            judged += self._pointwise(batch) if mode == "pointwise" else self._pairwise(batch)

    def _pointwise(self, pairs: Sequence[Preference]) -> list[_Judged]:
        requests = []
        for pair in pairs:
            sources = open_pictures(pair, pair.sources)
            requests += [
                CritiqueRequest(pair.task, pair.prompt, image, sources) for image in open_pictures(pair, pair.candidates)
            ]
        rewards = self._asked["pointwise"].score(requests)
        given: list[Rewards] = []
        for i in range(0, len(requests), 2):
            reason = rewards.reasons[i] or rewards.reasons[i + 1]
            given.append(Unscored(reason) if reason else (float(rewards.total[i]), float(rewards.total[i + 1])))
        named = [_named(rewards.aspects, row) for row in rewards.values.tolist()]
        scores: list[Scores] = list(zip(named[::2], named[1::2], strict=True))
        return [
            _judged(pair, one, None, (_verdict(one), _verdict(one)), scored)  # scoring alone has no order
            for pair, one, scored in zip(pairs, given, scores, strict=True)
        ]

    def _pairwise(self, pairs: Sequence[Preference]) -> list[_Judged]:
        requests = []
        for pair in pairs:
            sources = open_pictures(pair, pair.sources)
            a, b = open_pictures(pair, pair.candidates)
            requests += [ComparisonRequest(pair.task, pair.prompt, order, sources) for order in ((a, b), (b, a))]
        answers: list[PairCritique] = self._asked["pairwise"].compare(requests)
        judged = []
        for pair, first, second in zip(pairs, answers[::2], answers[1::2], strict=True):
            both = {key: first.scores(key) for key in first.aspects}
            scores: Any = tuple({key: s[i] if isinstance(s[i], float) else None for key, s in both.items()} for i in (0, 1))
            forward, swapped = _rewards(first), _rewards(second)
            turned = swapped if isinstance(swapped, Unscored) else swapped[::-1]  # as the pair has them, not as they were shown
            flip: dict[str, Verdict] = {"A": "B", "B": "A", "tie": "tie"}
            said = second.verdict()
            verdicts = first.verdict(), said if isinstance(said, Unscored) else flip[said]
            judged.append(_judged(pair, forward, turned, verdicts, scores))
        return judged

    def on_test_epoch_end(self) -> None:
        """Log accuracy, its interval, the unscored share and, of a judge of pairs, order consistency; then each protocol's numbers."""
        for mode, own in self._judged.items():
            judged = list({one.pair: one for one in _of_all_processes(own)}.values())
            self.rows += [one.row for one in judged]
            # one way keeps the plain names; two ways have to be told apart
            prefix = "test/" if len(self._judged) == 1 else f"test/{mode}/"
            self._log_accuracy(judged, mode, prefix)
            if self.protocols:
                judge = self._described(mode)
                judgements = [one.judgement for one in judged]
                for rule in self.protocols:
                    result = evaluate(rule, judgements, judge, self._ties.get((rule.name, mode)))
                    self.results.append(result)
                    for name, value in result.metrics().items():
                        self.log(prefix + name, value, rank_zero_only=False)

    def _log_accuracy(self, judged: Sequence[_Judged], mode: Mode, prefix: str) -> None:
        share = judged[self.global_rank :: self.trainer.world_size]  # the metric adds up the processes' shares
        self.accuracy.update(
            torch.tensor([one.pair.label for one in share], device=self.device),
            torch.tensor([one.codes[0] for one in share], device=self.device),
            torch.tensor([one.codes[1] for one in share], device=self.device),
            torch.tensor([int(one.judgement.group, 16) % 2**62 for one in share], device=self.device),
        )
        result = self.accuracy.compute()
        self.accuracy.reset()
        if mode == "pointwise":  # scoring alone has no order
            del result["order_consistency"]
        for name, value in result.items():
            self.log(f"{prefix}{name}", value, rank_zero_only=False)

    def _described(self, mode: Mode) -> Judge:
        """Who judged, with the picture tokens of all processes' requests."""
        judge = self.reward if mode == "pointwise" else self.judge
        assert judge is not None
        count = self._tokens[mode]
        tokens = _of_all_processes(count.image_tokens if count is not None else [])
        found = (min(tokens), sum(tokens) / len(tokens), max(tokens)) if tokens else None
        return dataclasses.replace(describe(judge), image_tokens=found)


def _of_all_processes(own: list[Any]) -> list[Any]:
    """Every process's items; in turn, as the pairs were dealt out, which puts them back into their order."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return own
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return [one for turn in zip_longest(*gathered) for one in turn if one is not None]


def _judged(
    pair: Preference, forward: Rewards, swapped: Rewards | None, verdicts: tuple[Judged, Judged], scores: Scores
) -> _Judged:
    judgement = Judgement(pair.id, pair.group, pair.label, pair.origin, forward, swapped)
    row = {**to_row(judgement), "verdict": _name(verdicts[0]), "swapped": _name(verdicts[1]), "scores": scores}
    return _Judged(pair, judgement, row, (_code(verdicts[0]), _code(verdicts[1])))


def _rewards(answer: PairCritique) -> Rewards:
    a, b = answer.rewards()
    return a if isinstance(a, Unscored) else (b if isinstance(b, Unscored) else (a, b))


def _verdict(rewards: Rewards) -> Judged:
    return (
        rewards
        if isinstance(rewards, Unscored)
        else ("tie" if rewards[0] == rewards[1] else ("A" if rewards[0] > rewards[1] else "B"))
    )


def _code(verdict: Judged) -> float:
    """Probability that A is preferred as a judge's verdict; NaN for unscored."""
    return float("nan") if isinstance(verdict, Unscored) else {"A": 1.0, "B": 0.0, "tie": 0.5}[verdict]


def _name(verdict: Judged) -> str:
    return f"unscored: {verdict.reason}" if isinstance(verdict, Unscored) else verdict


def _named(aspects: Sequence[str], row: Sequence[float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in zip(aspects, row, strict=True)}
