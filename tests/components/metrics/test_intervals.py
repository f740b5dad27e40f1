"""Intervals against brute force and printed tables, tests of two judges against their definitions."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
import torch
from rationalrewards.components.metrics import (
    clustered_bootstrap,
    detectable_difference,
    mcnemar,
    paired_bootstrap,
    paired_power,
    wilson_interval,
    within_group_correlation_interval,
)
from rationalrewards.components.rewards import within_group_correlation
from scipy.stats import binomtest
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


@pytest.mark.parametrize(
    ("n", "accuracy", "half_width"),
    # half-widths as printed beside published accuracies: EditReward-Bench (K = 2, the paper's 133, all), MMRB2, GenAI-Bench T2I and edit
    [
        (186, 0.57, 0.071),
        (133, 0.65, 0.081),
        (484, 0.65, 0.043),
        (1000, 0.65, 0.030),
        (1735, 0.65, 0.022),
        (919, 0.80, 0.026),
    ],
)
def test_half_widths_of_the_benchmarks(n: int, accuracy: float, half_width: float) -> None:
    low, high = wilson_interval(accuracy * n, n)
    # the print is of the normal interval with three digits, which Wilson's is below by 1/n or so: 0.0012 at n = 133
    assert (high - low) / 2 == pytest.approx(half_width, abs=0.0005 + 0.1 / n)


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


def test_bootstrap_of_many_clusters_is_the_same_in_parts() -> None:
    count, samples = 20_000, 120  # 100 draws fit at once
    values = torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(3)).double()
    draws = torch.randint(count, (samples, count), generator=torch.Generator().manual_seed(7))
    means = values[draws].mean(dim=1).numpy()
    found = clustered_bootstrap(values, torch.arange(count), samples=samples, seed=7)
    assert found == pytest.approx((np.quantile(means, 0.025), np.quantile(means, 0.975)), abs=1e-12)


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


def test_one_unscored_row_is_not_dropped_without_a_word() -> None:
    assert all(map(math.isnan, clustered_bootstrap(torch.tensor([1.0, NAN, 0.0, 1.0]), torch.arange(4))))


def test_the_interval_of_the_correlation_within_groups_covers_it_and_narrows() -> None:
    torch.manual_seed(0)
    widths = []
    for count in (40, 640):
        groups = torch.arange(count).repeat_interleave(4)
        truth = torch.randn(4 * count) + 10 * groups  # what differs between groups must not count
        noisy = truth + torch.randn(4 * count)
        noisy[::17] = NAN
        low, high = within_group_correlation_interval(noisy, truth, groups)
        found = within_group_correlation(noisy, truth, [str(group) for group in groups.tolist()])
        # of two unit normals one of which is in both sums: 1 / sqrt(2)
        assert low < found < high and low < 2**-0.5 < high
        widths.append(high - low)
    # 16 times the groups: a quarter of the width, give or take the bootstrap's own noise (2,000 samples: 2 %) and that of 40 groups
    assert 0.15 < widths[1] / widths[0] < 0.4
    flat = torch.ones(8)
    assert all(math.isnan(bound) for bound in within_group_correlation_interval(flat, flat, torch.arange(2).repeat(4)))
    nothing = torch.full((3,), NAN)
    assert all(math.isnan(bound) for bound in within_group_correlation_interval(nothing, nothing, torch.arange(3)))


# -- two judges --------------------------------------------------------------------------------------------------------


def test_paired_bootstrap_against_brute_force_and_against_two_intervals() -> None:
    rng = np.random.default_rng(1)
    clusters = torch.tensor(rng.integers(0, 60, 200))
    shared = rng.random(200) < 0.6
    first, second = (torch.tensor(np.where(rng.random(200) < 0.1, ~shared, shared), dtype=torch.float64) for _ in range(2))
    found = paired_bootstrap(first, second, clusters, samples=200, seed=4)
    assert found == pytest.approx(_brute_force(first - second, clusters, 200, 4), abs=1e-12)
    low, high = paired_bootstrap(first, second, clusters)
    alone = clustered_bootstrap(first, clusters)
    # of independent judges the difference would be sqrt(2) wider than either; these differ on a fifth of the rows
    assert high - low < alone[1] - alone[0]
    assert low < float((first - second).mean()) < high
    assert paired_bootstrap(first, first, clusters) == (0.0, 0.0)


def test_rows_of_two_judges_must_be_the_same_rows() -> None:
    with pytest.raises(ValueError, match=r"first \[3\], second \[2\]"):
        paired_bootstrap(torch.ones(3), torch.ones(2), torch.arange(3))
    with pytest.raises(ValueError, match=r"two bool tensors of one length"):
        mcnemar(torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="as wrong"):
        mcnemar(torch.tensor([1.0, NAN]), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("seed", range(12))
def test_mcnemar_against_the_definition_and_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.random(60) < rng.random(), rng.random(60) < rng.random()
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    chances = [Fraction(math.comb(b + c, i), 2 ** (b + c)) for i in range(b + c + 1)]
    p = float(sum(chance for chance in chances if chance <= chances[b]))  # all that is no more likely than what was seen
    found = mcnemar(torch.tensor(first), torch.tensor(second))
    assert found == pytest.approx(p, rel=1e-12)
    assert found == pytest.approx(binomtest(b, b + c, 0.5).pvalue, rel=1e-9)
    assert found == mcnemar(torch.tensor(second), torch.tensor(first))


def test_mcnemar_of_thousands_and_of_none() -> None:
    first = torch.arange(9000) < 4700
    assert mcnemar(first, ~first) == pytest.approx(binomtest(4700, 9000, 0.5).pvalue, rel=1e-6)  # scipy adds up doubles
    assert mcnemar(first, first) == 1.0
    assert mcnemar(first[:0], first[:0]) == 1.0


@pytest.mark.parametrize(("difference", "pairs"), [(0.02, 5900), (0.03, 2600), (0.05, 940)])
def test_pairs_needed_as_printed(difference: float, pairs: int) -> None:
    """At 30 % discordant, 80 % power: 2 points need about 5,900 pairs, 3 points 2,600, 5 points 940."""
    # two digits are printed; power moves by 0.4 % for 1 % more pairs
    assert paired_power(pairs, 0.3, difference) == pytest.approx(0.8, abs=0.004)
    needed = next(n for n in range(100, 10_000) if paired_power(n, 0.3, difference) >= 0.8)
    assert needed == pytest.approx(pairs, rel=0.01)
    assert detectable_difference(pairs, 0.3) == pytest.approx(difference, rel=0.005)


@pytest.mark.parametrize(
    ("n", "difference", "z"),
    # the distilled critic against its teacher on MMRB2 T2I and edit and on EditReward-Bench, and against the untuned one on MMRB2 edit
    [(1000, 0.001, 0.06), (1000, 0.030, 1.7), (133, 0.020, 0.4), (1000, 0.086, 5.0)],
)
def test_published_gaps_in_standard_errors(n: int, difference: float, z: float) -> None:
    """A gap of z standard errors is found at a level whose quantile is z about half of the time, whatever z is."""
    level = 2 * (1 - NormalDist().cdf(z))
    other_tail = NormalDist().cdf(-2 * z)
    # z has one digit, half of which is 0.05 standard errors: 0.02 of power; q - d^2 for q in the spread adds 0.005 at most
    assert paired_power(n, 0.3, difference, level) == pytest.approx(0.5 + other_tail, abs=0.025)


@pytest.mark.parametrize(
    ("n", "discordant", "difference"), [(200, 0.4, 0.1), (1000, 0.3, 0.048), (500, 0.1, 0.02), (300, 0.5, 0.0)]
)
def test_power_against_simulated_tests(n: int, discordant: float, difference: float) -> None:
    rng = np.random.default_rng(0)
    chances = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    b, c, _ = rng.multinomial(n, chances, size=20_000).T
    found = float((np.abs(b - c) > NormalDist().inv_cdf(0.975) * np.sqrt(b + c)).mean())
    # 20,000 tests: 0.0035 a standard error; counts are whole, which at 50 discordant rows is worth 0.02
    assert paired_power(n, discordant, difference) == pytest.approx(found, abs=0.03)


def test_power_at_the_ends() -> None:
    assert paired_power(500, 0.3, 0.0) == pytest.approx(0.05, abs=1e-12)
    assert paired_power(500, 0.3, 0.04) == paired_power(500, 0.3, -0.04)
    assert (paired_power(3, 1.0, 1.0), paired_power(4, 1.0, 1.0)) == (0.0, 1.0)  # sqrt(3) < 1.96 < sqrt(4)
    assert math.isnan(detectable_difference(10, 0.1))
    assert detectable_difference(4, 1.0) <= 1.0
    found = detectable_difference(700, 0.25, power=0.9, level=0.01)
    assert paired_power(700, 0.25, found, 0.01) == pytest.approx(0.9, abs=1e-9)
    for arguments in ((0, 0.3, 0.1), (10, 0.0, 0.0), (10, 1.1, 0.1), (10, 0.1, 0.2), (10, 0.1, NAN)):
        with pytest.raises(ValueError, match="power"):
            paired_power(*arguments)
    with pytest.raises(ValueError, match="between the level"):
        detectable_difference(10, 0.3, power=0.04)
