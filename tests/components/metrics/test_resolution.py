"""Spread and ties inside groups by loops; noise of copies by the sums of the model, by simulation and by hand."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import mean, pstdev

import numpy as np
import pytest
import torch
from rationalrewards.components.metrics import DuplicateNoise, WithinGroupResolution, clustered_bootstrap
from rationalrewards.components.rewards import group_advantages
from torch import Tensor

NAN = float("nan")


def _compute(metric: WithinGroupResolution | DuplicateNoise) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step", [None, 0.25])
def test_resolution_against_loops(step: float | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    group, reward = rng.integers(0, 25, 110), rng.random(110)
    reward = reward if step is None else np.round(reward / step) * step
    reward[rng.random(110) < 0.2] = NAN
    metric = WithinGroupResolution(low=0.0, high=1.0)
    metric.update(torch.tensor(reward), torch.tensor(group))
    values = _compute(metric)
    stds, flat, ties, starved, groups = [], [], [], 0, 0
    for name in set(group.tolist()):
        groups += 1
        members = [r for r, g in zip(reward.tolist(), group, strict=True) if g == name and not math.isnan(r)]
        if len(members) < 2:
            starved += 1
            continue
        stds.append(pstdev(members))
        flat.append(len(set(members)) == 1)
        ties += [a == b for a, b in combinations(members, 2)]
    scored = [r for r in reward.tolist() if not math.isnan(r)]
    assert values["within_group_std"] == pytest.approx(mean(stds), rel=1e-6)
    assert values["tie_rate"] == pytest.approx(mean(map(float, ties)))
    assert values["flat_rate"] == pytest.approx(mean(map(float, flat)))
    assert (values["n_groups"], values["starved_rate"]) == (len(stds), pytest.approx(starved / groups))
    assert values["saturation_low"] == pytest.approx(scored.count(0.0) / len(scored))
    assert values["saturation_high"] == pytest.approx(scored.count(1.0) / len(scored))
    shares = [scored.count(r) / len(scored) for r in set(scored)]
    assert values["score_entropy"] == pytest.approx(-sum(share * math.log2(share) for share in shares), rel=1e-6)
    assert values["unscored_rate"] == pytest.approx(1 - len(scored) / 110)
    low, high = values["within_group_std_low"], values["within_group_std_high"]
    assert low < values["within_group_std"] < high


def test_the_interval_resamples_groups() -> None:
    reward = torch.rand(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    metric = WithinGroupResolution()
    metric.update(reward.flatten(), torch.arange(40).repeat_interleave(4))
    values = _compute(metric)
    low, high = clustered_bootstrap(reward.std(dim=1, correction=0), torch.arange(40))
    assert (values["within_group_std_low"], values["within_group_std_high"]) == pytest.approx((low, high), abs=1e-6)


def test_flat_and_starved_groups_are_those_that_training_sees() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 40, 150)
    reward = rng.integers(0, 2, 150) / 2.0
    reward[rng.random(150) < 0.3] = NAN
    metric = WithinGroupResolution()
    metric.update(torch.tensor(reward), torch.tensor(group))
    values = _compute(metric)
    seen = group_advantages(torch.tensor(reward), [str(name) for name in group], min_valid=2)
    assert values["flat_rate"] * values["n_groups"] == pytest.approx(seen.flat)
    assert values["starved_rate"] * seen.groups == pytest.approx(seen.starved)


def test_a_mean_of_aspects_ties_in_spite_of_rounding() -> None:
    one, other = torch.tensor([(0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3], dtype=torch.float64)
    assert float(one) != float(other)
    metric = WithinGroupResolution(high=0.2)
    metric.update(torch.stack([one, other]), torch.tensor([1, 1]))
    values = _compute(metric)
    assert (values["tie_rate"], values["flat_rate"], values["saturation_high"], values["score_entropy"]) == (1.0, 1.0, 1.0, 0.0)
    assert math.isnan(values["saturation_low"])  # there is no worst reward that it knows of
    closer = WithinGroupResolution(tolerance=1e-18)
    closer.update(torch.stack([one, other]), torch.tensor([1, 1]))
    assert _compute(closer)["tie_rate"] == 0.0


@pytest.mark.parametrize(
    ("reward", "group", "starved"), [([], [], NAN), ([0.5], [1], 1.0), ([NAN, NAN], [1, 1], 1.0), ([0.1, 0.9], [1, 2], 1.0)]
)
def test_no_group_to_look_into(reward: list[float], group: list[int], starved: float) -> None:
    metric = WithinGroupResolution(low=0.0, high=1.0)
    metric.update(torch.tensor(reward), torch.tensor(group))
    values = _compute(metric)
    assert all(math.isnan(values[name]) for name in ("within_group_std", "within_group_std_low", "tie_rate", "flat_rate"))
    assert values["n_groups"] == 0
    assert values["starved_rate"] == pytest.approx(starved, nan_ok=True)


def test_resolution_refuses_scales_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="low 2 must be below high 1"):
        WithinGroupResolution(low=2.0, high=1.0)
    with pytest.raises(ValueError, match="tolerance 0 must be above 0"):
        WithinGroupResolution(tolerance=0.0)
    with pytest.raises(ValueError, match="reward: row 1 is inf"):
        WithinGroupResolution().update(torch.tensor([0.0, math.inf]), torch.tensor([1, 1]))


# -- copies ------------------------------------------------------------------------------------------------------------


def _copies(rng: np.random.Generator, groups: int, pictures: int, copies: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards with variance 0.25 between pictures of a group and 0.04 between copies, and group levels far apart."""
    level = 10 * rng.normal(size=(groups, 1, 1))
    reward = level + 0.5 * rng.normal(size=(groups, pictures, 1)) + 0.2 * rng.normal(size=(groups, pictures, copies))
    picture = np.broadcast_to(np.arange(groups * pictures).reshape(groups, pictures, 1), reward.shape)
    group = np.broadcast_to(np.arange(groups).reshape(groups, 1, 1), reward.shape)
    found = (torch.tensor(values.reshape(-1)) for values in (reward, np.array(picture), np.array(group)))
    return tuple(found)  # type: ignore[return-value]


def _by_loops(reward: list[float], picture: list[int], group: list[int]) -> tuple[float, float]:
    """Noise and picture variance from sums over lists."""
    homes: dict[int, dict[int, list[float]]] = {}
    for r, i, g in zip(reward, picture, group, strict=True):
        if not math.isnan(r):
            homes.setdefault(g, {}).setdefault(i, []).append(r)
    within = within_free = between = between_free = weight = 0.0
    for pictures in homes.values():
        n = sum(map(len, pictures.values()))
        centre = sum(map(sum, pictures.values())) / n
        for copies in pictures.values():
            within += sum((r - mean(copies)) ** 2 for r in copies)
            within_free += len(copies) - 1
            between += len(copies) * (mean(copies) - centre) ** 2
        between_free += len(pictures) - 1
        weight += n - sum(len(copies) ** 2 for copies in pictures.values()) / n
    noise = within / within_free
    return noise, (between - noise * between_free) / weight


@pytest.mark.parametrize("seed", range(6))
def test_noise_against_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reward, picture, group = _copies(rng, 8, 4, 5)
    reward[torch.tensor(rng.random(len(reward)) < 0.35)] = NAN
    metric = DuplicateNoise()
    order = torch.tensor(rng.permutation(len(reward)))
    metric.update(reward[order], picture[order] * 7919, group[order] - 3)  # any ids
    values = _compute(metric)
    noise, signal = _by_loops(reward.tolist(), picture.tolist(), group.tolist())
    assert values["duplicate_variance"] == pytest.approx(noise, rel=1e-6)
    assert values["duplicate_std"] == pytest.approx(math.sqrt(noise), rel=1e-6)
    assert values["picture_variance"] == pytest.approx(signal, rel=1e-5)
    assert values["signal_to_noise"] == pytest.approx(signal / noise, rel=1e-5)
    assert values["signal_to_noise_low"] < values["signal_to_noise"] < values["signal_to_noise_high"]
    counts = [
        sum(1 for r, i in zip(reward.tolist(), picture.tolist(), strict=True) if i == name and r == r) for name in range(32)
    ]
    assert values["n_pictures"] == sum(count >= 2 for count in counts)
    assert values["unscored_rate"] == pytest.approx(float(reward.isnan().double().mean()))


def test_estimates_are_unbiased_also_where_copies_are_missing() -> None:
    rng = np.random.default_rng(0)
    noise, signal = [], []
    for _ in range(150):
        reward, picture, group = _copies(rng, 6, 4, 3)
        reward[torch.tensor(rng.random(len(reward)) < 0.3)] = NAN
        metric = DuplicateNoise()
        metric.update(reward, picture, group)
        values = _compute(metric)
        noise.append(values["duplicate_variance"])
        signal.append(values["picture_variance"])
    for found, truth in ((noise, 0.04), (signal, 0.25)):
        # within four standard errors of what went in (0.001 and 0.007)
        assert abs(np.mean(found) - truth) < 4 * np.std(found) / math.sqrt(150)


def test_the_interval_of_signal_to_noise_narrows_with_groups() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for groups in (20, 320):
        metric = DuplicateNoise()
        metric.update(*_copies(rng, groups, 4, 3))
        values = _compute(metric)
        assert values["signal_to_noise_low"] < 0.25 / 0.04 < values["signal_to_noise_high"]
        widths.append(values["signal_to_noise_high"] - values["signal_to_noise_low"])
    assert widths[1] < 0.4 * widths[0]  # 16 times the groups: a quarter, give or take the noise of 20


def test_levels_of_groups_are_no_signal_unless_asked_for() -> None:
    reward, picture, group = _copies(np.random.default_rng(0), 30, 2, 2)
    found = []
    for named in (group, torch.zeros_like(group)):
        metric = DuplicateNoise()
        metric.update(reward, picture, named)
        found.append(_compute(metric))
    inside, overall = found
    assert inside["signal_to_noise"] < 20 and overall["signal_to_noise"] > 500  # 0.25 / 0.04, and 100 / 0.04
    assert inside["duplicate_variance"] == overall["duplicate_variance"]


def test_the_same_picture_under_two_requests_is_two() -> None:
    metric = DuplicateNoise()
    metric.update(torch.tensor([1.0, 1.0, 3.0, 3.0]), torch.tensor([5, 5, 5, 5]), torch.tensor([1, 1, 2, 2]))
    values = _compute(metric)
    assert (values["duplicate_variance"], values["n_pictures"]) == (0.0, 2)


@pytest.mark.parametrize(
    ("reward", "picture", "signal_to_noise"),
    [
        ([0.1, 0.1, 0.1, 0.7, 0.7], [1, 1, 1, 2, 2], math.inf),  # copies agree to the last bit
        ([0.1, 0.1, 0.1, 0.1], [1, 1, 2, 2], NAN),  # and so do pictures
        ([0.1, 0.2], [1, 2], NAN),  # no copies
        ([0.1, 0.2], [1, 1], NAN),  # no second picture
        ([NAN, NAN], [1, 1], NAN),
        ([], [], NAN),
        (
            [0.0, 1.0, 0.0, 1.0],
            [1, 1, 2, 2],
            -0.5,
        ),  # pictures differ less than their noise would have them: (0 - 1/2) / 2 over 1/2
    ],
)
def test_noise_at_the_edges(reward: list[float], picture: list[int], signal_to_noise: float) -> None:
    metric = DuplicateNoise()
    metric.update(torch.tensor(reward).double(), torch.tensor(picture), torch.zeros(len(picture), dtype=torch.long))
    values = _compute(metric)
    assert values["signal_to_noise"] == pytest.approx(signal_to_noise, nan_ok=True)
    assert math.isnan(values["signal_to_noise_low"])  # one group at most
