"""A weighted mix of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..critic import CritiqueRequest
from .base import Bounds, RewardModel, Rewards


@dataclass(frozen=True)
class RewardPart:
    """One reward of a mix.

    Args:
        model: The reward.
        weight: How much it counts against the others; 0 only watches it.
        low: What counts as 0 of its total ...
        high: ... and what counts as 1. Rewards of different scales need this to weigh what their weights say; nothing is clamped.

    Raises:
        ValueError: If the weight is negative, or ``low`` is not below ``high``.
    """

    model: RewardModel
    weight: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < math.inf:
            raise ValueError(f"a part's weight must be a number of at least 0, got {self.weight:g}")
        if not self.low < self.high:
            raise ValueError(f"a part's low must be below its high, got {self.low:g} and {self.high:g}")


class WeightedReward(RewardModel):
    r"""The weighted mean :math:`\sum_p w_p s_p / \sum_p w_p` of several rewards, :math:`s_p = (r_p - low_p) / (high_p - low_p)`.

    Parts that are servers are asked at the same time, while those in this process score one after the other.

    ``values`` has a column for every part, :math:`s_p`, by its name, and after them the parts' own columns as ``part/column``, which do
    not count in the total. So with per-aspect advantages each *reward* is normalised inside the group and weighted then, as MixGRPO and
    GenRL do; :attr:`AdvantageOptions.weights` can name the aspects of a critique instead. Critiques are those of the first part that
    writes any.

    Args:
        parts: Name to reward.
        missing: What becomes of a picture that a part with a weight cannot score: it is ``"unscored"``, or the weights of the other
            parts are ``"renormalised"``. The latter compares different mixes inside a group: a picture whose lowest part is missing
            looks better than it is.

    Raises:
        ValueError: If there are no parts, no part has a weight, a name is empty or has a slash, or ``missing`` is unknown.
    """

    def __init__(self, parts: dict[str, RewardPart], missing: Literal["unscored", "renormalised"] = "unscored") -> None:
        if not parts or not any(part.weight > 0 for part in parts.values()):
            raise ValueError("a mix of rewards needs a part with a weight above 0")
        wrong = [name for name in parts if not name or "/" in name]
        if wrong:
            raise ValueError(f"a part's name is not empty and has no slash, got {wrong[0]!r}")
        if missing not in ("unscored", "renormalised"):
            raise ValueError(f"missing is unscored or renormalised, got {missing!r}")
        self.parts = parts
        self.missing = missing

    @property
    def remote(self) -> bool:
        """Whether all parts are servers."""
        return all(part.model.remote for part in self.parts.values())

    def load(self, device: Any = None) -> None:
        """Load every part."""
        for part in self.parts.values():
            part.model.load(device)

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        return self._mixed(len(requests), [(part.model.remote, part.model.score, (requests,)) for part in self.parts.values()])

    def again(self, requests: Sequence[CritiqueRequest], number: int) -> Rewards:
        """As :meth:`RewardModel.again`, each part in its own way."""
        return self._mixed(
            len(requests), [(part.model.remote, part.model.again, (requests, number)) for part in self.parts.values()]
        )

    def _mixed(self, count: int, calls: Sequence[tuple[bool, Callable[..., Rewards], tuple[Any, ...]]]) -> Rewards:
        waiting = sum(remote for remote, _, _ in calls)
        if not waiting:
            return self._mix(count, [score(*given) for _, score, given in calls])
        with ThreadPoolExecutor(waiting, thread_name_prefix="reward") as threads:
            futures = {index: threads.submit(score, *given) for index, (remote, score, given) in enumerate(calls) if remote}
            # in this thread: what runs on a device, or in step with other processes, stays in order
            here = {index: score(*given) for index, (remote, score, given) in enumerate(calls) if not remote}
            return self._mix(count, [here[i] if i in here else futures[i].result() for i in range(len(calls))])

    def _mix(self, count: int, scored: Sequence[Rewards]) -> Rewards:
        found = dict(zip(self.parts, scored, strict=True))
        total = torch.zeros(count, dtype=torch.float64)
        share = torch.zeros(count, dtype=torch.float64)
        lost = torch.zeros(count, dtype=torch.bool)
        reasons: list[list[str]] = [[] for _ in range(count)]
        names, columns = list(found), []
        weights = [part.weight for part in self.parts.values()]
        bounds: list[Bounds | None] = [None] * len(found)
        for name, rewards in found.items():
            part = self.parts[name]
            scaled = (rewards.total.detach().cpu().double() - part.low) / (part.high - part.low)
            columns.append(scaled)
            if part.weight > 0:
                total = total + part.weight * scaled.nan_to_num(0.0)
                share = share + part.weight * ~scaled.isnan()
                lost |= scaled.isnan()
                for index in scaled.isnan().nonzero().flatten().tolist():
                    reasons[index].append(f"{name}: {rewards.reasons[index]}")
        gone = lost if self.missing == "unscored" else share == 0
        for name, rewards in found.items():
            names += [f"{name}/{aspect}" for aspect in rewards.aspects]
            columns += list(rewards.values.detach().cpu().double().unbind(dim=1))
            weights += [0.0] * len(rewards.aspects)
            bounds += list(rewards.bounds or [None] * len(rewards.aspects))
        said = [rewards.critiques for rewards in found.values() if rewards.critiques is not None]
        return Rewards(
            (total / share).masked_fill(gone, torch.nan).float(),
            tuple(names),
            torch.stack(columns, dim=1).float(),
            ["; ".join(why) if out else "" for why, out in zip(reasons, gone.tolist(), strict=True)],
            said[0] if said else None,
            tuple(weights),
            tuple(bounds),
        )
