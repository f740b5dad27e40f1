"""Whether a reward can tell the pictures of one request apart, asked on the first round of RL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.rewards import RewardModel, Rewards, with_invisible_noise, within_group_correlation
from torch import Tensor

from .everywhere import everywhere, gather


class NoResolutionError(RuntimeError):
    """A reward that cannot tell the pictures of one request apart; training on it would be training on noise."""


def correlation(first: Tensor, second: Tensor, groups: list[str]) -> float:
    """Within-group correlation of two rewards ``[n]`` over the pictures of all processes."""
    return within_group_correlation(everywhere(first), everywhere(second), gather(groups))


def check_against_witness(rewards: Rewards, witness: Rewards, groups: list[str], least: float) -> None:
    """Ask that reward and witness rank alike inside groups.

    All processes decide alike, on the pictures of all; so does :func:`check_alone`.

    Raises:
        NoResolutionError: If they do not.
    """
    found = correlation(rewards.total, witness.total, groups)
    if not found >= least:
        raise NoResolutionError(
            f"the reward's within-group correlation with the witness is {found:.2f}, below min_resolution {least:g}: it cannot tell the "
            "pictures of one request apart, and training on it would train on noise. Train a better critic, or set min_resolution: null "
            "to go on all the same"
        )


def check_alone(
    reward: RewardModel,
    rewards: Rewards,
    requests: Sequence[CritiqueRequest],
    groups: list[str],
    seeds: Sequence[int],
    rank: int,
    least: float,
) -> None:
    """Without a witness: pictures must score higher for their own request than for another, and alike under noise that nobody sees.

    Args:
        reward: The reward.
        rewards: What it said of this process's pictures.
        requests: Those pictures with their requests.
        groups: Their groups.
        seeds: Seed of each picture's invisible noise.
        rank: Number of this process.
        least: Smallest within-group correlation of the scores with and without the noise.

    Raises:
        NoResolutionError: If one of the two does not hold.
    """
    prompts = gather([request.prompt for request in requests])
    start = rank * len(requests) + len(prompts) // 2
    shifted = [
        CritiqueRequest(r.task, prompts[(start + index) % len(prompts)], r.image, r.sources) for index, r in enumerate(requests)
    ]
    gap = everywhere(rewards.total - reward.score(shifted).total)
    gap = gap[~gap.isnan()]
    if len(gap) < 2 or float(gap.mean()) <= 2.0 * float(gap.std()) / len(gap) ** 0.5:
        raise NoResolutionError(
            f"pictures score no higher for their own request than for another one (gap {float(gap.mean()) if len(gap) else 0:.3f}, "
            f"{len(gap)} scored): the reward does not read the request. Check the critic's rubric and weights, or set "
            "min_resolution: null to go on all the same"
        )
    noisy = [
        replace(request, image=with_invisible_noise(request.image, seed)) for request, seed in zip(requests, seeds, strict=True)
    ]
    steady = correlation(rewards.total, reward.score(noisy).total, groups)
    if not steady >= least:
        raise NoResolutionError(
            f"within groups, the scores correlate by {steady:.2f} with those of the same pictures under noise that nobody sees, below "
            f"min_resolution {least:g}: they rank the pictures of one request by chance. Train a better critic, or set "
            "min_resolution: null to go on all the same"
        )
