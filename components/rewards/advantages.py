"""From rewards to advantages: masked and local to the group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ..metrics.groups import group_centred
from .base import Rewards

Mode = Literal["summed", "per_aspect"]
Shrinkage = Literal["posterior", "ridge"]
TOTAL = "total"
"""Name of the one column of summed advantages."""


@dataclass(frozen=True)
class AdvantageOptions:
    """How rewards become advantages; the formulas, and what each option is measured to do, stand in ``docs/advantages.md``.

    Args:
        mode: ``"summed"`` compares pictures by their total; ``"per_aspect"`` compares them in each aspect first and takes the weighted
            mean then (as GDPO, arXiv 2601.05242), so that an aspect in which pictures differ much does not drown the others.
        weights: Weight of every aspect, 0 leaves one out; ``None`` takes the reward's own (all aspects of a critique alike). Every
            column of the reward must be named, so that no aspect is lost to a typing mistake; a name that the reward has no column for
            is an aspect that does not apply to any of these pictures. Where an aspect does not apply, the others weigh more.
        min_valid: Fewest scored members of a group, and fewest that an aspect applies to, that give a signal; default half of the group,
            rounded up. Never below 2.
        train_flat_groups: Keep groups without a signal in the loss (advantage 0, so only the KL term acts): those whose members scored
            alike, that noise explains, or that ``max_mean`` passes by.
        min_std: Groups that differ by no more than this count as flat; in units of the reward. 0: those that do not differ at all. The
            official code says 0.05 (and tests a standard deviation over all groups, so that no single one is ever left out).
        max_mean: Groups whose mean total is at least this give no signal; ``None`` keeps them. The official code says 0.9.
        floor: Smallest standard deviation that differences are divided by, in units of the reward: smaller ones are not blown up.
        noise: Standard deviation of one score of one picture, were it scored again, in units of the reward; one number, or one per
            aspect (``total`` where summed). ``None``: what the caller measured, if it did.
        shrinkage: What is done about noise; ``"posterior"`` multiplies by ``sqrt(max(0, 1 - noise^2 / var))``, ``"ridge"`` divides by
            ``sqrt(var + noise^2)``.
        epsilon: Added to the (population) standard deviation.
        clip: Advantages are clipped to ``[-clip, clip]``, per aspect as well.

    Raises:
        ValueError: If a value is out of range.

    "Units of the reward" are those of :meth:`Rewards.scaled`: for critiques 0 is the worst score and 1 the best.
    """

    mode: Mode = "summed"
    weights: dict[str, float] | None = None
    min_valid: int | None = None
    train_flat_groups: bool = False
    min_std: float = 0.0
    max_mean: float | None = None
    floor: float = 0.0
    noise: float | dict[str, float] | None = None
    shrinkage: Shrinkage = "posterior"
    epsilon: float = 1e-4
    clip: float = 5.0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode) or self.shrinkage not in get_args(Shrinkage):
            raise ValueError(
                f"advantages: mode is one of {', '.join(get_args(Mode))} and shrinkage one of {', '.join(get_args(Shrinkage))}, "
                f"got {self.mode!r} and {self.shrinkage!r}"
            )
        noises = self.noise if isinstance(self.noise, dict) else {"noise": 0.0 if self.noise is None else self.noise}
        bounded = {"floor": self.floor, "min_std": self.min_std, "epsilon": self.epsilon, **noises, **(self.weights or {})}
        for name, value in bounded.items():
            if not 0.0 <= value < math.inf:
                raise ValueError(f"advantages: {name} must be a number of at least 0, got {value:g}")
        if self.weights is not None and not any(self.weights.values()):
            raise ValueError("advantages: no aspect has a weight above 0")
        if not self.clip > 0:
            raise ValueError(f"advantages: clip must be above 0, got {self.clip:g}")


@dataclass
class Advantages:
    """Advantages of n samples.

    Args:
        values: ``float32 [n]``; 0 where a sample gives no signal.
        weights: ``bool [n]``: whether the sample may enter the loss.
        group_std: Standard deviation of the total in each sample's group ``[n]``; NaN in groups with too few valid members.
        flat: Number of groups whose valid members all got the same reward (in every aspect), or whose mean reaches ``max_mean``.
        starved: Number of groups with too few valid members, or with no aspect that applies to enough of them.
        groups: Number of groups.
        noisy: Number of groups that differ by no more than noise explains, in every aspect in which they do differ.
        aspects: Names of the columns of ``by_aspect``: the aspects that count, or ``total``.
        by_aspect: Advantage in each of them before weighting ``float32 [n, a]``; NaN where it does not apply or has no signal.
    """

    values: Tensor
    weights: Tensor
    group_std: Tensor
    flat: int
    starved: int
    groups: int
    noisy: int = 0
    aspects: tuple[str, ...] = ()
    by_aspect: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def select(self, rows: Sequence[int]) -> Advantages:
        """Those of some of the samples; the counts of groups stay those of all."""
        at = list(rows)
        return replace(
            self,
            values=self.values[at],
            weights=self.weights[at],
            group_std=self.group_std[at],
            by_aspect=self.by_aspect[at] if len(self.by_aspect) else self.by_aspect,
        )


def reward_advantages(
    rewards: Rewards,
    groups: Sequence[str],
    options: AdvantageOptions | None = None,
    noise: Mapping[str, float] | None = None,
) -> Advantages:
    """What each picture is worth against the others of its group.

    Every statistic is of one group (laws 3 and 7 in ``docs/architecture.md``): groups may be handed over one by one, as their rewards
    come in, or on different processes, and get the same advantages to the last bit.

    Args:
        rewards: Rewards of n pictures.
        groups: Group identity per picture.
        options: How; summed and plain if omitted.
        noise: Measured standard deviation of one score by aspect (or ``total``), e.g. :meth:`RepeatNoise.std`; ``options.noise`` goes
            before it.

    Raises:
        ValueError: If the weights do not fit the reward's columns.

    Example:
        >>> import torch
        >>> from rationalrewards.components.rewards import AdvantageOptions, Rewards, reward_advantages
        >>> scores = torch.tensor([[4.0, 1.0], [1.0, 4.0], [1.0, 1.0]])
        >>> bounds = ((1.0, 4.0), (1.0, 4.0))
        >>> rewards = Rewards((scores.mean(dim=1) - 1) / 3, ("a", "b"), scores, [""] * 3, None, (1.0, 1.0), bounds)
        >>> options = AdvantageOptions("per_aspect", weights={"a": 3.0, "b": 1.0}, epsilon=0.0)
        >>> [round(value, 2) for value in reward_advantages(rewards, ["g"] * 3, options).values.tolist()]
        [0.88, -0.18, -0.71]
    """
    options = options or AdvantageOptions()
    names, columns, weights = _columns(rewards, options)
    noises = [0.0 if noise is None else noise.get(name, 0.0) for name in names]
    if isinstance(options.noise, dict):
        unknown = [name for name in names if name not in options.noise]
        if unknown:
            raise ValueError(f"`noise` has nothing for {', '.join(unknown)}; what is compared is {', '.join(names)}: name each")
        noises = [options.noise[name] for name in names]
    elif options.noise is not None:
        noises = [options.noise] * len(names)
    return _advantages(_total(rewards, options), names, columns, weights, noises, groups, options)


def group_advantages(
    rewards: Tensor,
    groups: Sequence[str],
    *,
    min_valid: int | None = None,
    train_flat_groups: bool = False,
    epsilon: float = 1e-4,
    clip: float = 5.0,
) -> Advantages:
    """``(r - mean) / (std + epsilon)`` inside each group: :func:`reward_advantages` of plain numbers.

    Args:
        rewards: ``float32 [n]``; NaN marks an unscored sample, which neither votes nor weighs.
        groups: Group identity per sample.
        min_valid: See :class:`AdvantageOptions`, as all that follow.
        train_flat_groups: See there.
        epsilon: See there.
        clip: See there.
    """
    options = AdvantageOptions(min_valid=min_valid, train_flat_groups=train_flat_groups, epsilon=epsilon, clip=clip)
    total = rewards.double()
    return _advantages(total, (TOTAL,), total[:, None], [1.0], [0.0], groups, options)


def repeat_sums(first: Rewards, second: Rewards, options: AdvantageOptions | None = None) -> dict[str, tuple[float, float]]:
    """What :class:`~rationalrewards.components.rewards.RepeatNoise` learns from pictures that were scored twice.

    Args:
        first: Their rewards.
        second: Their rewards once more, of :meth:`RewardModel.again`.
        options: Which advantages the noise is for: it is that of the total, or of each aspect.

    Returns:
        By column, half the squared differences, summed, and the number of pictures that are scored both times.
    """
    options = options or AdvantageOptions()
    names, one, _ = _columns(first, options)
    others, two, _ = _columns(second, options)
    sums = {}
    for index, name in enumerate(names):
        if name in others:
            halves = (one[:, index] - two[:, others.index(name)]).square() / 2
            sums[name] = (float(halves.nansum()), float((~halves.isnan()).sum()))
    return sums


def _columns(rewards: Rewards, options: AdvantageOptions) -> tuple[tuple[str, ...], Tensor, list[float]]:
    """What pictures are compared in: names, ``float64 [n, c]`` with NaN where nothing is to be compared, and weights."""
    if options.mode == "summed":
        return (TOTAL,), _total(rewards, options)[:, None], [1.0]
    weights = _weights(rewards, options)
    kept = [index for index, weight in enumerate(weights) if weight > 0]
    return (
        tuple(rewards.aspects[index] for index in kept),
        rewards.scaled()[:, kept],
        [weights[index] for index in kept],
    )


def _total(rewards: Rewards, options: AdvantageOptions) -> Tensor:
    """One number per picture ``float64 [n]``: the reward's own total, or under own weights the mean by these."""
    if options.weights is None:
        return rewards.total.double()
    mean, share = _weighted_mean(rewards.scaled(), _weights(rewards, options))
    # where no aspect that counts applies, there is nothing to compare
    return mean.where(share > 0, torch.nan)


def _weights(rewards: Rewards, options: AdvantageOptions) -> list[float]:
    columns = ", ".join(rewards.aspects)
    if options.weights is None:
        if rewards.weights is None:
            raise ValueError(
                f"this reward does not say how its columns ({columns or 'none'}) make its total: name the weight of each in "
                "`weights`, 0 for one that does not count, or set mode: summed"
            )
        return list(rewards.weights)
    missing = [name for name in rewards.aspects if name not in options.weights]
    if missing:
        raise ValueError(
            f"`weights` has nothing for {', '.join(missing)}; the reward's columns are {columns}: name each, 0 for one that does not count"
        )
    return [options.weights[name] for name in rewards.aspects]


def _advantages(
    total: Tensor,
    names: tuple[str, ...],
    columns: Tensor,
    column_weights: Sequence[float],
    noises: Sequence[float],
    groups: Sequence[str],
    options: AdvantageOptions,
) -> Advantages:
    size, device = len(total), total.device
    values = torch.zeros(size, dtype=torch.float32, device=device)
    weights = torch.zeros(size, dtype=torch.bool, device=device)
    group_std = torch.full((size,), torch.nan, dtype=torch.float32, device=device)
    by_aspect = torch.full(columns.shape, torch.nan, dtype=torch.float32, device=device)
    flat = starved = noisy = 0
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    for indices in members.values():
        index = torch.tensor(indices, device=device)
        valid = index[~total[index].isnan()]
        fewest = max(2, math.ceil(len(indices) / 2)) if options.min_valid is None else max(2, options.min_valid)
        if len(valid) < fewest:
            starved += 1
            continue
        group_std[index] = total[valid].std(correction=0).float()
        if options.max_mean is not None and float(total[valid].mean()) >= options.max_mean:
            flat += 1
            weights[valid] = options.train_flat_groups
            continue
        found = torch.full((len(valid), len(names)), torch.nan, dtype=torch.float64, device=device)
        kinds = set()
        for column in range(len(names)):
            scored = columns[valid, column]
            here = ~scored.isnan()
            if int(here.sum()) >= fewest:  # else judged in too few pictures to compare them
                found[here, column], kind = _compared(scored[here], noises[column], options)
                kinds.add(kind)
        by_aspect[valid] = found.float()
        if "signal" in kinds:
            mean, share = _weighted_mean(found, column_weights)
            values[valid] = mean.float()
            # a member that no compared aspect applies to has nothing to say
            weights[valid] = (share > 0) | options.train_flat_groups
        elif kinds:
            noisy, flat = noisy + ("noise" in kinds), flat + ("noise" not in kinds)
            weights[valid] = options.train_flat_groups
        else:
            starved += 1
    return Advantages(values, weights, group_std, flat, starved, len(members), noisy, names, by_aspect)


def _compared(scored: Tensor, noise: float, options: AdvantageOptions) -> tuple[Tensor, Literal["flat", "noise", "signal"]]:
    """Advantages in one column ``float64 [m]``, and what is in them."""
    std = scored.std(correction=0)
    if float(scored.max() - scored.min()) == 0.0 or float(std) <= options.min_std:
        return torch.zeros_like(scored), "flat"
    scale, shrink = std, 1.0
    if noise > 0 and options.shrinkage == "ridge":
        scale = (std.square() + noise**2).sqrt()
    elif noise > 0:
        shrink = math.sqrt(max(0.0, 1.0 - noise**2 / float(scored.var(correction=1))))
    advantages = shrink * (scored - scored.mean()) / (scale.clamp(min=options.floor) + options.epsilon)
    return advantages.clamp(-options.clip, options.clip), "signal" if shrink > 0 else "noise"


def _weighted_mean(columns: Tensor, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean of the columns that are numbers, and the weight of these, ``float64 [n]`` each; 0 where there are none.

    Column by column, so that a row's sum does not depend on how many rows there are.
    """
    total, share = torch.zeros_like(columns[:, 0]), torch.zeros_like(columns[:, 0])
    for index, weight in enumerate(weights):
        here = ~columns[:, index].isnan()
        total = total + weight * columns[:, index].nan_to_num(0.0)
        share = share + weight * here
    return total / share.where(share > 0, 1.0), share


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
