"""Forms of answers: the three spellings take the same texts, and filled slots give a text that they take."""

from __future__ import annotations

import json
import re

import pytest
from rationalrewards.components.answer_form import AnswerForm, Choice, Maybe, Prose
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.records import NotApplicable

FORM = AnswerForm(
    (
        "# Why (in words): ",
        Prose("why"),
        "\n## Score: ",
        Choice("score", ("1.0", "4.0", "N/A")),
        Maybe(("\n# More? ", Prose("more"))),
    )
)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("# Why (in words): red\n## Score: 4.0", True),
        ("# Why (in words): red, # 2\n## Score: N/A\n# More? yes", True),
        ("# Why (in words): red\n## Score: 4x0", False),
        ("# Why (in words): red\n## Score: 2.0", False),
        ("# Why (in words): \n## Score: 4.0", False),
        ("# Why (in words): red\n## Score: 4.0\n# More? ", False),
    ],
)
def test_the_regular_expression_takes_the_form_and_nothing_else(text: str, fits: bool) -> None:
    assert bool(re.fullmatch(FORM.regex(), text)) == fits


def test_filled_slots_are_a_text_of_the_form() -> None:
    text = FORM.fill({"why": "red\n\nball", "score": "4.0", "more": None})
    assert text == "# Why (in words): red ball\n## Score: 4.0"
    assert re.fullmatch(FORM.regex(), FORM.fill({"why": "red", "score": "N/A", "more": "blue"}))


@pytest.mark.parametrize(
    ("slots", "problem"),
    [
        ({"score": "4.0"}, "no why"),
        ({"why": " ", "score": "4.0"}, "no why"),
        ({"why": "red", "score": 4.0}, "no score"),
        ({"why": "red", "score": "4"}, "score is '4', none of its options"),
    ],
)
def test_slots_that_do_not_fit_are_refused(slots: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        FORM.fill(slots)


def test_the_schema_asks_for_every_slot() -> None:
    schema = FORM.schema()
    assert schema["required"] == ["why", "score", "more"] and schema["additionalProperties"] is False
    assert schema["properties"]["score"] == {"type": "string", "enum": ["1.0", "4.0", "N/A"]}
    assert schema["properties"]["more"] == {"type": ["string", "null"]}
    json.dumps(schema)


@pytest.mark.parametrize("parts", [(Prose("a"), Prose("a")), (Choice("a", ()),), (Maybe((Choice("a", ("", "b")),)),)])
def test_a_form_that_cannot_be_filled_is_refused(parts: tuple[Prose, ...]) -> None:
    with pytest.raises(ValueError, match="share a name|needs options"):
        AnswerForm(parts)


@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_a_critique_from_slots_is_read_back(task: str) -> None:
    format = CritiqueFormat()
    form = format.pointwise_form(task)  # type: ignore[arg-type]
    slots = {name: "N/A" if name == "text_rendering_score" else "3.5" for name in form.schema()["properties"]}
    slots |= {name: f"about {name}" for name in slots if not name.endswith("_score")}
    critique = format.parse(form.fill(slots), task)  # type: ignore[arg-type]
    assert critique.score("text_faithfulness") == 3.5 and isinstance(critique.score("text_rendering"), NotApplicable)
    assert critique.justification("physical_quality") == "about physical_quality_justification"
    assert critique.refined_request == "about refined_request" and critique.analysis == "about analysis"
    assert re.fullmatch(form.regex(), critique.text)
