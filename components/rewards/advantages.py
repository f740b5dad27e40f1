"""From rewards to advantages: masked and local to the group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics.groups import group_centred


@dataclass
class Advantages:
    """Advantages of n samples.

    Args:
        values: ``float32 [n]``; 0 where a sample gives no signal.
        weights: ``bool [n]``: whether the sample may enter the loss.
        group_std: Reward standard deviation of each sample's group ``[n]``; NaN in groups with too few valid members.
        flat: Number of groups whose valid members all got the same reward.
        starved: Number of groups with too few valid members.
        groups: Number of groups.
    """

    values: Tensor
    weights: Tensor
    group_std: Tensor
    flat: int
    starved: int
    groups: int


def group_advantages(
    rewards: Tensor,
    groups: Sequence[str],
    *,
    min_valid: int | None = None,
    train_flat_groups: bool = False,
    epsilon: float = 1e-4,
    clip: float = 5.0,
) -> Advantages:
    """``(r - mean) / (std + epsilon)`` inside each group, over its valid members only (laws 3 and 7 in ``docs/architecture.md``).

    Args:
        rewards: ``float32 [n]``; NaN marks an unscored sample, which neither votes nor weighs.
        groups: Group identity per sample.
        min_valid: Fewest valid members of a group that gives a signal; default half of the group, rounded up, at least 2.
        train_flat_groups: Keep groups without any difference in the loss (advantage 0, so only the KL term acts).
        epsilon: Added to the (population) standard deviation.
        clip: Advantages are clipped to ``[-clip, clip]``.
    """
    values = torch.zeros_like(rewards)
    weights = torch.zeros(len(rewards), dtype=torch.bool, device=rewards.device)
    group_std = torch.full_like(rewards, float("nan"))
    flat = starved = 0
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    for indices in members.values():
        index = torch.tensor(indices, device=rewards.device)
        valid = index[~torch.isnan(rewards[index])]
        fewest = max(2, math.ceil(len(indices) / 2)) if min_valid is None else max(2, min_valid)
        if len(valid) < fewest:
            starved += 1
            continue
        scored = rewards[valid].double()
        std = scored.std(correction=0)
        group_std[index] = std.to(group_std.dtype)
        if float(scored.max() - scored.min()) == 0.0:
            flat += 1
            weights[valid] = train_flat_groups
            continue
        values[valid] = ((scored - scored.mean()) / (std + epsilon)).clamp(-clip, clip).to(values.dtype)
        weights[valid] = True
    return Advantages(values, weights, group_std, flat, starved, len(members))


def within_group_correlation(first: Tensor, second: Tensor, groups: Sequence[str]) -> float:
    """Correlation of two rewards after their group means are taken out; the resolution that RL lives on.

    Args:
        first: ``[n]``, NaN where unscored.
        second: ``[n]``, likewise; a sample counts where both are scored.
        groups: Group identity per sample.

    Returns:
        Pearson's r over all groups pooled; NaN if either does not vary inside groups.
    """
    both = ~(torch.isnan(first) | torch.isnan(second)).cpu()
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([numbers[name] for name in groups], dtype=torch.int64)[both]
    a, b = (group_centred(values.cpu()[both], index, len(numbers)) for values in (first, second))
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 1e-12 else float("nan")
