"""Which requests to train on: those that are neither easy from the start nor solved by now."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..seeds import seed_for

Status = Literal["new", "active", "easy", "solved"]


@dataclass(frozen=True)
class GroupScore:
    """How one group of pictures of a request scored.

    Args:
        group: Identity of (request, source pictures), :attr:`PromptRecord.group`.
        mean: Mean reward of its scored pictures.
        std: Their (population) standard deviation.
        pictures: How many are scored.
    """

    group: str
    mean: float
    std: float
    pictures: int


def group_scores(total: Tensor, groups: Sequence[str], min_valid: int | None = None) -> list[GroupScore]:
    """How each group scored, of those with enough scored pictures to say so.

    Args:
        total: Rewards ``[n]``, NaN where unscored.
        groups: Group identity per picture.
        min_valid: Fewest scored pictures; default half of the group, rounded up, at least 2, as for advantages.
    """
    members: dict[str, list[float]] = {}
    for group, reward in zip(groups, total.double().tolist(), strict=True):
        members.setdefault(group, []).append(reward)
    found = []
    for group, rewards in members.items():
        scored = [reward for reward in rewards if not math.isnan(reward)]
        if len(scored) >= (max(2, math.ceil(len(rewards) / 2)) if min_valid is None else max(2, min_valid)):
            mean = math.fsum(scored) / len(scored)
            std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in scored) / len(scored))
            found.append(GroupScore(group, mean, std, len(scored)))
    return found


class PromptCurriculum:
    """Remembers how every request scored in every round, and chooses the next round's.

    A request is ``new`` until it was scored; ``easy``, and not trained on again, if the mean reward of its first pictures is at least
    ``start_below``; ``solved``, and retired, once a round's mean is above ``retire_above`` with a standard deviation below
    ``retire_std``; else ``active``. These are the paper's rules (arXiv 2604.11626, E.1 and its code), which keys them by decoded texts
    that hardly ever match; here a request is its text *and* its source pictures.

    What a round chooses is a function of the rounds before it and the seed, and of nothing else: it may be asked for before and
    after the round is scored, on every process, and after a resume.

    Args:
        start_below: Largest mean reward, in [0, 1], of first pictures that leaves something to learn; ``None`` starts with all. The
            paper's 3.0 on its scale of 1 to 4 is 2/3.
        retire_above: Mean reward above which a request is solved; ``None`` retires none.
        retire_std: Standard deviation below which it is.
    """

    def __init__(self, start_below: float | None = 2 / 3, retire_above: float | None = 0.9, retire_std: float = 0.05) -> None:
        if not retire_std > 0:
            raise ValueError(f"retire_std must be above 0, or retire_above null to retire nothing, got {retire_std:g}")
        self.start_below = start_below
        self.retire_above = retire_above
        self.retire_std = retire_std
        self._rounds: dict[int, dict[str, GroupScore]] = {}
        self._history: dict[str, list[tuple[int, GroupScore]]] = {}

    def observe(self, epoch: int, scores: Iterable[GroupScore]) -> None:
        """Take up a round; a round that is observed again, and what came after it, is forgotten first.

        Args:
            epoch: Number of the round. -1 is for first pictures that were scored before the training.
            scores: What :func:`group_scores` found on all processes, in any order.
        """
        merged: dict[str, GroupScore] = {}
        for score in sorted(scores, key=lambda s: (s.group, s.mean, s.std, s.pictures)):
            merged[score.group] = _merged(merged[score.group], score) if score.group in merged else score
        self._rounds = {number: found for number, found in self._rounds.items() if number < epoch}
        self._rounds[epoch] = merged
        self._index()

    def status(self, group: str, epoch: int) -> Status:
        """What a request is at the start of a round."""
        seen = [score for number, score in self._history.get(group, ()) if number < epoch]
        if not seen:
            return "new"
        if self.start_below is not None and seen[0].mean >= self.start_below:
            return "easy"
        if self.retire_above is not None and any(s.mean > self.retire_above and s.std < self.retire_std for s in seen):
            return "solved"
        return "active"

    def choose(self, groups: Sequence[str], count: int, epoch: int, seed: int = 0) -> list[int]:
        """The requests of a round: of the new and active ones those seen least often, in an order that the seed makes.

        Where too few are left, easy and solved ones fill up the round, those with the lowest last mean first: see :meth:`shares`.

        Args:
            groups: Identity of every request; of several that are alike the first is taken.
            count: How many to choose.
            epoch: Number of the round.
            seed: Seed of the order.

        Returns:
            ``count`` positions in ``groups``.

        Raises:
            ValueError: If there are fewer than ``count`` different requests.
        """
        first = {group: index for index, group in reversed(list(enumerate(groups)))}
        if len(first) < count:
            raise ValueError(
                f"{len(first)} different requests are fewer than the {count} of a round; give more, or make rounds smaller"
            )

        def order(group: str) -> tuple[float, ...]:
            seen = [score for number, score in self._history.get(group, ()) if number < epoch]
            chance = seed_for(seed, "curriculum", len(seen), group)
            if self.status(group, epoch) in ("new", "active"):
                return (0, len(seen), chance)
            return (1, seen[-1].mean, chance)

        return [first[group] for group in sorted(first, key=lambda group: (order(group), group))[:count]]

    def shares(self, groups: Sequence[str], epoch: int) -> dict[Status, float]:
        """Share of the different requests of each status at the start of a round."""
        known = set(groups)
        found: list[Status] = [self.status(group, epoch) for group in known]
        kinds: tuple[Status, ...] = ("new", "active", "easy", "solved")
        return {kind: found.count(kind) / max(1, len(known)) for kind in kinds}

    def state_dict(self) -> dict[str, Any]:
        """All that was observed, as plain data."""
        return {
            "rounds": {
                number: [(s.group, s.mean, s.std, s.pictures) for s in found.values()] for number, found in self._rounds.items()
            }
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._rounds = {
            int(number): {row[0]: GroupScore(*row) for row in found} for number, found in sorted(state["rounds"].items())
        }
        self._index()

    def _index(self) -> None:
        self._history = {}
        for number, found in sorted(self._rounds.items()):
            for group, score in found.items():
                self._history.setdefault(group, []).append((number, score))


def _merged(one: GroupScore, other: GroupScore) -> GroupScore:
    """Two groups of pictures of one request as one; exact."""
    pictures = one.pictures + other.pictures
    mean = (one.pictures * one.mean + other.pictures * other.mean) / pictures
    squares = sum(s.pictures * (s.std**2 + (s.mean - mean) ** 2) for s in (one, other))
    return GroupScore(one.group, mean, math.sqrt(squares / pictures), pictures)
