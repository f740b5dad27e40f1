"""What a rewritten request must still ask for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rationalrewards.components.entities import entities, lost_entities


def test_words_numbers_and_quotes() -> None:
    found = entities("Two cats and a sign that says 'Open Late' on 3 red sofas, please")
    assert found.numbers == {"2", "3"}
    assert found.quotes == {"open late"}
    assert found.words == {"cat", "sign", "say", "red", "sofa"}


@pytest.mark.parametrize(
    ("request_", "rewritten", "must", "share"),
    [
        ("two cats on a sofa", "2 fluffy cats, both sitting on one velvet sofa", (), 1.0),
        ("two cats on a sofa", "three cats on a sofa", ("2",), 1.0),
        ("two cats on a sofa", "two dogs on a sofa", (), 0.5),
        ('a sign that reads "EXIT"', "a sign with the word exit in capitals", (), 0.5),  # "reads" is gone
        ('a sign that reads "EXIT"', "a sign that reads nothing", ("exit",), 1.0),
        ("make the sky redder", "Turn the whole sky red, clouds included", (), 0.5),
        ("make the sky red", "Turn the whole sky redder, clouds included", (), 1.0),
        ("one boat", "a boat", (), 1.0),
        ("the and of", "anything", (), 1.0),
        ("把天空变成红色", "把天空变成红色, evenly lit", (), 1.0),
    ],
)
def test_what_is_lost(request_: str, rewritten: str, must: tuple[str, ...], share: float) -> None:
    assert lost_entities(request_, rewritten) == (must, share)


@given(st.text(max_size=80), st.text(max_size=30))
def test_a_request_with_something_added_loses_nothing(request: str, more: str) -> None:
    # the addition is a sentence of its own: it can close no quotation that the request opened
    if any(mark in request + more for mark in "\"'\u201c\u201d\u2018\u2019"):
        return
    assert lost_entities(request, f"{request} . {more}") == ((), 1.0)


def test_real_requests_keep_themselves_and_lose_when_words_go(real: Path) -> None:
    prompts = [json.loads(line)["prompt"] for line in (real / "prompts" / "geneval.jsonl").read_text().splitlines()]
    assert len(prompts) == 553
    for prompt in prompts:
        assert lost_entities(prompt, f"A sharp photo: {prompt}, in soft light") == ((), 1.0)
        must, share = lost_entities(prompt, "something else altogether")
        assert must or share == 0.0
