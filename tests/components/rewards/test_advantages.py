"""Advantages: what is unscored neither votes nor weighs, and every statistic stays inside its group."""

from __future__ import annotations

import math
import random
from statistics import fmean, pstdev

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rationalrewards.components.rewards import group_advantages, within_group_correlation
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
