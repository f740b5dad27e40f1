"""Judgements as rows, gaps without rounding, tie thresholds against brute force."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rationalrewards.components.protocols import (
    Judgement,
    Ties,
    TieThreshold,
    evaluate,
    fit_ties,
    gap,
    read_judgements,
    to_row,
    verdict,
)
from rationalrewards.components.protocols.judgements import Pair
from rationalrewards.components.records import Unscored

PICKAPIC = "yuvalkirstain/pickapic_v2@local (none), {} row 1 of data/x.parquet"
GENAI = "TIGER-Lab/GenAI-Bench@local (CC-BY-4.0), image_edition/test row 3 of x.parquet, {}"


def write(path: Path, judgements: list[Judgement]) -> str:
    path.write_text("".join(json.dumps({**to_row(one), "scores": []}) + "\n" for one in judgements))
    return str(path)


def test_a_row_and_back(tmp_path: Path) -> None:
    late = Unscored("the answer was cut off: after 20 tokens")
    judged = [
        Judgement("a", "00ff", 0.8, "of mine", (0.1 + 0.2, 1 / 3)),
        Judgement("b", "00ff", 0.5, "", late),
    ]
    assert read_judgements(write(tmp_path / "pointwise.jsonl", judged)) == judged
    both = [Judgement("a", "1", 1.0, "", (0.5, 0.25), late), Judgement("b", "2", 0.0, "", late, (1.0, 1.0))]
    assert read_judgements(write(tmp_path / "pairwise.jsonl", both)) == both
    row = to_row(both[0])
    assert (row["verdict"], row["swapped"]) == ("A", "unscored: the answer was cut off: after 20 tokens")
    assert (row["rewards"], row["rewards_swapped"], row["mode"]) == ([0.5, 0.25], None, "pairwise")
    assert to_row(judged[0])["swapped"] == "B"  # without an order, both verdicts are the one


def test_files_that_hold_no_judgements(tmp_path: Path) -> None:
    row = to_row(Judgement("a", "1", 1.0, "", (1.0, 0.0)))
    old = {key: value for key, value in row.items() if key != "rewards"}
    for name, lines, message in (
        ("old", [old], r"old\.jsonl, row 1: no 'rewards'; judge the pairs again"),
        ("twice", [row, row], r"twice\.jsonl, row 2: id 'a' is there twice"),
        ("empty", [], "holds no judgements"),
        ("null", [{**row, "rewards": None}], r"null\.jsonl, row 1: 'rewards' is null, but 'verdict'"),
        ("mixed", [row, to_row(Judgement("b", "1", 1.0, "", (1.0, 0.0), (1.0, 0.0)))], "pointwise and pairwise"),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(ValueError, match=message):
            read_judgements(path)
    with pytest.raises(ValueError, match="does not exist"):
        read_judgements(tmp_path / "nowhere.jsonl")


def test_equal_gaps_are_equal() -> None:
    # means of written scores in single precision, as rewards are: (3.5 - 3.4) / 3 and (2.1 - 2.0) / 3 on different levels
    steps = [torch.tensor([a, b], dtype=torch.float32).tolist() for a, b in ((0.7, 0.6), (0.3, 0.2), (0.5, 0.4), (0.2, 0.1))]
    assert len({a - b for a, b in steps}) > 1
    assert {verdict((a, b), 0.1) for a, b in steps} == {verdict((b, a), 0.1) for a, b in steps} == {"tie"}
    assert {verdict((a, b), 0.0999) for a, b in steps} == {"A"}
    assert gap((0.0, 0.0)) == 0.0
    assert gap((-3.0, 4.0)) == -7.0
    assert gap((1e-9, 2e-9)) == pytest.approx(-1e-9)  # a small scale is a scale
    assert verdict((0.5, 0.5 + 1e-8)) == "tie"
    assert verdict((0.4, 0.5), 0.1) == verdict((0.5, 0.4), 0.1) == "tie"
    assert verdict((0.39, 0.5), 0.1) == "B"


def random_judgements(rng: random.Random, count: int, discrete: bool) -> list[Judgement]:
    made = []
    for index in range(count):
        label = rng.choice([1.0, 0.0, 0.5, 0.5])
        a, b = (rng.randrange(11) / 10 if discrete else rng.random() for _ in "ab")
        said: Pair = Unscored("late") if rng.random() < 0.1 else (a, b)
        note = rng.choice(["tievote", "bothbad_vote"]) if label == 0.5 else ""
        made.append(Judgement(str(index), str(index), label, GENAI.format(note).removesuffix(", "), said))
    return made


def half_credit(judged: Judgement, threshold: float) -> float:
    said = verdict(judged.forward, threshold)
    if isinstance(said, Unscored):
        return 0.0
    return 1.0 if said == judged.winner else (0.5 if "tie" in (said, judged.winner) else 0.0)


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_a_fitted_threshold_is_the_best_of_all(half: bool, discrete: bool) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        judged = random_judgements(rng, rng.randrange(4, 40), discrete)
        if not any(one.winner == "tie" and isinstance(one.forward, tuple) for one in judged):
            continue

        def accuracy(threshold: float, judged: list[Judgement] = judged) -> float:
            if half:
                return sum(half_credit(one, threshold) for one in judged)
            return sum(verdict(one.forward, threshold) == one.winner for one in judged)

        ties = fit_ties(judged, "a split", half)
        gaps = sorted({abs(gap(one.forward)) for one in judged if isinstance(one.forward, tuple)})
        every = [0.0, *gaps, *((a + b) / 2 for a, b in pairwise(gaps)), gaps[-1] + 1]
        assert accuracy(ties.value) == max(map(accuracy, every))
        assert ties.ids == {one.id for one in judged}


def test_the_level_between_good_and_bad() -> None:
    said = [("tievote", 0.8), ("tievote", 0.6), ("bothbad_vote", 0.4), ("bothbad_vote", 0.2)]
    judged = [Judgement(str(i), str(i), 0.5, GENAI.format(note), (mean, mean)) for i, (note, mean) in enumerate(said)]
    assert fit_ties(judged, "x").good_level == pytest.approx(0.5)  # halfway between the worst good and the best bad
    # one kind only tells nothing
    assert fit_ties(judged[:2], "x").good_level is None
    with pytest.raises(ValueError, match="no scored pair that people left tied"):
        fit_ties([Judgement("a", "1", 1.0, "", (1.0, 0.0))], "decided.jsonl")


def test_a_threshold_is_never_counted_on_its_own_rows(tmp_path: Path) -> None:
    dev = [
        Judgement(f"dev-{i}", str(i), 0.5 if i % 2 else 1.0, "", (0.5 + i % 2 * 0.01, 0.5 + (i + 1) % 2 * 0.02)) for i in range(8)
    ]
    path = write(tmp_path / "dev.jsonl", dev)
    threshold = TieThreshold(judgements=[path])
    ties = threshold.ties(threshold.read(), "pointwise")
    assert "dev.jsonl (8 pairs)" in ties.fitted_on
    test = [Judgement("test-1", "1", 0.5, PICKAPIC.format("test_unique"), (0.5, 0.5))]
    assert evaluate("pickapic/test", test, ties=ties).tie_fitted_on == ties.fitted_on
    seen = Judgement("dev-3", "1", 0.5, PICKAPIC.format("test_unique"), (0.5, 0.5))
    with pytest.raises(ValueError, match=r"1 pairs are in the rows .*dev\.jsonl.* e\.g\. 'dev-3'"):
        evaluate("pickapic/test", [*test, seen], ties=ties)
    with pytest.raises(ValueError, match="holds no pairwise judgements"):
        threshold.ties(threshold.read(), "pairwise")


def test_thresholds_say_where_they_come_from() -> None:
    assert TieThreshold(0.0).ties([], "pointwise") == Ties()
    assert TieThreshold(0.1, "EditReward-Data, 500 rows").ties([], "pairwise").fitted_on == "EditReward-Data, 500 rows"
    for options, message in (
        ({}, "either value and fitted_on, or judgements"),
        ({"value": 0.1, "judgements": ["x"]}, "either value and fitted_on, or judgements"),
        ({"value": 0.1}, "say in fitted_on which rows"),
        ({"value": 0.0, "good_level": 0.6}, "say in fitted_on which rows"),
        ({"value": -0.1, "fitted_on": "x"}, "at least 0"),
        ({"judgements": ["x"], "fitted_on": "y"}, "follow from the files"),
    ):
        with pytest.raises(ValueError, match=message):
            TieThreshold(**options)  # type: ignore[arg-type]
