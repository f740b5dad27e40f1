"""Calls, tokens, time and cost, by stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markup import Html, join, tag
from .parrot_tables import cells, table
from .report import Kind, _number, _written

_CALLS = {
    "anchor": "Comparisons",
    "check": "Checks",
    "check-swapped": "Checks in the other order",
    "project": "Critiques of one picture",
    "refine": "Refined requests",
    "audit": "Blind reading",
    "control-anchor": "Control: comparisons",
    "control-check": "Control: checks",
    "control-check-swapped": "Control: checks in the other order",
}


_AMOUNTS = (
    ("calls", "Calls"),
    ("failures", "Failed"),
    ("images", "Pictures"),
    ("prompt_tokens", "Tokens asked"),
    ("completion_tokens", "Tokens answered"),
    ("seconds", "Seconds"),
    ("cost", "Cost"),
)


def total(usage: Mapping[str, Mapping[str, float | None]], name: str) -> float | None:
    """A quantity over all stages; ``None`` where nobody measured it."""
    amounts = [amount for found in usage.values() if (amount := _number(found.get(name))) is not None]
    if not amounts or (name.endswith("_tokens") and not any(amounts)):
        return None  # a backend that does not count tokens says 0
    if name == "cost" and total(usage, "prompt_tokens") is None:
        return None
    return sum(amounts)


def usage_table(usage: Mapping[str, Mapping[str, float | None]], currency: str) -> Html:
    """What each kind of call took, and all of them."""
    if not usage:
        return tag("p", "not measured", class_="quiet")
    totals = {name: total(usage, name) for name, _ in _AMOUNTS}

    def amounts(found: Mapping[str, Any]) -> list[Html]:
        written = []
        for name, _ in _AMOUNTS:
            amount = _number(found.get(name)) if totals[name] is not None else None
            kind: Kind = "score" if name == "cost" else "count"
            written.append("\u2013" if amount is None else _written(amount, kind))
        return cells(*written)

    stages = sorted(usage, key=lambda stage: list(_CALLS).index(stage) if stage in _CALLS else len(_CALLS))
    rows = [tag("tr", tag("th", _CALLS.get(stage, stage), scope="row"), *amounts(usage[stage])) for stage in stages]
    heads = [
        ("Calls for", None),
        *((f"{title}, {currency}" if name == "cost" and currency else title, "number") for name, title in _AMOUNTS),
    ]
    foot = tag("tr", tag("th", "All", scope="row"), *amounts(totals))
    note = "Seconds are those of waiting for the teacher, over all processes; a request that was sent along with others has its share."
    return join(table("Calls and cost", heads, rows, foot), tag("p", note, class_="quiet"))
