"""Records survive the way to disk and back, say what is wrong with a bad row, and never turn a failure into a number."""

from __future__ import annotations

import json
import math
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rationalrewards.components.pictures import open_picture, picture_digest
from rationalrewards.components.records import (
    AspectComparison,
    AspectCritique,
    Candidate,
    Critique,
    NotApplicable,
    PairCritique,
    Preference,
    PromptRecord,
    Rationale,
    Refinement,
    Score,
    Unscored,
    from_json,
    group_id,
    mean_reward,
    read_jsonl,
    relative_to,
    to_json,
    write_jsonl,
)

ODD_TEXTS = [
    'quotes " and \\ backslashes',
    "two\nlines, a\ttab and a carriage\rreturn",
    "naïve 日本 🙂",
    # characters that str.splitlines() takes for line ends, common in scraped prompts
    "line\u2028separator, paragraph\u2029separator, next\x85line, form\x0cfeed, file\x1cseparator",
]


def _picture(path: Path, seed: int = 0, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, len(mode)), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _preference(folder: Path, **changes: Any) -> Preference:
    fields: dict[str, Any] = {
        "id": "p1",
        "task": "edit",
        "prompt": "turn it blue",
        "candidates": (str(folder / "a.png"), str(folder / "b.png")),
        "label": 0.7,
        "sources": (str(folder / "s0.png"), str(folder / "s1.png")),
        "origin": "a set, row 3",
    }
    return Preference(**{**fields, **changes})


def _all_records(folder: Path) -> list[Any]:
    pair = _preference(folder)
    made = (
        Candidate(0, "turn it blue", str(folder / "m0.png"), "text", 0.25, aspects={"physical_quality": 1.5}),
        Candidate(1, "turn it dark blue", str(folder / "m1.png"), "", None, "timed out", {"physical_quality": None}),
    )
    return [
        pair,
        PromptRecord("q1", "edit", "turn it blue", (str(folder / "s0.png"),), "a set"),
        PromptRecord("q2", "t2i", "a red circle"),
        Rationale(pair, "pair text", ("one", "two"), "abc123", {"teacher": "t", "votes": 3, "shown": ["a", "b"]}),
        made[0],
        Refinement("r1", "edit", "turn it blue", "refine_keep_best", made, 1, "budget", (str(folder / "s0.png"),)),
    ]


@pytest.mark.parametrize("index", range(6))
def test_every_record_goes_to_json_and_back(tmp_path: Path, index: int) -> None:
    record = _all_records(tmp_path)[index]
    assert from_json(type(record), json.loads(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_survives_the_file(tmp_path: Path, text: str) -> None:
    records = [PromptRecord(str(index), "t2i", text, origin=text) for index in range(2)]
    write_jsonl(tmp_path / "prompts.jsonl", records)
    assert read_jsonl(tmp_path / "prompts.jsonl", PromptRecord) == records


def test_records_keep_their_pictures_when_the_tree_moves(tmp_path: Path) -> None:
    home = tmp_path / "one" / "set"
    for seed, name in enumerate(("a", "b", "s0", "s1", "m0", "m1")):
        _picture(home / "pictures" / f"{name}.png", seed)
    shared = _picture(tmp_path / "one" / "shared" / "s.png", 9)  # outside the file's folder, inside the tree
    records = _all_records(home / "pictures")
    pair, prompt, rationale, refinement = records[0], records[1], records[3], records[5]
    outside = PromptRecord("q3", "edit", "turn it blue", (str(shared),))
    for name, record in {"pairs": pair, "rationales": rationale, "refinements": refinement}.items():
        write_jsonl(home / f"{name}.jsonl", [record])
    write_jsonl(home / "prompts.jsonl", [prompt, outside])
    text = "".join(path.read_text() for path in home.glob("*.jsonl"))
    assert str(tmp_path) not in text

    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "one", moved)
    (again,) = read_jsonl(moved / "set" / "pairs.jsonl", Preference)
    first, second = read_jsonl(moved / "set" / "prompts.jsonl", PromptRecord)
    (reasoned,) = read_jsonl(moved / "set" / "rationales.jsonl", Rationale)
    (refined,) = read_jsonl(moved / "set" / "refinements.jsonl", Refinement)
    paths = [*again.candidates, *again.sources, *first.sources, *second.sources, *reasoned.pair.candidates]
    paths += [*refined.sources, *(made.image for made in refined.candidates)]
    for path in paths:
        open_picture(path)
    assert picture_digest(again.candidates[1]) == picture_digest(moved / "set" / "pictures" / "b.png")
    assert picture_digest(second.sources[0]) == picture_digest(moved / "shared" / "s.png")
    # apart from where it lies, the record is the one that was written
    assert relative_to(again, moved / "set") == relative_to(pair, home)
    assert relative_to(refined, moved / "set") == relative_to(refinement, home)


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rationales.jsonl"
    good = _all_records(tmp_path)[3]
    write_jsonl(path, [good])
    before = path.read_bytes()
    unwritable = Rationale(good.pair, "", ("", ""), "", {"what": object()})
    with pytest.raises(TypeError):
        write_jsonl(path, [good, unwritable])
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == ["rationales.jsonl"]


GOOD_ROW = {"id": "p", "task": "t2i", "prompt": "a cat", "candidates": ["a.png", "b.png"], "label": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown column 'colour'.*candidates"),
        ({"label": None}, "label must be the probability that A is preferred.*None"),
        ({"label": 1.5}, "label must be.*1.5"),
        ({"label": "A"}, "label must be.*'A'"),
        ({"label": float("nan")}, "label must be.*nan"),
        ({"task": "video"}, "task must be one of t2i, edit, got 'video'"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"candidates": ["a.png"]}, "a pair has 2 candidates, got 1"),
        ({"candidates": "ab"}, "candidates"),
        ({"candidates": [1, 2]}, "candidates"),
        ({"task": "edit"}, "an edit needs source pictures"),
        ({"task": "edit", "sources": "s.png"}, "sources"),
        ({"sources": ["s.png"]}, "has no source pictures"),
        ("[1, 2]", "not a JSON object"),
        ('{"id": ', "Expecting value"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    bad = change if isinstance(change, str) else json.dumps({**GOOD_ROW, **change})
    path.write_text(f"{json.dumps(GOOD_ROW)}\n\n{bad}\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_jsonl(path, Preference)
    assert f"{path}, row 3: " in str(caught.value)


@pytest.mark.parametrize("column", GOOD_ROW)
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({key: value for key, value in GOOD_ROW.items() if key != column}))
    with pytest.raises(ValueError, match=f"row 1: column '{column}' is missing"):
        read_jsonl(path, Preference)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.jsonl does not exist.*Preference"):
        read_jsonl(tmp_path / "nowhere.jsonl", Preference)


@pytest.mark.parametrize(("label", "winner"), [(1, "A"), (0.51, "A"), (0.5, "tie"), (0.49, "B"), (0.0, "B")])
def test_label_as_verdict(tmp_path: Path, label: float, winner: str) -> None:
    assert _preference(tmp_path, label=label).winner == winner


# -- identity of groups ------------------------------------------------------------------------------------------------


def test_a_group_is_a_prompt_and_the_pixels_of_its_sources(tmp_path: Path) -> None:
    first, second = _picture(tmp_path / "1.png", 1), _picture(tmp_path / "2.png", 2)
    again = tmp_path / "recoded.png"
    with Image.open(first) as image:
        image.save(again, compress_level=0)
    assert again.read_bytes() != first.read_bytes()
    bitmap = tmp_path / "recoded.bmp"
    open_picture(first).save(bitmap)

    base = group_id("remove it", [str(first)])
    assert len(base) == 16 and int(base, 16) >= 0
    assert group_id("remove it", [str(again)]) == base == group_id("remove it", [str(bitmap)])
    others = {
        group_id("remove it", [str(second)]),  # equal instructions on different sources
        group_id("remove it.", [str(first)]),
        group_id("remove it", []),
        group_id("remove it", [str(first), str(second)]),
        group_id("remove it", [str(second), str(first)]),
    }
    assert len(others | {base}) == 6
    assert PromptRecord("x", "edit", "remove it", (str(again),)).group == base
    assert _preference(tmp_path, prompt="remove it", sources=(str(first),)).group == base


def test_a_picture_stands_the_way_up_that_its_exif_data_say(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    picture.save(tmp_path / "phone.png", exif=exif)
    assert open_picture(tmp_path / "phone.png").size == (2, 4)


def test_digest_sees_the_shape_and_one_changed_pixel(tmp_path: Path) -> None:
    path = _picture(tmp_path / "a.png")
    image = open_picture(path)
    digests = {picture_digest(path)}
    # the same bytes in another shape
    Image.frombytes("RGB", (image.height, image.width), image.tobytes()).save(tmp_path / "b.png")
    image.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))  # type: ignore[union-attr, misc]
    image.save(tmp_path / "c.png")
    digests |= {picture_digest(tmp_path / "b.png"), picture_digest(tmp_path / "c.png")}
    assert len(digests) == 3


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    whole = _picture(tmp_path / "whole.png", 1)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-40])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    for name, reason in {
        "gone": "does not exist",
        "cut": "cut off",
        "text": "not a picture",
        "empty": "not a picture",
    }.items():
        with pytest.raises(ValueError, match=rf"{name}\.png.*{reason}"):
            open_picture(tmp_path / f"{name}.png")
    rgba = _picture(tmp_path / "rgba.png", 2, "RGBA")
    assert open_picture(rgba).mode == "RGB"


# -- scores ------------------------------------------------------------------------------------------------------------


def test_what_is_unscored_is_no_number() -> None:
    for nothing in (Unscored("timed out"), NotApplicable()):
        assert not nothing
        for wrong in (lambda x: x + 1, lambda x: x > 1, float, sum):
            with pytest.raises(TypeError):
                wrong(nothing)


_scores = st.one_of(
    st.floats(-3, 8, allow_nan=False).map(float), st.just(NotApplicable()), st.builds(Unscored, st.sampled_from("abc"))
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_scores, max_size=6))
def test_reward_is_the_clamped_mean_of_what_applies(scores: list[Score]) -> None:
    reward = mean_reward(scores)
    missing = [score for score in scores if isinstance(score, Unscored)]
    numbers = [min(Fraction(4), max(Fraction(1), Fraction(score))) for score in scores if isinstance(score, float)]
    if missing:
        assert reward == missing[0]
    elif not numbers:
        assert reward == Unscored("no aspect applies")
    else:
        assert isinstance(reward, float) and 0.0 <= reward <= 1.0
        expected = (sum(numbers, Fraction(0)) / len(numbers) - 1) / 3
        assert math.isclose(reward, expected, abs_tol=1e-15)  # a handful of float operations on numbers of order 1


def _critique(*scores: Score) -> Critique:
    return Critique({str(index): AspectCritique("because", score) for index, score in enumerate(scores)})


@pytest.mark.parametrize(
    ("scores", "reward"),
    [
        ((4.0, 4.0, 4.0, 4.0), 1.0),
        ((1.0, 1.0), 0.0),
        ((4.0, 1.0, 4.0, 4.0), 0.75),  # an edit that destroys its source must not earn 1 (arXiv 2604.11626, Eq. 13)
        ((2.5, NotApplicable()), 0.5),
        ((9.0, -2.0), 0.5),
    ],
)
def test_reward_by_hand(scores: tuple[Score, ...], reward: float) -> None:
    critique = _critique(*scores)
    assert critique.reward() == reward
    assert critique.failure == ""


def test_a_failed_critique_knows_why() -> None:
    critique = Critique.unscored("HTTP 500", ("text_faithfulness", "physical_quality"), "half an ans")
    assert critique.reward() == Unscored("HTTP 500")
    assert critique.failure == "HTTP 500" and critique.text == "half an ans"
    assert critique.score("text_faithfulness") == Unscored("HTTP 500")
    unknown = critique.score("beauty")
    assert isinstance(unknown, Unscored) and "'beauty' is not part" in unknown.reason
    assert critique.justification("beauty") == ""


def _pair(*scores: tuple[Score, Score]) -> PairCritique:
    return PairCritique({str(index): AspectComparison("", a, b, "B") for index, (a, b) in enumerate(scores)})


def test_verdict_follows_the_scores_and_not_the_written_winner() -> None:
    assert _pair((3.0, 2.0), (2.0, 2.0)).verdict() == "A"
    assert _pair((3.0, 2.0), (2.0, 3.0)).verdict() == "tie"
    assert _pair((1.0, 1.5)).verdict() == "B"
    assert _pair((3.0, Unscored("no score b"))).verdict() == Unscored("no score b")
    assert _pair((Unscored("no score a"), 3.0)).verdict() == Unscored("no score a")
    assert _pair((4.0, 1.0), (NotApplicable(), NotApplicable())).rewards() == (1.0, 0.0)
    failed = PairCritique.unscored("cut off", ("0",))
    assert failed.verdict() == Unscored("cut off") and failed.scores("0") == (Unscored("cut off"), Unscored("cut off"))
    assert all(isinstance(score, Unscored) for score in failed.scores("1"))
