"""torchmetrics classes for judges, and the intervals that go beside every rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def wilson_interval(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % Wilson score interval of a rate (E. B. Wilson, 1927); ``(nan, nan)`` for n = 0."""
    if n == 0:
        return float("nan"), float("nan")
    rate = successes / n
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def clustered_bootstrap(values: Tensor, clusters: Tensor, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of a mean, resampling whole clusters (pairs of one prompt share pictures).

    Args:
        values: ``[n]``.
        clusters: Cluster identity ``[n]``.
        samples: Bootstrap samples.
        seed: Seed.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    _, index = clusters.cpu().unique(return_inverse=True)
    count = int(index.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, index, values.cpu().double())
    sizes = torch.zeros(count, dtype=torch.float64).index_add_(0, index, torch.ones(len(values), dtype=torch.float64))
    drawn = torch.randint(count, (samples, count), generator=torch.Generator().manual_seed(seed))
    means = sums[drawn].sum(dim=1) / sizes[drawn].sum(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def within_group_correlation_interval(
    first: Tensor, second: Tensor, groups: Tensor, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of :func:`~rationalrewards.components.rewards.within_group_correlation`, resampling whole groups.

    Args:
        first: ``[n]``, NaN where unscored.
        second: ``[n]``, likewise; a sample counts where both are scored.
        groups: Group identity ``[n]``.
        samples: Bootstrap samples; those in which nothing varies inside groups are left out.
        seed: Seed.
    """
    both = ~(first.isnan() | second.isnan()).cpu()
    a, b = first.cpu()[both].double(), second.cpu()[both].double()
    if len(a) == 0:
        return float("nan"), float("nan")
    _, index = groups.cpu()[both].unique(return_inverse=True)
    count = int(index.max()) + 1

    def by_group(values: Tensor) -> Tensor:
        return torch.zeros(count, dtype=torch.float64).index_add_(0, index, values)

    sizes = by_group(torch.ones_like(a))
    a, b = a - (by_group(a) / sizes)[index], b - (by_group(b) / sizes)[index]
    drawn = torch.randint(count, (samples, count), generator=torch.Generator().manual_seed(seed))
    product, left, right = (by_group(values)[drawn].sum(dim=1) for values in (a * b, a * a, b * b))
    scale = (left * right).sqrt()
    found = (product / scale)[scale > 1e-12]
    if len(found) == 0:
        return float("nan"), float("nan")
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


class PairAccuracy(Metric):
    """Accuracy of a judge on decided preference pairs, over both orders.

    A pair that was not judged, or judged a tie, is wrong. Pairs that people left tied do not count. Works across processes.

    Example:
        >>> metric = PairAccuracy()
        >>> label, group = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([1, 2, 3])
        >>> metric.update(label, torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, float("nan"), 1.0]), group)
        >>> round(float(metric.compute()["pair_accuracy"]), 2)
        0.5
    """

    full_state_update = False
    label: list[Tensor]
    forward_order: list[Tensor]
    swapped_order: list[Tensor]
    group: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("label", "forward_order", "swapped_order", "group"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, label: Tensor, forward_order: Tensor, swapped_order: Tensor, group: Tensor) -> None:
        """Add pairs.

        Args:
            label: Probability that A is preferred ``[n]``, 0.5 for a tie.
            forward_order: The judge's verdict with A shown first ``[n]``: 1 for A, 0 for B, 0.5 for a tie, NaN if unscored.
            swapped_order: The verdict with B shown first, still 1 for A; equal to ``forward_order`` for a judge of single pictures.
            group: Identity of the pair's (prompt, sources), as integers ``[n]``, for the interval.
        """
        self.label.append(label.double())
        self.forward_order.append(forward_order.double())
        self.swapped_order.append(swapped_order.double())
        self.group.append(group.long())

    def compute(self) -> dict[str, Tensor]:
        """The figures so far.

        Returns:
            ``pair_accuracy`` with its clustered 95 % interval (``_low``, ``_high``), ``n_pairs``, ``order_consistency`` (same
            verdict in both orders, over pairs scored in both), ``unscored_rate`` and ``tie_rate`` (ties among scored verdicts).
        """
        label, first, second, group = (
            dim_zero_cat(state) for state in (self.label, self.forward_order, self.swapped_order, self.group)
        )
        decided = label != 0.5
        label, first, second, group = label[decided], first[decided], second[decided], group[decided]
        right = [((verdict > 0.5) == (label > 0.5)) & (verdict != 0.5) & ~verdict.isnan() for verdict in (first, second)]
        correct = (right[0].double() + right[1].double()) / 2
        unscored = (first.isnan().double() + second.isnan().double()) / 2
        both = ~(first.isnan() | second.isnan())
        verdicts = torch.cat([first, second])
        scored = verdicts[~verdicts.isnan()]
        low, high = clustered_bootstrap(correct, group)
        values = {
            "pair_accuracy": _mean(correct),
            "pair_accuracy_low": low,
            "pair_accuracy_high": high,
            "n_pairs": float(len(label)),
            "order_consistency": _mean((first[both] == second[both]).double()),
            "unscored_rate": _mean(unscored),
            "tie_rate": _mean((scored == 0.5).double()),
        }
        return {name: torch.tensor(value, dtype=torch.float32, device=label.device) for name, value in values.items()}


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")
