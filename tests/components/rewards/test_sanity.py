"""A critic that does not look, or does not read, is found out by a few pictures before anything is optimised against it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from rationalrewards.components.chat import ChatModel, TransformersChat
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.rewards import CritiqueReward, Rewards, SanityError, SanityGate
from rationalrewards.components.rewards.sanity import Probe
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import parse_request, random_edit, random_scene
from rationalrewards.components.shapes.truth import ShapesTruth

SHAPES = CritiqueFormat("shapes")
GATE = SanityGate(side=32)
NAN = float("nan")


def _rewards(totals: Sequence[float], reasons: Sequence[str] = ()) -> Rewards:
    total = torch.tensor(totals)
    return Rewards(total, (), torch.zeros(len(totals), 0), list(reasons) or [""] * len(totals))


def _is_black(request: CritiqueRequest) -> bool:
    return request.image.getextrema() == ((0, 0),) * 3


def _scorer(one: Callable[[int, CritiqueRequest], float]) -> Callable[[Sequence[CritiqueRequest]], Rewards]:
    return lambda requests: _rewards([one(index, request) for index, request in enumerate(requests)])


# -- the probes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 256])
def test_drawn_probes_show_what_they_ask_for(side: int) -> None:
    gate = SanityGate(side=side)
    requests = gate.requests()
    assert len({request.prompt for request in requests}) == len(requests) == 8
    for request in requests:
        scene = parse_request(request.prompt)
        assert scene is not None and request.image.size == (side, side) and request.task == "t2i"
        assert request.image.resize((32, 32), Image.Resampling.NEAREST).tobytes() == draw(scene).tobytes()
    assert [request.prompt for request in gate.requests()] == [request.prompt for request in requests]  # every time the same


def test_every_probe_is_shown_as_it_is_under_another_request_and_black() -> None:
    seen: list[CritiqueRequest] = []

    def score(requests: Sequence[CritiqueRequest]) -> Rewards:
        seen.extend(requests)
        return _rewards([1.0] * 8 + [0.5] * 8 + [0.0] * 8)

    report = GATE.report(score)
    matched, shuffled, black = seen[:8], seen[8:16], seen[16:]
    assert [r.image for r in shuffled] == [r.image for r in matched] and all(map(_is_black, black))
    assert [r.prompt for r in black] == [r.prompt for r in matched] and not any(map(_is_black, matched))
    assert sorted(r.prompt for r in shuffled) == sorted(r.prompt for r in matched)
    assert all(one.prompt != other.prompt for one, other in zip(matched, shuffled, strict=True))
    assert (report.matched, report.shuffled, report.black, report.scored, report.failure) == (1.0, 0.5, 0.0, (8, 8, 8), "")
    assert str(report).startswith("matching 1.00 (8 of 8 scored), shuffled 0.50 (8")


# -- who passes --------------------------------------------------------------------------------------------------------


def test_the_truth_passes_and_so_does_a_critic_that_sees(seeing: Callable[[], ChatModel]) -> None:
    assert not GATE.report(ShapesTruth().score).failure
    reward = CritiqueReward(Critic(seeing(), SHAPES), sanity=GATE)
    reward.load("cpu")
    report = reward.sanity_report
    assert report is not None and report.matched == 1.0 > report.shuffled > report.black


BLIND: dict[str, tuple[Callable[[int, CritiqueRequest], float], str]] = {
    "one score for all": (
        lambda i, r: 0.8,
        r"score only \+0.00 higher than with another.*score only \+0.00 higher than where they",
    ),
    "reads, does not look": (lambda i, r: len(r.prompt) % 7 / 7, "higher than where they are black"),
    "looks, does not read": (lambda i, r: 0.0 if _is_black(r) else 1.0, "higher than with another request than their own"),
    "prefers black": (lambda i, r: float(_is_black(r)), r"score only -1.00 higher than where they are black"),
    "too little": (lambda i, r: (0.55, 0.5, 0.5)[i // 8], r"score only \+0.05 higher .*standard error 0.00, margin 0.1"),
    "by chance": (lambda i, r: (1.0 if i % 8 == 0 else 0.0) if i < 8 else 0.0, r"\+0.12 higher .*standard error 0.12"),
}


@pytest.mark.parametrize("name", BLIND)
def test_who_does_not_look_or_read_is_refused_with_numbers(name: str) -> None:
    score, says = BLIND[name]
    with pytest.raises(SanityError, match=says) as caught:
        GATE.check(_scorer(score))
    assert "Mean rewards: matching " in str(caught.value) and "pass `sanity: null`" in str(caught.value)


def test_only_the_test_that_fails_is_named() -> None:
    looks = GATE.report(_scorer(BLIND["looks, does not read"][0])).failure
    assert "another request" in looks and "where they are black" not in looks


def test_noise_seldom_passes() -> None:
    """Each of two tests at two standard errors of eight gaps lets through one in 24 (t with 7 degrees of freedom), both fewer."""
    rng = random.Random(0)
    passed = sum(not GATE.report(_scorer(lambda i, r: rng.random())).failure for _ in range(300))
    assert passed <= 12  # expected about 3


def test_what_is_unscored_counts_for_neither_side() -> None:
    def half(i: int, r: CritiqueRequest) -> float:
        return NAN if i % 2 else (1.0, 0.4, 0.1)[i // 8]

    report = GATE.report(_scorer(half))
    assert not report.failure and report.scored == (4, 4, 4)
    assert (report.matched, report.shuffled, report.black) == pytest.approx((1.0, 0.4, 0.1))

    # black pictures that are not scored are no low scores
    def silent(requests: Sequence[CritiqueRequest]) -> Rewards:
        reasons = ["cut off" if _is_black(r) else "" for r in requests]
        return _rewards([NAN if reason else (1.0 if i < 8 else 0.2) for i, reason in enumerate(reasons)], reasons)

    with pytest.raises(SanityError, match=r"only 0 of 8 .* and where they are black.*black nan \(0 of 8 scored\).*cut off \(8\)"):
        GATE.check(silent)
    with pytest.raises(SanityError, match=r"only 3 of 8"):
        GATE.check(_scorer(lambda i, r: NAN if i % 8 > 2 else (1.0, 0.4, 0.1)[i // 8]))


def test_the_untrained_critic_is_refused() -> None:
    """The shipped base, which can write the form (it is forced to) and was never taught to judge: it scored 0.07, 0.11 and 0.10."""
    chat = TransformersChat("embedded:shapes-critic", batch_size=32)
    critic = Critic(chat, SHAPES, 320, reasks=0, constrained=True, prose_tokens=12)
    with pytest.raises(SanityError, match="with another request than their own.*where they are black"):
        CritiqueReward(critic, sanity=GATE).load("cpu")
    free = CritiqueReward(critic)
    free.load("cpu")  # to evaluate it is another matter
    assert free.score(GATE.requests()[:2]).total.shape == (2,)


# -- when it is asked --------------------------------------------------------------------------------------------------


def test_the_gate_is_asked_once_and_before_the_first_score(seeing: Callable[[], Any]) -> None:
    chat = seeing()
    reward = CritiqueReward(Critic(chat, SHAPES), samples=3, sanity=GATE)
    reward.load()  # not yet where it will run
    assert not chat.prompts
    reward.score(GATE.requests()[:1])
    assert len(chat.prompts) == 24 + 3  # one critique each, however many a score is made of
    reward.load("cpu")
    reward.score(GATE.requests()[:1])
    assert len(chat.prompts) == 24 + 6

    speechless = CritiqueReward(Critic(seeing(lambda image: True), SHAPES, reasks=0), sanity=GATE)
    for _ in range(2):  # a refusal stands
        with pytest.raises(SanityError, match="Unscored: "):
            speechless.score(GATE.requests()[:1])


@pytest.mark.filterwarnings(*(mark.args[0] for mark in tiny.QUIET))
def test_rl_refuses_before_its_first_round(tmp_path: Path) -> None:
    failing = CritiqueReward(Critic(tiny.truthful(lambda request: True), SHAPES, reasks=0), sanity=GATE)
    module = tiny.rl_module(reward=failing)
    with pytest.raises(SanityError, match="told to fail"):
        tiny.trainer(max_epochs=1, accumulate_grad_batches=4).fit(module, tiny.rl_data(tiny.requests(tmp_path)))
    assert module.last_rollout is None


# -- own pictures ------------------------------------------------------------------------------------------------------


def _rows(folder: Path, count: int = 6) -> list[dict[str, Any]]:
    """Requests of both tasks and their drawings."""
    rng, rows = random.Random(3), []
    for index in range(count):
        scene = random_scene(rng, letter_rate=0.0)
        row: dict[str, Any] = {"prompt": scene.request(), "image": f"{index}.png"}
        if index % 2:
            edit = random_edit(scene, rng)
            draw(scene).save(folder / f"{index}s.png")
            row, scene = {**row, "prompt": edit.request(), "task": "edit", "sources": [f"{index}s.png"]}, edit.apply(scene)
        draw(scene).save(folder / f"{index}.png")
        rows.append(row)
    return rows


def _file(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    path = folder / "probes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_own_pictures_take_the_place_of_the_drawn_ones(tmp_path: Path) -> None:
    gate = SanityGate(pictures=_file(tmp_path, _rows(tmp_path)))
    requests = gate.requests()
    assert [request.task for request in requests] == ["t2i", "edit"] * 3
    assert [len(request.sources) for request in requests] == [0, 1] * 3
    seen: list[CritiqueRequest] = []

    def score(asked: Sequence[CritiqueRequest]) -> Rewards:
        seen.extend(asked)
        return ShapesTruth().score(asked)

    report = gate.report(score)
    assert report.probes == 6
    prompts = {task: {r.prompt for r in requests if r.task == task} for task in ("t2i", "edit")}
    for own, other in zip(seen[:6], seen[6:12], strict=True):  # swapped among their kind, with their own sources
        assert other.prompt in prompts[own.task] - {own.prompt} and other.sources is own.sources
    assert SanityGate(probes=4, pictures=gate.pictures).report(ShapesTruth().score).probes == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows.pop(), None),
        (lambda rows: rows.__delitem__(slice(3, None)), "probes.jsonl: 3 rows; give at least 4"),
        (lambda rows: rows[1].pop("image"), "probes.jsonl, row 2: column 'image' is missing; a Probe has: prompt, image"),
        (lambda rows: rows[0].update(prompt=" "), "probes.jsonl, row 1: the prompt is empty"),
        (lambda rows: rows[1].pop("sources"), "probes.jsonl, row 2: an edit needs source pictures"),
        (lambda rows: rows[2].update(image="no.png"), "no.png does not exist"),
        (lambda rows: [row.update(prompt="a cat") for row in rows], "no other t2i request than 'a cat' among the pictures"),
    ],
)
def test_a_wrong_file_of_pictures_is_named(
    change: Callable[[list[dict[str, Any]]], Any], says: str | None, tmp_path: Path
) -> None:
    rows = _rows(tmp_path)
    change(rows)
    gate = SanityGate(pictures=_file(tmp_path, rows))
    if says is None:
        assert len(gate.requests()) == 5
    else:
        with pytest.raises(ValueError, match=says):
            gate.report(ShapesTruth().score)
    assert Probe("a cat", "a.png").task == "t2i"


@pytest.mark.parametrize("wrong", [{"probes": 3}, {"margin": 0.0}, {"margin": 1.0}, {"side": 100}, {"side": 0}])
def test_a_wrong_gate_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sanity: probes is at least 4, margin between 0 and 1, side a multiple of 32; got"):
        SanityGate(**wrong)
