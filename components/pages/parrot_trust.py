"""Whether the rationales can be trusted: the check against wrong labels, bias and agreement; and how long they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import charts
from .markup import Html, signed, tag
from .parrot_tables import signed_bounds, table
from .report import Kind, _bounds, _measured, _number, _written

_READS = (
    (
        ("", "right_label_pass_rate"),
        "Right labels that pass the check",
        "Control pairs, with the comparison written for the label that people gave.",
    ),
    (
        ("", "wrong_label_pass_rate"),
        "Wrong labels that pass the check",
        "The same pairs, with the comparison written for the opposite label: how often the teacher is talked into anything. The closer "
        "to the line above, the less the check selects.",
    ),
    (
        ("position_bias", "label_gap"),
        "Pass rate of labels A less that of labels B",
        "0 where it does not matter which of the two pictures is the preferred one.",
    ),
    (
        ("position_bias", "first_share"),
        "Picture shown first, among votes against the label",
        "One half where the place does not matter. With checks in one order only, the first is always A, and uneven labels move it too.",
    ),
    (
        ("position_bias", "order_agreement"),
        "Same verdict in both orders",
        "Pairs whose votes lean to the same side whichever picture is shown first.",
    ),
    (
        ("agreement", "winner_scores"),
        "Written winner is that of the written scores",
        "By aspect: does the comparison contradict itself? The interval counts pairs, of which each has several aspects.",
    ),
    (
        ("agreement", "verdict_label"),
        "Scores of the comparison give the label",
        "The teacher was told the label; where its scores say otherwise, it did not follow.",
    ),
    (
        ("agreement", "sentiment"),
        "Scores follow from the words (Spearman)",
        "A reader that sees the justifications alone scores once more; its rank correlation with the written scores, from -1 to 1.",
    ),
)


def agreement(summary: Mapping[str, Any]) -> Html:
    """Figures that say how far the teacher can be trusted, each with what it reads."""
    rows = []
    for (section, key), label, reads in _READS:
        found = (summary.get(section) or {}) if section else summary
        measured = _measured(found, key, "control_pairs")
        value = _number(measured.value)
        if key == "label_gap":
            written, bounds = None if value is None else f"{signed(100 * value, 1)} points", signed_bounds(measured)
        else:
            kind: Kind = "unit" if key == "sentiment" else "share"
            written, bounds = None if value is None else _written(value, kind), _bounds(measured, kind)
        drawn = charts.interval(value, measured.bounds) if value is not None and key not in ("label_gap", "sentiment") else None
        rows.append(
            tag(
                "tr",
                tag("th", label, tag("small", reads), scope="row"),
                tag("td", written or "not measured", class_="number" if written else "number quiet"),
                tag("td", bounds if written else "", class_="number"),
                tag("td", _written(measured.n, "count") if written else "", class_="number"),
                tag("td", drawn, class_="plot"),
            )
        )
    heads = [("Figure, and what it reads", None), ("Value", "number"), ("95 % interval", "number"), ("n", "number")]
    return table("Agreement", [*heads, ("from 0 to 1", "plot")], rows)


_TITLES = {"pair": "Comparisons", "point": "Critiques of one picture"}


def lengths_charts(summary: Mapping[str, Any]) -> Html:
    """How long the texts of kept and dropped pairs are, in words."""
    found = summary.get("lengths") or {}
    drawn = [
        _histogram(_TITLES.get(name, name), lengths)
        for name, lengths in found.items()
        if (lengths or {}).get("histogram") is not None
    ]
    return tag("div", *drawn, class_="charts") if drawn else tag("p", "no texts", class_="quiet")


def _histogram(title: str, lengths: Mapping[str, Any]) -> Html:
    bins = lengths["histogram"]
    low, width, kept, dropped = bins["low"], bins["width"], bins["kept"], bins["dropped"]
    most = max(map(sum, zip(kept, dropped, strict=True)))
    y_ticks = [tick for tick in charts.ticks(0, most, 3) if tick == round(tick)]
    left, right, top, bottom = 48, 12, 10, 40
    room, height = charts.WIDTH - left - right, charts.HEIGHT - top - bottom
    each = room / len(kept)
    parts = []
    for tick in y_ticks:
        y = f"{top + height * (1 - tick / y_ticks[-1]):.1f}"
        parts.append(tag("line", x1=left, x2=charts.WIDTH - right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", _written(tick, "count"), x=left - 6, y=y, dy="0.35em", text_anchor="end"))
    for index, both in enumerate(zip(kept, dropped, strict=True)):
        floor = float(top + height)
        span = f"{low + index * width} to {low + (index + 1) * width - 1} words"
        for name, count in zip(("kept", "dropped"), both, strict=True):
            if count:
                size = height * count / y_ticks[-1]
                note = tag("title", f"{span}: {count} {name}")
                floor -= size
                x, across = f"{left + index * each + 0.5:.1f}", f"{max(1.0, each - 1):.1f}"
                parts.append(tag("rect", note, x=x, y=f"{floor:.1f}", width=across, height=f"{size:.1f}", class_=name))
    end = low + len(kept) * width
    for tick in charts.ticks(low, end, 5):
        if low <= tick <= end:
            x = f"{left + room * (tick - low) / (end - low):.1f}"
            parts.append(tag("text", _written(tick, "count"), x=x, y=charts.HEIGHT - bottom + 16, text_anchor="middle"))
    parts.append(tag("text", "words", x=left + room / 2, y=charts.HEIGHT - 6, text_anchor="middle"))
    legend, said = [], []
    for name in ("kept", "dropped"):
        n, median, deciles = (lengths[name].get(key) for key in ("n", "median", "deciles"))
        text = f"{name}: {_written(n, 'count')} texts"
        if median is not None and deciles:
            text += f", median {median:.0f}, four in five from {deciles[0]:.0f} to {deciles[-1]:.0f} words"
        swatch = tag("span", class_=f"swatch {name}", aria_hidden="true")
        legend.append(tag("li", swatch, text))
        said.append(text)
    drawing = tag(
        "svg", *parts, viewBox=f"0 0 {charts.WIDTH} {charts.HEIGHT}", role="img", aria_label=f"{title}: {'; '.join(said)}"
    )
    return tag("figure", tag("h3", title), tag("ul", *legend, class_="legend"), drawing, class_="chart histogram")
