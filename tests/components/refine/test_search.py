"""The refine loop with the embedded generator and a critic that sees: what every arm promises, whatever is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.generation import FlowGenerator
from rationalrewards.components.records import AspectCritique, Critique, NotApplicable, PromptRecord, Score, Unscored
from rationalrewards.components.refine import ARMS, Made, RefineOptions, Studio, Trace, accepted, best, run_arm
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.make_data import shapes_generator
from rationalrewards.components.shapes.phrases import Asked
from rationalrewards.components.shapes.scenes import Scene, Shape
from rationalrewards.components.shapes.truth import ShapesTruth

FORMAT = CritiqueFormat("shapes")
PROMPTS = [
    "red circle top left, blue square top right",
    "green triangle bottom left",
    "yellow cross top right, letter A bottom right",
    "purple square top left, red cross bottom left, blue circle bottom right",
]
OPTIONS = RefineOptions(images_per_prompt=3, threshold=3.9, seed=5)


@pytest.fixture(scope="module")
def generator() -> FlowGenerator:
    made = shapes_generator(steps=2)  # rough pictures: there is something to refine
    made.load()
    return made


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[PromptRecord]:
    source = tmp_path_factory.mktemp("sources") / "source.png"
    draw(Scene((Shape("red", "circle"), None, Shape("blue", "cross"), None))).save(source)
    plain = [PromptRecord(f"p{index}", "t2i", prompt) for index, prompt in enumerate(PROMPTS)]
    return [*plain, PromptRecord("e0", "edit", "turn the circle at the top left green", (str(source),))]


def _studio(generator: Any, chat: Any, seed: int = 5, **further: Any) -> Studio:
    return Studio(generator, Critic(chat, FORMAT, reasks=0), seed, judge=ShapesTruth(), **further)


def _reward(made: Made) -> float:
    return -1.0 if made.reward is None else made.reward


@pytest.fixture
def arms(generator: FlowGenerator, records: list[PromptRecord], seeing: Any) -> dict[str, list[Trace]]:
    studio = _studio(generator, seeing(numbered=True))
    return {arm: run_arm(arm, records, studio, OPTIONS) for arm in ARMS}


def test_every_arm_keeps_its_promise(arms: dict[str, list[Trace]], records: list[PromptRecord]) -> None:
    for arm, traces in arms.items():
        assert [trace.record for trace in traces] == records and all(trace.arm == arm for trace in traces)
        most = 1 if arm in ("base", "blind_rewrite") else OPTIONS.images_per_prompt
        for trace in traces:
            assert 1 <= len(trace.made) <= most
            assert 0 <= trace.chosen < len(trace.made)
            if arm == "refine_always_accept":
                assert trace.chosen == len(trace.made) - 1
            elif arm == "oracle":
                assert trace.best.held_out == max(made.held_out for made in trace.made)  # type: ignore[type-var]
            else:
                assert _reward(trace.made[trace.chosen]) == max(map(_reward, trace.made))
            if not arm.startswith("refine"):
                assert len(trace.made) == most and trace.stop == "images"
                continue
            if arm == "refine_from_best_of_k":
                assert [made.request for made in trace.made[: OPTIONS.best_of]] == [trace.record.prompt] * OPTIONS.best_of
                continue
            # stopped for a reason: the last picture was accepted, or the budget was spent; no earlier one was accepted
            flags = [accepted(made.critique, OPTIONS.threshold) for made in trace.made]
            assert not any(flags[:-1])
            assert trace.stop == ("accepted" if flags[-1] else "images")
            assert flags[-1] or len(trace.made) == most
            assert [made.round for made in trace.made] == list(range(len(trace.made)))
            assert [made.copy for made in trace.made] == list(range(len(trace.made)))
            assert trace.made[0].request == trace.record.prompt
            for number, (before, after) in enumerate(zip(trace.made, trace.made[1:], strict=False)):
                assert after.parent == number
                if arm in ("refine_always_accept", "refine_keep_best"):
                    assert after.request == before.critique.refined_request
    stops = {trace.stop for trace in arms["refine_keep_best"]}
    assert stops == {"accepted", "images"}  # both ways were taken, or the test would show less than it says


def test_keeping_the_best_is_never_worse_than_the_first_picture(arms: dict[str, list[Trace]]) -> None:
    for arm in ("best_of_n", "refine_keep_best"):
        for base, trace in zip(arms["base"], arms[arm], strict=True):
            assert _reward(trace.made[trace.chosen]) >= _reward(base.made[0])
    # always accepting makes no such promise; that it can fail is why the other arm exists
    assert all(trace.chosen == len(trace.made) - 1 for trace in arms["refine_always_accept"])


def test_the_first_picture_is_shared(arms: dict[str, list[Trace]]) -> None:
    for arm in ("best_of_n", "refine_always_accept", "refine_keep_best", "refine_scores_only", "refine_shuffled", "oracle"):
        for base, trace in zip(arms["base"], arms[arm], strict=True):
            assert trace.made[0].image is base.made[0].image
            assert trace.made[0].critique is base.made[0].critique


def test_pictures_are_made_and_judged_once_and_against_the_original_request(
    generator: FlowGenerator, records: list[PromptRecord], seeing: Any
) -> None:
    chat = seeing()
    studio = _studio(generator, chat)
    apart = ("refine_scores_only", "refine_shuffled")  # these ask for rewrites as well
    traces = [trace for arm in ARMS if arm not in apart for trace in run_arm(arm, records, studio, OPTIONS)]
    distinct = {id(made.image) for trace in traces for made in trace.made}
    blank = [picture for picture in chat.pictures if picture.getcolors() == [(32 * 32, (128, 128, 128))]]
    assert len(blank) == len(records)  # what the blind rewriter is shown
    assert len(chat.pictures) == len(distinct) + len(blank)
    assert not chat.begun
    assert set(chat.prompts) == {record.prompt for record in records}
    for trace in traces:
        for made in trace.made:
            source = Scene((Shape("red", "circle"), None, Shape("blue", "cross"), None)) if trace.record.sources else None
            assert Asked(made.request, source).scene == Asked(trace.record.prompt, source).scene  # rewrites keep what is asked
    # the same again costs nothing
    judged = len(chat.pictures)
    again = run_arm("refine_keep_best", records, studio, OPTIONS)
    assert len(chat.pictures) == judged
    assert [trace.chosen for trace in again] == [trace.chosen for trace in traces if trace.arm == "refine_keep_best"]


def test_the_blind_rewriter_asks_for_the_same_in_other_words(arms: dict[str, list[Trace]]) -> None:
    for one, several in zip(arms["blind_rewrite"], arms["blind_rewrite_best_of_n"], strict=True):
        assert {made.request for made in several.made} == {one.made[0].request} != {one.record.prompt}
        assert one.made[0].image is several.made[0].image


def test_a_larger_budget_only_adds(generator: FlowGenerator, records: list[PromptRecord], seeing: Any) -> None:
    studio = _studio(generator, seeing())
    for arm in ("best_of_n", "refine_keep_best", "refine_from_best_of_k", "refine_shuffled"):
        small, large = (run_arm(arm, records, studio, RefineOptions(count, 3.9, 5)) for count in (2, 4))  # type: ignore[arg-type]
        for few, many in zip(small, large, strict=True):
            assert [made.image for made in many.made[: len(few.made)]] == [made.image for made in few.made]
            assert _reward(many.made[many.chosen]) >= _reward(few.made[few.chosen])
    single = run_arm("refine_keep_best", records, studio, RefineOptions(1, 3.9, 5))
    assert all(len(trace.made) == 1 for trace in single)


def test_another_seed_is_another_picture(generator: FlowGenerator, records: list[PromptRecord], seeing: Any) -> None:
    first, again, other = (
        run_arm("base", records[:2], _studio(generator, seeing(), seed), OPTIONS)[0].made[0].image.tobytes() for seed in (5, 5, 6)
    )
    assert first == again != other


def test_a_nameless_arm_and_an_empty_budget_are_refused(generator: FlowGenerator, seeing: Any) -> None:
    with pytest.raises(ValueError, match="unknown arm 'refine'; known: base, best_of_n"):
        run_arm("refine", [], _studio(generator, seeing()), OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images_per_prompt must be at least 1, got 0"):
        RefineOptions(images_per_prompt=0)


# -- pictures without a score ------------------------------------------------------------------------------------------


def _odd(image: Image.Image) -> bool:
    """About half of all pictures, the same ones every time."""
    return sum(image.tobytes()) % 2 == 1


def test_an_unscored_picture_never_wins(generator: FlowGenerator, records: list[PromptRecord], seeing: Any) -> None:
    studio = _studio(generator, seeing(_odd))
    options = RefineOptions(images_per_prompt=4, threshold=3.9, seed=5)
    arms = {arm: run_arm(arm, records, studio, options) for arm in ("best_of_n", "refine_keep_best")}  # type: ignore[arg-type]
    mixed = 0
    for traces in arms.values():
        for trace in traces:
            rewards = [made.reward for made in trace.made]
            scored = [reward for reward in rewards if reward is not None]
            mixed += bool(scored) and len(scored) < len(rewards)
            if scored:
                assert rewards[trace.chosen] == max(scored)
            else:
                assert trace.chosen == 0
    assert mixed >= 2  # the case was met
    for trace in arms["refine_keep_best"]:
        for before, after in zip(trace.made, trace.made[1:], strict=False):
            if before.reward is None:  # nothing to learn from: the latest rewrite there is, or the original
                assert not accepted(before.critique, 1.0)
                assert after.request == before.request


def test_a_silent_critic_leaves_the_first_picture(generator: FlowGenerator, records: list[PromptRecord], seeing: Any) -> None:
    studio = _studio(generator, seeing(lambda image: True))
    for trace in run_arm("refine_keep_best", records, studio, OPTIONS):
        assert (trace.chosen, trace.stop, len(trace.made)) == (0, "images", 3)
        assert {made.request for made in trace.made} == {trace.record.prompt}
    for trace in run_arm("blind_rewrite_best_of_n", records, studio, OPTIONS):
        assert {made.request for made in trace.made} == {trace.record.prompt}


def _critique(*scores: Score) -> Critique:
    return Critique({str(index): AspectCritique("", score) for index, score in enumerate(scores)})


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ((3.0, 3.0), True),
        ((4.0, 2.9), False),
        ((4.0, 3.5, NotApplicable()), True),
        ((4.0, 4.0, Unscored("no score")), False),
        ((NotApplicable(),), False),
        ((), False),
    ],
)
def test_acceptance_looks_at_every_aspect(scores: Sequence[Score], verdict: bool) -> None:
    """The official loop looks at two of four, and drops the sample when one is N/A (``test_time_prompt_tuning/`` of its code)."""
    assert accepted(_critique(*scores), 3.0) is verdict


def _made(*scores: Score) -> Made:
    return Made(0, "", Image.new("RGB", (1, 1)), _critique(*scores))


def test_the_best_is_the_first_of_equals() -> None:
    low, high, none = _made(1.0), _made(4.0), _made(Unscored("no score"))
    assert best([low, high, high]) == 1
    assert best([none, low]) == 1  # the worst score there is still beats none
    assert best([none, none]) == 0
    assert best([high]) == 0
