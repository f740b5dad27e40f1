"""From pairs to rationales: what each stage let through, why pairs were dropped, and what every data set gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import charts
from .markup import Html, join, tag, words
from .parrot_tables import STAGES, cells, table
from .report import _bounds, _measured, _number, _written

_BAR, _ROW = 16, 58


def flow(summary: Mapping[str, Any]) -> Html:
    """A bar for each stage, as wide as the pairs that came to it: what went on, and what was dropped there, by kind."""
    pairs = _number(summary.get("pairs")) or 0.0
    stages = {name: found for name, found in (summary.get("stages") or {}).items() if _number(found.get("in")) is not None}
    if not pairs or not stages:
        return tag("p", "no pairs", class_="quiet")

    def wide(count: float) -> float:
        return charts.WIDTH * count / pairs

    parts: list[Html] = []
    for row, (stage, found) in enumerate(stages.items()):
        came, passed, top = found["in"], found["out"], row * _ROW
        kinds = _kinds(summary, stage)
        lost = f"{_written(came - passed, 'count')} dropped" + (f": {next(iter(kinds))}" if came > passed and kinds else "")
        parts += _heading(STAGES.get(stage, words(stage)), f"{_written(came, 'count')} in, {lost}", top)
        parts.append(tag("rect", x=0, y=top + 20, width=charts.WIDTH, height=_BAR, class_="rest"))
        on = tag("title", f"{stage}: {passed} go on")
        parts.append(tag("rect", on, x=0, y=top + 20, width=f"{wide(passed):.1f}", height=_BAR, class_="on"))
        left = float(passed)
        for index, (kind, count) in enumerate(kinds.items()):
            note = tag("title", f"{stage}: {kind}, {count}")
            width = f"{wide(count):.1f}"
            parts.append(
                tag("rect", note, x=f"{wide(left):.1f}", y=top + 20, width=width, height=_BAR, class_=f"d{1 + index % 5}")
            )
            left += count
        below = f"{wide(passed):.1f}"
        parts.append(tag("rect", x=0, y=top + 20 + _BAR, width=below, height=_ROW - _BAR, class_="stream"))
    kept, top = summary.get("kept") or 0, len(stages) * _ROW
    parts += _heading("Kept", f"{_written(kept, 'count')}, {_written(kept / pairs, 'share')} of all pairs", top)
    parts.append(tag("rect", x=0, y=top + 20, width=charts.WIDTH, height=_BAR, class_="rest"))
    parts.append(tag("rect", x=0, y=top + 20, width=f"{wide(kept):.1f}", height=_BAR, class_="on"))
    said = "; ".join(f"{stage}: {found['in']} in, {found['out']} out" for stage, found in stages.items())
    drawing = tag(
        "svg", *parts, viewBox=f"0 0 {charts.WIDTH} {top + 24 + _BAR}", role="img", aria_label=f"Pairs by stage. {said}"
    )
    return tag("figure", drawing, class_="chart flow")


_LINE = 74
"""Characters of the text over a bar that fit its width."""


def _heading(name: str, text: str, top: float) -> list[Html]:
    text = text if len(name) + len(text) < _LINE else text[: _LINE - len(name)].rstrip() + "…"
    return [
        tag("text", name, x=2, y=top + 14, class_="name"),
        tag("text", text, x=charts.WIDTH - 2, y=top + 14, text_anchor="end"),
    ]


def _kinds(summary: Mapping[str, Any], stage: str) -> dict[str, int]:
    """Why pairs were dropped at a stage, most frequent first."""
    start = f"{stage}: "
    return {key.removeprefix(start): count for key, count in (summary.get("reasons") or {}).items() if key.startswith(start)}


def reasons_table(summary: Mapping[str, Any]) -> Html:
    """Why pairs were dropped, most frequent first."""
    reasons, pairs = summary.get("reasons") or {}, _number(summary.get("pairs"))
    if not reasons or not pairs:
        return tag("p", "no pair was dropped" if pairs else "no pairs", class_="quiet")
    most = max(reasons.values())
    rows = []
    for key, count in reasons.items():
        stage, _, kind = key.partition(": ")
        bar = tag("span", tag("i", style=f"width:{100 * count / most:.1f}%", class_="dropped"), class_="bar", aria_hidden="true")
        numbers = cells(_written(count, "count"), _written(count / pairs, "share"))
        rows.append(
            tag("tr", tag("th", STAGES.get(stage, stage), scope="row"), tag("td", kind), *numbers, tag("td", bar, class_="plot"))
        )
    heads = [("Stage", None), ("Reason", None), ("Pairs", "number"), ("Of all", "number"), ("", "plot")]
    return table("Reasons", heads, rows)


_SOURCES = 50
"""Most data sets in the table."""


def sources_table(summary: Mapping[str, Any]) -> Html:
    """What every data set gave, and every task and kind of label."""
    found = summary.get("sources") or {}
    rows = [_group(name, group) for name, group in list(found.items())[:_SOURCES]]
    heads = [("Data set", None), ("Pairs", "number"), ("Kept", "number"), ("Share kept", "number"), ("95 % interval", "number")]
    heads += [("from 0 to 1", "plot"), ("Dropped most often for", None)]
    more = tag("p", f"and {len(found) - _SOURCES} more", class_="quiet") if len(found) > _SOURCES else None
    others = [
        _group(f"{title}: {_LABELS.get(name, name)}", group)
        for key, title in (("tasks", "Task"), ("labels", "Label"))
        for name, group in (summary.get(key) or {}).items()
    ]
    kinds = join(
        tag("h3", "By task and kind of label"), table("By task and label", [("Pairs that are", None), *heads[1:]], others)
    )
    return (
        join(table("By source", heads, rows), more, kinds if others else None) if rows else tag("p", "no pairs", class_="quiet")
    )


_LABELS = {"t2i": "text to image", "edit": "edit", "decided": "certain", "soft": "split votes", "tie": "no difference"}


def _group(name: str, group: Mapping[str, Any]) -> Html:
    kept = _measured(group, "kept_rate")
    reason = next(iter(group.get("reasons") or {}), "")
    plot = charts.interval(kept.value, kept.bounds) if _number(kept.value) is not None else None
    return tag(
        "tr",
        tag("th", name, scope="row"),
        *cells(
            _written(group.get("pairs"), "count"),
            _written(group.get("kept"), "count"),
            _written(kept.value, "share"),
            _bounds(kept, "share"),
        ),
        tag("td", plot, class_="plot"),
        tag("td", reason, class_="reason"),
    )
