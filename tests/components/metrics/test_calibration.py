"""Brier, likelihood and calibration error by loops; the fit against an optimiser, and where likelihood has no maximum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rationalrewards.components.metrics import (
    PreferenceCalibration,
    clustered_bootstrap,
    fit_temperature,
    reliability_bins,
)
from scipy.optimize import minimize
from torch import Tensor

NAN = float("nan")


def _compute(metric: PreferenceCalibration) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def _judged(rng: np.random.Generator, n: int, step: float | None = None) -> tuple[Tensor, Tensor]:
    """Differences whose true temperature is 0.7 and bias 0.3, and what people said; a tenth left tied, some voted."""
    difference = rng.normal(size=n)
    difference = difference if step is None else np.round(difference / step) * step
    chance = 1 / (1 + np.exp(-(difference / 0.7 + 0.3)))
    label = (rng.random(n) < chance).astype(float)
    label[rng.random(n) < 0.1] = 0.5
    votes = rng.random(n) < 0.2
    label[votes] = rng.binomial(7, chance[votes]) / 7
    return torch.tensor(difference), torch.tensor(label)


def _members(probability: list[float], bins: int) -> list[list[int]]:
    """The rows of each bin: a probability belongs where the middle of its equals falls among all."""
    members: dict[int, list[int]] = {}
    for index, p in enumerate(probability):
        below = sum(q < p - 1e-9 for q in probability)
        equal = sum(abs(q - p) <= 1e-9 for q in probability)
        members.setdefault(math.floor(bins * (below + equal / 2) / len(probability)), []).append(index)
    return list(members.values())


def _ece(probability: list[float], label: list[float], bins: int) -> float:
    """Adaptive calibration error, bin by bin."""
    total = 0.0
    for rows in _members(probability, bins):
        total += len(rows) * abs(np.mean([probability[i] for i in rows]) - np.mean([label[i] for i in rows]))
    return float(total) / len(probability)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("step", [None, 0.25])
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_all_three_against_loops(bins: int, step: float | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    difference, label = _judged(rng, 150, step)
    difference[torch.tensor(rng.random(150) < 0.1)] = NAN
    groups = torch.tensor(rng.integers(0, 50, 150))
    metric = PreferenceCalibration(0.9, -0.2, bins=bins)
    metric.update(difference, label, groups)
    values = _compute(metric)
    kept = [i for i in range(150) if not math.isnan(float(difference[i]))]
    p = [1 / (1 + math.exp(-(float(difference[i]) / 0.9 - 0.2))) for i in kept]
    y = [float(label[i]) for i in kept]
    squares = [(a - b) ** 2 for a, b in zip(p, y, strict=True)]
    surprise = [-b * math.log(a) - (1 - b) * math.log(1 - a) for a, b in zip(p, y, strict=True)]
    # returned as float32: 6e-8 relative
    assert values["brier"] == pytest.approx(np.mean(squares), rel=1e-6)
    assert values["nll"] == pytest.approx(np.mean(surprise), rel=1e-6)
    assert values["adaptive_ece"] == pytest.approx(_ece(p, y, bins), abs=1e-6)
    assert values["n_pairs"] == len(kept)
    assert values["unscored_rate"] == pytest.approx(1 - len(kept) / 150)
    clusters = groups[torch.tensor(kept)]
    for name, parts in (("brier", squares), ("nll", surprise)):
        low, high = clustered_bootstrap(torch.tensor(parts), clusters)
        assert (values[f"{name}_low"], values[f"{name}_high"]) == pytest.approx((low, high), rel=1e-5)
    bins_of, gap = _members(p, bins), np.array(p) - np.array(y)
    _, cluster = np.unique(clusters.numpy(), return_inverse=True)
    draws = torch.randint(int(cluster.max()) + 1, (2000, int(cluster.max()) + 1), generator=torch.Generator().manual_seed(0))
    drawn = []
    for draw in draws.numpy():
        weight = np.bincount(draw, minlength=len(draw))[cluster]  # how often each pair is in this draw
        drawn.append(sum(abs(float(weight[rows] @ gap[rows])) for rows in bins_of) / weight.sum())
    interval = np.quantile(drawn, [0.025, 0.975])
    assert (values["adaptive_ece_low"], values["adaptive_ece_high"]) == pytest.approx(tuple(interval), abs=1e-6)


def test_bins_have_equal_mass_and_do_not_part_equals() -> None:
    probability = torch.linspace(0.01, 0.99, 150)
    found = reliability_bins(probability, torch.ones(150), bins=15)
    assert found.pairs.tolist() == [10] * 15
    assert bool((found.probability.diff() > 0).all())
    coarse = torch.tensor([0.2] * 70 + [0.5] * 50 + [0.8] * 30)
    outcome = torch.tensor([1.0] * 7 + [0.0] * 63 + [1.0] * 25 + [0.0] * 25 + [1.0] * 30)
    for order in (torch.arange(150), torch.randperm(150, generator=torch.Generator().manual_seed(0))):
        found = reliability_bins(coarse[order], outcome[order], bins=15)
        assert found.pairs.tolist() == [70, 50, 30]
        assert found.frequency.tolist() == pytest.approx([0.1, 0.5, 1.0])
        assert found.probability.tolist() == pytest.approx([0.2, 0.5, 0.8], abs=1e-7)  # given in float32
    assert reliability_bins(torch.tensor([NAN]), torch.ones(1)).pairs.tolist() == []


def test_calibration_error_of_a_calibrated_judge_is_what_chance_leaves() -> None:
    rng = np.random.default_rng(0)
    for n in (300, 3000):
        found = []
        for _ in range(20):
            chance = rng.uniform(0.35, 0.65, n)
            bins = reliability_bins(torch.tensor(chance), torch.tensor(rng.random(n) < chance).double())
            found.append(float((bins.pairs * (bins.probability - bins.frequency).abs()).sum() / n))
        # mean |normal| with sqrt(p (1 - p) bins / n), p about 1/2: sqrt(bins / n) / 2.5; twenty sets of 15 bins leave 4 % of noise
        assert np.mean(found) == pytest.approx(math.sqrt(15 / n) / 2.5, rel=0.12)


def test_overconfidence_is_seen_and_a_temperature_mends_it() -> None:
    rng = np.random.default_rng(0)
    development, test = _judged(rng, 2000), _judged(rng, 2000)
    temperature, bias = fit_temperature(*development)
    figures = []
    for setting in ((0.1, 0.0), (temperature, bias)):
        metric = PreferenceCalibration(*setting)
        metric.update(*test, torch.arange(2000))
        figures.append(_compute(metric))
    raw, fitted = figures
    assert raw["adaptive_ece"] > 0.15 and fitted["adaptive_ece"] < 0.04  # chance leaves sqrt(15 / 2000) / 2.5 = 0.035 at most
    assert fitted["brier"] < raw["brier"] and fitted["nll"] < raw["nll"]
    assert fitted["adaptive_ece_low"] < fitted["adaptive_ece_high"] < raw["adaptive_ece_low"]


def test_no_opinion_has_closed_forms() -> None:
    metric = PreferenceCalibration(math.inf, 0.0)
    metric.update(torch.tensor([1.0, -3.0, 0.0, 2.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.arange(4))
    values = _compute(metric)
    assert values["brier"] == 0.25 and values["adaptive_ece"] == 0.0
    assert values["nll"] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("difference", [1e4, -1e4])
def test_certain_and_wrong_is_finite(difference: float) -> None:
    metric = PreferenceCalibration(1.0, 0.0)
    metric.update(torch.tensor([difference]), torch.tensor([float(difference < 0)]), torch.arange(1))
    values = _compute(metric)
    assert (values["nll"], values["brier"]) == (1e4, 1.0)


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_scored(n: int) -> None:
    metric = PreferenceCalibration(1.0, 0.0)
    metric.update(torch.full((n,), NAN), torch.ones(n), torch.arange(n))
    values = _compute(metric)
    assert all(math.isnan(values[name]) for name in ("brier", "nll", "adaptive_ece", "adaptive_ece_low"))
    assert values["n_pairs"] == 0 and values["unscored_rate"] == pytest.approx(1.0 if n else NAN, nan_ok=True)


def test_what_was_fitted_must_be_there_before_the_rows() -> None:
    with pytest.raises(TypeError, match="temperature"):
        PreferenceCalibration()  # type: ignore[call-arg]
    for temperature, bias, bins in ((0.0, 0.0, 15), (-1.0, 0.0, 15), (NAN, 0.0, 15), (1.0, math.inf, 15), (1.0, 0.0, 0)):
        with pytest.raises(ValueError, match="development split"):
            PreferenceCalibration(temperature, bias, bins=bins)


# -- fit ---------------------------------------------------------------------------------------------------------------


def _loss(slope: float, bias: float, difference: np.ndarray, label: np.ndarray) -> float:
    logit = slope * difference + bias
    return float(np.mean(np.logaddexp(0, logit) - label * logit))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("fit_bias", [True, False])
def test_fit_against_an_optimiser(fit_bias: bool, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    difference, label = _judged(rng, 200, step=0.2)
    difference[::9] = NAN
    temperature, bias = fit_temperature(difference * scale, label, fit_bias=fit_bias)
    kept = ~difference.isnan()
    d, y = difference[kept].numpy(), label[kept].numpy()
    found = minimize(lambda w: _loss(w[0], w[1] if fit_bias else 0.0, d, y), np.zeros(2), method="BFGS", options={"gtol": 1e-9})
    # BFGS takes derivatives by differences: its minimum is good to 1e-5 or so
    assert scale / temperature == pytest.approx(found.x[0], rel=1e-4)
    assert bias == pytest.approx(found.x[1] if fit_bias else 0.0, abs=1e-4)
    logit = d * scale / temperature + bias
    residual = 1 / (1 + np.exp(-logit)) - y
    # at the minimum the derivatives are zero: the mean residual, and the one weighted by the differences
    assert abs(np.mean(residual * d)) < 1e-10 and (not fit_bias or abs(np.mean(residual)) < 1e-10)


def test_fit_finds_the_truth() -> None:
    difference, label = _judged(np.random.default_rng(0), 40_000)
    temperature, bias = fit_temperature(difference, label)
    # a tenth of the labels is 0.5 whatever the difference, which flattens the slope by about as much (1/0.7 becomes 1.27);
    # the standard error at 40,000 pairs is 0.01
    assert 1 / temperature == pytest.approx(0.9 / 0.7, abs=0.05)
    assert bias == pytest.approx(0.9 * 0.3, abs=0.04)


def test_a_judge_without_a_slip_does_not_become_certain() -> None:
    difference = torch.tensor([-3.0, -1.0, -0.5, 0.5, 1.0, 2.0])
    label = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    for fit_bias in (True, False):
        temperature, bias = fit_temperature(difference, label, fit_bias=fit_bias)
        assert 0.05 < temperature < 5 and abs(bias) < 1
        claimed = (difference / temperature + bias).sigmoid()
        assert bool(((claimed - label).abs() < 0.5).all())
        smoothed = torch.where(label == 1, 4 / 5, 1 / 5)  # (3 + 1) / (3 + 2) and 1 / (3 + 2)
        # what is fitted are these: residuals against them are zero on average, weighted by the differences
        assert float(((claimed - smoothed) * difference).mean()) == pytest.approx(0.0, abs=1e-6)  # float32 here
    with_ties = fit_temperature(torch.tensor([-2.0, 0.0, 0.0, 2.0]), torch.tensor([0.0, 0.5, 1.0, 1.0]))
    assert 0.05 < with_ties[0] < math.inf  # a tie in the gap does not part them either
    # one slip, and likelihood has a maximum again
    slipped = fit_temperature(difference, torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 1.0]), fit_bias=False)
    assert 0 < slipped[0] < math.inf


@pytest.mark.parametrize(
    ("difference", "label", "bias"),
    [
        ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], math.log(3)),  # all the same
        ([0.0, 0.0], [0.75, 0.25], 0.0),
        ([1.0, 2.0, -1.0, -2.0], [0.0, 0.0, 1.0, 1.0], 0.0),  # always wrong
        ([0.5, -1.5, 2.0], [1.0, 1.0, 1.0], math.log(4)),  # A always wins: (3 + 1) / (3 + 2)
        ([0.5, -1.5, 2.0], [0.5, 0.5, 0.5], 0.0),
    ],
)
def test_differences_that_say_nothing(difference: list[float], label: list[float], bias: float) -> None:
    found = fit_temperature(torch.tensor(difference), torch.tensor(label))
    assert found[0] == math.inf
    assert found[1] == pytest.approx(bias, abs=1e-6)
    PreferenceCalibration(*found)


def test_fit_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="none of 2 rows is scored"):
        fit_temperature(torch.tensor([NAN, NAN]), torch.ones(2))
    with pytest.raises(ValueError, match="row 1 is 2"):
        fit_temperature(torch.zeros(2), torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="row 0 is nan"):
        fit_temperature(torch.zeros(2), torch.tensor([NAN, 1.0]))
