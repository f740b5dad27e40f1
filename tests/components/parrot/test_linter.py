"""What gives away the label or the teacher is found, ordinary words are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.parrot.linter import check_student_prompts, findings


@pytest.mark.parametrize(
    "text",
    [
        "Image A is better, as people preferred",
        "in line with the human preference",
        "As told, B wins",
        "Given the label, A",
        "matches the ground-truth",
        "annotators clearly favoured the first",
        "this agrees with the known preference",
        "Most users voted for it",
    ],
)
def test_a_label_echo_is_found(text: str) -> None:
    (found,) = findings(f"sharp edges.\n{text}.")
    assert found.rule == "label echo" and found.phrase in text
    assert str(found) == f"label echo: {found.phrase!r}"


@pytest.mark.parametrize(
    "text",
    ["going by the reference comment", "the comparison above says so", "the score gap is large", "consult the human preference"],
)
def test_teacher_wording_is_found(text: str) -> None:
    assert "teacher wording" in {found.rule for found in findings(text)}


@pytest.mark.parametrize(
    "text",
    [
        "two people stand on grass",
        "I prefer neither",
        "the label on the bottle reads COLA",
        "A human face",
        "image a cat as red as told stories",  # no "Image A", and "as told" is a case that costs an attempt
        "a hint of red; the comparison of both eyes",
        "the judges wear black robes",
    ],
)
def test_ordinary_words_are_no_finding(text: str) -> None:
    found = findings(text, kind="point")
    assert found == [] or (text.startswith("image a cat") and found[0].phrase == "as told")


@pytest.mark.parametrize(
    "text", ["sharper than the other picture", "The other image is better", "better than Image B", "Candidate A"]
)
def test_naming_another_picture_gives_the_comparison_away_in_a_critique_of_one(text: str) -> None:
    assert findings(text) == []
    assert [found.rule for found in findings(text, kind="point")] == ["teacher wording"]


def test_a_comparison_that_cannot_be_told_in_the_other_order_is_found() -> None:
    assert [str(found) for found in findings("Image A is red. B is not.", kind="pair")] == ["name of a picture: 'B is not.'"]
    for kind in ("point", None):
        assert findings("Vitamin C. B is not.", kind=kind) == []  # type: ignore[arg-type]
    assert findings("Image A is red, Image B is not.", kind="pair") == []
    assert findings("it reads B, as asked", "a sign that reads B, in red", kind="pair") == []


def test_what_the_request_says_itself_is_not_held_against_a_critique() -> None:
    request = "a poster that says: people prefer tea"
    assert findings("the poster reads 'People prefer tea'", request) == []
    assert [str(found) for found in findings("it reads 'people prefer tea'; users chose it", request)] == [
        "label echo: 'users chose'"
    ]


def test_real_requests_are_clean(real: Path) -> None:
    prompts = [json.loads(line)["prompt"] for line in (real / "prompts" / "geneval.jsonl").read_text().splitlines()]
    prompts += [row["prompt"] for row in json.loads((real / "prompts" / "imagereward_benchmark.json").read_text())]
    assert len(prompts) == 653
    assert [prompt for prompt in prompts if findings(prompt)] == []


@pytest.mark.parametrize("rubric", ["default", "shapes"])
def test_shipped_rubrics_ask_students_for_no_label(rubric: str) -> None:
    check_student_prompts(CritiqueFormat(rubric))


def test_a_template_with_the_published_slip_is_refused(tmp_path: Path) -> None:
    # paper.md 6.5: the released evaluation prompts tell the judge that it may consult a given human preference
    path = tmp_path / "published.yaml"
    turn = {"role": "user", "text": "{image_a} {image_b} {request} You may consult the given human preference. {answer}"}
    path.write_text(yaml.safe_dump({"pairwise": {"t2i": [turn]}}))
    with pytest.raises(
        ValueError, match=r"published\.yaml' asks a student \(pairwise, t2i\) with label echo: 'human preference'"
    ):
        check_student_prompts(CritiqueFormat("default", str(path)))
