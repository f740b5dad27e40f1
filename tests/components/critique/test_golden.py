"""Critiques as models write them, each labelled by hand, and what is left of their scores after random damage."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rationalrewards.components.critique import parse, parse_pair
from rationalrewards.components.critique.rubric import load_rubric
from rationalrewards.components.records import NotApplicable, Task, Unscored

GOLDEN = Path(__file__).parent / "golden"


def _entries(name: str) -> list[Any]:
    entries = yaml.safe_load((GOLDEN / f"{name}.yaml").read_text(encoding="utf-8"))
    assert len({entry["note"] for entry in entries}) == len(entries)
    return [pytest.param(entry, id=entry["note"]) for entry in entries]


def _label(value: Any) -> Any:
    return "na" if isinstance(value, NotApplicable) else "none" if isinstance(value, Unscored) else value


def _check(entry: dict[str, Any], task: Task) -> None:
    critique = parse(entry["text"], task)
    assert [_label(critique.score(key)) for key in load_rubric().keys(task)] == entry["scores"]
    assert isinstance(critique.reward(), Unscored) == ("none" in entry["scores"])
    assert critique.refined_request == entry.get("refined", critique.refined_request)


@pytest.mark.parametrize("entry", _entries("t2i"))
def test_critiques_of_new_pictures_are_read_as_labelled(entry: dict[str, Any]) -> None:
    _check(entry, "t2i")


@pytest.mark.parametrize("entry", _entries("edit"))
def test_critiques_of_edits_are_read_as_labelled(entry: dict[str, Any]) -> None:
    _check(entry, "edit")


@pytest.mark.parametrize("entry", _entries("pairs"))
def test_comparisons_are_read_as_labelled(entry: dict[str, Any]) -> None:
    critique = parse_pair(entry["text"], entry["task"])
    found = [[_label(judged.score_a), _label(judged.score_b), _label(judged.winner)] for judged in critique.aspects.values()]
    assert found == entry["scores"]
    assert _label(critique.verdict()) == entry["verdict"]


@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_a_score_is_found_where_it_stands(task: Task) -> None:
    places = 0
    for entry in (entry for p in _entries(task) for entry in p.values):
        text = "<think>\n## Score: 2.0\n</think>" + entry["text"] if places % 2 else entry["text"]
        for judged in parse(text, task).aspects.values():
            if isinstance(judged.score, float):
                places += 1
                assert judged.at is not None
                number = re.match(r"[+-]?\d+(\.\d+)?", text[judged.at :])
                assert number and float(number[0]) == judged.score
                assert "score" in text[: judged.at].rstrip(" \n*`_:").splitlines()[-1].lower()
            else:
                assert judged.at is None
    assert places > 50


# -- damage --------------------------------------------------------------------------------------------------------------

_CASES = 200_000


def _damaged(text: str, rng: random.Random, other: str) -> str:
    """One to three random changes: lines lost, doubled, moved or taken from another critique; characters lost, doubled or changed."""
    for _ in range(rng.randint(1, 3)):
        lines = text.split("\n")
        at, roll = rng.randrange(len(lines)), rng.random()
        if roll < 0.15:
            del lines[at]
        elif roll < 0.25:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif roll < 0.35:
            lines.insert(at, rng.choice(other.split("\n")))
        elif roll < 0.45:
            lines = lines[: at + 1]
        elif roll < 0.55:
            lines[at] = lines[at][: rng.randint(0, len(lines[at]))]
        text = "\n".join(lines)
        if roll >= 0.55 and text:
            where = rng.randrange(len(text))
            what = rng.choice(("", text[where] * 2, rng.choice("#*:./ \n4109aAN-`")))
            text = text[:where] + what + text[where + 1 :]
    return text


@pytest.mark.slow
def test_no_damage_makes_a_score_that_was_not_written_at_a_score_position() -> None:
    rng = random.Random(0)
    texts = [(entry["text"], task) for task in ("t2i", "edit") for p in _entries(task) for entry in p.values]
    texts += [(entry["text"], entry["task"]) for p in _entries("pairs") for entry in p.values]
    scored = 0
    for _ in range(_CASES):
        text, task = rng.choice(texts)
        text = _damaged(text, rng, rng.choice(texts)[0])
        # a number on a line of a score heading, or on the next line with words: the only places a score may come from
        positions = re.findall(r"(?im)score\W*(?:\*\*|[ab]\b)?[^\w\n+-]*\n?(?:[^\w\n]*\n)*[^\w\n]*?([+-]?\d+(?:\.\d+)?)", text)
        written = {float(number) for number in positions}
        critique, pair = parse(text, task), parse_pair(text, task)
        for key in load_rubric().keys(task):
            for score in (critique.score(key), *pair.scores(key)):
                if isinstance(score, float):
                    scored += 1
                    assert 1.0 <= score <= 4.0 and score in written, (score, text)
    assert scored > _CASES  # most damage leaves some score readable: the check above was not idle
