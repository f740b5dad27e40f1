"""The report of a PARROT run: what was kept, what fell out and why, how far the teacher can be trusted, what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import charts
from .markup import Html, join, page, picture, scrolling, signed, tag, words
from .report import _STYLE as _REPORT_STYLE
from .report import Kind, _beside, _bounds, _Measured, _measured, _number, _written

_STYLE = (
    _REPORT_STYLE
    + """
.flow .rest { fill: var(--surface); } .flow .on { fill: var(--c0); } .flow .stream { fill: var(--c0); opacity: .18; }
.flow text, .histogram text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
.flow text.name { fill: var(--ink); font-weight: 600; }
.histogram .kept { fill: var(--c0); } .histogram .dropped { fill: var(--c1); }
.swatch { width: .8rem; height: .8rem; border-radius: 2px; flex: none; }
.swatch.kept { background: var(--c0); } .swatch.dropped { background: var(--c1); }
th small { display: block; max-width: 36rem; } .tile .big { font-size: 1.6rem; } tfoot td, tfoot th { font-weight: 600; }
td .bar > i.dropped { background: var(--c1); }
.example { padding: .9rem; border: 1px solid var(--line); border-radius: 8px; min-width: 0; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem;
  margin: .6rem 0 1.75rem; align-items: start; }
.example .shown { display: grid; grid-template-columns: repeat(auto-fit, minmax(5.5rem, 1fr)); gap: .6rem; margin-top: .6rem; }
.example .shown img { max-height: 18rem; object-fit: contain; }
.example pre { max-height: 22rem; overflow: auto; }
.example .fate { font-size: .9rem; overflow-wrap: anywhere; }
@media (max-width: 30rem) { tbody th:has(small) { min-width: 13rem; } td.reason { min-width: 11rem; } }
.preferred { outline: 3px solid var(--good); outline-offset: 2px; border-radius: 4px; }
"""
)

_NAMES = {
    "screen": "Screen",
    "anchor": "Anchor",
    "check": "Check",
    "project": "Project",
    "refine": "Refine",
}
_SOURCES = 50
"""Most data sets in the table."""


@dataclass(frozen=True)
class Example:
    """A pair as the teacher saw it, and what became of it.

    Args:
        pair: Its name.
        prompt: The request.
        candidates: Paths of both pictures.
        label: Probability that the first one is preferred.
        sources: Paths of the source pictures of an edit.
        origin: Where the pair comes from.
        stage: Last stage that it reached.
        reason: Why it was dropped; empty if it was kept.
        texts: What the teacher wrote, heading to text, in order.
        p_label: How sure the check was of the label.
        point_rewards: The rewards of both pictures alone.
    """

    pair: str
    prompt: str
    candidates: tuple[str | Path, str | Path]
    label: float
    sources: tuple[str | Path, ...] = ()
    origin: str = ""
    stage: str = ""
    reason: str = ""
    texts: Sequence[tuple[str, str]] = ()
    p_label: float | None = None
    point_rewards: tuple[float, float] | None = None


def parrot_page(
    summary: Mapping[str, Any],
    usage: Mapping[str, Mapping[str, float | None]] | None = None,
    examples: Mapping[str, Sequence[Example]] | None = None,
    notes: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    currency: str = "",
    title: str = "PARROT: report",
    max_side: int = 320,
) -> str:
    """A page about one run.

    Args:
        summary: What :func:`rationalrewards.components.parrot.audit.summarise` gives.
        usage: What :meth:`.Ledger.usage` gives.
        examples: Kind of outcome (``"kept"`` or ``"stage: kind"``) to pairs, in the order in which they are shown.
        notes: Plain sentences that a reader must know, e.g. that the teacher is simulated.
        settings: Who was asked, and how: name to value.
        currency: Of the costs.
        title: Heading of the page.
        max_side: Larger pictures are reduced to this many pixels a side.

    Returns:
        HTML that needs no network. Pictures that cannot be read are replaced by the reason.
    """
    usage, examples, settings = usage or {}, examples or {}, settings or {}
    plans = summary.get("plans") or {}
    if len(plans) > 1:
        mixed = f"These figures mix {len(plans)} plans: between runs on this folder teacher, format or options were changed."
        notes = [*notes, mixed]
    parts = [
        ("flow", "From pairs to rationales", _beside(_flow(summary), "Why pairs were dropped", _reasons(summary))),
        ("sources", "By source", _sources(summary)),
        ("agreement", "Can the rationales be trusted?", _agreement(summary)),
        ("lengths", "Length", _lengths(summary)),
        ("cost", "Calls and cost", _usage(usage, currency)),
        ("examples", "Examples", _examples(summary, examples, max_side)),
        ("raw", "All figures as written", _raw(summary, settings)),
    ]
    teacher = settings.get("teacher")
    body = join(
        tag("h1", title),
        tag("p", f"Teacher: {teacher}." if teacher else "Teacher not recorded.", class_="quiet text"),
        tag("nav", *(tag("a", heading, href=f"#{key}") for key, heading, _ in parts), aria_label="Sections"),
        tag("aside", tag("strong", "Read this first"), tag("ul", *(tag("li", note) for note in notes)), class_="notes")
        if notes
        else None,
        _tiles(summary, usage, currency),
        tag("main", *(tag("section", tag("h2", heading), content, id=key) for key, heading, content in parts)),
    )
    return page(title, body, _STYLE)


# -- the first look


def _tiles(summary: Mapping[str, Any], usage: Mapping[str, Mapping[str, float | None]], currency: str) -> Html:
    bias = summary.get("position_bias") or {}
    right, wrong = (_measured(summary, f"{name}_label_pass_rate", "control_pairs") for name in ("right", "wrong"))
    gap, first = _measured(bias, "label_gap"), _measured(bias, "first_share")
    kept = _measured(summary, "kept_rate", "pairs")
    pairs, unanswered = summary.get("pairs"), summary.get("unanswered")
    calls, cost = _total(usage, "calls"), _total(usage, "cost")
    tokens = [_total(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    counted = None if None in tokens else sum(amount or 0 for amount in tokens)
    in_pairs = "" if _number(gap.value) is None else f"95 % interval {_signed_bounds(gap)}, n = {_written(gap.n, 'count')}"
    return tag(
        "div",
        _tile(
            "Preference pairs",
            None if pairs is None else _written(pairs, "count"),
            f"{_written(summary.get('kept'), 'count')} kept as rationales",
            f"{_written(unanswered, 'count')} without an answer of the teacher" if unanswered else "",
        ),
        _tile("Kept", _share(kept), _interval_line(kept)),
        _tile(
            "Wrong labels that pass",
            _share(wrong),
            _interval_line(wrong),
            f"right labels: {_written(right.value, 'share')}" if right.value is not None else "",
        ),
        _tile(
            "Position bias",
            None if (value := _number(gap.value)) is None else f"{signed(100 * value, 1)} points",
            "pass rate of labels A less that of B",
            in_pairs,
            ""
            if first.value is None
            else f"{_written(first.value, 'share')} of votes against the label name the picture shown first",
        ),
        _tile(
            "Cost",
            None if cost is None else f"{cost:,.2f} {currency}".strip(),
            f"{_written(calls, 'count')} calls" if calls is not None else "",
            f"{_written(counted, 'count')} tokens" if counted is not None else "tokens not measured",
        ),
        class_="tiles",
    )


def _tile(title: str, big: str | None, *lines: str) -> Html:
    return tag(
        "div",
        tag("h3", title),
        tag("p", big or "not measured", class_="big" if big else "big none"),
        *(tag("p", line, class_="quiet") for line in lines if line),
        class_="tile",
    )


def _share(measured: _Measured) -> str | None:
    return None if _number(measured.value) is None else _written(measured.value, "share")


def _interval_line(measured: _Measured) -> str:
    bounds = f"95 % interval {_bounds(measured, 'share')}, " if measured.bounds is not None else ""
    return f"{bounds}n = {_written(measured.n, 'count')}" if measured.n else ""


def _signed_bounds(measured: _Measured) -> str:
    if measured.bounds is None:
        return "not known"
    return " to ".join(signed(100 * bound, 1) for bound in measured.bounds)


# -- flow and reasons


_BAR, _ROW = 16, 58


def _flow(summary: Mapping[str, Any]) -> Html:
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
        parts += _heading(_NAMES.get(stage, words(stage)), f"{_written(came, 'count')} in, {lost}", top)
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


def _table(label: str, heads: Sequence[tuple[str, str | None]], rows: Iterable[Html], foot: Html | None = None) -> Html:
    head = tag("tr", *(tag("th", text, scope="col", class_=style) for text, style in heads))
    last = tag("tfoot", foot) if foot is not None else None
    return scrolling(label, tag("table", tag("thead", head), tag("tbody", *rows), last))


def _cells(*values: str) -> list[Html]:
    return [tag("td", value, class_="number") for value in values]


def _reasons(summary: Mapping[str, Any]) -> Html:
    reasons, pairs = summary.get("reasons") or {}, _number(summary.get("pairs"))
    if not reasons or not pairs:
        return tag("p", "no pair was dropped" if pairs else "no pairs", class_="quiet")
    most = max(reasons.values())
    rows = []
    for key, count in reasons.items():
        stage, _, kind = key.partition(": ")
        bar = tag("span", tag("i", style=f"width:{100 * count / most:.1f}%", class_="dropped"), class_="bar", aria_hidden="true")
        numbers = _cells(_written(count, "count"), _written(count / pairs, "share"))
        rows.append(
            tag("tr", tag("th", _NAMES.get(stage, stage), scope="row"), tag("td", kind), *numbers, tag("td", bar, class_="plot"))
        )
    heads = [("Stage", None), ("Reason", None), ("Pairs", "number"), ("Of all", "number"), ("", "plot")]
    return _table("Reasons", heads, rows)


# -- sources


def _sources(summary: Mapping[str, Any]) -> Html:
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
        tag("h3", "By task and kind of label"), _table("By task and label", [("Pairs that are", None), *heads[1:]], others)
    )
    return (
        join(_table("By source", heads, rows), more, kinds if others else None) if rows else tag("p", "no pairs", class_="quiet")
    )


_LABELS = {"t2i": "text to image", "edit": "edit", "decided": "certain", "soft": "split votes", "tie": "no difference"}


def _group(name: str, group: Mapping[str, Any]) -> Html:
    kept = _measured(group, "kept_rate")
    reason = next(iter(group.get("reasons") or {}), "")
    plot = charts.interval(kept.value, kept.bounds) if _number(kept.value) is not None else None
    return tag(
        "tr",
        tag("th", name, scope="row"),
        *_cells(
            _written(group.get("pairs"), "count"),
            _written(group.get("kept"), "count"),
            _written(kept.value, "share"),
            _bounds(kept, "share"),
        ),
        tag("td", plot, class_="plot"),
        tag("td", reason, class_="reason"),
    )


# -- agreement

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


def _agreement(summary: Mapping[str, Any]) -> Html:
    rows = []
    for (section, key), label, reads in _READS:
        found = (summary.get(section) or {}) if section else summary
        measured = _measured(found, key, "control_pairs")
        value = _number(measured.value)
        if key == "label_gap":
            written, bounds = None if value is None else f"{signed(100 * value, 1)} points", _signed_bounds(measured)
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
    return _table("Agreement", [*heads, ("from 0 to 1", "plot")], rows)


# -- lengths

_TITLES = {"pair": "Comparisons", "point": "Critiques of one picture"}


def _lengths(summary: Mapping[str, Any]) -> Html:
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


# -- cost

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


def _total(usage: Mapping[str, Mapping[str, float | None]], name: str) -> float | None:
    amounts = [amount for found in usage.values() if (amount := _number(found.get(name))) is not None]
    if not amounts or (name.endswith("_tokens") and not any(amounts)):
        return None  # a backend that does not count tokens says 0
    if name == "cost" and _total(usage, "prompt_tokens") is None:
        return None
    return sum(amounts)


def _usage(usage: Mapping[str, Mapping[str, float | None]], currency: str) -> Html:
    if not usage:
        return tag("p", "not measured", class_="quiet")
    totals = {name: _total(usage, name) for name, _ in _AMOUNTS}

    def cells(found: Mapping[str, Any]) -> list[Html]:
        written = []
        for name, _ in _AMOUNTS:
            amount = _number(found.get(name)) if totals[name] is not None else None
            kind: Kind = "score" if name == "cost" else "count"
            written.append("\u2013" if amount is None else _written(amount, kind))
        return _cells(*written)

    stages = sorted(usage, key=lambda stage: list(_CALLS).index(stage) if stage in _CALLS else len(_CALLS))
    rows = [tag("tr", tag("th", _CALLS.get(stage, stage), scope="row"), *cells(usage[stage])) for stage in stages]
    heads = [
        ("Calls for", None),
        *((f"{title}, {currency}" if name == "cost" and currency else title, "number") for name, title in _AMOUNTS),
    ]
    foot = tag("tr", tag("th", "All", scope="row"), *cells(totals))
    note = "Seconds are those of waiting for the teacher, over all processes; a request that was sent along with others has its share."
    return join(_table("Calls and cost", heads, rows, foot), tag("p", note, class_="quiet"))


# -- examples


def _examples(summary: Mapping[str, Any], examples: Mapping[str, Sequence[Example]], max_side: int) -> Html:
    if not any(examples.values()):
        return tag("p", "none were chosen", class_="quiet")
    counts = {"kept": summary.get("kept"), **(summary.get("reasons") or {})}
    parts = []
    for kind, chosen in examples.items():
        all_ = f" of {_written(counts[kind], 'count')}" if counts.get(kind) is not None else ""
        parts.append(tag("h3", f"{words(kind)} ", tag("small", f"{len(chosen)}{all_}")))
        parts.append(tag("div", *(_example(example, max_side) for example in chosen), class_="examples"))
    return join(*parts)


def _example(example: Example, max_side: int) -> Html:
    preferred = None if example.label == 0.5 else "A" if example.label > 0.5 else "B"
    said = "people saw no difference" if preferred is None else f"people preferred {preferred}"
    if example.label not in (0.0, 0.5, 1.0):
        said += f" ({100 * max(example.label, 1 - example.label):.0f} %)"
    figures = [
        tag("figure", picture(path, f"Source picture {number} of: {example.prompt}", max_side), tag("figcaption", "Source"))
        for number, path in enumerate(example.sources, start=1)
    ]
    rewards = example.point_rewards or (None, None)
    for name, path, reward in zip("AB", example.candidates, rewards, strict=True):
        caption = [tag("b", name), " preferred" if name == preferred else None]
        note = None if reward is None else tag("div", f"alone: reward {reward:.3f}")
        shown = picture(path, f"Picture {name} for: {example.prompt}", max_side)
        figures.append(
            tag("figure", tag("div", shown, class_="preferred" if name == preferred else None), tag("figcaption", caption, note))
        )
    fate = (
        tag("span", "kept", class_="good") if not example.reason else tag("span", f"dropped at {example.stage}: ", class_="bad")
    )
    sure = None if example.p_label is None else f" · the check is {100 * example.p_label:.0f} % for the label"
    return tag(
        "article",
        tag("p", example.prompt, class_="text"),
        tag("p", tag("small", " · ".join(part for part in (example.pair, example.origin, said) if part)), class_="text"),
        tag("p", fate, example.reason, sure, class_="fate"),
        tag("div", *figures, class_="shown"),
        *(tag("details", tag("summary", heading), tag("pre", text, tabindex=0)) for heading, text in example.texts),
        class_="example",
    )


def _raw(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> Html:
    def folded(name: str, value: Any) -> Html:
        return tag("details", tag("summary", name), tag("pre", json.dumps(value, indent=2, ensure_ascii=False, default=str)))

    return join(folded("Settings", settings) if settings else None, folded("Summary", summary))
