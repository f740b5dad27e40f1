"""The report of a PARROT run: what was kept, what fell out and why, how far the teacher can be trusted, what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .markup import Html, join, page, signed, tag
from .parrot_costs import total, usage_table
from .parrot_examples import Example, examples_of_each
from .parrot_flow import flow, reasons_table, sources_table
from .parrot_tables import interval_line, share, signed_bounds
from .parrot_trust import agreement, lengths_charts
from .report import _STYLE as _REPORT_STYLE
from .report import _beside, _measured, _number, _written

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
        ("flow", "From pairs to rationales", _beside(flow(summary), "Why pairs were dropped", reasons_table(summary))),
        ("sources", "By source", sources_table(summary)),
        ("agreement", "Can the rationales be trusted?", agreement(summary)),
        ("lengths", "Length", lengths_charts(summary)),
        ("cost", "Calls and cost", usage_table(usage, currency)),
        ("examples", "Examples", examples_of_each(summary, examples, max_side)),
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


def _tiles(summary: Mapping[str, Any], usage: Mapping[str, Mapping[str, float | None]], currency: str) -> Html:
    bias = summary.get("position_bias") or {}
    right, wrong = (_measured(summary, f"{name}_label_pass_rate", "control_pairs") for name in ("right", "wrong"))
    gap, first = _measured(bias, "label_gap"), _measured(bias, "first_share")
    kept = _measured(summary, "kept_rate", "pairs")
    pairs, unanswered = summary.get("pairs"), summary.get("unanswered")
    calls, cost = total(usage, "calls"), total(usage, "cost")
    tokens = [total(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    counted = None if None in tokens else sum(amount or 0 for amount in tokens)
    in_pairs = "" if _number(gap.value) is None else f"95 % interval {signed_bounds(gap)}, n = {_written(gap.n, 'count')}"
    return tag(
        "div",
        _tile(
            "Preference pairs",
            None if pairs is None else _written(pairs, "count"),
            f"{_written(summary.get('kept'), 'count')} kept as rationales",
            f"{_written(unanswered, 'count')} without an answer of the teacher" if unanswered else "",
        ),
        _tile("Kept", share(kept), interval_line(kept)),
        _tile(
            "Wrong labels that pass",
            share(wrong),
            interval_line(wrong),
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


def _raw(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> Html:
    def folded(name: str, value: Any) -> Html:
        return tag("details", tag("summary", name), tag("pre", json.dumps(value, indent=2, ensure_ascii=False, default=str)))

    return join(folded("Settings", settings) if settings else None, folded("Summary", summary))
