"""What a run of PARROT will take: calls and pictures from the pairs alone; tokens, hours and cost at the rate of calls that were measured.

Three answers, each better than the one before: :class:`Plan` (nothing was asked yet), :class:`Forecast` (a few pairs, or an earlier run,
say what a call takes) and :class:`Estimate` (the run itself, so far).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..records import Preference
from .audit import rate
from .options import ParrotOptions

RETENTION = 0.72
"""Share of comparisons that pass the check, as arXiv 2604.11626 (section 2.1) reports it for its own data and teacher."""

QUANTITIES = ("calls", "failures", "images", "prompt_tokens", "completion_tokens", "seconds", "cost")
"""What a ledger knows about the calls of a stage."""

Usage = Mapping[str, Mapping[str, float | None]]
"""Stage to quantity to amount, as :meth:`.Ledger.usage` gives it; ``None`` where it is not known."""


@dataclass(frozen=True)
class Load:
    """Pairs to take through the stages, as far as the number of calls depends on them.

    Args:
        pairs: All pairs.
        sources: Source pictures of all pairs together (text to image has none).
        control: Pairs that are run a second time with the wrong label.
        control_sources: Their source pictures.
        audited: Pairs whose critiques are read blind.
        exact: Whether slices and source pictures were counted; otherwise they are shares of all pairs, rounded up, and averages.
    """

    pairs: int
    sources: int
    control: int
    control_sources: int
    audited: int
    exact: bool = True

    @classmethod
    def counted(cls, pairs: Iterable[Preference], options: ParrotOptions) -> Load:
        """Go through the pairs once, without opening a picture."""
        count = sources = control = control_sources = audited = 0
        for pair in pairs:
            count += 1
            sources += len(pair.sources)
            if pair.winner != "tie" and options.in_slice("control", pair.id):
                control += 1
                control_sources += len(pair.sources)
            audited += options.in_slice("audit", pair.id)
        return cls(count, sources, control, control_sources, audited)

    @classmethod
    def of_size(cls, pairs: int, options: ParrotOptions, sources: float = 0.0) -> Load:
        """Where only the number of pairs is known: no ties, and slices as large as their shares.

        Args:
            pairs: Number of pairs.
            options: How the stages work.
            sources: Source pictures of a pair, on average.
        """
        # rounded first: 30 x 0.1 is a little more than 3
        control, audited = (math.ceil(round(pairs * share, 6)) for share in (options.control_share, options.audit_share))
        return cls(pairs, round(pairs * sources), control, round(control * sources), audited, exact=False)

    @classmethod
    def of_all(cls, loads: Sequence[Load]) -> Load:
        """Several loads together."""
        return cls(
            sum(load.pairs for load in loads),
            sum(load.sources for load in loads),
            sum(load.control for load in loads),
            sum(load.control_sources for load in loads),
            sum(load.audited for load in loads),
            all(load.exact for load in loads),
        )


@dataclass(frozen=True)
class Plan:
    """Calls and pictures of a run that has not started.

    Args:
        load: The pairs.
        attempts: How often an answer that cannot be used is asked for in all.
        passing: Share of comparisons taken to pass the check for the expected numbers.
        calls: Of each stage of the ledger, the calls if every pair gets through and no answer has to be asked for again.
        images: Likewise the pictures that are sent.
        expected_calls: Likewise if only the share ``passing`` of the comparisons gets on.
        expected_images: Likewise.
    """

    load: Load
    attempts: int
    passing: float
    calls: Mapping[str, int]
    images: Mapping[str, int]
    expected_calls: Mapping[str, float]
    expected_images: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """All of it, and the totals."""
        stages = {
            stage: {
                "calls": self.calls[stage],
                "images": self.images[stage],
                "expected_calls": self.expected_calls[stage],
                "expected_images": self.expected_images[stage],
            }
            for stage in self.calls
        }
        names = ("calls", "images", "expected_calls", "expected_images")
        totals = {name: sum(found[name] for found in stages.values()) for name in names}
        return {"pairs": self.load.pairs, "exact": self.load.exact, "passing": self.passing, **totals, "stages": stages}

    def __str__(self) -> str:
        found = self.as_json()
        stages = ", ".join(f"{stage} {_count(calls)}" for stage, calls in self.calls.items() if calls)
        again = (
            f" Answers that cannot be used are asked for again, up to {self.attempts} times in all." if self.attempts > 1 else ""
        )
        guess = "" if self.load.exact else " Slices and source pictures are not counted but taken from shares and averages."
        return (
            f"{_count(found['pairs'])} pairs: at most {_count(found['calls'])} calls with {_count(found['images'])} pictures ({stages}); "
            f"about {_count(found['expected_calls'])} with {_count(found['expected_images'])} if {100 * self.passing:.0f} % of the "
            f"comparisons pass the check" + (", as in arXiv 2604.11626." if self.passing == RETENTION else ".") + again + guess
        )


def planned_calls(pairs: Iterable[Preference] | Load, options: ParrotOptions, passing: float = RETENTION) -> Plan:
    """The calls that pairs take.

    Args:
        pairs: The pairs, or what :class:`Load` says of them.
        options: How the stages work.
        passing: Share of comparisons that pass the check, for the expected numbers; by default the paper's. What comes before and
            after the check is taken to drop nothing.

    Raises:
        ValueError: If ``passing`` is no share.
    """
    if not 0.0 <= passing <= 1.0:
        raise ValueError(f"passing is a share between 0 and 1, got {passing}")
    load = pairs if isinstance(pairs, Load) else Load.counted(pairs, options)
    shown = {"": 2 * load.pairs + load.sources, "control-": 2 * load.control + load.control_sources}
    written = {"": load.pairs, "control-": load.control}
    calls: dict[str, int] = {}
    images: dict[str, int] = {}
    for prefix in ("", "control-"):
        calls[f"{prefix}anchor"] = options.anchors * written[prefix]
        images[f"{prefix}anchor"] = options.anchors * shown[prefix]
        for stage in ("check", "check-swapped")[: options.check_orders]:
            calls[prefix + stage] = options.anchors * options.check_votes * written[prefix]
            images[prefix + stage] = options.anchors * options.check_votes * shown[prefix] * options.check_images
    for stage in ("project", "refine"):  # both pictures, each alone with the sources
        calls[stage] = 2 * load.pairs
        images[stage] = 2 * (load.pairs + load.sources)
    calls["audit"], images["audit"] = 2 * load.audited, 0
    share = {stage: passing if stage in ("project", "refine", "audit") else 1.0 for stage in calls}
    order = [stage for stage in calls if not stage.startswith("control-")] + [s for s in calls if s.startswith("control-")]
    return Plan(
        load,
        options.attempts,
        passing,
        {stage: calls[stage] for stage in order},
        {stage: images[stage] for stage in order},
        {stage: calls[stage] * share[stage] for stage in order},
        {stage: images[stage] * share[stage] for stage in order},
    )


# -- measured


def usage_of(calls: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """What some calls took, by stage: like :meth:`.Ledger.usage`, of rows as :meth:`.Ledger.calls` gives them."""
    total: dict[str, dict[str, float | None]] = {}
    for call in calls:
        found = total.setdefault(call["stage"], dict.fromkeys(QUANTITIES))
        amounts = {**{name: call.get(name) for name in QUANTITIES}, "calls": 1, "failures": int(bool(call["failure"]))}
        for name, amount in amounts.items():
            if amount is not None:
                found[name] = (found[name] or 0) + amount
    return total


def added(usages: Sequence[Usage]) -> dict[str, dict[str, float | None]]:
    """Usages together."""
    total: dict[str, dict[str, float | None]] = {}
    for usage in usages:
        for stage, amounts in usage.items():
            found = total.setdefault(stage, dict.fromkeys(QUANTITIES))
            for name, amount in amounts.items():
                if amount is not None:
                    found[name] = (found.get(name) or 0) + amount
    return total


def total_of(usage: Usage, name: str) -> float | None:
    """A quantity over all stages; ``None`` where no stage knows it, and for tokens and cost where no token was counted."""
    amounts = [amount for found in usage.values() if (amount := found.get(name)) is not None]
    if not amounts:
        return None
    if name in ("prompt_tokens", "completion_tokens") and not any(amounts):
        return None  # a backend that does not count says 0
    if name == "cost" and total_of(usage, "prompt_tokens") is None:
        return None
    return sum(amounts)


_LIKE = {"check-swapped": "check", "project": "anchor", "refine": "project", "audit": "check"}
"""Stages whose calls are of about the size of another's."""


@dataclass(frozen=True)
class Forecast:
    """What planned calls will take at the rate of calls that were measured, stage by stage.

    A stage that was not measured is taken to be like one that was: the control like the stage that it repeats, a check in the other order
    like the first, critiques like comparisons, the blind reader like a check. How many pairs were under way at once counts for the hours:
    where it were fewer than the run will have, the run takes less.

    Args:
        plan: The calls.
        usage: What the measured calls took.
        measured: Pairs that they were about.
        processes: Processes among which the pairs are shared out.
        currency: Of the cost.
        overhead: Seconds that a pair takes beside waiting for the teacher, e.g. to read its pictures.
    """

    plan: Plan
    usage: Usage
    measured: int
    processes: int = 1
    currency: str = ""
    overhead: float = 0.0

    def total(self, name: str, most: bool = False) -> float | None:
        """A quantity for all pairs; ``None`` if it was not measured.

        Args:
            name: One of :data:`QUANTITIES`.
            most: If every pair gets through, in place of the share that the plan expects.
        """
        if total_of(self.usage, name) is None:
            return None
        amounts = [calls * self._rate(stage, name) for stage, calls in self._calls(most).items() if calls]
        return sum(amounts)

    def _calls(self, most: bool) -> Mapping[str, float]:
        return self.plan.calls if most else self.plan.expected_calls

    def _rate(self, stage: str, name: str) -> float:
        """What a call of a stage takes."""
        found: str | None = stage.removeprefix("control-") if stage not in self.usage else stage
        while found is not None and found not in self.usage:
            found = _LIKE.get(found)
        stages = [found] if found is not None else list(self.usage)  # nothing like it: all there is
        calls = sum(self.usage[one]["calls"] or 0 for one in stages)
        return sum(self.usage[one].get(name) or 0.0 for one in stages) / max(1, calls)

    def hours(self, most: bool = False) -> float | None:
        """Hours that all pairs take."""
        seconds = self.total("seconds", most)
        return None if seconds is None else (seconds + self.overhead * self.plan.load.pairs) / self.processes / 3600

    def as_json(self) -> dict[str, Any]:
        """All figures: those expected, and those if every pair gets through."""
        names = ("prompt_tokens", "completion_tokens", "cost")
        figures = {
            key: {**{name: self.total(name, most) for name in names}, "hours": self.hours(most)}
            for key, most in (("expected", False), ("most", True))
        }
        rest = {"measured": self.measured, "processes": self.processes, "currency": self.currency}
        return {"plan": self.plan.as_json(), **figures, **rest, "usage": {stage: dict(row) for stage, row in self.usage.items()}}

    def __str__(self) -> str:
        if not any(row["calls"] for row in self.usage.values()):
            return "nothing was measured"
        about, most = (
            _amounts(
                (self.total("prompt_tokens", bound), self.total("completion_tokens", bound)),
                self.hours(bound),
                self.processes,
                self.total("cost", bound),
                self.currency,
            )
            for bound in (False, True)
        )
        pairs = "pair" if self.measured == 1 else "pairs"
        calls = sum(row["calls"] or 0 for row in self.usage.values())
        return (
            f"{_count(self.measured)} {pairs} measured, {_count(calls)} calls. "
            f"At their rate {_count(self.plan.load.pairs)} pairs take about {', '.join(about)}; "
            f"if every pair gets through, {', '.join(most)}."
        )


def _amounts(
    tokens: tuple[float | None, float | None], hours: float | None, processes: int, cost: float | None, currency: str
) -> list[str]:
    """Those that are known, in words."""
    parts = []
    if tokens[0] is not None and tokens[1] is not None:
        parts.append(f"{_count(tokens[0])} + {_count(tokens[1])} tokens")
    if hours is not None:
        length = f"{hours:.3g} h" if hours >= 0.1 else f"{60 * hours:.2g} min"
        parts.append(length + (f" on {processes} processes" if processes > 1 else ""))
    if cost is not None:
        parts.append(f"{cost:,.2f} {currency}".strip())
    return parts


@dataclass(frozen=True)
class Estimate:
    """What all pairs will take, at the rate of those that were measured.

    It carries the measured pairs over to all: as far as those are like the rest. Pairs come in the order of their files, so where
    several data sets are read one after the other, the first batch speaks for the first set only.

    Args:
        pairs: All pairs.
        measured: Pairs that have been through the stages.
        kept: Those of them that were kept.
        usage: What they took.
        processes: Processes among which the pairs are shared out, each as fast as the measured one.
        currency: Of the cost.
        seconds: What the measured pairs took in all on their process; by default, what was spent in waiting for the teacher.
    """

    pairs: int
    measured: int
    kept: int
    usage: Usage
    processes: int = 1
    currency: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.kept <= self.measured <= self.pairs or self.processes < 1:
            raise ValueError(
                f"{self.kept} kept of {self.measured} measured of {self.pairs} pairs on {self.processes} processes cannot be"
            )

    def total(self, name: str) -> float | None:
        """A quantity for all pairs; ``None`` if it was not measured."""
        amount = total_of(self.usage, name)
        return amount * self.pairs / self.measured if amount is not None and self.measured else None

    @property
    def hours(self) -> float | None:
        """Hours that all pairs take."""
        if self.seconds is not None and self.measured:
            seconds: float | None = self.seconds * self.pairs / self.measured
        else:
            seconds = self.total("seconds")
        return seconds / 3600 / self.processes if seconds is not None else None

    @property
    def kept_rate(self) -> dict[str, Any]:
        """Share kept, with its Wilson interval (:func:`.audit.rate`)."""
        return rate(self.kept, self.measured)

    @property
    def kept_pairs(self) -> dict[str, Any]:
        """Pairs that will be kept, with the interval of the rate."""
        found = self.kept_rate
        value, bounds = found["value"], found["ci95"]
        return {
            "value": value * self.pairs if value is not None else None,
            "ci95": [bound * self.pairs for bound in bounds] if bounds is not None else None,
            "n": self.measured,
        }

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "pairs": self.pairs,
            "measured": self.measured,
            "kept_rate": self.kept_rate,
            "kept_pairs": self.kept_pairs,
            **{name: self.total(name) for name in QUANTITIES if name != "seconds"},
            "hours": self.hours,
            "processes": self.processes,
            "currency": self.currency,
            "usage": {stage: dict(found) for stage, found in self.usage.items()},
        }

    def __str__(self) -> str:
        kept, parts = self.kept_rate, []
        for name, unit in (("calls", "calls"), ("images", "pictures")):
            if (amount := self.total(name)) is not None:
                parts.append(f"{_count(amount)} {unit}")
        tokens = self.total("prompt_tokens"), self.total("completion_tokens")
        parts += _amounts(tokens, self.hours, self.processes, self.total("cost"), self.currency)
        if kept["value"] is None:
            return "nothing was measured"
        low, high = (100 * bound for bound in kept["ci95"])
        least, most = map(_count, self.kept_pairs["ci95"])
        return (
            f"{_count(self.measured)} pairs measured, {100 * kept['value']:.0f} % kept (95 % interval {low:.0f} to {high:.0f}). "
            f"At this rate {_count(self.pairs)} pairs take {', '.join(parts) or 'no calls'}, and {least} to {most} are kept."
        )


def _count(amount: float) -> str:
    return f"{amount:,.0f}"
