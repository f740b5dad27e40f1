"""Every statistic of a run against numbers that were worked out by hand or by others."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rationalrewards.components.metrics import wilson_interval
from rationalrewards.components.parrot.audit import examples, kind_of, rate, rate_difference, source_of, spearman, summarise
from scipy import stats

# a deadline would be a timing
quietly = settings(deadline=None, max_examples=100)


def row(stage: str = "refine", reason: str = "", **more: Any) -> dict[str, Any]:
    """An outcome; kept unless there is a reason."""
    return {"pair": "p", "kept": not reason, "last_stage": stage, "reason": reason, **more}


def test_counts_reasons_and_the_control() -> None:
    rows = [
        row("anchor", "no answer: HTTP 500", wrong_label_passed=False),  # what its right label would have got is not known
        row("anchor", "no answer: timed out"),
        row("check", "does not predict the label", wrong_label_passed=True),
        row("check", "no answer: timed out", wrong_label_passed=True),
        row("project", "unreadable: Text Rendering is missing", wrong_label_passed=False),
        row("refine", "no answer: timed out", wrong_label_passed=False),
        row(wrong_label_passed=False),
        row(),
        row("screen", "duplicate: of pair 7"),
    ]
    summary = summarise(iter(rows))
    assert (summary["pairs"], summary["anchored"], summary["kept"], summary["unanswered"]) == (9, 6, 2, 4)
    assert summary["kept_rate"] == pytest.approx(2 / 9)
    assert summary["kept_rate_ci95"] == pytest.approx(wilson_interval(2, 9)) and summary["kept_rate_n"] == 9
    assert summary["stages"] == {
        "screen": {"in": 9, "out": 8},
        "anchor": {"in": 8, "out": 6},
        "check": {"in": 6, "out": 4},
        "project": {"in": 4, "out": 3},
        "refine": {"in": 3, "out": 2},
    }
    assert summary["reasons"] == {
        "anchor: no answer": 2,
        "check: does not predict the label": 1,
        "check: no answer": 1,
        "project: unreadable": 1,
        "refine: no answer": 1,
        "screen: duplicate": 1,
    }
    # of the same four pairs three pass the check with the right label and one with the wrong one
    assert (summary["control_pairs"], summary["right_label_pass_rate"], summary["wrong_label_pass_rate"]) == (4, 0.75, 0.25)
    for name, passed in (("right", 3), ("wrong", 1)):
        assert summary[f"{name}_label_pass_rate_n"] == 4
        assert summary[f"{name}_label_pass_rate_ci95"] == pytest.approx(wilson_interval(passed, 4))


def figures(found: Any) -> Iterator[Any]:
    """All values at the ends of a summary that are figures."""
    if isinstance(found, dict):
        if "value" in found:
            yield found["value"]
            yield found["ci95"]
        for inner in found.values():
            yield from figures(inner)


@pytest.mark.parametrize("rows", [[], [row("anchor", "no answer: down")]])
def test_what_was_not_measured_is_no_number(rows: list[dict[str, Any]]) -> None:
    summary = summarise(rows)
    for name in ("right_label_pass_rate", "wrong_label_pass_rate", "right_label_pass_rate_ci95", "wrong_label_pass_rate_ci95"):
        assert summary[name] is None
    assert list(figures([summary["position_bias"], summary["agreement"]][0])) == [None] * 10  # gap, A, B, first, orders
    assert list(figures(summary["agreement"])) == [None] * 6
    assert summary["lengths"]["pair"] == {
        "kept": {"n": 0, "median": None, "deciles": None},
        "dropped": {"n": 0, "median": None, "deciles": None},
        "histogram": None,
    }
    assert summary["kept_rate"] == (0.0 if rows else None)
    json.dumps(summary, allow_nan=False)


def test_per_source_task_and_kind_of_label() -> None:
    rows = [
        row(origin="org/one@abc (MIT), train row 1", task="t2i", label=1.0, plan="p1"),
        row("check", "does not predict the label", origin="org/one@abc (MIT), train row 2", task="edit", label=0.5, plan="p1"),
        row("check", "unreadable verdict", origin="org/one@abc (MIT), train row 3", task="t2i", label=0.8, plan="p2"),
        row(origin="two", task="t2i", label=0.0, plan="p1"),
        row(origin="", task="edit", label=0.25, plan="p1"),
    ]
    summary = summarise(rows)
    assert {name: (s["pairs"], s["kept"]) for name, s in summary["sources"].items()} == {
        "org/one@abc (MIT)": (3, 1),
        "two": (1, 1),
        "source not recorded": (1, 1),
    }
    first = summary["sources"]["org/one@abc (MIT)"]
    assert first["kept_rate"] == {"value": pytest.approx(1 / 3), "ci95": pytest.approx(list(wilson_interval(1, 3))), "n": 3}
    assert first["reasons"] == {"check: does not predict the label": 1, "check: unreadable verdict": 1}
    assert {name: (s["pairs"], s["kept"]) for name, s in summary["tasks"].items()} == {"t2i": (3, 2), "edit": (2, 1)}
    labels = {name: (s["pairs"], s["kept"]) for name, s in summary["labels"].items()}
    assert labels == {"decided": (2, 2), "soft": (2, 1), "tie": (1, 0)}
    assert summary["plans"] == {"p1": 4, "p2": 1}


def test_names_of_sources_and_kinds_of_reasons() -> None:
    assert source_of("MizzenAI/HPDv3@1a2b (MIT), train row 7, seen twice") == "MizzenAI/HPDv3@1a2b (MIT)"
    assert source_of(" shapes ") == "shapes" and source_of("") == source_of(" , row 1") == "source not recorded"
    assert kind_of("no answer: timed out: 3 s") == "no answer" and kind_of("duplicate") == "duplicate"


def test_the_gap_between_labels_a_and_b() -> None:
    rows = [
        # label A: three of four pass (a pair may still be dropped after the check)
        *[row(label=1.0), row(label=0.7), row("project", "unreadable: no score", label=1.0)],
        row("check", "does not predict the label", label=1.0),
        # label B: one of two; its other pairs never came to a verdict
        *[row(label=0.0), row("check", "unreadable verdict", label=0.4)],
        *[
            row("check", "no answer: down", label=0.0),
            row("anchor", "label echo: 'x'", label=0.0),
            row("screen", "blank", label=0.0),
        ],
        # ties have no side
        *[row(label=0.5), row("check", "does not predict the label", label=0.5)],
    ]
    gap = summarise(rows)["position_bias"]["label_gap"]
    assert (gap["value"], gap["n"]) == (0.25, 6)
    assert (gap["A"]["value"], gap["A"]["n"], gap["B"]["value"], gap["B"]["n"]) == (0.75, 4, 0.5, 2)
    assert gap["ci95"] == rate_difference((3, 4), (1, 2))["ci95"]


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        # Newcombe (1998), table II: contrasts (a), (b), (d) and (g), method 10, as printed
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ],
)
def test_newcombes_interval_against_his_table(first: tuple[int, int], second: tuple[int, int], low: float, high: float) -> None:
    found = rate_difference(first, second)
    # 5e-5: the table has four decimals
    assert found["ci95"] == pytest.approx([low, high], abs=6e-5)
    assert found["value"] == pytest.approx(first[0] / first[1] - second[0] / second[1])
    turned = rate_difference(second, first)["ci95"]
    assert found["ci95"] == pytest.approx([-turned[1], -turned[0]])


def test_votes_against_the_label_and_the_picture_shown_first() -> None:
    rows = [
        # against label A: "second" where A stood first, "first" where B did
        row(label=1.0, votes=[["AB", "second"], ["BA", "first"], ["AB", "first"], ["BA", "second"]]),
        # a tie and an unreadable vote name no picture
        row(label=1.0, votes=[["AB", "tie"], ["AB", None]]),
        row(label=0.0, votes=[["AB", "first"]]),
        # where people saw no difference, every picture that is named contradicts them
        row(label=0.5, votes=[["AB", "first"], ["BA", "second"], ["BA", "tie"]]),
        row(label=1.0, votes=None),
    ]
    share = summarise(rows)["position_bias"]["first_share"]
    # pair 1: second, first; pair 3: first; pair 4: first, second
    assert (share["value"], share["n"]) == (3 / 5, 5)
    # votes of one pair are not independent: the interval is that of three cases
    assert share["ci95"] == pytest.approx(wilson_interval(1.8, 3))


def test_agreement_over_the_orders() -> None:
    def votes(*said: str | None) -> dict[str, Any]:
        """Half the votes with A first, half with B first."""
        half = len(said) // 2
        return row(label=1.0, votes=[*(["AB", v] for v in said[:half]), *(["BA", v] for v in said[half:])])

    agree = [
        votes("first", "second"),  # A both times
        votes("tie", "tie"),
        votes("second", "tie", "first", "tie"),  # B in both
        votes("first", "second", "tie", "tie"),  # neither leans
    ]
    disagree = [
        votes("first", "first"),  # always the first
        votes("first", "tie"),
        votes("first", "first", "first", "first"),
    ]
    not_asked = [votes("first", None), row(label=1.0, votes=[["AB", "first"]])]
    found = summarise([*agree, *disagree, *not_asked])["position_bias"]["order_agreement"]
    assert (found["value"], found["n"]) == (4 / 7, 7)
    assert found["ci95"] == pytest.approx(wilson_interval(4, 7))


def test_agreement_of_scores_with_winners_and_of_verdicts_with_labels() -> None:
    rows = [
        row(label=1.0, verdict="A", winners=[3, 4]),
        row("check", "does not predict the label", label=1.0, verdict="tie", winners=[0, 2]),
        row(label=0.5, verdict="tie", winners=[3, 3]),
        row("anchor", "unreadable: cut off", label=0.0, verdict=None, winners=None),
        row(label=0.3, verdict="A", winners=[0, 0]),
    ]
    found = summarise(rows)["agreement"]
    assert (found["winner_scores"]["value"], found["winner_scores"]["n"]) == (6 / 9, 9)
    assert found["winner_scores"]["ci95"] == pytest.approx(wilson_interval(2.0, 3))  # three pairs had winners
    assert (found["verdict_label"]["value"], found["verdict_label"]["n"]) == (2 / 4, 4)


def test_sentiment_by_hand() -> None:
    # ranks 1 2 3 4 and 1 3 2 4: d = 0, 1, -1, 0, so rho = 1 - 6 * 2 / (4 * 15) = 0.8
    rows = [row(sentiment=[[1.0, 1.5], [2.0, 3.0]]), row(sentiment=[[3.0, 2.0], [4.0, 4.0]]), row(sentiment=None)]
    found = summarise(rows)["agreement"]["sentiment"]
    assert found["value"] == pytest.approx(0.8) and found["n"] == 4
    assert found["ci95"] is None  # of two pairs there is no interval
    many = summarise([row(sentiment=[[1.0, 1.5]]), row(sentiment=[[2.0, 3.0]]), row(sentiment=[[3.0, 2.0], [4.0, 4.0]])] * 5)
    found = many["agreement"]["sentiment"]
    # 15 pairs: atanh(0.8) = 1.0986, spread 1.96 sqrt((1 + 0.32) / 12) = 0.6501
    assert found["ci95"] == pytest.approx([math.tanh(1.0986 - 0.6501), math.tanh(1.0986 + 0.6501)], abs=1e-4)
    assert summarise([row(sentiment=[[2.0, 1.0], [2.0, 3.0]])])["agreement"]["sentiment"] == {"value": None, "ci95": None, "n": 2}


@quietly
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40))
def test_rank_correlation_against_scipy(pairs: list[tuple[int, int]]) -> None:
    first, second = ([float(pair[side]) / 2 for pair in pairs] for side in (0, 1))
    found = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        # 1e-9: both are a handful of float operations on ranks
        assert found == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-9)


def test_lengths() -> None:
    rng = random.Random(5)
    rows, kept, dropped = [], [], []
    for _ in range(301):
        words = {"pair": rng.randint(80, 300), "A": rng.randint(20, 90), "B": rng.randint(20, 90)}
        rows.append(
            row("check", "does not predict the label", words={"pair": words["pair"]}) if rng.random() < 0.3 else row(words=words)
        )
        (kept if rows[-1]["kept"] else dropped).append(words)
    lengths = summarise(rows)["lengths"]
    for name, fate, values in (
        ("pair", "kept", [words["pair"] for words in kept]),
        ("pair", "dropped", [words["pair"] for words in dropped]),
        ("point", "kept", [words[side] for words in kept for side in "AB"]),
    ):
        found = lengths[name][fate]
        assert (found["n"], found["median"]) == (len(values), np.median(values))
        assert found["deciles"] == pytest.approx(np.percentile(values, range(10, 100, 10)).tolist())
        histogram = lengths[name]["histogram"]
        edges = [histogram["low"] + histogram["width"] * index for index in range(len(histogram[fate]) + 1)]
        assert histogram[fate] == np.histogram(values, np.array(edges) - 0.5)[0].tolist()
        assert sum(histogram[fate]) == len(values) and len(histogram[fate]) <= 20
    assert lengths["point"]["dropped"]["n"] == 0


def test_a_rate_of_correlated_cases_is_no_surer_than_its_pairs() -> None:
    alone, clustered = rate(30, 40), rate(30, 40, clusters=10)
    assert alone["value"] == clustered["value"] == 0.75 and alone["n"] == clustered["n"] == 40
    assert clustered["ci95"][0] < alone["ci95"][0] and alone["ci95"][1] < clustered["ci95"][1]


def test_one_pass_in_any_order() -> None:
    rng = random.Random(1)
    reasons = [("screen", "duplicate"), ("anchor", "no answer: x"), ("check", "unreadable verdict"), ("refine", "")]
    rows = []
    for index in range(200):
        stage, reason = rng.choice(reasons)
        votes = [[rng.choice(["AB", "BA"]), rng.choice(["first", "second", "tie", None])] for _ in range(3)]
        more = {"label": rng.choice([0.0, 0.5, 0.7, 1.0]), "votes": votes, "words": {"pair": rng.randint(1, 9)}}
        rows.append(row(stage, reason, origin=f"set {index % 3}, row {index}", winners=[1, 2], **more))
    shuffled = rows[:]
    rng.shuffle(shuffled)
    first, second = summarise(iter(rows)), summarise(iter(shuffled))
    assert first == second and json.loads(json.dumps(first, allow_nan=False)) == first
    stages = first["stages"]
    for stage, count in stages.items():
        assert count["in"] - count["out"] == sum(n for name, n in first["reasons"].items() if name.startswith(f"{stage}: "))
    merged: Counter[str] = Counter()
    for source in first["sources"].values():
        merged.update(source["reasons"])
    assert dict(merged) == dict(Counter(first["reasons"]))


def test_a_pair_that_was_another_processes_duplicate_counts_once() -> None:
    """Two processes asked about the same pair before anybody knew: only what became of the first is measured."""
    measured = {
        "label": 1.0,
        "verdict": "A",
        "winners": [1, 1],
        "votes": [["AB", "second"], ["BA", "first"]],
        "sentiment": [[1.0, 2.0], [2.0, 1.0]],
        "words": {"pair": 9},
        "wrong_label_passed": True,
    }
    found = summarise([row(**measured), row("screen", "duplicate: of a pair of another process", **measured)])
    alone = summarise([row(**measured)])
    for name in ("control_pairs", "right_label_pass_rate", "wrong_label_pass_rate", "position_bias", "agreement", "lengths"):
        assert found[name] == alone[name], name
    assert (found["pairs"], found["kept"], found["labels"]["decided"]["pairs"]) == (2, 1, 2)


def test_examples_are_chosen_by_chance_and_always_the_same() -> None:
    rows = [{**row(), "pair": f"k{index}"} for index in range(300)]
    rows += [{**row("check", "unreadable verdict"), "pair": f"u{index}"} for index in range(40)]
    rows += [{**row("anchor", f"no answer: {index}"), "pair": f"n{index}"} for index in range(41)]
    rows += [{**row("project", "label echo: 'x'"), "pair": "e"}]
    chosen = examples(iter(rows), per_reason=5)
    assert {key: len(found) for key, found in chosen.items()} == {
        "kept": 5,
        "anchor: no answer": 5,
        "check: unreadable verdict": 5,
        "project: label echo": 1,
    }
    # kept ones first, then by frequency
    assert list(chosen) == ["kept", "anchor: no answer", "check: unreadable verdict", "project: label echo"]
    assert examples(reversed(rows), per_reason=5) == chosen
    # more of them are the same ones and others; and they are not simply the first of a file
    more = examples(rows, per_reason=9)
    assert more["kept"][:5] == chosen["kept"] and len(more["kept"]) == 9
    assert max(int(found["pair"][1:]) for found in more["kept"]) > 30
    assert examples(rows, per_reason=0) == {} == examples([])


def test_a_stage_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="pair 'p' ended at stage 'polish'; stages are screen, anchor, check, project, refine"):
        summarise([row("polish")])
