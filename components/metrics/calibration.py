"""Whether a judge's probabilities mean what they say."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .groups import group_index, group_sums
from .intervals import clustered_bootstrap, resampled_interval
from .rows import RowMetric, check_finite, check_label, mean


class PreferenceCalibration(RowMetric):
    r"""Brier score, negative log likelihood and adaptive calibration error of a judge's preferences.

    The judge's probability that A is preferred is made of the difference of its scores:

    .. math::
        p = \sigma(d / T + b)

    Temperature T and bias b are arguments, so that they are there before the test rows are: fit them on a development split with
    :func:`fit_temperature`. With y the label (also a share of votes; a tie is 0.5), over the scored pairs:

    - ``brier = mean((p - y)^2)``, in [0, 1]; a constant 0.5 gets 0.25 on decided pairs;
    - ``nll = mean(-y log p - (1 - y) log(1 - p))`` in nats; a constant 0.5 gets log 2;
    - ``adaptive_ece = sum_k n_k / n |mean_k(p) - mean_k(y)|`` over bins with equally many pairs each. Equal probabilities share a
      bin (see :func:`reliability_bins`), so that the order of the rows has no say. In [0, 1]; above 0 by chance alone, about
      ``sqrt(bins / n) / 2.5`` for a calibrated judge that is often unsure: compare judges on the same n and bins.

    Pairs without a score have no probability: they are left out, and their share is told. Lower is better for all three.

    As input to ``update`` the metric accepts:

    - ``difference`` (``[n]``): score of A minus score of B, NaN where either is unscored.
    - ``label`` (``[n]`` in [0, 1]): probability that A is preferred.
    - ``group`` (``int64 [n]``): identity of the pair's (prompt, sources), for the intervals.

    As output of ``compute`` it returns a dict of scalars: the three above with their clustered 95 % intervals (``_low``, ``_high``;
    that of ``adaptive_ece`` keeps the bins of all pairs), ``n_pairs`` scored and ``unscored_rate``.

    Source: G. W. Brier, Monthly Weather Review 78 (1950), 1-3; C. Guo et al., ICML 2017 (arXiv 1706.04599) for the temperature;
    K. Nguyen and B. O'Connor, EMNLP 2015 (arXiv 1508.05154) and J. Nixon et al. 2019 (arXiv 1904.01685) for bins of equal mass.

    Args:
        temperature: T, above 0, in units of the scores; infinite for a judge whose differences say nothing.
        bias: b in logits: what A has before anything is seen. In pairwise mode with A shown first it is the judge's leaning.
        bins: Bins of the calibration error.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: For a temperature, bias or number of bins that cannot be.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import PreferenceCalibration, fit_temperature
        >>> development = torch.tensor([2.0, 1.0, 1.0, -1.0, -2.0, -2.0]), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
        >>> metric = PreferenceCalibration(*fit_temperature(*development), bins=2)
        >>> metric.update(torch.tensor([2.0, -1.0, 1.5, float("nan")]), torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.arange(4))
        >>> figures = metric.compute()
        >>> round(float(figures["brier"]), 3), round(float(figures["nll"]), 3), float(figures["unscored_rate"])
        (0.233, 0.659, 0.25)
    """

    higher_is_better = False

    def __init__(self, temperature: float, bias: float, bins: int = 15, **kwargs: Any) -> None:
        if not temperature > 0 or not math.isfinite(bias) or bins < 1:
            raise ValueError(
                f"calibration: temperature {temperature:g} must be above 0, bias {bias:g} finite and bins {bins} at least 1; "
                "fit_temperature finds the first two on a development split"
            )
        super().__init__({"difference": torch.float64, "label": torch.float64, "group": torch.int64}, **kwargs)
        self.temperature = temperature
        self.bias = bias
        self.bins = bins

    def update(self, difference: Tensor, label: Tensor, group: Tensor) -> None:
        """Add pairs, all ``[n]``."""
        check_finite("difference", difference)
        check_label(label)
        self._add(difference=difference, label=label, group=group)

    def compute(self) -> dict[str, Tensor]:
        """The figures so far."""
        difference, label, group = self._rows()
        scored = ~difference.isnan()
        unscored = mean(~scored)
        difference, label, group = difference[scored], label[scored], group[scored]
        logit = difference / self.temperature + self.bias
        probability = logit.sigmoid()
        brier, nll = (probability - label).square(), F.softplus(logit) - label * logit
        error, (error_low, error_high) = self._calibration_error(probability, label, group)
        brier_low, brier_high = clustered_bootstrap(brier, group)
        nll_low, nll_high = clustered_bootstrap(nll, group)
        return self._figures(
            brier=mean(brier),
            brier_low=brier_low,
            brier_high=brier_high,
            nll=mean(nll),
            nll_low=nll_low,
            nll_high=nll_high,
            adaptive_ece=error,
            adaptive_ece_low=error_low,
            adaptive_ece_high=error_high,
            n_pairs=len(label),
            unscored_rate=unscored,
        )

    def _calibration_error(self, probability: Tensor, label: Tensor, group: Tensor) -> tuple[float, tuple[float, float]]:
        """The error and its interval."""
        gaps = (probability - label)[:, None] * F.one_hot(_bins(probability, self.bins), self.bins)
        index, count = group_index(group)
        sums = group_sums(torch.cat([gaps, torch.ones(len(gaps), 1)], dim=1), index, count)

        def error(total: Tensor) -> Tensor:
            return total[:, :-1].abs().sum(dim=1) / total[:, -1]  # NaN of nothing

        return float(error(sums.sum(dim=0, keepdim=True))), resampled_interval(sums, error)


class ReliabilityBins(NamedTuple):
    """What a reliability diagram shows.

    Args:
        probability: Mean probability of each bin ``float64 [k]``, rising.
        frequency: Mean label of each bin ``float64 [k]``.
        pairs: Pairs in each bin ``int64 [k]``.
    """

    probability: Tensor
    frequency: Tensor
    pairs: Tensor


def reliability_bins(probability: Tensor, label: Tensor, bins: int = 15) -> ReliabilityBins:
    """Probabilities against outcomes in bins of equal mass, as :class:`PreferenceCalibration` takes them.

    Probabilities that agree to six decimals are one and go to one bin, that of their middle rank: bins of a judge with few distinct
    scores are unequal, and fewer.

    Args:
        probability: Probability that A is preferred ``[n]``, NaN where unscored: left out.
        label: What people said ``[n]``, likewise.
        bins: The most bins that there may be.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import reliability_bins
        >>> reliability_bins(torch.tensor([0.9, 0.2, 0.8, 0.2]), torch.tensor([1.0, 0.0, 1.0, 1.0]), bins=2).frequency
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    scored = ~probability.isnan()
    probability, label = probability[scored].double(), label[scored].double()
    bin_of = _bins(probability, bins)
    sums = group_sums(torch.stack([probability, label, torch.ones_like(label)], dim=1), bin_of, bins)
    sums = sums[sums[:, 2] > 0]
    return ReliabilityBins(sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2], sums[:, 2].long())


def _bins(probability: Tensor, bins: int) -> Tensor:
    """The bin of each probability ``int64 [n]``."""
    _, index, counts = (probability.double() * 1e6).round().unique(return_inverse=True, return_counts=True)
    middle = counts.cumsum(0) - counts / 2
    return (bins * middle / max(1, len(probability))).long()[index]


def fit_temperature(differences: Tensor, labels: Tensor, *, fit_bias: bool = True) -> tuple[float, float]:
    r"""Temperature and bias under which differences of scores become probabilities: logistic regression by Newton's method.

    .. math::
        \min_{T > 0,\, b}\; \sum_i -y_i \log \sigma(d_i / T + b) - (1 - y_i) \log(1 - \sigma(d_i / T + b))

    Where a cut of the differences divides the labels without a slip, likelihood grows without end as T falls to 0. There, labels of
    1 and 0 become ``(n1 + 1) / (n1 + 2)`` and ``1 / (n0 + 2)``, so that few pairs do not claim certainty.

    Fit on a development split; :class:`PreferenceCalibration` measures another.

    Source: C. Guo et al., ICML 2017 (arXiv 1706.04599); J. C. Platt, Advances in Large Margin Classifiers (1999) for the labels
    where they are divided.

    Args:
        differences: Score of A minus score of B ``[n]``; rows with NaN (unscored) are left out.
        labels: Probability that A is preferred ``[n]``.
        fit_bias: Whether b is fitted; else it is 0, as it should be where neither picture comes first.

    Returns:
        ``(temperature, bias)``. The temperature is infinite where the judge is no better than its bias alone: differences all the same,
        or against the labels.

    Raises:
        ValueError: If nothing was scored, or for values that cannot be.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import fit_temperature
        >>> temperature, bias = fit_temperature(torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.25]))
        >>> round(1 / temperature, 6) == round(torch.tensor(3.0).log().item(), 6), abs(bias) < 1e-6
        (True, True)
    """
    check_finite("difference", differences)
    check_label(labels)
    scored = ~differences.isnan()
    if not bool(scored.any()):
        raise ValueError(f"temperature: none of {len(differences)} rows is scored; fit on a split that was judged")
    difference, label = differences[scored].cpu().double(), labels[scored].cpu().double()
    unit = float(difference.abs().max())
    flat = bool((difference == difference[0]).all()) if fit_bias else unit == 0.0
    highest, lowest = _extreme(difference[label < 1], "max"), _extreme(difference[label > 0], "min")
    divided = highest <= lowest and (fit_bias or highest <= 0 <= lowest)
    if divided and not (flat and 0 < float(label.mean()) < 1):
        ones, zeros = int((label == 1).sum()), int((label == 0).sum())
        label = torch.where(label == 1, (ones + 1) / (ones + 2), torch.where(label == 0, 1 / (zeros + 2), label))
    if not flat:
        columns = [difference / unit, torch.ones_like(difference)]
        slope, *rest = _logistic(torch.stack(columns[: 1 + fit_bias], dim=1), label)
        if slope > 1e-9:  # less is 0 but for rounding
            return unit / slope, rest[0] if rest else 0.0
    return math.inf, float(label.mean().logit()) if fit_bias else 0.0


def _extreme(values: Tensor, which: str) -> float:
    """The largest (``max``) or smallest (``min``) value; of none, what any other is beyond."""
    if which == "max":
        return float(values.max()) if len(values) else -math.inf
    return float(values.min()) if len(values) else math.inf


def _logistic(inputs: Tensor, label: Tensor) -> list[float]:
    """Weights ``[k]`` of the logistic regression of labels ``[n]`` on inputs ``[n, k]``."""
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64)

    def loss(candidate: Tensor) -> float:
        logit = inputs @ candidate
        return float((F.softplus(logit) - label * logit).mean())

    for _ in range(100):  # a dozen are usual
        probability = (inputs @ weights).sigmoid()
        gradient = inputs.T @ (probability - label) / len(label)
        curvature = (inputs.T * (probability * (1 - probability))) @ inputs / len(label)
        step = torch.linalg.lstsq(curvature, gradient[:, None], driver="gelsd").solution[:, 0]
        before = loss(weights)
        while loss(weights - step) > before and float(step.abs().max()) > 1e-12:
            step = step / 2
        weights = weights - step
        if float(step.abs().max()) <= 1e-12 * (1 + float(weights.abs().max())):
            break
    return [float(weight) for weight in weights]
