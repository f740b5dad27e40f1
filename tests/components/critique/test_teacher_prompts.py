"""What a teacher is asked: the label appears in the anchored request alone, and masking hides what it says it hides."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.critique.teacher import (
    HINT,
    anchor_messages,
    check_messages,
    mask_comment,
    merge_refinement,
    project_messages,
    read_messages,
    read_scores,
    read_verdict,
    refine_messages,
)
from rationalrewards.components.records import AspectComparison, AspectCritique, Critique, NotApplicable, PairCritique

FORMAT = CritiqueFormat()
SOURCE, FIRST, SECOND = (Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 100, 200))
PAIR = PairCritique(
    {
        "text_faithfulness": AspectComparison("Image A lacks the hat", 1.5, 3.5, "B"),
        "image_faithfulness": AspectComparison("alike", 4.0, 4.0, "tie"),
        "physical_quality": AspectComparison("Image B is soft", 3.0, 2.5, "A"),
        "text_rendering": AspectComparison("none asked", NotApplicable(), NotApplicable(), NotApplicable()),
    },
    "Image B is better overall",
)
COMMENT = FORMAT.render_pair(PAIR, "edit")


def _text(messages: list[dict]) -> str:  # type: ignore[type-arg]
    return "\n".join(part["text"] for turn in messages for part in turn["content"] if part["type"] == "text")


def _images(messages: list[dict]) -> list[Image.Image]:  # type: ignore[type-arg]
    return [part["image"] for turn in messages for part in turn["content"] if part["type"] == "image"]


def test_the_hint_is_the_only_difference_between_anchored_and_asked() -> None:
    asked = FORMAT.pairwise_messages("edit", "add a hat", [SOURCE], (FIRST, SECOND))
    anchored = {
        label: anchor_messages(FORMAT, "edit", "add a hat", [SOURCE], (FIRST, SECOND), label) for label in ("A", "B", "tie")
    }
    for messages in anchored.values():
        assert messages[0] == asked[0]
        assert messages[1]["content"][:-1] == asked[1]["content"]
        assert HINT in messages[1]["content"][-1]["text"]
    assert len({_text(messages) for messages in anchored.values()}) == 3


def test_the_label_is_nowhere_else() -> None:
    later = [
        FORMAT.pairwise_messages("edit", "add a hat", [SOURCE], (FIRST, SECOND)),
        FORMAT.pointwise_messages("edit", "add a hat", [SOURCE], FIRST),
        check_messages("edit", "add a hat", [SOURCE], (FIRST, SECOND), COMMENT),
        project_messages(FORMAT, "edit", "add a hat", [SOURCE], FIRST, COMMENT, "A"),
        refine_messages("edit", "add a hat", [SOURCE], FIRST, "a critique"),
    ]
    for messages in later:
        assert HINT not in _text(messages) and "people preferred" not in _text(messages)


def test_each_stage_shows_its_pictures() -> None:
    assert _images(check_messages("edit", "x", [SOURCE], (FIRST, SECOND), COMMENT)) == [SOURCE, FIRST, SECOND]
    assert _images(check_messages("edit", "x", [SOURCE], None, COMMENT)) == []
    assert _images(project_messages(FORMAT, "edit", "x", [SOURCE], SECOND, COMMENT, "B")) == [SOURCE, SECOND]
    assert _images(refine_messages("edit", "x", [SOURCE], FIRST, "a critique")) == [SOURCE, FIRST]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("A is preferred", "A"),
        ("**B is preferred.**", "B"),
        (" tie\n", "tie"),
        ('"Tie"', "tie"),
        ("A", None),
        ("A is preferred because of the hat", None),
        ("", None),
    ],
)
def test_only_a_plain_verdict_is_one(answer: str, verdict: str | None) -> None:
    assert read_verdict(answer) == verdict


def test_masking_hides_what_gives_the_verdict_away() -> None:
    everything = mask_comment(FORMAT, PAIR, "edit", "all")
    scores = mask_comment(FORMAT, PAIR, "edit", "scores")
    words = mask_comment(FORMAT, PAIR, "edit", "justifications")
    assert everything == COMMENT
    for text in (scores, words):
        for judged in PAIR.aspects.values():
            assert judged.justification in text
        assert "Winner" not in text and PAIR.summary not in text
    assert "Score A: 1.5 Score B: 3.5" in scores
    assert not re.search(r"\d", words)
    with pytest.raises(ValueError, match="justifications, scores or all, got 'winners'"):
        mask_comment(FORMAT, PAIR, "edit", "winners")


def test_masked_scores_are_written_as_a_critic_writes_them() -> None:
    shown = mask_comment(FORMAT, PAIR, "edit", "scores")
    assert "Score A: N/A Score B: N/A" in shown
    assert "NotApplicable" not in shown


def test_a_blind_reader_is_shown_words_alone_and_answers_with_scores() -> None:
    aspects = {
        "text_faithfulness": AspectCritique("the hat is missing", 1.5),
        "image_faithfulness": AspectCritique("all kept", 4.0),
        "physical_quality": AspectCritique("soft", 2.5),
        "text_rendering": AspectCritique("none asked", NotApplicable()),
    }
    messages = read_messages(FORMAT, Critique(aspects, "so so", refined_request="a better request"), "edit")
    assert _images(messages) == []
    text = _text(messages)
    assert all(judged.justification in text for judged in aspects.values())
    assert not any(said in text for said in ("1.5", "2.5", "so so", "a better request"))
    answer = "**Text Faithfulness**: 2\nImage Faithfulness: 3.5\nPhysical and Visual Quality: 7\nText Rendering: N/A"
    assert read_scores(FORMAT, answer, "edit") == {"text_faithfulness": 2.0, "image_faithfulness": 3.5}


def test_merging_a_refinement_keeps_the_judgement() -> None:
    critique = Critique({"x": AspectCritique("because", 2.0)}, "so", analysis="asked", text="raw")
    merged = merge_refinement(critique, "## Refinement Comments: sharpen\n## Refined Request: a sharp\nred hat")
    assert (merged.refinement_comments, merged.refined_request) == ("sharpen", "a sharp\nred hat")
    assert (merged.aspects, merged.summary, merged.analysis) == (critique.aspects, "so", "asked")
    assert merge_refinement(critique, "I cannot help with that") is critique
