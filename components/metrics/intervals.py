"""Intervals that go beside every rate, and tests of one judge against another."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor

from .groups import group_centred, group_index, group_sums

_NORMAL = NormalDist()


def wilson_interval(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % Wilson score interval of a rate (E. B. Wilson, 1927); ``(nan, nan)`` for n = 0."""
    if n == 0:
        return float("nan"), float("nan")
    rate = successes / n
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def resampled_interval(
    sums: Tensor, statistic: Callable[[Tensor], Tensor], samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a figure made of sums over clusters, whole clusters drawn with replacement.

    Source: C. A. Field and A. H. Welsh, Bootstrapping clustered data, J. R. Stat. Soc. B 69 (2007), 369-390.

    Args:
        sums: What each cluster adds, ``[clusters, k]``.
        statistic: From totals ``[s, k]`` to figures ``[s]``; NaN where a draw has none, and such draws are left out.
        samples: Bootstrap samples.
        seed: Seed.

    Returns:
        The 2.5 % and 97.5 % quantiles; ``(nan, nan)`` without clusters or figures.
    """
    sums = sums.cpu().double()
    count = len(sums)
    if count == 0:
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, 2_000_000 // count)  # 16 MB
    found = []
    for start in range(0, samples, at_once):
        drawn = torch.randint(count, (min(at_once, samples - start), count), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
        found.append(statistic(times @ sums))
    figures = torch.cat(found)
    figures = figures[~figures.isnan()]
    if len(figures) == 0:
        return float("nan"), float("nan")
    low, high = figures.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def clustered_bootstrap(values: Tensor, clusters: Tensor, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of a mean, resampling whole clusters (pairs of one prompt share pictures).

    Args:
        values: ``[n]``. One NaN makes the interval NaN: count an unscored row as wrong, or take it out with its cluster id.
        clusters: Cluster identity ``[n]``.
        samples: Bootstrap samples.
        seed: Seed.
    """
    if len(values) == 0 or bool(values.isnan().any()):
        return float("nan"), float("nan")
    index, count = group_index(clusters.cpu())
    columns = torch.stack([values.cpu().double(), torch.ones(len(values), dtype=torch.float64)], dim=1)
    return resampled_interval(group_sums(columns, index, count), lambda total: total[:, 0] / total[:, 1], samples, seed)


def paired_bootstrap(first: Tensor, second: Tensor, clusters: Tensor, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``first - second`` over the same rows, resampling whole clusters.

    What two judges get wrong together cancels, so that the interval is narrower than those of the two figures suggest.

    Args:
        first: What one judge earned in each row, e.g. 1 where it is right, ``[n]``. Unscored rows: as in :func:`clustered_bootstrap`.
        second: What the other one earned in the same rows ``[n]``.
        clusters: Cluster identity ``[n]``.
        samples: Bootstrap samples.
        seed: Seed.

    Raises:
        ValueError: If the three are not of one length.
    """
    if not first.shape == second.shape == clusters.shape:
        raise ValueError(
            f"paired rows: first {list(first.shape)}, second {list(second.shape)} and clusters {list(clusters.shape)} must have "
            "one length; judge the same rows with both"
        )
    return clustered_bootstrap(first.cpu().double() - second.cpu().double(), clusters, samples, seed)


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
    index, count = group_index(groups.cpu()[both])
    a, b = (group_centred(values.cpu()[both].double(), index, count) for values in (first, second))

    def correlation(total: Tensor) -> Tensor:
        scale = (total[:, 1] * total[:, 2]).sqrt()
        return torch.where(scale > 1e-12, total[:, 0] / scale, torch.nan)

    return resampled_interval(group_sums(torch.stack([a * b, a * a, b * b], dim=1), index, count), correlation, samples, seed)


def mcnemar(first: Tensor, second: Tensor) -> float:
    """Two-sided exact p-value of McNemar's test: do two judges differ, on the rows that one gets right and the other wrong?

    With b rows that only the first gets right and c that only the second does, and k = min(b, c):
    ``p = min(1, 2 * sum_{i <= k} C(b + c, i) / 2^(b + c))``; 1 where they never differ. Rows are taken as independent: where pairs
    share pictures, :func:`paired_bootstrap` over prompts is the safer one.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157; the exact form is the binomial (sign) test.

    Args:
        first: Whether one judge is right ``bool [n]``; an unscored row is wrong.
        second: Whether the other one is, in the same rows ``bool [n]``.

    Raises:
        ValueError: If they are not of one length or not of bool (a NaN would pass for "right").

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import mcnemar
        >>> mcnemar(torch.tensor([True] * 6 + [False]), torch.tensor([False] * 6 + [False]))
        0.03125
    """
    if first.shape != second.shape or first.dtype != torch.bool or second.dtype != torch.bool:
        raise ValueError(
            f"mcnemar: two bool tensors of one length wanted, got {first.dtype} {list(first.shape)} and {second.dtype} "
            f"{list(second.shape)}; compare verdicts with labels first, unscored ones as wrong"
        )
    one, other = int((first & ~second).sum()), int((~first & second).sum())
    n, term, tail = one + other, 1, 1
    for i in range(min(one, other)):  # whole numbers of any size: exact, also for thousands of rows
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)


def paired_power(n: int, discordant: float, difference: float, level: float = 0.05) -> float:
    """Probability that McNemar's two-sided test finds a difference between two judges; normal approximation.

    ``Phi((|d| sqrt(n) - z sqrt(q)) / sqrt(q - d^2)) + Phi((-|d| sqrt(n) - z sqrt(q)) / sqrt(q - d^2))`` for a share q of discordant
    rows, a difference d of accuracies and the normal quantile z at ``1 - level / 2``. The exact test is a little weaker.

    Source: R. J. Connor, Biometrics 43 (1987), 207-211.

    Args:
        n: Rows that both have judged.
        discordant: Share of rows that one gets right and the other wrong, in (0, 1].
        difference: Difference of their accuracies, in [-discordant, discordant].
        level: Level of the test, in (0, 1).

    Raises:
        ValueError: For a share or a difference that cannot be.

    Example:
        >>> from rationalrewards.components.metrics import paired_power
        >>> round(paired_power(2600, discordant=0.3, difference=0.03), 2)
        0.8
    """
    if n < 1 or not 0 < discordant <= 1 or not abs(difference) <= discordant or not 0 < level < 1:
        raise ValueError(
            f"power: n {n} must be positive, the discordant share {discordant:g} in (0, 1], the difference {difference:g} not above "
            f"it in size, and the level {level:g} in (0, 1)"
        )
    found = abs(difference) * math.sqrt(n)
    needed = _NORMAL.inv_cdf(1 - level / 2) * math.sqrt(discordant)
    spread = math.sqrt(discordant - difference * difference)
    if spread == 0.0:  # one judge is always right where the other is wrong: nothing is left to chance
        return float(found > needed)
    return _NORMAL.cdf((found - needed) / spread) + _NORMAL.cdf((-found - needed) / spread)


def detectable_difference(n: int, discordant: float, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest difference of two accuracies that :func:`paired_power` finds with the given probability.

    Args:
        n: Rows that both have judged.
        discordant: Share of rows that one gets right and the other wrong, in (0, 1].
        power: Probability wanted, above ``level`` and below 1.
        level: Level of the test, in (0, 1).

    Returns:
        A difference in (0, discordant]; NaN where even the largest one would be missed too often.

    Raises:
        ValueError: For a share or a probability that cannot be.

    Example:
        >>> from rationalrewards.components.metrics import detectable_difference
        >>> round(detectable_difference(1000, discordant=0.3), 3)
        0.048
    """
    if not level < power < 1:
        raise ValueError(f"power {power:g} must lie between the level {level:g} and 1")
    low, high = 0.0, discordant
    if paired_power(n, discordant, high, level) < power:
        return float("nan")
    for _ in range(60):  # halved until doubles end
        middle = (low + high) / 2
        low, high = (low, middle) if paired_power(n, discordant, middle, level) >= power else (middle, high)
    return high
