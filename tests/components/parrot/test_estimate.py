"""What a run will take, against what runs took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rationalrewards.components.chat import ChatModel
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.metrics import wilson_interval
from rationalrewards.components.parrot import Ledger, ParrotOptions, Price, ScreenOptions, rationalize
from rationalrewards.components.parrot.estimate import Estimate, Forecast, Load, added, planned_calls, total_of, usage_of
from rationalrewards.components.records import Preference, read_jsonl
from rationalrewards.components.shapes.pairs import write_preferences
from rationalrewards.components.shapes.teacher import ShapesTeacher

FORMAT = CritiqueFormat("shapes")
PERFECT = {"hallucination": 0.0, "obedience": 0.0, "vagueness": 0.0, "label_echo": 0.0, "position_bias": 0.0}
EVERYTHING_PASSES: dict[str, Any] = {
    "screen": ScreenOptions(min_side=1, min_contrast=0.0, duplicates=False),
    "refine_recall": 0.0,
    "order_agreement": False,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Preference]:
    """Drawn pairs with true labels, both tasks; what is closer than rounded scores can tell is a tie, and left out."""
    path = write_preferences(tmp_path_factory.mktemp("pairs"), 90, seed=3, label_noise=0.0, tie=0.12)
    return [pair for pair in read_jsonl(path, Preference) if pair.winner != "tie"][:40]


def used(pairs: Sequence[Preference], teacher: ChatModel, options: ParrotOptions) -> dict[str, tuple[float | None, float | None]]:
    """Calls and pictures of each stage in the ledger of a run."""
    ledger = Ledger()
    rationalize(pairs, teacher, FORMAT, options, ledger)
    return {stage: (found["calls"], found["images"]) for stage, found in ledger.usage().items()}


def planned(pairs: Sequence[Preference], options: ParrotOptions) -> dict[str, tuple[float | None, float | None]]:
    plan = planned_calls(pairs, options)
    return {stage: (calls, plan.images[stage]) for stage, calls in plan.calls.items() if calls}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"anchors": 3},
        {"check_votes": 2, "check_orders": 2},
        {"check_images": False, "anchors": 2, "check_votes": 3},
        {"control_share": 0.0, "audit_share": 1.0},
        {"control_share": 1.0, "audit_share": 0.0, "check_orders": 2},
        {"seed": 8, "control_share": 0.5, "audit_share": 0.5},
    ],
)
def test_the_bound_is_what_a_run_takes_in_which_everything_passes(pairs: list[Preference], changes: dict[str, Any]) -> None:
    assert {pair.task for pair in pairs} == {"t2i", "edit"}
    # a perfect teacher's comparisons pass for true labels, and it writes readable ones for wrong labels too
    options = ParrotOptions(**{**EVERYTHING_PASSES, "control_share": 0.2, "audit_share": 0.2, **changes})
    assert used(pairs, ShapesTeacher(**PERFECT), options) == planned(pairs, options)


def test_faults_only_take_away_where_nothing_is_asked_again(pairs: list[Preference]) -> None:
    clumsy = ShapesTeacher(hallucination=0.5, obedience=0.5, vagueness=0.3, label_echo=0.3, position_bias=0.5)
    options = ParrotOptions(attempts=1, anchors=2, check_orders=2, control_share=0.4, audit_share=0.4)
    bound, found = planned(pairs, options), used(pairs, clumsy, options)
    assert set(found) == set(bound)
    for stage, amounts in found.items():
        assert all(amount <= most for amount, most in zip(amounts, bound[stage], strict=True)), stage  # type: ignore[operator]
    assert found["project"][0] < bound["project"][0]  # type: ignore[operator]
    # with re-asks there may be more calls, but never more than `attempts` for each
    again = replace(options, attempts=3)
    more = used(pairs, clumsy, again)
    assert bound["anchor"][0] < more["anchor"][0] <= 3 * bound["anchor"][0]  # type: ignore[operator]


def test_expected_calls_by_hand() -> None:
    options = ParrotOptions(anchors=2, check_votes=3, check_orders=2, control_share=0.1, audit_share=0.01)
    plan = planned_calls(Load(1000, 500, 80, 40, 10), options, passing=0.5)
    assert plan.calls == {
        "anchor": 2000,
        "check": 6000,
        "check-swapped": 6000,
        "project": 2000,
        "refine": 2000,
        "audit": 20,
        "control-anchor": 160,
        "control-check": 480,
        "control-check-swapped": 480,
    }
    # both pictures and the source are shown together, or each picture with the source
    assert plan.images["anchor"] == 2 * 2500 and plan.images["check"] == 2 * 3 * 2500
    assert plan.images["project"] == plan.images["refine"] == 2 * 1500 and plan.images["audit"] == 0
    assert plan.images["control-anchor"] == 2 * 200 and plan.images["control-check"] == 2 * 3 * 200
    expected = {stage: calls * (0.5 if stage in ("project", "refine", "audit") else 1) for stage, calls in plan.calls.items()}
    assert plan.expected_calls == expected
    found = plan.as_json()
    assert found["calls"] == sum(plan.calls.values()) and found["expected_calls"] == sum(expected.values())
    json.dumps(found, allow_nan=False)


def test_the_share_that_passes_is_the_papers_and_says_so() -> None:
    load = Load(100, 0, 0, 0, 0)
    plan = planned_calls(load, ParrotOptions(attempts=1))
    assert plan.expected_calls["project"] == pytest.approx(144)
    assert str(plan) == (
        "100 pairs: at most 600 calls with 800 pictures (anchor 100, check 100, project 200, refine 200); "
        "about 488 with 688 if 72 % of the comparisons pass the check, as in arXiv 2604.11626."
    )
    own = str(planned_calls(load, ParrotOptions(attempts=3), passing=0.9))
    assert "arXiv" not in own and "if 90 % of" in own and "up to 3 times in all" in own
    with pytest.raises(ValueError, match=r"passing is a share between 0 and 1, got 72"):
        planned_calls(load, ParrotOptions(), passing=72)


def test_where_only_the_number_is_known() -> None:
    options = ParrotOptions(control_share=0.1, audit_share=0.05)
    load = Load.of_size(101, options, sources=2.0)
    # 10.1 and 5.05 pairs, rounded up
    assert (load.pairs, load.control, load.audited, load.exact) == (101, 11, 6, False)
    assert (load.sources, load.control_sources) == (202, 22)
    assert "not counted but taken from shares and averages" in str(planned_calls(load, options))


def test_loads_add_up(pairs: list[Preference]) -> None:
    options = ParrotOptions(control_share=0.4, audit_share=0.4)
    parts = [Load.counted(some, options) for some in (pairs[:13], pairs[13:])]
    assert Load.of_all(parts) == Load.counted(pairs, options)
    assert not Load.of_all([*parts, Load.of_size(3, options)]).exact


def test_ties_have_no_wrong_label(pairs: list[Preference]) -> None:
    options = ParrotOptions(control_share=1.0, audit_share=0.0)
    tied = [replace(pair, label=0.5) for pair in pairs[:7]]
    load = Load.counted([*tied, *pairs[7:]], options)
    assert (load.pairs, load.control, load.audited) == (len(pairs), len(pairs) - 7, 0)
    assert load.sources == sum(pair.task == "edit" for pair in pairs)
    assert load.control_sources == sum(pair.task == "edit" for pair in pairs[7:])


def test_usage_of_calls_is_that_of_the_ledger(pairs: list[Preference]) -> None:
    ledger = Ledger()
    teacher = ShapesTeacher(hallucination=0.3, label_echo=0.3)
    rationalize(pairs, teacher, FORMAT, ParrotOptions(control_share=0.3), ledger, Price(2.0, 6.0))
    parts = [usage_of(call for pair in some for call in ledger.calls(pair.id)) for some in (pairs[:15], pairs[15:])]
    whole = ledger.usage()
    together = added(parts)
    assert set(together) == set(whole)
    for stage, amounts in whole.items():
        # seconds and cost are sums of floats in another order
        assert together[stage] == pytest.approx(amounts, rel=1e-9)
    assert total_of(whole, "calls") == ledger.asked


USAGE = {
    "anchor": {
        "calls": 50,
        "failures": 1,
        "images": 100,
        "prompt_tokens": 40_000,
        "completion_tokens": 10_000,
        "seconds": 90.0,
        "cost": 0.5,
    },
    "check": {
        "calls": 50,
        "failures": 0,
        "images": 100,
        "prompt_tokens": 50_000,
        "completion_tokens": 500,
        "seconds": 10.0,
        "cost": 0.25,
    },
}


def test_an_estimate_by_hand() -> None:
    estimate = Estimate(10_000, 50, 40, USAGE, processes=2, currency="USD")
    assert (estimate.total("calls"), estimate.total("failures"), estimate.total("images")) == (20_000, 200, 40_000)
    assert (estimate.total("prompt_tokens"), estimate.total("completion_tokens")) == (18_000_000, 2_100_000)
    assert estimate.total("cost") == pytest.approx(150.0)
    # 2 s a pair, 10,000 pairs, two processes
    assert estimate.hours == pytest.approx(10_000 / 3600)
    low, high = wilson_interval(40, 50)
    assert estimate.kept_rate == {"value": 0.8, "ci95": [low, high], "n": 50}
    assert estimate.kept_pairs == {"value": 8000, "ci95": [low * 10_000, high * 10_000], "n": 50}
    assert str(estimate) == (
        "50 pairs measured, 80 % kept (95 % interval 67 to 89). At this rate 10,000 pairs take 20,000 calls, 40,000 pictures, "
        "18,000,000 + 2,100,000 tokens, 2.78 h on 2 processes, 150.00 USD, and 6,696 to 8,876 are kept."
    )
    json.dumps(estimate.as_json(), allow_nan=False)
    # what the pairs took on the clock, where that is known: 3 s a pair
    clock = Estimate(10_000, 50, 40, USAGE, seconds=150.0)
    assert clock.hours == pytest.approx(3 * 10_000 / 3600) and "8.33 h, 150.00" in str(clock)
    assert "1.7 min, 0.75" in str(Estimate(50, 50, 40, USAGE))


def test_a_forecast_by_hand() -> None:
    """Planned calls at the rate of the calls of their stage, or of one like it."""
    options = ParrotOptions(check_orders=2, attempts=1)
    plan = planned_calls(Load(1000, 0, 100, 0, 50), options, passing=0.5)
    forecast = Forecast(plan, USAGE, 50, processes=2, currency="USD", overhead=0.1)
    # a comparison takes 800 tokens in and 200 out, a check 1,000 and 10; critiques and requests are taken to be like comparisons, and
    # both orders of a check, the blind reader and the control like what they are named after
    long, short = 1000 + 100 + 2 * 1000 * 0.5 * 2, 2 * (1000 + 100) + 2 * 50 * 0.5
    assert forecast.total("prompt_tokens") == pytest.approx(800 * long + 1000 * short)
    assert forecast.total("completion_tokens") == pytest.approx(200 * long + 10 * short)
    assert forecast.total("cost") == pytest.approx(0.01 * long + 0.005 * short)
    # 1.8 s and 0.2 s, and a tenth of a second for each of 1,000 pairs besides
    assert forecast.hours() == pytest.approx((1.8 * long + 0.2 * short + 100) / 2 / 3600)
    more, shorter = 1000 + 100 + 2 * 1000 * 2, 2 * (1000 + 100) + 2 * 50
    assert forecast.total("prompt_tokens", most=True) == pytest.approx(800 * more + 1000 * shorter)
    assert str(forecast) == (
        "50 pairs measured, 100 calls. At their rate 1,000 pairs take about 4,730,000 + 642,500 tokens, 0.851 h on 2 processes, "
        "42.25 USD; if every pair gets through, 6,380,000 + 1,043,000 tokens, 1.35 h on 2 processes, 62.50 USD."
    )
    json.dumps(forecast.as_json(), allow_nan=False)
    # what was measured of a stage goes before what is like it
    own = {**USAGE, "refine": {**USAGE["check"], "prompt_tokens": 50 * 3000}}
    refined = Forecast(plan, own, 50).total("prompt_tokens")
    assert refined == pytest.approx(800 * (long - 1000) + 3000 * 1000 + 1000 * short)


def test_a_forecast_says_only_what_was_measured() -> None:
    plan = planned_calls(Load(100, 0, 0, 0, 0), ParrotOptions())
    silent = {stage: {**found, "prompt_tokens": 0, "completion_tokens": 0, "cost": None} for stage, found in USAGE.items()}
    forecast = Forecast(plan, silent, 1)
    assert forecast.total("prompt_tokens") is None and forecast.total("cost") is None
    assert "tokens" not in str(forecast) and str(forecast).startswith(
        "1 pair measured, 100 calls. At their rate 100 pairs take about "
    )
    assert str(Forecast(plan, {}, 0)) == "nothing was measured" and Forecast(plan, {}, 0).hours() is None


def test_what_a_backend_does_not_tell_is_not_estimated() -> None:
    silent = {stage: {**found, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0} for stage, found in USAGE.items()}
    estimate = Estimate(100, 50, 40, silent)
    assert estimate.total("prompt_tokens") is None and estimate.total("completion_tokens") is None
    assert estimate.total("cost") is None  # nothing times a price is no cost
    assert "tokens" not in str(estimate) and "100 calls" not in str(estimate)
    free = {stage: {**found, "cost": None} for stage, found in USAGE.items()}
    assert Estimate(100, 50, 40, free).total("cost") is None
    nothing = Estimate(100, 0, 0, {})
    assert nothing.hours is None and nothing.kept_rate["value"] is None and nothing.kept_pairs["value"] is None
    assert str(nothing) == "nothing was measured"
    json.dumps(nothing.as_json(), allow_nan=False)


@pytest.mark.parametrize("wrong", [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_counts_that_cannot_be(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        Estimate(*wrong, {})


def test_a_whole_run_estimates_itself(pairs: list[Preference]) -> None:
    ledger = Ledger()
    outcomes = rationalize(pairs, ShapesTeacher(), FORMAT, ParrotOptions(), ledger, Price(2.0, 6.0))
    estimate = Estimate(len(pairs), len(pairs), sum(outcome.kept for outcome in outcomes), ledger.usage())
    for name in ("calls", "images", "prompt_tokens", "completion_tokens", "cost"):
        assert estimate.total(name) == pytest.approx(total_of(ledger.usage(), name))
