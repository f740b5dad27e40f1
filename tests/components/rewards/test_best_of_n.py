"""Best of N: against every way to draw, and what ties and unscored pictures do."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

import pytest
import torch
from rationalrewards.components.rewards import best_of_n, turning_point

NAN = float("nan")


def by_hand(rewards: list[float], judged: list[float], n: int) -> float:
    """Draw every subset; pick by reward, evenly among equals, and among the unscored only where there is nothing else."""
    found = []
    for subset in combinations(range(len(rewards)), n):
        scored = [i for i in subset if rewards[i] == rewards[i]]
        best = max((rewards[i] for i in scored), default=None)
        picks = [i for i in scored if rewards[i] == best] or list(subset)
        found.append(fmean(judged[i] for i in picks))
    return fmean(found)


@pytest.mark.parametrize("values", [10, 3, 1])
def test_is_the_mean_over_every_draw(values: int) -> None:
    generator = torch.Generator().manual_seed(values)
    rewards = torch.randint(values, (4, 7), generator=generator).double()  # few values: many ties
    rewards[1, 2] = rewards[1, 5] = rewards[2, :] = NAN
    judged = torch.rand(4, 7, generator=generator, dtype=torch.float64)
    curve = best_of_n(rewards, judged, range(1, 8))
    wanted = [[by_hand(r, j, n) for n in range(1, 8)] for r, j in zip(rewards.tolist(), judged.tolist(), strict=True)]
    # sums of at most 35 terms below 1 in float64
    torch.testing.assert_close(curve, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-13)


def test_a_judge_that_picks_for_itself_only_gains() -> None:
    scores = torch.rand(5, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    curve = best_of_n(scores, scores, [1, 2, 4, 8, 16, 32, 64, 128, 256])
    assert (curve.diff(dim=1) > 0).all()
    torch.testing.assert_close(curve[:, 0], scores.mean(dim=1))
    assert (curve[:, -1] == scores.max(dim=1).values).all()


def test_a_reward_that_says_nothing_changes_nothing() -> None:
    judged = torch.rand(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for silent in (torch.zeros(3, 16), torch.full((3, 16), NAN)):
        curve = best_of_n(silent, judged, [1, 4, 16])
        torch.testing.assert_close(curve, judged.mean(dim=1, keepdim=True).expand(-1, 3))


def test_over_optimisation_turns_the_curve_down() -> None:
    # the reward agrees with the judge but for its favourite, a picture that games it
    judged = torch.linspace(0, 1, 20, dtype=torch.float64).repeat(2, 1)
    rewards = judged.clone()
    judged[:, -1] = 0.0
    sizes = [1, 2, 4, 8, 16, 20]
    curve = best_of_n(rewards, judged, sizes).mean(dim=0).tolist()
    assert curve[-1] == 0.0
    top = turning_point(curve)
    assert top is not None and 0 < top < len(sizes) - 1
    assert turning_point([0.1, 0.2, 0.2]) is None
    assert turning_point([0.1, 0.3, 0.2]) == 1


@pytest.mark.parametrize(
    ("rewards", "judged", "sizes", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), [1], "prompts, M"),
        (torch.zeros(3), torch.zeros(3), [1], "prompts, M"),
        (torch.zeros(2, 3), torch.zeros(2, 3), [1, 4], "best of 4"),
        (torch.zeros(2, 3), torch.zeros(2, 3), [0], "best of 0"),
        (torch.zeros(1, 2), torch.tensor([[0.0, NAN]]), [1], "leave these out"),
    ],
)
def test_refuses(rewards: torch.Tensor, judged: torch.Tensor, sizes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        best_of_n(rewards, judged, sizes)


def test_an_empty_curve() -> None:
    with pytest.raises(ValueError, match="empty"):
        turning_point([])
