"""Advantages: what is unscored neither votes nor weighs, and every statistic stays inside its group."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import jsonargparse
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rationalrewards.components.records import AspectCritique, Critique, NotApplicable
from rationalrewards.components.rewards import (
    AdvantageOptions,
    RepeatNoise,
    Rewards,
    critique_rewards,
    group_advantages,
    repeat_sums,
    reward_advantages,
    within_group_correlation,
)
from torch import Tensor

NAN = float("nan")
PROPERTY = settings(max_examples=80, deadline=None)

_rewards = st.lists(
    st.tuples(st.sampled_from("abc"), st.one_of(st.just(NAN), st.floats(0, 1, width=32))), min_size=1, max_size=24
)


def _split(rows: list[tuple[str, float]]) -> tuple[Tensor, list[str]]:
    return torch.tensor([reward for _, reward in rows]), [group for group, _ in rows]


@PROPERTY
@given(_rewards)
def test_a_masked_sample_is_as_good_as_a_dropped_one(rows: list[tuple[str, float]]) -> None:
    rewards, groups = _split(rows)
    valid = ~rewards.isnan()
    masked = group_advantages(rewards, groups, min_valid=2)
    dropped = group_advantages(rewards[valid], [group for group, keep in zip(groups, valid, strict=True) if keep], min_valid=2)
    assert torch.equal(masked.values[valid], dropped.values)  # bit for bit
    assert torch.equal(masked.weights[valid], dropped.weights)
    assert not masked.values[~valid].any() and not masked.weights[~valid].any()
    assert masked.flat == dropped.flat


@PROPERTY
@given(_rewards, st.sampled_from([0.5, 1.0, 5.0]))
def test_against_python_floats(rows: list[tuple[str, float]], clip: float) -> None:
    rewards, groups = _split(rows)
    result = group_advantages(rewards, groups, epsilon=1e-3, clip=clip)
    flat = starved = 0
    for group in set(groups):
        index = [i for i, name in enumerate(groups) if name == group]
        scored = {i: float(rewards[i]) for i in index if not math.isnan(rewards[i])}
        expected = dict.fromkeys(index, 0.0)
        weight = dict.fromkeys(index, False)
        if len(scored) < max(2, math.ceil(len(index) / 2)):
            starved += 1
            assert all(result.group_std[i].isnan() for i in index)
        else:
            spread = pstdev(scored.values())
            assert all(math.isclose(result.group_std[i], spread, abs_tol=1e-6) for i in index)  # float32
            if len(set(scored.values())) == 1:
                flat += 1
            else:
                mean = fmean(scored.values())
                for i, reward in scored.items():
                    expected[i] = max(-clip, min(clip, (reward - mean) / (spread + 1e-3)))
                    weight[i] = True
        for i in index:
            assert math.isclose(result.values[i], expected[i], abs_tol=1e-5)  # float32 of numbers up to 5
            assert bool(result.weights[i]) == weight[i]
    assert (result.flat, result.starved, result.groups) == (flat, starved, len(set(groups)))


@PROPERTY
@given(_rewards, st.randoms())
def test_the_order_of_samples_and_other_groups_do_not_matter(rows: list[tuple[str, float]], rng: random.Random) -> None:
    rewards, groups = _split(rows)
    whole = group_advantages(rewards, groups)
    alone = [index for index, group in enumerate(groups) if group == groups[0]]
    single = group_advantages(rewards[alone], ["x"] * len(alone))
    assert torch.equal(whole.values[alone], single.values)
    order = list(range(len(groups)))
    rng.shuffle(order)
    shuffled = group_advantages(rewards[order], [groups[i] for i in order])
    # sums of float64 in another order, rounded to float32
    assert torch.allclose(shuffled.values, whole.values[order], atol=1e-5)
    assert torch.equal(shuffled.weights, whole.weights[order])


@pytest.mark.parametrize(
    ("size", "valid", "signal"),
    [(8, 3, False), (8, 4, True), (7, 3, False), (7, 4, True), (3, 1, False), (2, 1, False), (2, 2, True)],
)
def test_fewer_than_half_is_no_signal(size: int, valid: int, signal: bool) -> None:
    rewards = torch.tensor([0.1 * (index + 1) for index in range(valid)] + [NAN] * (size - valid))
    result = group_advantages(rewards, ["g"] * size)
    assert int(result.weights.sum()) == (valid if signal else 0)
    assert bool(result.values.any()) == signal
    assert result.starved == (not signal)


def test_fewest_valid_can_be_set_but_one_is_never_enough() -> None:
    rewards = torch.tensor([0.2, 0.8, NAN, NAN, NAN, NAN])
    assert group_advantages(rewards, ["g"] * 6, min_valid=2).weights.tolist() == [True, True] + [False] * 4
    assert group_advantages(rewards, ["g"] * 6, min_valid=3).starved == 1
    lone = torch.tensor([0.9, NAN, NAN, NAN])
    for fewest in (None, 0, 1, 2):
        result = group_advantages(lone, ["g"] * 4, min_valid=fewest)
        assert not result.weights.any() and not result.values.any() and result.starved == 1


def test_a_lone_valid_sample_gains_no_weight_from_its_lost_siblings() -> None:
    """In the official code (``mean_by_mask``) the loss of a lone valid sample of a micro-batch is divided by the one."""
    full = group_advantages(torch.tensor([0.2, 0.4, 0.6, 0.8]), ["g"] * 4)
    with_lost = group_advantages(torch.tensor([0.2, 0.4, 0.6, 0.8, 0.9, NAN, NAN, NAN]), ["g"] * 4 + ["h"] * 4)
    assert torch.equal(with_lost.values[:4], full.values) and not with_lost.values[4:].any()
    assert with_lost.weights.tolist() == [True] * 4 + [False] * 4


def test_flat_groups() -> None:
    rewards = torch.tensor([0.3, 0.3, 0.3, NAN, 0.1, 0.2, 0.3, 0.4])
    groups = ["flat"] * 4 + ["steep"] * 4
    out = group_advantages(rewards, groups)
    assert out.flat == 1 and out.weights.tolist() == [False] * 4 + [True] * 4
    kept = group_advantages(rewards, groups, train_flat_groups=True)
    assert kept.weights.tolist() == [True] * 3 + [False] + [True] * 4
    assert torch.equal(kept.values, out.values) and not out.values[:4].any()
    assert out.group_std[:4].tolist() == [0.0] * 4


def test_by_hand() -> None:
    result = group_advantages(torch.tensor([0.0, 1.0, 10.0, 20.0]), ["g", "g", "h", "h"], epsilon=0.0)
    assert result.values.tolist() == [-1.0, 1.0, -1.0, 1.0]
    assert result.group_std.tolist() == [0.5, 0.5, 5.0, 5.0]
    # one picture in 32 stands out: sqrt(31) = 5.57 standard deviations, more than the clip
    lonely = group_advantages(torch.tensor([1.0] + [0.0] * 31), ["g"] * 32, epsilon=0.0)
    assert lonely.values[0] == 5.0 and lonely.values.min() > -0.2


# -- per aspect --------------------------------------------------------------------------------------------------------

SCALE = (1.0, 4.0)
ASPECTS = ("text", "image", "quality", "lettering")


def as_rewards(rows: list[list[float]], weights: tuple[float, ...] | None = None) -> Rewards:
    """As a critic gives them: the mean of what applies, on 0 to 1; a row without any score is unscored."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), -1)
    names = ASPECTS[: values.shape[1]]
    counts = torch.tensor(weights or (1.0,) * len(names))
    applies = ~values.isnan()
    total = (((values.nan_to_num(0.0) - 1) / 3 * applies) * counts).sum(dim=1) / (applies * counts).sum(dim=1)
    return Rewards(total, names, values, [""] * len(rows), None, tuple(counts.tolist()), (SCALE,) * len(names))


_critiques = st.lists(
    st.tuples(st.sampled_from("ab"), st.lists(st.sampled_from([NAN, 1.0, 1.5, 2.0, 2.7, 3.3, 4.0]), min_size=3, max_size=3)),
    min_size=1,
    max_size=16,
)
_options = st.builds(
    AdvantageOptions,
    mode=st.sampled_from(["summed", "per_aspect"]),
    weights=st.sampled_from([None, {"text": 2.0, "image": 0.0, "quality": 1.0}, {"text": 1.0, "image": 0.5, "quality": 3.0}]),
    min_valid=st.sampled_from([None, 2, 3]),
    floor=st.sampled_from([0.0, 0.1]),
    noise=st.sampled_from([None, 0.0, 0.05, 0.3]),
    shrinkage=st.sampled_from(["posterior", "ridge"]),
    clip=st.sampled_from([1.0, 5.0]),
    min_std=st.sampled_from([0.0, 0.05]),
    max_mean=st.sampled_from([None, 0.6]),
)


@PROPERTY
@given(_critiques, _options)
def test_every_option_against_python_floats(rows: list[tuple[str, list[float]]], options: AdvantageOptions) -> None:
    rewards, groups = as_rewards([scores for _, scores in rows]), [group for group, _ in rows]
    result = reward_advantages(rewards, groups, options)
    counts = options.weights or dict.fromkeys(ASPECTS[:3], 1.0)
    columns: list[dict[str, float]] = []
    for row in range(len(rows)):
        scores = {name: (float(rewards.values[row, i]) - 1) / 3 for i, name in enumerate(rewards.aspects)}
        known = {name: score for name, score in scores.items() if not math.isnan(score) and counts[name] > 0}
        if options.mode == "summed" and known:
            whole = sum(counts[name] for name in known)
            known = {"total": sum(counts[name] * score for name, score in known.items()) / whole}
        columns.append(known)
    used = {"total": 1.0} if options.mode == "summed" else {name: c for name, c in counts.items() if c > 0}
    kinds = {"flat": 0, "starved": 0, "noise": 0}
    for group in set(groups):
        members = [i for i, name in enumerate(groups) if name == group]
        totals = [_total(columns[i], counts) for i in members]
        valid = [i for i, total in zip(members, totals, strict=True) if total is not None]
        fewest = max(2, math.ceil(len(members) / 2)) if options.min_valid is None else max(2, options.min_valid)
        expected = dict.fromkeys(members, 0.0)
        trained: set[int] = set()
        mean_total = fmean(total for total in totals if total is not None) if valid else 0.0
        parts: dict[int, list[tuple[float, float]]] = {i: [] for i in members}
        states = set()
        if len(valid) < fewest:
            kinds["starved"] += 1
        elif options.max_mean is not None and mean_total >= options.max_mean:
            if abs(mean_total - options.max_mean) < 1e-6:
                return  # float32 totals may lie on either side
            kinds["flat"] += 1
        else:
            for name, count in used.items():
                here = {i: columns[i][name] for i in valid if name in columns[i]}
                if len(here) < fewest:
                    continue
                spread = pstdev(here.values())
                if 0 < abs(spread - options.min_std) < 1e-6:
                    return  # rounding decides
                if spread <= options.min_std:
                    states.add("flat")
                    advantage = dict.fromkeys(here, 0.0)
                else:
                    shrink, scale, noise = 1.0, spread, options.noise or 0.0
                    assert isinstance(noise, float)
                    if options.shrinkage == "ridge":
                        scale = math.sqrt(spread**2 + noise**2)
                    elif noise:
                        unbiased = spread**2 * len(here) / (len(here) - 1)
                        if abs(unbiased - noise**2) < 1e-6:
                            return
                        shrink = math.sqrt(max(0.0, 1 - noise**2 / unbiased))
                    states.add("signal" if shrink else "noise")
                    middle = fmean(here.values())
                    scale = max(scale, options.floor) + options.epsilon
                    advantage = {i: max(-options.clip, min(options.clip, shrink * (y - middle) / scale)) for i, y in here.items()}
                for i, value in advantage.items():
                    parts[i].append((count, value))
            if "signal" in states:
                for i in valid:
                    if parts[i]:
                        expected[i] = sum(c * v for c, v in parts[i]) / sum(c for c, _ in parts[i])
                        trained.add(i)
            else:
                kinds["noise" if "noise" in states else "flat" if states else "starved"] += 1
        for i in members:
            # float32 scores on the way, divided by a spread of 1e-4 at the least
            assert math.isclose(result.values[i], expected[i], abs_tol=2e-3)
            assert bool(result.weights[i]) == (i in trained)
    assert {"flat": result.flat, "starved": result.starved, "noise": result.noisy} == kinds


def _total(known: dict[str, float], counts: dict[str, float]) -> float | None:
    """The total of a picture, from its columns; a critique of which nothing that counts applies has none where summed."""
    if "total" in known:
        return known["total"]
    return sum(counts[n] * s for n, s in known.items()) / sum(counts[n] for n in known) if known else None


@PROPERTY
@given(_critiques, _options)
def test_a_masked_critique_is_as_good_as_a_dropped_one(rows: list[tuple[str, list[float]]], options: AdvantageOptions) -> None:
    options = replace(options, min_valid=2)  # else a dropped picture makes the group smaller, and the fewest fewer
    rewards, groups = as_rewards([scores for _, scores in rows]), [group for group, _ in rows]
    masked = replace(rewards, total=rewards.total.clone())
    masked.total[::2] = NAN  # their aspects stay where they are, as of an answer that broke off
    kept = [i for i in range(len(rows)) if masked.valid[i]]
    result = reward_advantages(masked, groups, options)
    if kept:
        dropped = reward_advantages(as_rewards([rows[i][1] for i in kept]), [groups[i] for i in kept], options)
        assert torch.equal(result.values[kept], dropped.values)  # bit for bit
        assert torch.equal(result.weights[kept], dropped.weights)
        assert (result.flat, result.noisy) == (dropped.flat, dropped.noisy)
    gone = [i for i in range(len(rows)) if i not in kept]
    assert not result.values[gone].any() and not result.weights[gone].any() and result.by_aspect[gone].isnan().all()


@PROPERTY
@given(_critiques, _options, st.randoms())
def test_groups_may_come_one_by_one_and_members_in_any_order(
    rows: list[tuple[str, list[float]]], options: AdvantageOptions, rng: random.Random
) -> None:
    rewards, groups = as_rewards([scores for _, scores in rows]), [group for group, _ in rows]
    whole = reward_advantages(rewards, groups, options)
    counts = [0, 0, 0]
    for group in set(groups):
        members = [i for i, name in enumerate(groups) if name == group]
        alone = reward_advantages(as_rewards([rows[i][1] for i in members]), [group] * len(members), options)
        assert torch.equal(whole.values[members], alone.values)  # bit for bit: on its own, or on another process
        assert torch.equal(whole.weights[members], alone.weights)
        assert torch.equal(whole.by_aspect[members].nan_to_num(9), alone.by_aspect.nan_to_num(9))
        counts = [total + one for total, one in zip(counts, (alone.flat, alone.starved, alone.noisy), strict=True)]
    assert counts == [whole.flat, whole.starved, whole.noisy]
    order = list(range(len(rows)))
    rng.shuffle(order)
    shuffled = reward_advantages(as_rewards([rows[i][1] for i in order]), [groups[i] for i in order], options)
    # sums of float64 in another order, rounded to float32
    assert torch.allclose(shuffled.values, whole.values[order], atol=1e-5)


def test_an_aspect_in_which_pictures_differ_much_does_not_drown_the_others() -> None:
    rows = [[4.0, 2.0, 1.1], [1.0, 2.0, 1.2], [4.0, 2.0, 1.2], [1.0, 2.0, 1.1]]
    plain = AdvantageOptions(epsilon=0.0)
    summed = reward_advantages(as_rewards(rows), ["g"] * 4, plain)
    split = reward_advantages(as_rewards(rows), ["g"] * 4, replace(plain, mode="per_aspect"))
    # each aspect is +-1, except the second, which is flat and still counts as a third: by hand
    assert split.by_aspect.tolist() == [[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [-1.0, 0.0, -1.0]]
    assert split.values.tolist() == pytest.approx([0.0, 0.0, 2 / 3, -2 / 3])
    # by the total, the third aspect moves a picture by a thirtieth of what the first does
    assert summed.values.tolist() == pytest.approx([29, -29, 31, -31] / np.sqrt((29**2 + 31**2) / 2), rel=1e-5)
    assert split.aspects == ("text", "image", "quality") and summed.aspects == ("total",)


def test_weights_are_renormalised_where_an_aspect_does_not_apply() -> None:
    # text rendering applies to the first three pictures only, of four
    rows = [[4.0, 1.0, 4.0, 4.0], [1.0, 4.0, 4.0, 1.0], [1.0, 4.0, 4.0, 2.5], [4.0, 1.0, 4.0, NAN]]
    options = AdvantageOptions("per_aspect", weights={"text": 4.0, "image": 2.0, "quality": 0.0, "lettering": 2.0}, epsilon=0.0)
    result = reward_advantages(as_rewards(rows), ["g"] * 4, options)
    lettering = np.array([1.5, -1.5, 0.0]) / np.sqrt(1.5)
    expected = [(4 - 2 + 2 * lettering[0]) / 8, (-4 + 2 + 2 * lettering[1]) / 8, (-4 + 2 + 0.0) / 8, (4 - 2) / 6]
    assert result.values.tolist() == pytest.approx(expected, rel=1e-6)
    assert result.weights.all() and result.by_aspect[3, 2].isnan() and result.aspects == ("text", "image", "lettering")
    # in one picture of four it is not compared at all, and the others weigh as if nobody had been asked for it
    rows = [*([*row[:3], NAN] for row in rows[:3]), [*rows[3][:3], 2.0]]
    alone = reward_advantages(as_rewards(rows), ["g"] * 4, options)
    assert alone.values.tolist() == pytest.approx([2 / 6, -2 / 6, -2 / 6, 2 / 6]) and alone.by_aspect[:, 2].isnan().all()


def test_edits_are_compared_in_all_four_aspects_unless_told_otherwise() -> None:
    """The official RL code reads image faithfulness and drops it: it could not tell these two edits apart."""
    kept, destroyed = [4.0, 4.0, 4.0, NAN], [4.0, 1.0, 4.0, NAN]
    for mode in ("summed", "per_aspect"):
        result = reward_advantages(as_rewards([kept, destroyed]), ["g"] * 2, AdvantageOptions(mode, epsilon=0.0))
        assert result.values[0] > 0.3 > -0.3 > result.values[1]
        three = AdvantageOptions(mode, weights={"text": 1.0, "image": 0.0, "quality": 1.0, "lettering": 1.0})
        assert reward_advantages(as_rewards([kept, destroyed]), ["g"] * 2, three).flat == 1


def test_every_column_must_be_weighed() -> None:
    rewards = as_rewards([[1.0, 2.0], [2.0, 3.0]])
    for mode in ("summed", "per_aspect"):
        with pytest.raises(ValueError, match="`weights` has nothing for image; the reward's columns are text, image: name each"):
            reward_advantages(rewards, ["g"] * 2, AdvantageOptions(mode, weights={"text": 1.0, "imgae": 1.0}))
        # an aspect that none of these pictures has
        reward_advantages(rewards, ["g"] * 2, AdvantageOptions(mode, weights=dict.fromkeys(ASPECTS, 1.0)))
    bare = Rewards(rewards.total, rewards.aspects, rewards.values, rewards.reasons)
    with pytest.raises(ValueError, match=r"does not say how its columns \(text, image\) make its total: name the weight"):
        reward_advantages(bare, ["g"] * 2, AdvantageOptions("per_aspect"))
    assert reward_advantages(bare, ["g"] * 2).values.tolist() == group_advantages(rewards.total, ["g"] * 2).values.tolist()


def test_equal_weights_are_the_rewards_own_total() -> None:
    rows = [[4.0, 2.0, 1.5, NAN], [1.0, 3.0, 2.0, 2.0], [2.0, 1.0, 4.0, NAN], [3.5, 2.0, 1.0, 4.0]]
    rewards = as_rewards(rows)
    own = reward_advantages(rewards, ["g"] * 4, AdvantageOptions())
    named = reward_advantages(rewards, ["g"] * 4, AdvantageOptions(weights=dict.fromkeys(ASPECTS, 2.0)))
    # once with the float32 total, once with the mean in float64
    assert torch.allclose(own.values, named.values, atol=1e-5)
    said = critique_rewards(
        [
            Critique(
                {
                    key: AspectCritique("", NotApplicable() if math.isnan(score) else score)
                    for key, score in zip(ASPECTS, row, strict=True)
                }
            )
            for row in rows
        ]
    )
    # a mean of float64, and one of float32
    assert torch.allclose(said.total, rewards.total, atol=1e-6)
    assert said.weights == rewards.weights and said.bounds == rewards.bounds
    assert torch.equal(said.values.nan_to_num(9), rewards.values.nan_to_num(9)) and torch.equal(
        said.applicable, rewards.applicable
    )


# -- noise -------------------------------------------------------------------------------------------------------------


def test_shrinkage_in_closed_form() -> None:
    scores = torch.tensor([0.2, 0.4, 0.6, 0.8])
    rewards = Rewards(scores, (), torch.zeros(4, 0), [""] * 4)
    plain = reward_advantages(rewards, ["g"] * 4, AdvantageOptions(epsilon=0.0))
    # sample variance 0.2 / 3, and noise of a quarter of that
    noise = math.sqrt(0.2 / 12)
    shrunk = reward_advantages(rewards, ["g"] * 4, AdvantageOptions(epsilon=0.0, noise=noise))
    assert torch.allclose(shrunk.values, math.sqrt(0.75) * plain.values, rtol=1e-6, atol=0)
    ridge = reward_advantages(rewards, ["g"] * 4, AdvantageOptions(epsilon=0.0, noise=noise, shrinkage="ridge"))
    assert torch.allclose(ridge.values, (scores - 0.5) / math.sqrt(0.05 + noise**2), rtol=1e-6, atol=1e-8)
    # measured noise counts where no other is given
    measured = reward_advantages(rewards, ["g"] * 4, AdvantageOptions(epsilon=0.0), {"total": noise})
    assert torch.equal(measured.values, shrunk.values)
    off = reward_advantages(rewards, ["g"] * 4, AdvantageOptions(epsilon=0.0, noise=0.0), {"total": noise})
    assert torch.equal(off.values, plain.values)
    # more noise than spread: no signal, counted as such and not as flat
    for flat_too in (False, True):
        lost = reward_advantages(rewards, ["g"] * 4, AdvantageOptions(noise=0.26, train_flat_groups=flat_too))
        assert (lost.noisy, lost.flat, lost.starved) == (1, 0, 0)
        assert not lost.values.any() and lost.weights.tolist() == [flat_too] * 4


def test_each_aspect_has_a_noise_of_its_own() -> None:
    rewards = as_rewards([[1.0, 1.0], [4.0, 4.0], [4.0, 1.0], [1.0, 4.0]])
    options = AdvantageOptions("per_aspect", epsilon=0.0, noise={"text": 0.0, "image": 1.0})
    result = reward_advantages(rewards, ["g"] * 4, options)
    # image is all noise: it stays in the mean, as 0
    assert result.values.tolist() == [-0.5, 0.5, 0.5, -0.5] and result.noisy == 0
    with pytest.raises(ValueError, match="`noise` has nothing for image; what is compared is text, image"):
        reward_advantages(rewards, ["g"] * 4, replace(options, noise={"text": 0.1}))


def test_small_differences_are_not_blown_up_below_the_floor() -> None:
    scores = torch.tensor([0.50, 0.51, 0.0, 1.0])
    rewards = Rewards(scores, (), torch.zeros(4, 0), [""] * 4)
    result = reward_advantages(rewards, ["close"] * 2 + ["far"] * 2, AdvantageOptions(epsilon=0.0, floor=0.05))
    assert result.values.tolist() == pytest.approx([-0.1, 0.1, -1.0, 1.0], abs=1e-6)


def test_what_is_flat_or_solved_can_be_set() -> None:
    scores = torch.tensor([0.50, 0.54, 0.94, 0.98, 0.3, 0.6])
    groups = ["close"] * 2 + ["solved"] * 2 + ["good"] * 2
    rewards = Rewards(scores, (), torch.zeros(6, 0), [""] * 6)
    paper = reward_advantages(rewards, groups, AdvantageOptions(min_std=0.05, max_mean=0.9))
    assert paper.flat == 2 and paper.weights.tolist() == [False] * 4 + [True] * 2
    assert reward_advantages(rewards, groups, AdvantageOptions(min_std=0.01, max_mean=0.9)).flat == 1
    assert reward_advantages(rewards, groups).flat == 0


def _simulated(true_std: float, noise: float, groups: int, size: int) -> tuple[Rewards, list[str], Tensor]:
    generator = torch.Generator().manual_seed(7)
    truth = true_std * torch.randn(groups, size, generator=generator)
    seen = truth + noise * torch.randn(groups, size, generator=generator)
    names = [f"g{index}" for index in range(groups) for _ in range(size)]
    return Rewards(seen.flatten(), (), torch.zeros(groups * size, 0), [""] * (groups * size)), names, truth.flatten()


def test_noise_is_not_blown_up_to_unit_variance() -> None:
    rewards, groups, _ = _simulated(0.0, 0.1, 2000, 8)
    power = {
        name: float(reward_advantages(rewards, groups, options).values.square().mean())
        for name, options in {
            "plain": AdvantageOptions(),
            "ridge": AdvantageOptions(noise=0.1, shrinkage="ridge"),
            "posterior": AdvantageOptions(noise=0.1),
        }.items()
    }
    # E max(0, 1 - 7 / chi^2_7) = 0.115 by numerical integration, with a standard error below 0.005 over 2000 groups
    expected = _expected_share(7)
    assert power["plain"] == pytest.approx(1.0, abs=5e-3)  # epsilon, against 0.1
    assert power["posterior"] == pytest.approx(expected, abs=0.02) and expected < 0.13
    assert 0.4 < power["ridge"] < 0.5


def _expected_share(freedom: int) -> float:
    """``E max(0, 1 - freedom / X)`` of a chi-squared X, by the trapezoidal rule."""
    x = np.linspace(freedom, freedom + 80, 200_001)
    density = x ** (freedom / 2 - 1) * np.exp(-x / 2) / (2 ** (freedom / 2) * math.gamma(freedom / 2))
    return float(np.trapezoid(density * (1 - freedom / x), x))


def test_shrinkage_points_more_at_the_truth_where_groups_differ_in_signal() -> None:
    """The part of the advantages' size that goes into the truth: what an optimizer that divides by the size makes of them."""
    parts = [_simulated(spread, 0.1, 400, 8) for spread in (0.0, 0.05, 0.1, 0.2, 0.4)]
    efficiency = {}
    for name, options in {"plain": AdvantageOptions(), "posterior": AdvantageOptions(noise=0.1)}.items():
        values = torch.cat([reward_advantages(rewards, groups, options).values for rewards, groups, _ in parts])
        truth = torch.cat([truth for _, _, truth in parts])
        efficiency[name] = float(values @ truth / values.norm() / truth.norm())
    assert efficiency["posterior"] > efficiency["plain"] + 0.1


def test_noise_is_learnt_from_pictures_scored_twice() -> None:
    first = as_rewards([[1.0, 2.0], [2.0, 2.0], [3.0, NAN], [NAN, NAN]])
    second = as_rewards([[1.6, 2.0], [2.0, 2.3], [3.0, NAN], [4.0, 4.0]])
    options = AdvantageOptions("per_aspect")
    sums = repeat_sums(first, second, options)
    # differences of 0.2, 0 and 0, and of 0 and 0.1, of the scale's length; the last picture was not scored the first time
    assert sums == {"text": (pytest.approx(0.02, rel=1e-5), 3.0), "image": (pytest.approx(0.005, rel=1e-5), 2.0)}
    meter = RepeatNoise(memory=0.5)
    meter.add([sums, {"text": (0.0, 1.0)}])  # two processes
    assert meter.std() == {"text": pytest.approx(math.sqrt(0.02 / 4)), "image": pytest.approx(math.sqrt(0.005 / 2))}
    meter.add([{"text": (0.0, 2.0)}])
    resumed = RepeatNoise(memory=0.5)
    resumed.load_state_dict(meter.state_dict())
    assert (
        resumed.std()
        == meter.std()
        == {
            "text": pytest.approx(math.sqrt(0.01 / 4)),
            "image": pytest.approx(math.sqrt(0.005 / 2)),
        }
    )
    assert set(repeat_sums(first, second)) == {"total"}
    simulated = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(1))
    one, two = (Rewards(scores, (), torch.zeros(20_000, 0), []) for scores in simulated)
    meter = RepeatNoise()
    meter.add([repeat_sums(one, two)])
    # standard error of a standard deviation, 1 / sqrt(2 n)
    assert meter.std()["total"] == pytest.approx(1.0, abs=4 / math.sqrt(40_000))
    with pytest.raises(ValueError, match="memory must be above 0 and at most 1"):
        RepeatNoise(0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mean"}, "mode is one of summed, per_aspect"),
        ({"shrinkage": "some"}, "shrinkage one of posterior, ridge"),
        ({"floor": -0.1}, "floor must be a number of at least 0"),
        ({"noise": {"text": NAN}}, "text must be a number of at least 0, got nan"),
        ({"weights": {"text": -1.0}}, "text must be a number of at least 0"),
        ({"weights": {"text": 0.0}}, "no aspect has a weight above 0"),
        ({"clip": 0.0}, "clip must be above 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdvantageOptions(**options)


def test_options_from_a_config() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--advantages", type=AdvantageOptions | None)
    given = {"mode": "per_aspect", "weights": {"text": 1, "image": 2.0}, "noise": {"text": 0.1, "image": 0.2}, "floor": 0.02}
    found = parser.instantiate_classes(parser.parse_object({"advantages": given})).advantages
    assert found == AdvantageOptions("per_aspect", {"text": 1.0, "image": 2.0}, noise={"text": 0.1, "image": 0.2}, floor=0.02)


# -- resolution --------------------------------------------------------------------------------------------------------


def _brute_force(first: np.ndarray, second: np.ndarray, groups: list[str]) -> float:
    pairs = []
    for group in set(groups):
        members = [(first[i], second[i]) for i in range(len(groups)) if groups[i] == group and not np.isnan(first[i] + second[i])]
        if len(members) >= 2:
            pairs.extend(np.array(members) - np.mean(members, axis=0))
    return float(np.corrcoef(np.array(pairs).T)[0, 1])


@pytest.mark.parametrize("seed", range(10))
def test_resolution_against_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"g{index}" for index in rng.integers(0, 6, 40)]
    level = {group: rng.normal() * 5 for group in groups}
    truth = rng.normal(size=40)
    first = truth + [level[group] for group in groups]
    second = 0.5 * truth + rng.normal(size=40) - [level[group] for group in groups]
    first[rng.random(40) < 0.2] = np.nan
    second[rng.random(40) < 0.2] = np.nan
    result = within_group_correlation(torch.tensor(first), torch.tensor(second), groups)
    assert math.isclose(result, _brute_force(first, second, groups), abs_tol=1e-10)


def test_resolution_ignores_the_level_of_a_group() -> None:
    """A judge that knows which requests are hard, and nothing about the pictures, must not look able."""
    groups = ["easy"] * 3 + ["hard"] * 3
    truth = torch.tensor([0.8, 0.9, 1.0, 0.0, 0.1, 0.2])
    knows_requests = torch.tensor([0.9, 0.8, 0.9, 0.1, 0.0, 0.1])
    assert np.corrcoef(truth, knows_requests)[0, 1] > 0.9
    assert abs(within_group_correlation(truth, knows_requests, groups)) < 1e-6
    assert within_group_correlation(truth, 2 * truth - 7, groups) == pytest.approx(1.0)
    assert within_group_correlation(truth, -truth, groups) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("first", "second"),
    [([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]), ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5]), ([NAN, 0.2, NAN], [0.1, 0.2, 0.3]), ([], [])],
)
def test_no_variation_is_no_resolution(first: list[float], second: list[float]) -> None:
    assert math.isnan(within_group_correlation(torch.tensor(first), torch.tensor(second), ["g"] * len(first)))
