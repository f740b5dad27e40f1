"""What the arms are worth: every figure against a small case worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rationalrewards.components.critic import Critic
from rationalrewards.components.records import Candidate, PromptRecord, Refinement
from rationalrewards.components.refine import RefineOptions, Studio, run_arms
from rationalrewards.components.refine.figures import (
    arm_figures,
    by_task,
    chosen_at,
    comparison,
    comparison_markdown,
    drift,
    labelled,
)


def candidate(reward: float | None, held_out: float | None, request: str = "two red cats", **fields: Any) -> Candidate:
    return Candidate(0, request, fields.pop("image", "x.png"), "", reward, held_out=held_out, tokens=10, **fields)


def refinement(id: str, arm: str, *candidates: Candidate, prompt: str = "two red cats", **fields: Any) -> Refinement:
    return Refinement(id, "t2i", prompt, arm, candidates, 0, fields.pop("stop", "images"), **fields)


RUN = [
    refinement("a", "base", candidate(0.5, 0.4)),
    refinement("b", "base", candidate(0.2, 0.3), prompt="a dog"),
    # the critic picks the third of four, by which the truth gains 0.2
    refinement("a", "best_of_n", candidate(0.5, 0.4), candidate(0.6, 0.1), candidate(0.9, 0.6), candidate(None, None, image="")),
    # its pick loses 0.1, and the request lost its number
    refinement(
        "b",
        "best_of_n",
        candidate(0.2, 0.3, "a dog"),
        candidate(0.8, 0.2, "animals"),
        prompt="a dog",
        stop="accepted",
        tokens=25,
    ),
]
# requests must agree with the prompt for the first picture to count as the original's
RUN[1] = refinement("b", "base", candidate(0.2, 0.3, "a dog"), prompt="a dog")


def test_the_figures_of_a_small_case() -> None:
    rows = {(row.arm, row.images): row for row in arm_figures([RUN], sizes=(1, 2, 4))}
    assert set(rows) == {(arm, size) for arm in ("base", "best_of_n") for size in (1, 2, 4)}
    base, best = rows["base", 4], rows["best_of_n", 4]
    assert (base.n, base.compared, base.made, base.gain, base.harm) == (2, 2, 1.0, 0.0, 0.0)
    assert base.score == pytest.approx(0.35)
    assert best.score == pytest.approx(0.4) and best.gain == pytest.approx(0.05)  # 0.6 and 0.2; +0.2 and -0.1
    assert (best.better, best.equal, best.harm) == (0.5, 0.0, 0.5)
    assert (best.made, best.unscored, best.unmade) == (3.0, 1, 1)
    assert best.tokens == pytest.approx((40 + 25) / 2)
    assert best.images_per_gain == pytest.approx(0.01 * 2 / 0.05) and best.tokens_per_gain == pytest.approx(0.01 * 32.5 / 0.05)
    assert (best.kept, best.lost) == (0.5, 0.0)  # of "a dog" nothing is left in "animals"
    assert best.stops == {"images": 1, "accepted": 1}
    two = rows["best_of_n", 2]
    assert two.score == pytest.approx((0.1 + 0.2) / 2) and two.harm == 1.0 and two.stops == {} and two.images_per_gain is None
    assert two.tokens == 20.0
    one = rows["best_of_n", 1]
    assert (one.score, one.gain, one.made) == (pytest.approx(0.35), 0.0, 1.0)


def test_a_lost_number_is_counted() -> None:
    run = [refinement("a", "refine_keep_best", candidate(0.1, 0.1), candidate(0.9, 0.9, "three red cats"))]
    (row,) = (row for row in arm_figures([run]) if row.images == 2)
    assert (row.kept, row.lost) == (1.0, 1.0)
    assert drift(run[0], run[0].candidates[1]) == (("2",), 1.0)


def test_without_a_judge_the_picking_score_stands_in_and_the_table_says_so() -> None:
    run = [
        refinement("a", "base", candidate(0.5, None)),
        refinement("a", "best_of_n", candidate(0.5, None), candidate(0.7, None)),
    ]
    found = comparison([run])
    assert not found["held_out"]
    assert [row["gain"] for row in found["tasks"]["t2i"] if row["arm"] == "best_of_n"] == pytest.approx([0.0, 0.2])
    text = comparison_markdown(found)
    assert text.startswith("No held-out judge was asked: scores are those of what picked")
    assert "No held-out" not in comparison_markdown(comparison([RUN]))


def test_what_has_no_score_is_not_compared() -> None:
    run = [
        refinement("a", "base", candidate(0.5, 0.5)),
        refinement("b", "base", candidate(None, None)),
        refinement("a", "best_of_n", candidate(0.5, 0.5), candidate(0.7, 0.6)),
        refinement("b", "best_of_n", candidate(None, None), candidate(0.7, 0.6)),
    ]
    rows = {row.arm: row for row in arm_figures([run], sizes=(2,))}
    assert (rows["base"].n, rows["base"].compared) == (2, 1)
    assert (rows["best_of_n"].compared, rows["best_of_n"].gain) == (1, pytest.approx(0.1))
    assert "| best_of_n | 1 of 2 |" in comparison_markdown(comparison([run]))
    silent = arm_figures([[refinement("a", "base", candidate(None, None))]])[0]
    assert (silent.compared, silent.score, silent.gain, silent.harm) == (0, None, None, None)
    with pytest.raises(ValueError, match="no refinements to compare"):
        arm_figures([[]])


def test_the_same_request_in_several_runs_is_one_cluster() -> None:
    """Three seeds of one request say nothing about other requests: the interval knows one cluster, and so has no width."""
    runs = [[refinement("a", "base", candidate(0.5, score))] for score in (0.1, 0.5, 0.9)]
    (row,) = arm_figures(runs)
    assert row.score == pytest.approx(0.5) and row.score_ci95 == pytest.approx((0.5, 0.5))
    others = [[refinement(str(score), "base", candidate(0.5, score, f"{score}"), prompt=f"{score}")] for score in (0.1, 0.5, 0.9)]
    (row,) = arm_figures(others)
    assert row.score_ci95 is not None and row.score_ci95[0] < 0.5 < row.score_ci95[1]


def test_arms_with_a_label_stand_beside_those_without_and_are_compared_with_their_base() -> None:
    other = [
        refinement("a", "base", candidate(0.5, 0.7)),
        refinement("a", "oracle", candidate(0.9, 0.7), candidate(0.1, 0.8)),
        refinement("a", "refine_always_accept", candidate(0.9, 0.7), candidate(0.1, 0.2)),
    ]
    rows = {row.arm: row for row in arm_figures([[*RUN, *labelled(other, "rl")]], sizes=(4,))}
    gains = {arm: row.gain for arm, row in rows.items() if arm.startswith("rl")}
    # the first picture of request a has 0.4
    assert gains == {
        "rl: base": pytest.approx(0.3),
        "rl: oracle": pytest.approx(0.4),
        "rl: refine_always_accept": pytest.approx(-0.2),
    }


def test_tasks_apart() -> None:
    edit = Refinement("e", "edit", "make it red", "base", (candidate(0.5, 0.5, "make it red"),), 0, "images", ("s.png",))
    assert {task: [len(run) for run in runs] for task, runs in by_task([[*RUN, edit]]).items()} == {"t2i": [4], "edit": [1]}
    assert "## Editing, up to 1 pictures" in comparison_markdown(comparison([[*RUN, edit]]))


def test_the_arm_that_takes_the_last_takes_the_last_and_the_oracle_the_truly_best() -> None:
    made = (candidate(0.5, 0.4), candidate(0.9, 0.1), candidate(0.2, 0.8))
    chosen = {
        arm: [chosen_at(refinement("a", arm, *made), n) for n in (1, 2, 3, 8)]
        for arm in ("refine_always_accept", "best_of_n", "oracle")
    }
    assert chosen == {"refine_always_accept": [0, 1, 2, 2], "best_of_n": [0, 1, 1, 1], "oracle": [0, 0, 2, 2]}


@settings(max_examples=50)
@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 8))
def test_the_choice_among_few_is_the_best_of_few(rewards: list[float | None], n: int) -> None:
    record = refinement("a", "best_of_n", *(candidate(reward, 0.0) for reward in rewards))
    scored = [reward for reward in rewards[:n] if reward is not None]
    chosen = rewards[chosen_at(record, n)]
    assert chosen == max(scored) if scored else chosen_at(record, n) == 0


def test_a_curve_is_what_smaller_budgets_give(painter: Any, seeing: Any) -> None:
    """The pictures that an arm makes do not depend on how many it may make."""
    arms = ("best_of_n", "blind_rewrite_best_of_n", "refine_always_accept", "refine_keep_best", "refine_from_best_of_k")
    records = [
        PromptRecord(str(i), "t2i", f"{colour} circle top left, blue square top right")
        for i, colour in enumerate(("red", "green"))
    ]

    def run(budget: int) -> dict[tuple[str, str], list[bytes]]:
        studio = Studio(painter(flaws=(1, 2)), Critic(seeing(), seeing().format), 1)
        options = RefineOptions(images_per_prompt=budget, threshold=4.0, breadth=2, parent="best", patience=3)
        traces = run_arms(arms, records, studio, options)  # type: ignore[arg-type]
        return {(trace.arm, trace.record.id): [made.image.tobytes() for made in trace.made] for trace in traces}

    large = run(7)
    for budget in (1, 2, 4):
        small = run(budget)
        assert small == {key: made[:budget] for key, made in large.items()}
