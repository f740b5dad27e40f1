"""Tie thresholds: given, or fitted on rows that are not counted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from ..metrics import fit_tie_threshold
from ..records import Unscored
from .judgements import Judgement, Mode, gap, read_judgements, verdict

EXACT = "not fitted: a tie is exact equality"


@dataclass(frozen=True)
class Ties:
    """When two rewards are a tie, and which kind of tie.

    Args:
        value: Rewards that differ by no more are a tie.
        good_level: Two tied pictures are both good if the mean of their rewards is at least this, else both bad; ``None``: not known.
        fitted_on: What they were fitted on, in words.
        ids: Ids of the pairs that they were fitted on.
    """

    value: float = 0.0
    good_level: float | None = None
    fitted_on: str = EXACT
    ids: frozenset[str] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        if not self.value >= 0.0:
            raise ValueError(f"a tie threshold is at least 0, got {self.value}")

    def refuse_overlap(self, ids: Collection[str]) -> None:
        """See that none of these pairs helped to fit the threshold.

        Raises:
            ValueError: If one did; in-sample thresholds flatter (.622 for .582 held out at n = 150, reward-models.md 4.5).
        """
        both = sorted(self.ids.intersection(ids))
        if both:
            raise ValueError(
                f"{len(both)} pairs are in the rows that the tie threshold was fitted on ({self.fitted_on}) and in those that are "
                f"counted, e.g. {both[0]!r}; fit it on other rows"
            )


@dataclass(frozen=True)
class TieThreshold:
    """Where a protocol with ties takes its threshold from: a number, or files of judgements to fit it on.

    Args:
        value: The threshold, in rewards.
        fitted_on: What ``value`` was fitted on.
        good_level: For four-way protocols: the mean reward from which on two tied pictures are both good.
        judgements: Instead of a value, ``judgements.jsonl`` files of the same judge on other rows.

    Raises:
        ValueError: If both or neither are given, or it is not said what a value above 0 was fitted on.
    """

    value: float | None = None
    fitted_on: str = ""
    good_level: float | None = None
    judgements: list[str] | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.judgements is None):
            raise ValueError("tie_threshold: give either value and fitted_on, or judgements (files to fit it on)")
        if self.value is not None and not self.value >= 0.0:
            raise ValueError(f"tie_threshold: value is at least 0, got {self.value}")
        if (self.value or self.good_level is not None) and not self.fitted_on:
            raise ValueError(
                "tie_threshold: say in fitted_on which rows the value comes from; they must not be the ones to count"
            )
        if self.judgements is not None and (self.fitted_on or self.good_level is not None):
            raise ValueError("tie_threshold: with judgements, fitted_on and good_level follow from the files; leave them out")

    def read(self) -> list[Judgement]:
        """The judgements of all files; none where there is a value."""
        return [judgement for path in self.judgements or () for judgement in read_judgements(path)]

    def ties(self, read: Sequence[Judgement], mode: Mode, half_credit: bool = False) -> Ties:
        """The threshold for one way of judging.

        Args:
            read: What :meth:`read` gave.
            mode: The way.
            half_credit: As in :func:`fit_ties`.

        Raises:
            ValueError: If the files hold no judgements of that way.
        """
        if self.value is not None:
            return Ties(self.value, self.good_level, self.fitted_on or EXACT)
        of_mode = [judgement for judgement in read if judgement.mode == mode]
        names = ", ".join(self.judgements or ())
        if not of_mode:
            raise ValueError(f"tie_threshold: {names} holds no {mode} judgements; a threshold holds for one way of judging only")
        return fit_ties(of_mode, names, half_credit)


def fit_ties(judgements: Sequence[Judgement], fitted_on: str, half_credit: bool = False) -> Ties:
    """Fit a threshold, and for votes that tell both good from both bad, the level between them.

    The threshold maximises three-way accuracy (Deutsch et al., arXiv 2305.14324; equal gaps always move together) on the judgements with A
    shown first; the smallest of equally good ones is taken.

    Args:
        judgements: Judgements of rows that will not be counted.
        fitted_on: What they are, in words.
        half_credit: Maximise Pick-a-Pic's accuracy instead, where a tie on one side only is half right.

    Raises:
        ValueError: If nothing was scored, or people left no pair tied, so that there is nothing to fit.
    """
    scored = [(j, j.forward) for j in judgements if not isinstance(j.forward, Unscored)]
    if not any(j.winner == "tie" for j, _ in scored):
        raise ValueError(f"{fitted_on}: no scored pair that people left tied, so no tie threshold can be fitted on it")
    gaps = torch.tensor([gap(rewards) for _, rewards in scored], dtype=torch.float64)
    labels = torch.tensor([{"A": 1.0, "tie": 0.5, "B": 0.0}[j.winner] for j, _ in scored], dtype=torch.float64)
    value = fit_tie_threshold(gaps, labels, half_credit=half_credit)
    named = f"{fitted_on} ({len(scored)} pairs)"
    return Ties(value, _fit_level(scored, value), named, frozenset(j.id for j in judgements))


def _fit_level(scored: Sequence[tuple[Judgement, tuple[float, float]]], threshold: float) -> float | None:
    """The mean reward that best parts pairs voted both good from those voted both bad; ``None`` where no vote tells."""
    notes = {"tievote": True, "bothbad_vote": False}
    levels = [
        (sum(rewards) / 2, notes[j.place.note])
        for j, rewards in scored
        if j.place.note in notes and verdict(rewards, threshold) == "tie"
    ]
    if len({good for _, good in levels}) < 2:
        return None
    at = sorted({mean for mean, _ in levels})
    between = [at[0], *((a + b) / 2 for a, b in pairwise(at)), at[-1] + 1.0]
    return max(between, key=lambda level: sum((mean >= level) == good for mean, good in levels))
