"""When canaries stop a run: the rule in closed form, how often it is wrong, and whether it notices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rationalrewards.components.rewards import CanaryRule, Check, paired_change
from rationalrewards.components.rewards.canaries import student_quantile
from torch import Tensor

NAN = float("nan")


@pytest.mark.parametrize(
    ("share", "freedom", "table", "tolerance"),
    [
        (0.975, 1, 12.7062, 1e-4),
        (0.975, 2, 4.3027, 1e-4),
        (0.975, 3, 3.1824, 2e-3),
        (0.999, 3, 10.2145, 0.03),
        (0.975, 7, 2.3646, 1e-4),
        (0.999, 7, 4.7853, 1e-3),
        (0.975, 15, 2.1314, 1e-4),
        (0.025, 15, -2.1314, 1e-4),
        (0.9995, 30, 3.6460, 1e-4),
    ],
)
def test_students_quantiles_against_the_table(share: float, freedom: int, table: float, tolerance: float) -> None:
    assert student_quantile(share, freedom) == pytest.approx(table, rel=tolerance)


def test_a_change_by_hand() -> None:
    requests = torch.tensor([0, 0, 1, 1, 2, 2])
    before = torch.tensor([0.1, 0.2, 0.3, NAN, 0.5, 0.6])
    after = torch.tensor([0.2, 0.3, 0.6, 0.9, 0.8, 0.7])
    # by request 0.1, 0.3 (one picture scored both times) and 0.2; a standard deviation of 0.1, t of two degrees of freedom
    change = paired_change(before, after, requests)
    reach = 4.30265 * 0.1 / math.sqrt(3)
    assert (change.mean, change.low, change.high) == pytest.approx((0.2, 0.2 - reach, 0.2 + reach), abs=1e-5)  # float32
    narrower = paired_change(before, after, requests, level=0.2)
    assert change.low < narrower.low < narrower.high < change.high
    lone = paired_change(before[:2], after[:2], requests[:2])
    assert lone.mean == pytest.approx(0.1) and math.isnan(lone.low) and math.isnan(lone.high)
    assert math.isnan(paired_change(before[3:4], after[3:4], requests[3:4]).mean)


REQUESTS = torch.arange(16).repeat_interleave(2)


def check(epoch: int, reward: float, held_out: float, noise: float = 0.05) -> Check:
    generator = torch.Generator().manual_seed(epoch)
    rows = torch.rand(2, len(REQUESTS), generator=generator, dtype=torch.float64) - 0.5
    return Check(epoch, reward + noise * rows[0], held_out + noise * rows[1], 0.001 * epoch)


def test_it_takes_a_rise_a_fall_and_patience() -> None:
    rule = CanaryRule(patience=2)
    up = [check(0, 0.5, 0.4), check(5, 0.6, 0.5)]
    hacked = [*up, check(10, 0.7, 0.4), check(15, 0.8, 0.3)]
    assert rule.verdict(hacked[:3], REQUESTS) == "" and rule.bad(hacked[:3], REQUESTS) != ""
    reason = rule.verdict(hacked, REQUESTS)
    assert reason.startswith("since round 5 the training reward of the canaries rose by 0.2")
    # uniform noise of width 0.05
    assert "the held-out one fell by 0.19" in reason and "(KL 5.00e-03 then, 1.50e-02 now)" in reason
    recovered = [*hacked[:3], check(15, 0.8, 0.5), check(20, 0.9, 0.4)]
    assert all(rule.verdict(recovered[:count], REQUESTS) == "" for count in range(6))
    assert CanaryRule(patience=1).verdict(hacked[:3], REQUESTS)
    # both fall, or both rise
    for last in (check(10, 0.4, 0.3), check(10, 0.7, 0.6)):
        assert rule.bad([*up, last], REQUESTS) == ""
    # a fall that is certain, and one that is certainly large
    assert CanaryRule(min_fall=0.05).bad(hacked[:3], REQUESTS) and not CanaryRule(min_fall=0.1).bad(hacked[:3], REQUESTS)


def test_what_could_not_be_scored_is_no_reason() -> None:
    lost = Check(10, torch.full((32,), NAN), torch.full((32,), NAN), 0.0)
    good, bad = check(5, 0.6, 0.5), check(15, 0.8, 0.3)
    rule = CanaryRule(patience=1)
    assert rule.bad([lost, bad], REQUESTS) == "" and rule.bad([good, lost], REQUESTS) == "" and rule.bad([good], REQUESTS) == ""
    assert "since round 5" in rule.bad([good, lost, bad], REQUESTS)
    # one request left of those that were scored both times
    few = Check(15, bad.reward.where(REQUESTS == 3, NAN), bad.held_out, 0.0)
    assert rule.bad([good, few], REQUESTS) == ""
    # the rise is that of the pictures which both checks could score, not of another selection
    half = Check(15, bad.reward.where(REQUESTS > 7, NAN), bad.held_out, 0.0)
    assert "rose by" in rule.bad([good, half], REQUESTS)


def run(seed: int, held_out: Callable[[int], float], rule: CanaryRule, checks: int = 16) -> int | None:
    """A run whose training reward rises; pictures change from check to check, as those of a policy that moves."""
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(len(REQUESTS), generator=generator, dtype=torch.float64)

    base, made = torch.rand(16, generator=generator, dtype=torch.float64)[REQUESTS], []
    for number in range(checks):
        drift = 0.05 * torch.randn(16, generator=generator, dtype=torch.float64)[REQUESTS]
        made.append(Check(number, base + noise(0.1) + 0.02 * number, base + noise(0.15) + drift + held_out(number), 0.0))
        if rule.verdict(made, REQUESTS):
            return number
    return None


def test_a_run_that_stays_as_good_is_let_go_on() -> None:
    stopped = [run(seed, lambda number: 0.0, CanaryRule()) for seed in range(60)]
    # measured: none of 150 (docs/advantages.md); two of 60 would be five times the upper limit of that
    assert sum(number is not None for number in stopped) <= 1


def test_a_run_that_turns_is_stopped_after_the_turn() -> None:
    stopped = [
        run(seed, lambda number: 0.02 * number if number < 6 else 0.24 - 0.02 * number, CanaryRule()) for seed in range(10)
    ]
    assert all(number is not None and number > 6 for number in stopped)


@pytest.mark.parametrize("options", [{"level": 0.0}, {"level": 1.0}, {"min_fall": -0.1}, {"min_fall": NAN}, {"patience": 0}])
def test_rules_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="level is between 0 and 1, min_fall at least 0 and patience at least 1"):
        CanaryRule(**options)
