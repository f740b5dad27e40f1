"""Kendall's tau-b pair by pair and against two libraries; a judge's agreement with itself pair by pair."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from rationalrewards.components.metrics import KendallTauB, OrderConsistency, PairAccuracy, clustered_bootstrap
from scipy.stats import kendalltau
from torchmetrics import MetricCollection
from torchmetrics.functional import kendall_rank_corrcoef

NAN = float("nan")


def _compute(metric: KendallTauB | OrderConsistency) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def _tau(pairs: list[tuple[float, float]]) -> float:
    """Tau-b of (gap of predictions, gap of targets)."""
    net = sum(np.sign(x) * np.sign(y) for x, y in pairs)
    left, right = sum(x != 0 for x, _ in pairs), sum(y != 0 for _, y in pairs)
    return float(net / math.sqrt(left * right)) if left and right else NAN


def _gaps(prediction: np.ndarray, target: np.ndarray) -> list[tuple[float, float]]:
    return [(prediction[i] - prediction[j], target[i] - target[j]) for i, j in combinations(range(len(target)), 2)]


@pytest.mark.parametrize("seed", range(6))
def test_tau_against_every_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 70
    group, target = rng.integers(0, 12, n), rng.integers(0, 4, n).astype(float)
    prediction = np.round(target + rng.normal(size=n))  # ties on both sides
    prediction[rng.random(n) < 0.15] = NAN
    metric = KendallTauB()
    metric.update(*map(torch.tensor, (prediction, target, group)))
    values = _compute(metric)
    pairs: list[tuple[float, float]] = []
    taus, scored = [], ~np.isnan(prediction)
    for name in range(12):
        members = scored & (group == name)
        own = _gaps(prediction[members], target[members])
        pairs += own
        taus.append(_tau(own))
        if own and not math.isnan(taus[-1]):
            assert taus[-1] == pytest.approx(kendalltau(prediction[members], target[members]).statistic, abs=1e-12)
    assert values["tau_b"] == pytest.approx(_tau(pairs), abs=1e-6)  # returned as float32
    assert values["tau_b_mean"] == pytest.approx(np.nanmean(taus), abs=1e-6)
    assert values["n_pairs"] == len(pairs)
    assert values["unscored_rate"] == pytest.approx(1 - scored.mean())
    assert values["tau_b_low"] < values["tau_b"] < values["tau_b_high"]


@pytest.mark.parametrize("seed", range(6))
def test_tau_of_one_group_against_scipy_and_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 10, 120).astype(float)
    prediction = np.round(target + 3 * rng.normal(size=120))
    metric = KendallTauB()
    metric.update(torch.tensor(prediction), torch.tensor(target), torch.zeros(120, dtype=torch.long))
    values = _compute(metric)
    assert values["tau_b"] == pytest.approx(kendalltau(prediction, target).statistic, abs=1e-6)
    assert values["tau_b"] == values["tau_b_mean"]
    theirs = kendall_rank_corrcoef(torch.tensor(prediction), torch.tensor(target), variant="b")
    assert values["tau_b"] == pytest.approx(float(theirs), abs=1e-5)  # torchmetrics sums float32
    assert math.isnan(values["tau_b_low"])  # one group: nothing to resample


def test_the_interval_of_tau_resamples_groups() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=(30, 4))
    prediction = target + rng.normal(size=(30, 4))
    metric = KendallTauB()
    group = torch.arange(30).repeat_interleave(4)
    metric.update(torch.tensor(prediction.ravel()), torch.tensor(target.ravel()), group)
    values = _compute(metric)
    own = torch.tensor([_tau(_gaps(prediction[i], target[i])) for i in range(30)])
    # without ties every group weighs the same: the pooled figure is the mean of the groups', and so is its interval
    low, high = clustered_bootstrap(own, torch.arange(30))
    assert (values["tau_b_low"], values["tau_b_high"]) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "target"),
    [([], []), ([1.0], [2.0]), ([3.0, 3.0, 3.0], [1.0, 2.0, 3.0]), ([1.0, 2.0], [5.0, 5.0]), ([NAN, NAN, 1.0], [1.0, 2.0, 3.0])],
)
def test_tau_of_nothing_to_order(prediction: list[float], target: list[float]) -> None:
    metric = KendallTauB()
    metric.update(torch.tensor(prediction), torch.tensor(target), torch.zeros(len(target), dtype=torch.long))
    values = _compute(metric)
    assert all(math.isnan(values[name]) for name in ("tau_b", "tau_b_mean", "tau_b_low", "tau_b_high"))


def test_pictures_without_people_are_not_unscored_ones() -> None:
    metric = KendallTauB()
    group = torch.zeros(4, dtype=torch.long)
    metric.update(torch.tensor([1.0, 2.0, NAN, 9.0]), torch.tensor([1.0, 2.0, 3.0, NAN]), group)
    values = _compute(metric)
    assert (values["tau_b"], values["n_pairs"]) == (1.0, 1)
    assert values["unscored_rate"] == pytest.approx(1 / 3)


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_order_against_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, first, second = (rng.choice([0.0, 0.5, 1.0], 120, p=[0.4, 0.2, 0.4]) for _ in range(3))
    first[rng.random(120) < 0.2], second[rng.random(120) < 0.2] = NAN, NAN
    groups = torch.tensor(rng.integers(0, 40, 120))
    metric = OrderConsistency()
    metric.update(*map(torch.tensor, (label, first, second)), groups)
    values = _compute(metric)
    same, slots, leans, settled, lacking, kept = [], [], [], [], 0, []
    for index, (truth, one, other) in enumerate(zip(label, first, second, strict=True)):
        if math.isnan(one) or math.isnan(other):
            lacking += 1
            continue
        kept.append(index)
        same.append(one == other)
        # the first slot holds A, and then B: votes for the first slot less votes for the second, over both orders
        votes = [{1.0: +1, 0.5: 0, 0.0: -1}[one], {1.0: -1, 0.5: 0, 0.0: +1}[other]]
        slots.append(sum(votes) / 2)
        if one != other:
            leans.append(sum(votes) > 0)
        elif truth != 0.5:
            settled.append(one == truth)
    assert values["order_consistency"] == pytest.approx(np.mean(same))
    assert values["net_position_bias"] == pytest.approx(np.mean(slots), abs=1e-7)
    assert values["first_slot_rate"] == pytest.approx(np.mean(leans))
    assert values["consistent_accuracy"] == pytest.approx(np.mean(settled))
    assert values["unscored_rate"] == pytest.approx(lacking / 120)
    assert (values["n_pairs"], values["n_consistent"]) == (len(same), len(settled))
    low, high = clustered_bootstrap(torch.tensor(slots), groups[torch.tensor(kept)])
    assert (values["net_position_bias_low"], values["net_position_bias_high"]) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(
    ("forward", "swapped", "bias", "rate"),
    [(1.0, 0.0, 1.0, 1.0), (0.0, 1.0, -1.0, 0.0), (1.0, 1.0, 0.0, NAN), (1.0, 0.5, 0.5, 1.0), (0.5, 0.5, 0.0, NAN)],
)
def test_bias_of_simple_judges(forward: float, swapped: float, bias: float, rate: float) -> None:
    metric = OrderConsistency()
    metric.update(torch.tensor([1.0, 0.0] * 5), torch.full((10,), forward), torch.full((10,), swapped), torch.arange(10))
    values = _compute(metric)
    assert values["net_position_bias"] == values["net_position_bias_low"] == values["net_position_bias_high"] == bias
    assert values["first_slot_rate"] == pytest.approx(rate, nan_ok=True)
    assert values["order_consistency"] == float(forward == swapped)


def test_a_tie_in_both_orders_is_consistent_and_no_answer() -> None:
    metric = OrderConsistency()
    metric.update(torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]), torch.arange(2))
    values = _compute(metric)
    assert (values["order_consistency"], values["consistent_accuracy"], values["n_consistent"]) == (1.0, 0.0, 1)


def test_order_of_nothing_and_of_unscored() -> None:
    for n in (0, 3):
        metric = OrderConsistency()
        metric.update(torch.ones(n), torch.full((n,), NAN), torch.ones(n), torch.arange(n))
        values = _compute(metric)
        assert math.isnan(values["order_consistency"]) and math.isnan(values["net_position_bias"])
        assert values["n_pairs"] == 0
        assert values["unscored_rate"] == pytest.approx(1.0 if n else NAN, nan_ok=True)


def test_one_collection_takes_accuracy_and_order() -> None:
    collection = MetricCollection([PairAccuracy(), OrderConsistency()])
    label, first, second = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, NAN]), torch.tensor([1.0, 1.0, 1.0])
    for index in range(3):
        rows = slice(index, index + 1)
        collection.update(label[rows], first[rows], second[rows], torch.tensor([index]))
    found = {name: float(value) for name, value in collection.compute().items()}
    assert found["PairAccuracy_pair_accuracy"] == pytest.approx(4 / 6)
    assert found["OrderConsistency_net_position_bias"] == pytest.approx(-1 / 2)
    # some names are in both, here shares of verdicts and of pairs: torchmetrics puts the class before all names
    assert found["PairAccuracy_unscored_rate"] == pytest.approx(1 / 6)
    assert found["OrderConsistency_unscored_rate"] == pytest.approx(1 / 3)
