"""Accuracy of judges on preference pairs, with ties."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .intervals import clustered_bootstrap
from .rows import RowMetric, check_finite, check_label, check_verdict, mean, right


class PairAccuracy(RowMetric):
    """Accuracy of a judge on decided preference pairs, over both orders.

    ``mean((right_forward + right_swapped) / 2)`` over the pairs that people decided. A pair that was not judged, or judged a tie, is
    wrong. Pairs that people left tied do not count.

    As input to ``update`` the metric accepts:

    - ``label`` (``[n]`` in [0, 1]): probability that A is preferred, 0.5 for a tie.
    - ``forward_order`` (``[n]``): the judge's verdict with A shown first: 1 for A, 0 for B, 0.5 for a tie, NaN if unscored.
    - ``swapped_order`` (``[n]``): the verdict with B shown first, still 1 for A; equal to ``forward_order`` for a judge of single
      pictures.
    - ``group`` (``int64 [n]``): identity of the pair's (prompt, sources), for the interval.

    As output of ``compute`` it returns a dict of scalars: ``pair_accuracy`` with its clustered 95 % interval (``_low``, ``_high``),
    ``n_pairs``, ``order_consistency`` (same verdict in both orders, over pairs scored in both), ``unscored_rate`` and ``tie_rate``
    (ties among scored verdicts).

    Source: the protocol of Multimodal RewardBench 2, forward and swapped, but a missing judgement does not leave the denominator.

    Args:
        kwargs: Of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import PairAccuracy
        >>> metric = PairAccuracy()
        >>> label, group = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([1, 2, 3])
        >>> metric.update(label, torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, float("nan"), 1.0]), group)
        >>> round(float(metric.compute()["pair_accuracy"]), 2)
        0.5
    """

    def __init__(self, **kwargs: Any) -> None:
        doubles = dict.fromkeys(("label", "forward_order", "swapped_order"), torch.float64)
        super().__init__({**doubles, "group": torch.int64}, **kwargs)

    def update(self, label: Tensor, forward_order: Tensor, swapped_order: Tensor, group: Tensor) -> None:
        """Add pairs, all ``[n]``."""
        check_label(label)
        check_verdict("forward_order", forward_order)
        check_verdict("swapped_order", swapped_order)
        self._add(label=label, forward_order=forward_order, swapped_order=swapped_order, group=group)

    def compute(self) -> dict[str, Tensor]:
        """The figures so far."""
        label, first, second, group = self._rows()
        decided = label != 0.5
        label, first, second, group = label[decided], first[decided], second[decided], group[decided]
        correct = (right(first, label).double() + right(second, label).double()) / 2
        both = ~(first.isnan() | second.isnan())
        verdicts = torch.cat([first, second])
        low, high = clustered_bootstrap(correct, group)
        return self._figures(
            pair_accuracy=mean(correct),
            pair_accuracy_low=low,
            pair_accuracy_high=high,
            n_pairs=len(label),
            order_consistency=mean(first[both] == second[both]),
            unscored_rate=mean(verdicts.isnan()),
            tie_rate=mean(verdicts[~verdicts.isnan()] == 0.5),
        )


class TieAccuracy(RowMetric):
    """Three-way accuracy (A, B or tie) of a judge that scores pictures, under one rule for all pairs.

    The verdict on a difference d of scores is a tie iff ``|d| <= threshold``, else the side with the higher score. A pair is right
    where verdict and people agree; an unscored one is wrong. People's ties are the labels of exactly 0.5.

    The threshold is part of the metric, so that it is there before the test rows are: fit it on a development split with
    :func:`fit_tie_threshold`. Two published rules do otherwise and come out higher: EditReward's ``calc_accuracy_with_ties`` picks
    its threshold on the test rows and reads the accuracy inside a run of equal ``|d|``; its strict K = 2 figure asks the threshold
    about human ties only, and the bare sign about decided pairs.

    As input to ``update`` the metric accepts:

    - ``difference`` (``[n]``): score of A minus score of B, NaN where either is unscored.
    - ``label`` (``[n]`` in [0, 1]): probability that A is preferred, 0.5 for a tie.
    - ``group`` (``int64 [n]``): identity of the pair's (prompt, sources), for the intervals.

    As output of ``compute`` it returns a dict of scalars: ``three_way_accuracy`` and ``decided_accuracy`` with their clustered 95 %
    intervals (``_low``, ``_high``), ``n_pairs`` and ``n_decided``, ``tie_rate`` (judge's ties among scored pairs),
    ``human_tie_rate`` and ``unscored_rate``. ``decided_accuracy`` is over the pairs that people decided and takes the sign of the
    difference, whatever the threshold; no difference is wrong.

    Source: D. Deutsch, G. Foster and M. Freitag, Ties matter, EMNLP 2023 (arXiv 2305.14324), with the threshold held out.

    Args:
        threshold: Largest difference that is a tie, 0 or more, in units of the scores. Where scores come in steps, a value between
            two steps, as a fit gives it: 3.1 - 3.0 is not 0.1 to a computer.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If the threshold is negative or no number.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import TieAccuracy, fit_tie_threshold
        >>> development = torch.tensor([0.1, -0.1, 0.6, -0.8]), torch.tensor([0.5, 0.5, 1.0, 0.0])
        >>> metric = TieAccuracy(fit_tie_threshold(*development))
        >>> metric.update(torch.tensor([0.2, 0.2, -0.9, float("nan")]), torch.tensor([0.5, 1.0, 0.0, 1.0]), torch.arange(4))
        >>> figures = metric.compute()
        >>> float(figures["three_way_accuracy"]), round(float(figures["decided_accuracy"]), 2)
        (0.5, 0.67)
    """

    def __init__(self, threshold: float, **kwargs: Any) -> None:
        if not 0 <= threshold < math.inf:
            raise ValueError(f"tie threshold: must be 0 or more, got {threshold:g}")
        super().__init__({"difference": torch.float64, "label": torch.float64, "group": torch.int64}, **kwargs)
        self.threshold = threshold

    def update(self, difference: Tensor, label: Tensor, group: Tensor) -> None:
        """Add pairs, all ``[n]``."""
        check_finite("difference", difference)
        check_label(label)
        self._add(difference=difference, label=label, group=group)

    def compute(self) -> dict[str, Tensor]:
        """The figures so far."""
        difference, label, group = self._rows()
        side = _side(difference)
        tie, decided, scored = difference.abs() <= self.threshold, label != 0.5, ~difference.isnan()
        three_way = torch.where(decided, right(side, label) & ~tie, tie).double()
        by_sign = right(side, label)[decided].double()
        low, high = clustered_bootstrap(three_way, group)
        decided_low, decided_high = clustered_bootstrap(by_sign, group[decided])
        return self._figures(
            three_way_accuracy=mean(three_way),
            three_way_accuracy_low=low,
            three_way_accuracy_high=high,
            decided_accuracy=mean(by_sign),
            decided_accuracy_low=decided_low,
            decided_accuracy_high=decided_high,
            n_pairs=len(label),
            n_decided=int(decided.sum()),
            tie_rate=mean(tie[scored]),
            human_tie_rate=mean(~decided),
            unscored_rate=mean(~scored),
        )


def fit_tie_threshold(differences: Tensor, labels: Tensor, *, half_credit: bool = False) -> float:
    """The largest difference of scores to call a tie: the one that makes three-way accuracy highest on these rows.

    Rows with the same ``|d|`` move together: either all of them are ties, or none. Differences that are equal but for the rounding
    of scores (one part in a million of the largest) count as the same, and the threshold lies halfway between the last that is a
    tie and the first that is not, so that rounding on other rows does not matter either. Of several thresholds that are as good, the
    smallest. No difference (d = 0) is always a tie. O(n log n).

    Fit on a development split: on the rows that it was fitted on, accuracy is too high (by 4 points at 150 pairs).

    Args:
        differences: Score of A minus score of B ``[n]``; rows with NaN (unscored) are wrong under any threshold and not looked at.
        labels: Probability that A is preferred ``[n]``, 0.5 for a tie.
        half_credit: Count a pair that only people or only the judge call a tie as half right, as Pick-a-Pic's accuracy does.

    Returns:
        The threshold for :class:`TieAccuracy`, 0 or more: 0 if no ties pay, the largest ``|d|`` if calling everything a tie is best.

    Raises:
        ValueError: If nothing was scored, or for values that cannot be.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import fit_tie_threshold
        >>> fit_tie_threshold(torch.tensor([0.5, -0.5, 1.5, -2.0]), torch.tensor([0.5, 0.5, 1.0, 0.0]))
        1.0
    """
    check_finite("difference", differences)
    check_label(labels)
    scored = ~differences.isnan()
    if not bool(scored.any()):
        raise ValueError(f"tie threshold: none of {len(differences)} rows is scored; fit on a split that was judged")
    difference, label = differences[scored].cpu().double(), labels[scored].cpu().double()
    size, order = difference.abs().sort()
    difference, label = difference[order], label[order]
    n, same = len(size), 1e-6 * float(size[-1])
    # credit if the k smallest are ties, k = 0 ... n
    tied, half = label == 0.5, 0.5 * half_credit
    as_tie = torch.where(tied, 1.0, half)
    as_decided = torch.where(tied, half, right(_side(difference), label).double())
    credit = torch.cat([torch.zeros(1, dtype=torch.float64), (as_tie - as_decided).cumsum(0)])  # halves: exact
    allowed = torch.ones(n + 1, dtype=torch.bool)
    allowed[1:-1] = size.diff() > same
    allowed[0] = size[0] > same
    best = int(torch.where(allowed, credit, -torch.inf).argmax())  # the first of equals
    if best == 0:
        return 0.0
    return float(size[-1]) if best == n else float(size[best - 1] + size[best]) / 2


def _side(difference: Tensor) -> Tensor:
    """The verdict of a difference: 1 for A, 0 for B, 0.5 for none, NaN for unscored."""
    return (difference.sign() + 1) / 2
