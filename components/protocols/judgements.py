"""One judgement of one pair: what a protocol counts, in memory and as a row of ``judgements.jsonl``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..records import Unscored, Verdict

Mode = Literal["pointwise", "pairwise"]
Pair = tuple[float, float] | Unscored
"""The judge's rewards of A and of B, or why there are none."""

UNSCORED = "unscored: "
"""How a verdict that could not be had begins in a file."""

_ORIGIN = re.compile(
    r"(?P<set>[^\s,]+/[^\s,@]+)@(?P<version>[^\s,]+) \([^,]*\), (?P<rows>\S+) row \d+ of (?P<file>[^,]+)(?:, (?P<note>.+))?"
)


@dataclass(frozen=True)
class Place:
    """Where a pair comes from.

    Args:
        set: Owner and name of its data set; empty for pairs of one's own.
        rows: Subset and split of it, e.g. ``image_edition/test_v1``, or its split alone.
        version: Commit of the set, or ``local``.
        note: What else its reader kept: which kind of tie, which kind of edit.
    """

    set: str = ""
    rows: str = ""
    version: str = ""
    note: str = ""

    @classmethod
    def of(cls, origin: str) -> Place:
        """The place that a record's ``origin`` tells, as the readers of public sets write it; empty fields for any other text."""
        found = _ORIGIN.fullmatch(origin)
        return cls() if found is None else cls(found["set"], found["rows"], found["version"], found["note"] or "")


@dataclass(frozen=True)
class Judgement:
    """What a judge said of one pair.

    Args:
        id: The pair's id.
        group: Identity of the pair's request with its source pictures; pairs of one group share pictures.
        label: Probability that people prefer A: 1, 0, 0.5 for a tie, or votes.
        origin: The pair's origin.
        forward: Rewards of A and B where A was shown first, or why there are none; of a judge of single pictures, its only rewards.
        swapped: Rewards of A and B (in this order) where B was shown first; ``None`` for a judge of single pictures, which knows no
            order.
    """

    id: str
    group: str
    label: float
    origin: str
    forward: Pair
    swapped: Pair | None = None

    @property
    def mode(self) -> Mode:
        """``"pairwise"`` where both pictures were shown together."""
        return "pointwise" if self.swapped is None else "pairwise"

    @property
    def winner(self) -> Verdict:
        """What people said."""
        return "tie" if self.label == 0.5 else ("A" if self.label > 0.5 else "B")

    @property
    def place(self) -> Place:
        """Where the pair comes from."""
        return Place.of(self.origin)

    @property
    def orders(self) -> tuple[Pair, ...]:
        """The rewards of every order in which the judge was asked: one or two."""
        return (self.forward,) if self.swapped is None else (self.forward, self.swapped)


def gap(rewards: tuple[float, float]) -> float:
    """Reward of A less that of B; 0 where they differ by rounding only (:func:`rounding`)."""
    difference = rewards[0] - rewards[1]
    return 0.0 if abs(difference) <= rounding(rewards) else difference


def rounding(rewards: tuple[float, float]) -> float:
    """A millionth of the larger reward: rewards are sums in single precision, and what is equal on paper differs in the last bits."""
    return 1e-6 * max(abs(rewards[0]), abs(rewards[1]))


def verdict(rewards: Pair, threshold: float = 0.0) -> Verdict | Unscored:
    """The verdict of two rewards: a tie if they differ by no more than ``threshold``, by default if they are equal."""
    if isinstance(rewards, Unscored):
        return rewards
    difference = gap(rewards)
    return "tie" if abs(difference) <= threshold + rounding(rewards) else ("A" if difference > 0 else "B")


# -- files --------------------------------------------------------------------------------------------------------------


def to_row(judgement: Judgement) -> dict[str, Any]:
    """A judgement as JSON data: the verdicts of both orders by exact equality, and the rewards that they come from."""

    def named(rewards: Pair) -> str:
        said = verdict(rewards)
        return f"{UNSCORED}{said.reason}" if isinstance(said, Unscored) else said

    def plain(rewards: Pair | None) -> list[float] | None:
        return list(rewards) if isinstance(rewards, tuple) else None

    one, other = judgement.forward, judgement.orders[-1]
    return {
        **{"id": judgement.id, "group": judgement.group, "label": judgement.label, "origin": judgement.origin},
        **{"mode": judgement.mode, "verdict": named(one), "swapped": named(other)},
        **{"rewards": plain(one), "rewards_swapped": plain(judgement.swapped)},
    }


def from_row(row: Mapping[str, Any]) -> Judgement:
    """A judgement from what :func:`to_row` wrote; further keys are left alone.

    Raises:
        ValueError: If a key is missing or no judgement can be made of it.
    """

    def pair(rewards: str, said: str) -> Pair:
        if row[rewards] is not None:
            a, b = row[rewards]
            return float(a), float(b)
        if not str(row[said]).startswith(UNSCORED):
            raise ValueError(f"{rewards!r} is null, but {said!r} is no '{UNSCORED}…'")
        return Unscored(row[said].removeprefix(UNSCORED))

    try:
        forward = pair("rewards", "verdict")
        swapped = None if row["mode"] == "pointwise" else pair("rewards_swapped", "swapped")
        return Judgement(str(row["id"]), str(row["group"]), float(row["label"]), str(row["origin"]), forward, swapped)
    except KeyError as error:
        raise ValueError(f"no {error}; judge the pairs again (rationalrewards test), this file is not of this version") from error
    except TypeError as error:
        raise ValueError(f"no judgement: {error}") from error


def read_judgements(path: str | Path) -> list[Judgement]:
    """Read a ``judgements.jsonl``.

    Raises:
        ValueError: If the file is missing or empty, a row is none, an id is there twice, or two ways of judging are mixed; the message
            names file and row.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a judgements.jsonl that `rationalrewards test` wrote")
    found: dict[str, Judgement] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            judgement = from_row(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
        if judgement.id in found:
            raise ValueError(f"{path}, row {number}: id {judgement.id!r} is there twice")
        found[judgement.id] = judgement
    if not found:
        raise ValueError(f"{path} holds no judgements")
    one_mode(found.values(), str(path))
    return list(found.values())


def one_mode(judgements: Iterable[Judgement], where: str = "judgements") -> Mode:
    """The way in which all were judged.

    Raises:
        ValueError: If there are two.
    """
    modes = {judgement.mode for judgement in judgements}
    if len(modes) > 1:
        raise ValueError(f"{where}: pointwise and pairwise judgements are mixed; count each way by itself")
    return modes.pop() if modes else "pointwise"
