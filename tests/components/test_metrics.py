"""Accuracy of a judge by hand, intervals against brute force and against printed tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rationalrewards.components.metrics import (
    PairAccuracy,
    clustered_bootstrap,
    wilson_interval,
    within_group_correlation_interval,
)
from rationalrewards.components.rewards import within_group_correlation
from torch import Tensor

NAN = float("nan")


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score, no continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_a_printed_table(successes: int, n: int, low: float, high: float) -> None:
    found = wilson_interval(successes, n)
    assert found == pytest.approx((low, high), abs=6e-5)  # the table has four digits
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - found[1], 1 - found[0]), abs=1e-12)


def test_wilson_of_nothing_and_of_everything() -> None:
    assert all(map(math.isnan, wilson_interval(0, 0)))
    assert wilson_interval(7, 7)[1] == 1.0 and wilson_interval(0, 7)[0] == 0.0


# -- bootstrap ---------------------------------------------------------------------------------------------------------


def _brute_force(values: Tensor, clusters: Tensor, samples: int, seed: int) -> tuple[float, float]:
    names = sorted(set(clusters.tolist()))
    members = {name: [v for v, c in zip(values.tolist(), clusters.tolist(), strict=True) if c == name] for name in names}
    draws = torch.randint(len(names), (samples, len(names)), generator=torch.Generator().manual_seed(seed))
    means = [np.mean([value for index in draw for value in members[names[index]]]) for draw in draws.tolist()]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def test_bootstrap_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    clusters = torch.tensor(rng.integers(-(2**40), 2**40, 9)[rng.integers(0, 9, 50)])  # of unequal size, any integers
    values = torch.tensor(rng.integers(0, 3, 50) / 2)
    found = clustered_bootstrap(values, clusters, samples=300, seed=5)
    assert found == pytest.approx(_brute_force(values, clusters, 300, 5), abs=1e-12)
    assert found == clustered_bootstrap(values, clusters, samples=300, seed=5)


def test_copies_inside_a_cluster_are_no_new_evidence() -> None:
    values = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    clusters = torch.arange(8)
    once = clustered_bootstrap(values, clusters)
    copied = clustered_bootstrap(values.repeat(5), clusters.repeat(5))
    assert copied == pytest.approx(once, abs=1e-12)
    independent = clustered_bootstrap(values.repeat(5), torch.arange(40))
    assert independent[1] - independent[0] < 0.7 * (once[1] - once[0])
    assert once[0] < values.mean() < once[1]


def test_bootstrap_of_nothing() -> None:
    assert all(map(math.isnan, clustered_bootstrap(torch.tensor([]), torch.tensor([]))))
    assert clustered_bootstrap(torch.tensor([1.0, 1.0]), torch.tensor([3, 3])) == (1.0, 1.0)


# -- accuracy ----------------------------------------------------------------------------------------------------------

# label, judged with A first, judged with B first (both as: is A better?), share right
ROWS = [
    (1.0, 1.0, 1.0, 1.0),
    (0.0, 0.0, 0.0, 1.0),
    (1.0, 1.0, 0.0, 0.5),  # says "the first" whatever it is shown
    (0.0, 1.0, 0.0, 0.5),
    (1.0, 0.0, 0.0, 0.0),
    (1.0, 0.5, 1.0, 0.5),  # a tie is no answer
    (0.0, 0.5, 0.5, 0.0),
    (1.0, NAN, 1.0, 0.5),
    (0.0, NAN, NAN, 0.0),  # unscored is wrong, also where B is right
    (0.7, 1.0, 1.0, 1.0),  # votes
    (0.2, 0.0, 0.0, 1.0),
    (0.5, 1.0, 1.0, None),  # people saw a tie: does not count
    (0.5, NAN, 0.5, None),
]


def _columns(rows: list[tuple[float, float, float, float | None]]) -> tuple[Tensor, Tensor, Tensor]:
    label, first, second = (torch.tensor([row[i] for row in rows]) for i in range(3))
    return label, first, second


def _compute(metric: PairAccuracy) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def test_accuracy_by_hand() -> None:
    metric = PairAccuracy()
    metric.update(*_columns(ROWS), torch.arange(len(ROWS)))
    values = _compute(metric)
    right = [row[3] for row in ROWS if row[3] is not None]
    assert values["n_pairs"] == 11
    assert values["pair_accuracy"] == pytest.approx(sum(right) / 11)
    assert values["unscored_rate"] == pytest.approx(3 / 22)
    assert values["tie_rate"] == pytest.approx(3 / 19)  # of 22 verdicts 19 were scored
    # the interval is of the shares that were right, one cluster a pair
    low, high = _brute_force(torch.tensor(right), torch.arange(11), 2000, 0)
    assert (values["pair_accuracy_low"], values["pair_accuracy_high"]) == pytest.approx((low, high), abs=1e-6)


def test_consistency_is_the_same_verdict_in_both_orders() -> None:
    metric = PairAccuracy()
    metric.update(*_columns(ROWS), torch.arange(len(ROWS)))
    # scored in both orders: the first seven and the two of votes; the same verdict: rows 1, 2, 5, 7 (a tie), 10, 11
    assert _compute(metric)["order_consistency"] == pytest.approx(6 / 9)


def test_a_judge_of_the_first_picture_is_at_chance_and_inconsistent() -> None:
    label = torch.tensor([1.0, 0.0] * 20)
    metric = PairAccuracy()
    metric.update(label, torch.ones(40), torch.zeros(40), torch.arange(40))
    values = _compute(metric)
    assert (values["pair_accuracy"], values["order_consistency"]) == (0.5, 0.0)
    assert (values["pair_accuracy_low"], values["pair_accuracy_high"]) == (0.5, 0.5)


def test_updates_add_up_and_pairs_of_a_prompt_share_a_cluster() -> None:
    label, first, second = _columns(ROWS)
    group = torch.tensor([index % 4 for index in range(len(ROWS))])
    whole, parts = PairAccuracy(), PairAccuracy()
    whole.update(label, first, second, group)
    for index in range(0, len(ROWS), 3):
        parts.update(*(column[index : index + 3] for column in (label, first, second, group)))
    assert _compute(whole) == _compute(parts)
    right = torch.tensor([row[3] for row in ROWS if row[3] is not None])
    low, high = _brute_force(right, group[label != 0.5], 2000, 0)
    values = _compute(whole)
    assert (values["pair_accuracy_low"], values["pair_accuracy_high"]) == pytest.approx((low, high), abs=1e-6)
    parts.reset()
    parts.update(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([2**40 + 1]))
    assert _compute(parts)["pair_accuracy"] == 1.0


def test_groups_are_not_confused_by_single_precision() -> None:
    """Ids are 63-bit hashes; as float32, in which X-GenGroup/Flow-Factory gathers them, these two would be one."""
    metric = PairAccuracy()
    first, second = 2**60, 2**60 + 1
    metric.update(torch.ones(2), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([first, second]))
    values = _compute(metric)
    assert (values["pair_accuracy_low"], values["pair_accuracy_high"]) == (0.0, 1.0)


def test_only_ties_is_no_accuracy() -> None:
    metric = PairAccuracy()
    metric.update(torch.full((3,), 0.5), torch.ones(3), torch.ones(3), torch.arange(3))
    values = _compute(metric)
    assert values.pop("n_pairs") == 0
    assert all(map(math.isnan, values.values()))


def test_the_interval_of_the_correlation_within_groups_covers_it_and_narrows() -> None:
    torch.manual_seed(0)
    widths = []
    for count in (40, 640):
        groups = torch.arange(count).repeat_interleave(4)
        truth = torch.randn(4 * count) + 10 * groups  # what differs between groups must not count
        noisy = truth + torch.randn(4 * count)
        noisy[::17] = float("nan")
        low, high = within_group_correlation_interval(noisy, truth, groups)
        found = within_group_correlation(noisy, truth, [str(group) for group in groups.tolist()])
        # of two unit normals one of which is in both sums: 1 / sqrt(2)
        assert low < found < high and low < 2**-0.5 < high
        widths.append(high - low)
    # 16 times the groups: a quarter of the width, give or take the bootstrap's own noise (2,000 samples: 2 %) and that of 40 groups
    assert 0.15 < widths[1] / widths[0] < 0.4
    flat = torch.ones(8)
    assert all(math.isnan(bound) for bound in within_group_correlation_interval(flat, flat, torch.arange(2).repeat(4)))
