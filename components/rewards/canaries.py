"""When has a policy begun to please its reward instead of doing better? Told from pictures of fixed requests under a second judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ..metrics.groups import group_index, group_sums

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Check:
    """The rewards of the canary pictures at one time: the same requests and the same noise each time.

    Args:
        epoch: Rounds of training before it.
        reward: What the policy is trained on ``[n]``; NaN where unscored.
        held_out: The judge that it is not trained on ``[n]``, likewise.
        kl: Mean squared distance of the policy's velocity from the base model's.
    """

    epoch: int
    reward: Tensor
    held_out: Tensor
    kl: float


@dataclass(frozen=True)
class Change:
    """A mean difference over requests, with its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class CanaryRule:
    """When to stop.

    A check is *bad* if, against the earlier check whose mean held-out reward was highest (among those that both judges can be compared
    at), the training reward has risen, its interval lies above 0, and the held-out reward has fallen by more than ``min_fall``, its
    interval lies below ``-min_fall``. The run is to be stopped when the last ``patience`` checks were all bad.

    Both are mean differences of the same pictures (request and noise), with intervals over requests (:func:`paired_change`). Since the
    best of several checks is partly the luckiest, an interval's level is ``level`` divided by the number of earlier checks (Bonferroni).

    Args:
        level: Level of the intervals: 0.05 for 95 %.
        min_fall: How far the held-out reward must have fallen for certain, in its own units.
        patience: Bad checks in a row that stop the run.

    Raises:
        ValueError: If a value is out of range.
    """

    level: float = 0.05
    min_fall: float = 0.0
    patience: int = 2

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0 or not self.min_fall >= 0.0 or self.patience < 1:
            raise ValueError(
                "canaries: level is between 0 and 1, min_fall at least 0 and patience at least 1, got "
                f"{self.level:g}, {self.min_fall:g} and {self.patience}"
            )

    def bad(self, checks: Sequence[Check], requests: Tensor) -> str:
        """Why the last check is bad; empty if it is not.

        Args:
            checks: All checks in order.
            requests: Which request each picture is of, ``int64 [n]``.
        """
        if len(checks) < 2:
            return ""
        last, earlier = checks[-1], [check for check in checks[:-1] if not check.held_out.isnan().all()]
        if not earlier:
            return ""
        best = max(earlier, key=lambda check: (float(check.held_out.nanmean()), check.epoch))
        level = self.level / len(earlier)
        rise = paired_change(best.reward, last.reward, requests, level)
        fall = paired_change(best.held_out, last.held_out, requests, level)
        if not (rise.low > 0.0 and fall.high < -self.min_fall):  # NaN: too few requests to say
            return ""
        return (
            f"since round {best.epoch} the training reward of the canaries rose by {rise.mean:.3f} [{rise.low:.3f}, {rise.high:.3f}], "
            f"while the held-out one fell by {-fall.mean:.3f} [{-fall.high:.3f}, {-fall.low:.3f}] "
            f"(KL {best.kl:.2e} then, {last.kl:.2e} now)"
        )

    def verdict(self, checks: Sequence[Check], requests: Tensor) -> str:
        """Why the run is to be stopped after the last check; empty if it is not. Arguments as of :meth:`bad`."""
        if len(checks) <= self.patience:
            return ""
        reasons = [self.bad(checks[: len(checks) - back], requests) for back in range(self.patience)]
        return reasons[0] if all(reasons) else ""


def paired_change(before: Tensor, after: Tensor, requests: Tensor, level: float = 0.05) -> Change:
    r"""Mean of ``after - before`` over requests, with its interval.

    Pictures of one request share what is hard about it, so that requests are what is drawn at random: with the mean difference
    :math:`d_i` of each of P requests, the interval is :math:`\bar d \pm t_{P-1} s_d / \sqrt P`, Student's.

    Args:
        before: Rewards ``[n]``; NaN where unscored.
        after: Rewards of the same requests and noise ``[n]``; a picture counts where both are scored.
        requests: Which request each is of, ``int64 [n]``.
        level: 0.05 for a 95 % interval.

    Returns:
        The change; its interval is NaN with fewer than two requests.
    """
    both = ~(before.isnan() | after.isnan())
    index, count = group_index(requests[both])
    difference = (after - before)[both].double()
    means = group_sums(difference, index, count) / group_sums(torch.ones_like(difference), index, count)
    if count < 2:
        return Change(float(means.mean()) if count else math.nan, math.nan, math.nan)
    mean = float(means.mean())
    reach = student_quantile(1 - level / 2, count - 1) * float(means.std()) / math.sqrt(count)
    return Change(mean, mean - reach, mean + reach)


def student_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t distribution: that of the normal one, and three terms more.

    Exact for 1 and 2 degrees of freedom. For 3 it is too small by 0.1 % at 0.975 and by 3 % at 0.999, from 7 on by less than 0.1 %.

    Source: M. Abramowitz and I. A. Stegun, Handbook of Mathematical Functions (1964), 26.7.5.

    Args:
        share: Probability below the quantile, in (0, 1).
        freedom: Degrees of freedom, at least 1.
    """
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) / math.sqrt(2 * share * (1 - share))
    z = _NORMAL.inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
