"""How finely a reward tells pictures of one request apart, and how much of that is noise. Reinforcement learning lives on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .groups import group_centred, group_index, group_sums
from .intervals import clustered_bootstrap, resampled_interval
from .rows import RowMetric, check_finite, mean


class WithinGroupResolution(RowMetric):
    """How far, and how often, rewards differ inside a group.

    Over the groups (prompt, sources) with two scored pictures or more:

    - ``within_group_std``: mean over groups of the (population) standard deviation, which is what advantages are divided by;
    - ``tie_rate``: share of the pairs of pictures of one group that got the same reward;
    - ``flat_rate``: share of groups in which all got the same reward, and which teach nothing.

    Over all scored pictures:

    - ``saturation_low``, ``saturation_high``: share at the worst and at the best reward that there is;
    - ``score_entropy``: entropy of the rewards' distribution over their distinct values, in bits; 0 if all are one.

    A picture without a reward counts nowhere, and its share is told.

    As input to ``update`` the metric accepts:

    - ``reward`` (``[n]``): rewards, NaN where unscored.
    - ``group`` (``int64 [n]``): identity of the picture's (prompt, sources).

    As output of ``compute`` it returns a dict of scalars: those above, ``within_group_std`` with its 95 % interval over groups
    (``_low``, ``_high``), ``n_groups`` with two scored pictures or more, ``starved_rate`` (groups with fewer) and ``unscored_rate``.

    Source: Z. Shao et al., DeepSeekMath (arXiv 2402.03300), 4.1, for the deviation that a group's advantages are divided by; the rates
    are plain counts.

    Args:
        low: The worst reward that there is; without it ``saturation_low`` is NaN.
        high: The best one; without it ``saturation_high`` is NaN.
        tolerance: Rewards so close are the same: a mean of aspects is not exact. In units of the reward.
        kwargs: Of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import WithinGroupResolution
        >>> metric = WithinGroupResolution(low=0.0, high=1.0)
        >>> metric.update(torch.tensor([0.2, 0.4, 0.4, 1.0, 1.0, float("nan")]), torch.tensor([1, 1, 1, 2, 2, 2]))
        >>> figures = metric.compute()
        >>> {name: round(float(figures[name]), 2) for name in ("within_group_std", "tie_rate", "flat_rate", "saturation_high")}
        {'within_group_std': 0.05, 'tie_rate': 0.5, 'flat_rate': 0.5, 'saturation_high': 0.4}
    """

    def __init__(self, low: float | None = None, high: float | None = None, tolerance: float = 1e-6, **kwargs: Any) -> None:
        if low is not None and high is not None and not low < high:
            raise ValueError(f"resolution: low {low:g} must be below high {high:g}")
        if not tolerance > 0:
            raise ValueError(f"resolution: tolerance {tolerance:g} must be above 0; 1e-6 tells apart what is not rounding")
        super().__init__({"group": torch.int64, "reward": torch.float64}, **kwargs)
        self.low = low
        self.high = high
        self.tolerance = tolerance

    def update(self, reward: Tensor, group: Tensor) -> None:
        """Add pictures, both ``[n]``."""
        check_finite("reward", reward)
        self._add(reward=reward, group=group)

    def compute(self) -> dict[str, Tensor]:
        """The figures so far."""
        group, reward = self._rows()  # in the order of the groups, and then of the rewards
        scored = ~reward.isnan()
        index, count = group_index(group)
        members = index[scored].bincount(minlength=count)
        useful = members >= 2
        kept = scored & useful[index]
        index, groups = group_index(group[kept])
        spread = reward[kept]
        size = members[useful]
        std = (group_sums(group_centred(spread, index, groups).square(), index, groups) / size).sqrt()
        ends = [spread[size.cumsum(0) - 1], spread[size.cumsum(0) - size]]  # best and worst of each group
        tied, pairs = 0, int((size * (size - 1)).sum()) // 2
        for apart in range(1, len(spread)):  # once none so far apart in rank is tied, none further apart is
            same = (index[apart:] == index[:-apart]) & (spread[apart:] - spread[:-apart] <= self.tolerance)
            if not bool(same.any()):
                break
            tied += int(same.sum())
        low, high = clustered_bootstrap(std, torch.arange(groups))
        values = reward[scored]
        share = (values / self.tolerance).round().unique(return_counts=True)[1] / max(1, len(values))
        return self._figures(
            within_group_std=mean(std),
            within_group_std_low=low,
            within_group_std_high=high,
            tie_rate=tied / pairs if pairs else float("nan"),
            flat_rate=mean(ends[0] - ends[1] <= self.tolerance),
            saturation_low=float("nan") if self.low is None else mean(values <= self.low + self.tolerance),
            saturation_high=float("nan") if self.high is None else mean(values >= self.high - self.tolerance),
            score_entropy=float(-(share * share.log2()).sum()) if len(values) else float("nan"),
            n_groups=groups,
            starved_rate=mean(~useful),
            unscored_rate=mean(~scored),
        )


class DuplicateNoise(RowMetric):
    r"""How much a reward changes when nothing should change it, against how much pictures differ.

    Copies of one picture (stored as JPEG and as PNG, cropped by a pixel, resized by a hundredth; or the same request asked again)
    should get one reward. With copies c of pictures i in groups g, copies :math:`k_i`, and :math:`N_g` the copies of a group:

    .. math::
        \sigma^2 = \frac{\sum_{i,c} (r_{ic} - \bar r_i)^2}{\sum_i (k_i - 1)}, \qquad
        \sigma_p^2 = \frac{\sum_i k_i (\bar r_i - \bar r_g)^2 - \sigma^2 \sum_g (m_g - 1)}{\sum_g (N_g - \sum_i k_i^2 / N_g)}

    with :math:`m_g` pictures in group g: the moment estimates of a nested one-way random-effects model, unbiased also where copies
    were left unscored. ``signal_to_noise`` is :math:`\sigma_p^2 / \sigma^2`, for one score: the mean of k copies has k times as
    much. It may come out negative where there is no signal. Differences *between* groups, which reinforcement learning takes out,
    count neither way; give all rows one group to count them as signal.

    A copy without a reward counts nowhere, and its share is told.

    As input to ``update`` the metric accepts:

    - ``reward`` (``[n]``): rewards, NaN where unscored.
    - ``picture`` (``int64 [n]``): identity of the picture that the row is a copy of.
    - ``group`` (``int64 [n]``): identity of the picture's (prompt, sources).

    As output of ``compute`` it returns a dict of scalars: ``duplicate_variance``, ``duplicate_std``, ``picture_variance``,
    ``signal_to_noise`` with its 95 % interval over groups (``_low``, ``_high``; NaN for a single group), ``n_pictures`` with two
    scored copies or more and ``unscored_rate``. Infinite signal to noise: copies agree, pictures do not; NaN: there are no two
    copies, or no two pictures in a group, or all rewards are one.

    Source: S. R. Searle, G. Casella and C. E. McCulloch, Variance Components (1992), chapter 3, for one group.

    Args:
        kwargs: Of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import DuplicateNoise
        >>> metric = DuplicateNoise()
        >>> metric.update(torch.tensor([3.0, 3.2, 2.0, 2.2]), torch.tensor([1, 1, 2, 2]), torch.zeros(4, dtype=torch.long))
        >>> figures = metric.compute()
        >>> round(float(figures["duplicate_variance"]), 3), round(float(figures["signal_to_noise"]), 1)
        (0.02, 24.5)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__({"group": torch.int64, "picture": torch.int64, "reward": torch.float64}, **kwargs)

    def update(self, reward: Tensor, picture: Tensor, group: Tensor) -> None:
        """Add copies, all ``[n]``."""
        check_finite("reward", reward)
        self._add(reward=reward, picture=picture, group=group)

    def compute(self) -> dict[str, Tensor]:
        """The figures so far."""
        group, picture, reward = self._rows()
        scored = ~reward.isnan()
        unscored = mean(~scored)
        group, picture, reward = group[scored], picture[scored], reward[scored]
        group, groups = group_index(group)
        picture, pictures = group_index(torch.stack([group, picture], dim=1))
        # from the lowest of its picture, so that equal rewards leave nothing, not even rounding
        lowest = torch.full((pictures,), torch.inf, dtype=torch.float64).scatter_reduce(0, picture, reward, "amin")
        copies = picture.bincount(minlength=pictures).double()
        home = torch.zeros(pictures, dtype=torch.int64).scatter(0, picture, group)
        above = reward - lowest[picture]
        within = group_sums(group_centred(above, picture, pictures).square(), picture, pictures)
        means = lowest + group_sums(above, picture, pictures) / copies
        size = group_sums(copies, home, groups)
        centre = group_sums(copies * (means - means[:1]), home, groups) / size
        between = copies * (means - means[:1] - centre[home]).square()
        sums = torch.stack(
            [
                group_sums(within, home, groups),
                group_sums(copies - 1, home, groups),
                group_sums(between, home, groups),
                home.bincount(minlength=groups) - 1.0,
                size - group_sums(copies.square(), home, groups) / size,
            ],
            dim=1,
        )
        noise, signal = (float(value) for value in _variances(sums.sum(dim=0, keepdim=True)))
        low, high = resampled_interval(sums, _signal_to_noise) if groups > 1 else (float("nan"), float("nan"))
        return self._figures(
            duplicate_variance=noise,
            duplicate_std=noise**0.5,
            picture_variance=signal,
            signal_to_noise=float(_signal_to_noise(sums.sum(dim=0, keepdim=True))),
            signal_to_noise_low=low,
            signal_to_noise_high=high,
            n_pictures=int((copies >= 2).sum()),
            unscored_rate=unscored,
        )


def _variances(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of copies and of pictures ``[s]``, of sums ``[s, 5]``; NaN (0 / 0) where nothing tells."""
    within, within_free, between, between_free, weight = sums.unbind(dim=1)
    noise = within / within_free
    return noise, (between - noise * between_free) / weight


def _signal_to_noise(sums: Tensor) -> Tensor:
    noise, signal = _variances(sums)
    return signal / noise
