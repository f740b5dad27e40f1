"""What a judge's scores are made of: how far they differ in a group, how much of that is noise, how often the scale ends first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

import torch
from torch import Tensor

from ..metrics.groups import group_centred, group_ids, group_index, group_sums
from ..metrics.resolution import DuplicateNoise, WithinGroupResolution
from .advantages import TOTAL
from .base import Bounds, Rewards


def judge_diagnostics(
    rewards: Rewards, groups: Sequence[str], again: Rewards | None = None, rows: Sequence[int] = ()
) -> dict[str, float]:
    """Figures of a judge in one round, by aspect and for the total; those that cannot be had are left out.

    In units of :meth:`Rewards.scaled`, as the options of advantages: of a critique, 0 is the worst and 1 the best score.

    ===================================  ===================================================================================
    ``spread/<aspect>``                  mean standard deviation inside groups
    ``saturation_low/<aspect>``          share of pictures at the worst score, of an aspect with bounds
    ``saturation_high/<aspect>``         share at the best score
    ``not_applicable/<aspect>``          share of scored pictures that the aspect does not apply to
    ``noise/<aspect>``                   standard deviation of one score of one picture that was scored twice
    ``signal_to_noise/<aspect>``         variance of pictures inside groups over that of the noise, of the pictures scored twice
    ``drowned/<aspect>``                 share of groups, of all, that differ by no more than that noise: the variance of their
                                         scores (with ``m - 1``) is not above it. Half of all groups where there is no signal
    ``group_signal_to_noise/<aspect>``   median over all groups of (variance - noise) / noise
    ``unscored_again``                   share of pictures, scored the first time, that could not be scored again
    ===================================  ===================================================================================

    Args:
        rewards: Rewards of n pictures.
        groups: Group identity per picture.
        again: Rewards of some of the pictures, scored once more (:meth:`RewardModel.again`).
        rows: Which pictures those are.
    """
    figures: dict[str, float] = {}
    ids = group_ids(list(groups))
    index = torch.tensor(list(rows), dtype=torch.int64)
    second = dict(_columns(again)) if again is not None and len(index) else {}
    for name, (scores, bounds) in _columns(rewards):
        low, high = bounds if bounds is not None else (None, None)
        # of what was handed over and no more: metrics would gather the rows of all processes
        resolution = WithinGroupResolution(low, high, sync_on_compute=False)
        resolution.update(scores, ids)
        found = resolution.compute()
        figures[f"spread/{name}"] = float(found["within_group_std"])
        figures[f"saturation_low/{name}"] = float(found["saturation_low"])
        figures[f"saturation_high/{name}"] = float(found["saturation_high"])
        if name != TOTAL and len(scores) and bool(rewards.valid.any()):
            figures[f"not_applicable/{name}"] = float(scores[rewards.valid].isnan().double().mean())
        if name in second:
            twice = DuplicateNoise(sync_on_compute=False)
            for one in (scores[index], second[name][0]):
                twice.update(one, index, ids[index])
            noise = twice.compute()
            figures[f"noise/{name}"] = float(noise["duplicate_std"])
            figures[f"signal_to_noise/{name}"] = float(noise["signal_to_noise"])
            variances = group_variances(scores, ids)
            level = float(noise["duplicate_variance"])
            if len(variances) and not math.isnan(level):
                figures[f"drowned/{name}"] = float((variances <= level).double().mean())
                if level > 0:
                    figures[f"group_signal_to_noise/{name}"] = median(((variances - level) / level).tolist())
    if again is not None and len(index):
        scored = rewards.valid[index]
        if bool(scored.any()):
            figures["unscored_again"] = float((~again.valid[scored]).double().mean())
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def group_variances(scores: Tensor, ids: Tensor) -> Tensor:
    """Unbiased variances ``float64 [g]`` of the groups with two scores or more.

    Args:
        scores: ``[n]``, NaN where unscored.
        ids: Group identity ``int64 [n]``.
    """
    kept = ~scores.isnan()
    index, count = group_index(ids[kept])
    members = index.bincount(minlength=count)
    sums = group_sums(group_centred(scores[kept].double(), index, count).square(), index, count)
    return sums[members > 1] / (members[members > 1] - 1)


def _columns(rewards: Rewards) -> Iterator[tuple[str, tuple[Tensor, Bounds | None]]]:
    """Every column with its bounds, unscored and inapplicable ones NaN, and the total, which has those of a mean where it is one."""
    mean_of_shares = rewards.weights is not None and rewards.bounds is not None and None not in rewards.bounds
    yield TOTAL, (rewards.total.double(), (0.0, 1.0) if mean_of_shares else None)
    values = rewards.scaled()
    for column, name in enumerate(rewards.aspects):
        bounded = rewards.bounds is not None and rewards.bounds[column] is not None
        yield name, (values[:, column], (0.0, 1.0) if bounded else None)
