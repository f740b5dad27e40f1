"""Which requests a round is made of: a function of the rounds before it, alike on all processes and after every resume."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rationalrewards.components.records import PromptRecord
from rationalrewards.components.rewards import GroupScore, PromptCurriculum, group_scores
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_scene

NAN = float("nan")
GROUPS = [f"g{index}" for index in range(12)]
PROPERTY = settings(max_examples=60, deadline=None)


def scored(group: str, mean: float, std: float = 0.2) -> GroupScore:
    return GroupScore(group, mean, std, 8)


def test_the_papers_rules() -> None:
    curriculum = PromptCurriculum()
    # 3.0 on a scale of 1 to 4 is 2/3
    first = {"hard": 0.2, "just below": 0.6666, "easy": 2 / 3, "solved at once": 0.95}
    curriculum.observe(0, [scored(group, mean) for group, mean in first.items()])
    assert {group: curriculum.status(group, 0) for group in first} == dict.fromkeys(first, "new")
    assert {group: curriculum.status(group, 1) for group in (*first, "unseen")} == {
        "hard": "active",
        "just below": "active",
        "easy": "easy",
        "solved at once": "easy",
        "unseen": "new",
    }
    # later rounds retire: above 0.9 and below 0.05, both
    curriculum.observe(1, [scored("hard", 0.9, 0.0), scored("just below", 0.97, 0.05)])
    assert curriculum.status("hard", 2) == curriculum.status("just below", 2) == "active"
    curriculum.observe(2, [scored("hard", 0.91, 0.049), scored("just below", 0.99, 0.01)])
    curriculum.observe(3, [scored("hard", 0.5, 0.3)])
    assert curriculum.status("hard", 2) == "active"
    assert curriculum.status("hard", 3) == curriculum.status("hard", 4) == curriculum.status("just below", 4) == "solved"
    assert curriculum.shares([*first, "unseen"], 4) == {"new": 0.2, "active": 0.0, "easy": 0.4, "solved": 0.4}
    everything = PromptCurriculum(start_below=None, retire_above=None)
    everything.observe(0, [scored("easy", 1.0, 0.0)])
    assert everything.status("easy", 1) == "active"


def test_first_pictures_may_be_scored_before_the_training() -> None:
    curriculum = PromptCurriculum()
    curriculum.observe(-1, [scored("easy", 0.8), scored("hard", 0.1)])
    assert curriculum.choose(["easy", "hard", "unseen"], 2, epoch=0) in ([1, 2], [2, 1])


def test_requests_that_differ_in_their_source_picture_only_are_two(tmp_path: object) -> None:
    pictures = []
    for number in range(2):
        path = f"source{number}.png"
        draw(random_scene(random.Random(number))).save(path)
        pictures.append(path)
    one, other = (PromptRecord(path, "edit", "remove the circle", (path,)) for path in pictures)
    curriculum = PromptCurriculum()
    curriculum.observe(0, [scored(one.group, 0.99)])
    assert curriculum.status(one.group, 1) == "easy" and curriculum.status(other.group, 1) == "new"
    # the same pixels under another name are the same request
    draw(random_scene(random.Random(0))).save("copy.png")
    assert curriculum.status(replace(one, sources=("copy.png",)).group, 1) == "easy"


_rounds = st.lists(
    st.dictionaries(st.sampled_from(GROUPS), st.tuples(st.floats(0, 1), st.floats(0, 0.3)), max_size=6), max_size=5
)


@PROPERTY
@given(_rounds, st.integers(1, 12), st.integers(0, 3))
def test_choosing_in_brute_force(rounds: list[dict[str, tuple[float, float]]], count: int, seed: int) -> None:
    curriculum = PromptCurriculum()
    for epoch, found in enumerate(rounds):
        curriculum.observe(epoch, [GroupScore(group, mean, std, 8) for group, (mean, std) in found.items()])
    epoch = len(rounds)
    seen = {group: [found[group] for found in rounds if group in found] for group in GROUPS}
    easy = {group for group in GROUPS if seen[group] and seen[group][0][0] >= 2 / 3}
    solved = {group for group in GROUPS if any(mean > 0.9 and std < 0.05 for mean, std in seen[group])}
    left = [group for group in GROUPS if group not in easy | solved]
    chosen = [GROUPS[index] for index in curriculum.choose(GROUPS, count, epoch, seed)]
    assert len(set(chosen)) == count
    taken = [group for group in left if group in chosen]
    assert len(taken) == min(count, len(left))
    # nobody is seen again before others were seen as often
    skipped = [group for group in left if group not in chosen]
    assert max((len(seen[group]) for group in taken), default=0) <= min((len(seen[group]) for group in skipped), default=99)
    filled = [group for group in chosen if group not in left]
    rest = [group for group in GROUPS if group not in left and group not in chosen]
    assert all(seen[a][-1][0] <= seen[b][-1][0] for a in filled for b in rest)
    # what a round observes does not change what it had chosen, nor does a resume
    curriculum.observe(epoch, [scored(group, 0.99, 0.01) for group in chosen])
    resumed = PromptCurriculum()
    resumed.load_state_dict(curriculum.state_dict())
    assert [GROUPS[index] for index in curriculum.choose(GROUPS, count, epoch, seed)] == chosen
    assert [GROUPS[index] for index in resumed.choose(GROUPS, count, epoch, seed)] == chosen
    assert resumed.choose(GROUPS, count, epoch + 1, seed) == curriculum.choose(GROUPS, count, epoch + 1, seed)


def test_every_request_comes_once_before_any_comes_twice() -> None:
    curriculum = PromptCurriculum()
    came: list[str] = []
    for epoch in range(6):
        chosen = [GROUPS[index] for index in curriculum.choose(GROUPS, 4, epoch, seed=5)]
        curriculum.observe(epoch, [scored(group, 0.3) for group in chosen])
        came += chosen
    assert sorted(came[:12]) == sorted(came[12:]) == sorted(GROUPS)
    assert came[:12] != came[12:]  # not in the same order
    assert came[:4] != [GROUPS[index] for index in PromptCurriculum().choose(GROUPS, 4, 0, seed=6)]


def test_a_round_that_is_done_again_replaces_what_it_had_observed() -> None:
    curriculum = PromptCurriculum()
    curriculum.observe(0, [scored("a", 0.1)])
    curriculum.observe(1, [scored("a", 0.95, 0.01)])
    curriculum.observe(2, [scored("b", 0.1)])
    curriculum.observe(1, [scored("a", 0.95, 0.2)])
    assert curriculum.status("a", 9) == "active" and curriculum.status("b", 9) == "new"


def test_the_order_of_requests_and_their_duplicates_do_not_matter() -> None:
    shuffled = GROUPS[::-1]
    first = {GROUPS[index] for index in PromptCurriculum().choose(GROUPS, 5, 0)}
    assert {shuffled[index] for index in PromptCurriculum().choose(shuffled, 5, 0)} == first
    twice = [*GROUPS, *GROUPS]
    assert PromptCurriculum().choose(twice, 12, 0) == PromptCurriculum().choose(GROUPS, 12, 0)
    with pytest.raises(ValueError, match="12 different requests are fewer than the 13 of a round"):
        PromptCurriculum().choose(twice, 13, 0)
    with pytest.raises(ValueError, match="retire_std must be above 0"):
        PromptCurriculum(retire_std=0.0)


@PROPERTY
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.just(NAN), st.floats(0, 1, width=32))), min_size=1, max_size=24),
    st.integers(0, 24),
)
def test_what_processes_found_is_put_together(rows: list[tuple[str, float]], cut: int) -> None:
    """Groups stay on one process, but where a request is in the file twice its pictures may be on two."""
    parts = [rows[:cut], rows[cut:]]
    found = [
        group_scores(torch.tensor([r for _, r in part], dtype=torch.float64), [g for g, _ in part], min_valid=2) for part in parts
    ]
    one, other = PromptCurriculum(retire_above=None), PromptCurriculum(retire_above=None)
    one.observe(0, [*found[0], *found[1]])
    other.observe(0, [*found[1], *found[0]])
    assert one.state_dict() == other.state_dict()  # the same numbers on every process
    stored = {row[0]: row[1:] for row in one.state_dict()["rounds"][0]}
    for group in "abc":
        kept = [
            [r for g, r in part if g == group and not math.isnan(r)]
            for part in parts
            if sum(g == group and not math.isnan(r) for g, r in part) >= 2
        ]
        rewards = [r for part in kept for r in part]
        assert (group in stored) == bool(rewards)
        if rewards:
            mean, std, pictures = stored[group]
            assert pictures == len(rewards)
            assert math.isclose(mean, fmean(rewards), abs_tol=1e-12) and math.isclose(std, pstdev(rewards), abs_tol=1e-9)


def test_too_few_scores_say_nothing_about_a_request() -> None:
    total = torch.tensor([0.9, NAN, NAN, NAN, 0.1, 0.3, NAN, NAN])
    (score,) = group_scores(total, ["a"] * 4 + ["b"] * 4)
    assert score == GroupScore("b", pytest.approx(0.2), pytest.approx(0.1), 2)
    curriculum = PromptCurriculum()
    curriculum.observe(0, [score])
    assert curriculum.status("a", 1) == "new"
