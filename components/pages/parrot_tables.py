"""What the parts of a PARROT report are written with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .markup import Html, scrolling, signed, tag
from .report import _bounds, _Measured, _number, _written

STAGES = {
    "screen": "Screen",
    "anchor": "Anchor",
    "check": "Check",
    "project": "Project",
    "refine": "Refine",
}
"""Stages, and what a reader is told they are."""


def table(label: str, heads: Sequence[tuple[str, str | None]], rows: Iterable[Html], foot: Html | None = None) -> Html:
    """A table that scrolls where it is too wide. ``heads`` are texts and their classes."""
    head = tag("tr", *(tag("th", text, scope="col", class_=style) for text, style in heads))
    last = tag("tfoot", foot) if foot is not None else None
    return scrolling(label, tag("table", tag("thead", head), tag("tbody", *rows), last))


def cells(*values: str) -> list[Html]:
    """Numbers of a row."""
    return [tag("td", value, class_="number") for value in values]


def share(measured: _Measured) -> str | None:
    """A share in per cent; ``None`` if it was not measured."""
    return None if _number(measured.value) is None else _written(measured.value, "share")


def interval_line(measured: _Measured) -> str:
    """Interval and number of cases of a share, as far as they are known."""
    bounds = f"95 % interval {_bounds(measured, 'share')}, " if measured.bounds is not None else ""
    return f"{bounds}n = {_written(measured.n, 'count')}" if measured.n else ""


def signed_bounds(measured: _Measured) -> str:
    """The interval of a difference, in points."""
    if measured.bounds is None:
        return "not known"
    return " to ".join(signed(100 * bound, 1) for bound in measured.bounds)
