"""The simulated teacher makes each of its mistakes at the rate that it was given, and none at rate 0."""

from __future__ import annotations

import random
from typing import Any

import pytest
from PIL import Image
from rationalrewards.components.chat import ChatRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.critique.teacher import anchor_messages, check_messages, read_verdict
from rationalrewards.components.parrot.linter import findings
from rationalrewards.components.records import Verdict
from rationalrewards.components.shapes import judge, phrases
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.pairs import flawed
from rationalrewards.components.shapes.phrases import Asked
from rationalrewards.components.shapes.scenes import Scene, random_scene
from rationalrewards.components.shapes.teacher import ShapesTeacher

FORMAT = CritiqueFormat("shapes")
PERFECT = {"hallucination": 0.0, "obedience": 0.0, "vagueness": 0.0, "label_echo": 0.0, "position_bias": 0.0}


def _teacher(**rates: float) -> ShapesTeacher:
    return ShapesTeacher(**{**PERFECT, **rates})


def _cases(count: int = 150) -> list[tuple[str, Image.Image, Image.Image]]:
    """A request, a picture of just that, and a picture with two places wrong."""
    rng = random.Random(1)
    cases = []
    while len(cases) < count:
        scene = random_scene(rng)
        wrong = flawed(scene, rng, 2)
        asked = Asked(scene.request())
        if asked.reward(judge.Reading(scene, 0)) - asked.reward(judge.Reading(wrong, 0)) > 0.12:
            cases.append((scene.request(), draw(scene), draw(wrong)))
    return cases


CASES = _cases()


def _anchored(teacher: ShapesTeacher, label: Verdict) -> list[str]:
    requests = [ChatRequest(anchor_messages(FORMAT, "t2i", prompt, [], images, label)) for prompt, *images in CASES]  # type: ignore[arg-type]
    replies = teacher.complete(requests)
    assert not any(reply.failure for reply in replies)
    return [reply.text for reply in replies]


def _share(flags: list[bool], rate: float, slack: float = 1e-9) -> bool:
    """Whether the share of ``flags`` is ``rate`` up to five standard errors."""
    return abs(sum(flags) / len(flags) - rate) <= 5 * (rate * (1 - rate) / len(flags)) ** 0.5 + slack


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_obedience_is_the_rate_of_bending_to_a_wrong_label(rate: float) -> None:
    texts = _anchored(_teacher(obedience=rate), "B")  # A is better in every case
    # now and then the flaws that it invents cancel out, and it is left with a tie
    assert _share([FORMAT.parse_pair(text, "t2i").verdict() == "B" for text in texts], rate, slack=0.02)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_echo_and_vagueness(rate: float) -> None:
    assert _share([bool(findings(text)) for text in _anchored(_teacher(label_echo=rate), "A")], rate)
    vague = [FORMAT.parse_pair(text, "t2i").verdict() == "tie" for text in _anchored(_teacher(vagueness=rate), "A")]
    assert _share(vague, rate)


def test_without_faults_it_sees_the_truth() -> None:
    for text, (prompt, first, second) in zip(_anchored(_teacher(), "A"), CASES, strict=True):
        seen = judge.read([first, second])
        assert text == FORMAT.render_pair(phrases.pair_critique(Asked(prompt), *seen), "t2i")


def test_hallucination_changes_what_is_seen() -> None:
    right = _anchored(_teacher(), "A")
    changed = [a != b for a, b in zip(right, _anchored(_teacher(hallucination=0.5), "A"), strict=True)]
    # each of the two pictures is misread with probability 1/2, and a misreading shows in the text unless a second one (a quarter of
    # the pictures have one) undoes it: it takes one of at most four places and one of eight ways to read it
    assert _share(changed, 0.75, slack=0.02)


def test_position_bias_decides_what_nothing_else_does() -> None:
    same: list[Any] = []
    for prompt, first, _ in CASES:
        comment = FORMAT.render_pair(phrases.pair_critique(Asked(prompt), *judge.read([first, first])), "t2i")
        same.append(ChatRequest(check_messages("t2i", prompt, [], (first, first), comment)))
    for rate in (0.0, 0.4, 1.0):
        verdicts = [read_verdict(reply.text) for reply in _teacher(position_bias=rate).complete(same)]
        assert set(verdicts) <= {"A", "tie"} and _share([verdict == "A" for verdict in verdicts], rate)


def test_an_answer_depends_on_the_request_and_the_seeds_alone() -> None:
    faulty = {"hallucination": 0.5, "obedience": 0.5, "vagueness": 0.3, "label_echo": 0.3}
    requests = [ChatRequest(anchor_messages(FORMAT, "t2i", prompt, [], images, "B"), seed=3) for prompt, *images in CASES[:20]]  # type: ignore[arg-type]
    together = _teacher(**faulty).complete(requests)
    assert [_teacher(**faulty).complete([request])[0] for request in requests[::-1]][::-1] == together
    assert ShapesTeacher(**{**PERFECT, **faulty}, seed=1).complete(requests) != together  # type: ignore[arg-type]


def test_what_it_cannot_answer_is_a_failure() -> None:
    image = draw(Scene((None, None, None, None)))
    foreign = ChatRequest(FORMAT.pairwise_messages("t2i", "a portrait of a cat", [], (image, image)))
    mute = ChatRequest([{"role": "user", "content": [{"type": "text", "text": "hello"}]}])
    replies = _teacher().complete([foreign, mute])
    assert "cannot answer: 'a portrait of a cat' is no request" in replies[0].failure
    assert "found no <request>" in replies[1].failure


def test_it_says_that_it_is_simulated_and_takes_only_probabilities() -> None:
    assert "simulated" in _teacher().identity
    # a ledger must not take answers of a teacher with other faults for its own
    assert len({_teacher(**{name: 0.5}).fingerprint for name in PERFECT}) == len(PERFECT)
    with pytest.raises(ValueError, match=r"obedience is a probability, got 1\.5"):
        _teacher(obedience=1.5)
