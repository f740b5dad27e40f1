"""Two judges on the same rows: is one better, and could these rows have told?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..metrics import detectable_difference, mcnemar, paired_bootstrap, paired_power
from .judgements import Judgement
from .named import Credit, Protocol, find_protocol
from .results import counted, evaluate, percent
from .ties import Ties

DIFFERENCES = (0.01, 0.02, 0.03, 0.05)
"""Differences whose power is told."""


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two judges by one protocol.

    Args:
        protocol: Name of the protocol.
        rows: What was counted.
        modes: How the first and the second judged.
        n: Units: pairs, or groups. A pair that counts twice (both orders) is one unit with its mean.
        requests: Clusters that are resampled together.
        first: The first judge's number, failures counted as wrong.
        second: The second's.
        difference: First less second.
        interval: Its 95 % interval: paired bootstrap over requests with their sources.
        first_better: Units on which the first has more credit.
        second_better: Units on which the second has.
        discordant: Share of units on which they differ.
        p: Two-sided exact McNemar test (of half credits: sign test) on those. It takes units for independent, which pairs that share
            pictures are not; where it and the interval disagree, believe the interval.
        detectable: Smallest difference that so many units show with 80 % power at this discordance; ``None`` where nothing differs.
        power: For some differences, the power to show them at this discordance.
    """

    protocol: str
    rows: str
    modes: tuple[str, str]
    n: int
    requests: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    first_better: int
    second_better: int
    discordant: float
    p: float
    detectable: float | None
    power: Mapping[str, float]

    def text(self, first: str = "first", second: str = "second") -> str:
        """The comparison in a few lines, for people."""
        a, b = (f"{name} ({mode})" for name, mode in zip((first, second), self.modes, strict=True))
        lines = [
            f"{self.protocol} on {self.rows}: {self.n} units in {self.requests} requests, failures counted as wrong",
            f"  {a}: {percent(self.first)} %",
            f"  {b}: {percent(self.second)} %",
            f"  difference: {100 * self.difference:+.1f} points, 95 % [{100 * self.interval[0]:+.1f}, {100 * self.interval[1]:+.1f}]"
            " (paired bootstrap over requests)",
            f"  discordant: {percent(self.discordant)} % ({self.first_better} to the first, {self.second_better} to the second), "
            f"McNemar p = {self.p:.3g}",
        ]
        if self.detectable is not None:
            told = ", ".join(f"{points} points {100 * power:.0f} %" for points, power in self.power.items())
            lines.append(
                f"  power at this discordance: {told}; {100 * self.detectable:.1f} points are needed for 80 %"
                if told
                else f"  {100 * self.detectable:.1f} points are needed for 80 % power at this discordance"
            )
        return "\n".join(lines)


def compare(
    protocol: str | Protocol,
    first: Sequence[Judgement],
    second: Sequence[Judgement],
    ties: tuple[Ties | None, Ties | None] = (None, None),
) -> Comparison:
    """Compare two judges on the same rows.

    Args:
        protocol: The protocol or its name.
        first: The first judge's judgements.
        second: The second's, in any order.
        ties: Each judge's tie threshold, fitted on that judge's judgements of other rows.

    Raises:
        ValueError: If the rows are not the same pairs with the same labels, and for the reasons of :func:`evaluate`.
    """
    rule = find_protocol(protocol) if isinstance(protocol, str) else protocol
    same_rows(first, second)
    results = [evaluate(rule, judged, ties=tie) for judged, tie in zip((first, second), ties, strict=True)]
    credits = [_by_unit(counted(rule, judged, tie)) for judged, tie in zip((first, second), ties, strict=True)]
    units = list(credits[0])
    a, b = (torch.tensor([of[unit][0] for unit in units], dtype=torch.float64) for of in credits)
    names = {name: index for index, name in enumerate(dict.fromkeys(cluster for _, cluster in credits[0].values()))}
    clusters = torch.tensor([names[credits[0][unit][1]] for unit in units])
    n, discordant = len(units), float((a != b).double().mean())
    fits = [difference for difference in DIFFERENCES if difference <= discordant]
    return Comparison(
        protocol=rule.name,
        rows=results[0].rows,
        modes=(results[0].mode, results[1].mode),
        n=n,
        requests=len(names),
        first=float(a.mean()),
        second=float(b.mean()),
        difference=float((a - b).mean()),
        interval=paired_bootstrap(a, b, clusters),
        first_better=int((a > b).sum()),
        second_better=int((b > a).sum()),
        discordant=discordant,
        p=mcnemar(a > b, b > a),
        detectable=detectable_difference(n, discordant) if discordant else None,
        power={f"{100 * difference:.0f}": paired_power(n, discordant, difference) for difference in fits},
    )


def _by_unit(credits: Sequence[Credit]) -> dict[str, tuple[float, str]]:
    """Each unit's mean credit and its cluster."""
    found: dict[str, list[Credit]] = {}
    for credit in credits:
        found.setdefault(credit.unit, []).append(credit)
    return {unit: (sum(credit.right for credit in of) / len(of), of[0].cluster) for unit, of in found.items()}


def same_rows(first: Sequence[Judgement], second: Sequence[Judgement]) -> None:
    """See that two judges judged the same pairs.

    Raises:
        ValueError: If not; the message says how many are missing where, or which pair differs in what.
    """
    one, other = ({judgement.id: judgement for judgement in judged} for judged in (first, second))
    apart = [sorted(set(a) - set(b)) for a, b in ((one, other), (other, one))]
    if any(apart):
        told = [
            f"{len(ids)} only in the {name}, e.g. {ids[0]!r}" for ids, name in zip(apart, ("first", "second"), strict=True) if ids
        ]
        raise ValueError(
            f"the two judges judged different rows ({len(one)} and {len(other)} pairs; {'; '.join(told)}), so nothing can be paired: "
            "judge the same pairs with both"
        )
    for id, a in one.items():
        b = other[id]
        for what in ("label", "group"):
            if getattr(a, what) != getattr(b, what):
                raise ValueError(
                    f"pair {id!r} has the {what} {getattr(a, what)!r} in the first and {getattr(b, what)!r} in the second: these are "
                    "different versions of the rows; judge the same pairs with both"
                )
