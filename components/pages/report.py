"""The report of a whole run: figures, curves, pictures before and after, and what to know when reading them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..records import Scale
from . import charts
from .markup import Html, join, page, picture, scrolling, signed, tag, words

Kind = Literal["share", "count", "unit", "score", "number"]


@dataclass
class Grid:
    """Pictures of the same requests before and after.

    Args:
        title: Heading.
        prompts: The requests.
        before: Paths of the pictures before, one per request.
        after: Paths of the pictures after, likewise.
        captions_before: What stands under each picture, e.g. its critique; empty for none at all.
        captions_after: Likewise.
    """

    title: str
    prompts: list[str]
    before: list[Path]
    after: list[Path]
    captions_before: list[str] = field(default_factory=list)
    captions_after: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.prompts)
        for name in ("before", "after", "captions_before", "captions_after"):
            values = getattr(self, name)
            if len(values) != count and not (name.startswith("captions") and not values):
                raise ValueError(f"grid {self.title!r}: {count} prompts but {len(values)} in {name}")


@dataclass(frozen=True)
class _Figure:
    """One figure: its key, what it is called, how it is written, and which key holds the number of cases behind it."""

    key: str
    label: str
    kind: Kind
    n: str = ""
    optional: bool = False


_CRITIC = (
    _Figure("untrained_pair_accuracy", "Pair accuracy before training", "share"),
    _Figure("pair_accuracy", "Pair accuracy", "share", "n_pairs"),
    _Figure("n_pairs", "Held-out pairs", "count"),
    _Figure("unscored_rate", "Unscored", "share", "n_pairs"),
    _Figure("tie_rate", "Ties", "share", "n_pairs", optional=True),
    _Figure("untrained_unscored_rate", "Unscored before training", "share", "untrained_pair_accuracy_n", optional=True),
    _Figure("untrained_tie_rate", "Ties before training", "share", "untrained_pair_accuracy_n", optional=True),
    _Figure("within_group_corr", "Correlation with the truth within groups", "unit"),
)
_RATIONALES = (
    _Figure("pairs", "Preference pairs", "count"),
    _Figure("anchored", "Anchored rationales", "count"),
    _Figure("kept", "Kept", "count"),
    _Figure("kept_rate", "Share kept", "share", "pairs"),
    _Figure("right_label_pass_rate", "Right labels that pass (control)", "share", "control_pairs", optional=True),
    _Figure("wrong_label_pass_rate", "Wrong labels that pass (control)", "share", "control_pairs", optional=True),
    _Figure("control_pairs", "Control pairs", "count", optional=True),
)
_RL = (
    _Figure("exact_before", "Exact match before", "share", "n"),
    _Figure("exact_after", "Exact match after", "share", "n"),
    _Figure("truth_before", "True reward before", "unit", "n"),
    _Figure("truth_after", "True reward after", "unit", "n"),
    _Figure("reward_before", "Critic's reward before", "unit", "n"),
    _Figure("reward_after", "Critic's reward after", "unit", "n"),
    _Figure("within_group_corr", "Correlation of both within groups, before", "unit", "n", optional=True),
    _Figure("updates", "Updates", "count"),
    _Figure("n_prompts", "Held-out prompts", "count", optional=True),
)
_REFINE = (
    _Figure("base", "Base", "share", "n"),
    _Figure("best_of_n", "Best of N", "share", "n"),
    _Figure("blind_rewrite_best_of_n", "Blind rewrite, best of N", "share", "n"),
    _Figure("refine_always_accept", "Refine, always accept", "share", "n", optional=True),
    _Figure("refine_keep_best", "Refine, keep best", "share", "n"),
    _Figure("gain", "Keep best less best of N, paired", "unit", "n", optional=True),
    _Figure("images_per_prompt", "Pictures per prompt", "count"),
    _Figure("harm_rate", "Harmed", "share", "n"),
)

_STYLE = (
    charts.STYLE
    + """
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1rem 0 0; }
nav a { color: var(--accent); }
.notes { margin: 1.25rem 0; padding: .75rem 1rem; background: var(--warn); border-left: 4px solid var(--warn-line);
  border-radius: 4px; }
.notes ul { margin: .25rem 0 0; padding-left: 1.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 13.5rem), 1fr)); gap: 1rem;
  margin: 1.5rem 0 0; }
.tile { padding: .9rem 1rem; background: var(--surface); border-radius: 8px; }
.tile .big { font-size: 1.9rem; line-height: 1.2; font-weight: 600; font-variant-numeric: tabular-nums;
  margin: .1rem 0; }
.tile .big.none { font-size: 1.2rem; font-weight: 400; color: var(--quiet); }
.tile p { font-size: .88rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem 2.5rem;
  align-items: start; }
.columns > * { min-width: 0; }
h3 + .scroll, .columns + .columns { margin-top: .4rem; }
.scroll + h3 { margin-top: 1.25rem; }
td.plot, th.plot { padding-left: .5rem; white-space: nowrap; }
td .bar { width: 8rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem;
  margin-top: .75rem; }
.pair { padding: .75rem; border: 1px solid var(--line); border-radius: 8px; }
.pair .both { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; margin-top: .5rem; }
.pair > .text { font-size: .92rem; }
figcaption { font-size: .82rem; margin-top: .3rem; }
figcaption b { color: var(--ink); font-weight: 600; }
@media (max-width: 30rem) { body { padding: 1rem .9rem 3rem; } td .bar { width: 4rem; } .plot { display: none; }
  th, td { padding-right: .5rem; } tbody th { min-width: 6rem; } }
"""
)


def report_page(
    summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]], grids: Sequence[Grid], notes: Sequence[str]
) -> str:
    """A page about one run of the main job.

    Args:
        summary: The figures, as in ``summary.json``. Beside a figure ``x`` of a section its 95 % interval is read from
            ``x_ci95`` (``[low, high]``) and its number of cases from ``x_n``; or ``x`` is itself
            ``{"value", "ci95", "n"}``. Without ``x_n`` the figures known here take the section's ``n`` (``rl``,
            ``refine``), ``n_pairs`` (``critic``), or ``pairs`` and ``control_pairs`` (``rationales``). Missing figures are shown as "not
            measured", further ones under their own names.
        history: What was logged during RL, one mapping per epoch with ``step`` (or ``epoch``). Missing and null values
            are gaps.
        grids: Pictures before and after.
        notes: Plain sentences that a reader must know, e.g. what was simulated.

    Returns:
        HTML that needs no network.
    """
    parts = [
        ("critic", "Critic", _critic(_section(summary, "critic"))),
        ("rationales", "Rationales", _rationales(_section(summary, "rationales"))),
        ("rl", "Reinforcement learning", _table("rl", _RL, _section(summary, "rl"))),
        ("curves", "Curves", _curves(history)),
        ("refine", "Refinement", _refine(_section(summary, "refine"))),
        *((f"grid-{number}", grid.title, _grid(grid)) for number, grid in enumerate(grids, start=1)),
        ("cost", "Time and memory", _cost(summary)),
        ("raw", "All figures as written", _raw(summary)),
    ]
    seed = summary.get("seed")
    body = join(
        tag("h1", "RationalRewards: report"),
        tag(
            "p",
            f"From preference pairs to better pictures. Seed {'not recorded' if seed is None else seed}.",
            class_="quiet",
        ),
        tag("nav", *(tag("a", title, href=f"#{key}") for key, title, _ in parts), aria_label="Sections"),
        tag("aside", tag("strong", "Read this first"), tag("ul", *(tag("li", note) for note in notes)), class_="notes")
        if notes
        else None,
        _tiles(summary),
        tag("main", *(tag("section", tag("h2", title), content, id=key) for key, title, content in parts)),
    )
    return page("RationalRewards: report", body, _STYLE)


# -- figures


@dataclass(frozen=True)
class _Measured:
    value: Any = None
    bounds: tuple[float, float] | None = None
    n: int | None = None


def _section(summary: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = summary.get(name)
    return found if isinstance(found, Mapping) else {}


def _number(value: Any) -> float | None:
    """A finite number, or None. Booleans and text are none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _measured(section: Mapping[str, Any], key: str, n_key: str = "") -> _Measured:
    """A figure with what stands beside it; see :func:`report_page`."""
    value, bounds, n = section.get(key), section.get(f"{key}_ci95"), section.get(f"{key}_n")
    if isinstance(value, Mapping) and "value" in value:
        bounds, n, value = value.get("ci95", bounds), value.get("n", n), value["value"]
    if n is None:
        n = section.get(n_key)
    if isinstance(bounds, Sequence) and not isinstance(bounds, str) and len(bounds) == 2:
        low, high = map(_number, bounds)
        pair = (low, high) if low is not None and high is not None else None
    else:
        pair = None
    return _Measured(value, pair, n if isinstance(n, int) else None)


def _written(value: Any, kind: Kind) -> str:
    """A value in words; ``not measured`` for None and for what is not a finite number."""
    if value is None:
        return "not measured"
    number = _number(value)
    if number is None:
        return "not measured" if isinstance(value, float) else str(value)
    if kind == "share":
        return f"{100 * number:.1f} %"
    if kind == "count":
        return f"{number:,.0f}".replace(",", "\u202f")
    if kind == "score":
        return f"{number:.2f}"
    if kind == "number":
        return f"{number:,.4g}".replace(",", "\u202f").replace("-", "\u2212")
    return f"{number:.3f}".replace("-", "\u2212")


def _bounds(measured: _Measured, kind: Kind) -> str:
    if measured.bounds is None:
        return ""
    low, high = (_written(bound, kind) for bound in measured.bounds)
    if kind == "share":
        low = low.removesuffix(" %")
    return f"{low} to {high}"


def _row(label: str, measured: _Measured, kind: Kind) -> Html:
    number = _number(measured.value)
    drawn = None
    if number is not None and kind in ("share", "unit") and 0 <= number <= 1:
        drawn = charts.interval(number, measured.bounds)
    n = "" if measured.n is None or kind == "count" or number is None else _written(measured.n, "count")
    return tag(
        "tr",
        tag("th", label, scope="row"),
        tag("td", _written(measured.value, kind), class_="number" if number is not None else "number quiet"),
        tag("td", _bounds(measured, kind), class_="number"),
        tag("td", n, class_="number"),
        tag("td", drawn, class_="plot"),
    )


def _table(name: str, figures: Iterable[_Figure], section: Mapping[str, Any], apart: Sequence[str] = ()) -> Html:
    """The contract's figures of a section, then whatever else it holds; ``apart`` are shown elsewhere."""
    figures = list(figures)
    rows = [
        _row(figure.label, _measured(section, figure.key, figure.n), figure.kind)
        for figure in figures
        if figure.key in section or not figure.optional
    ]
    shown = {figure.key for figure in figures} | set(apart)
    for key, value in section.items():
        if key in shown or _stands_beside(key, section):
            continue
        if isinstance(value, Mapping) and "value" not in value:
            rows += [
                _row(
                    f"{words(key)} · {words(str(inner)).lower()}",
                    _measured(value, inner, "n"),
                    _guess(str(inner), found),
                )
                for inner, found in value.items()
                if not _stands_beside(str(inner), value)
            ]
        else:
            rows.append(_row(words(key), _measured(section, key), _guess(key, value)))
    heads = [
        ("Figure", None),
        ("Value", "number"),
        ("95 % interval", "number"),
        ("n", "number"),
        ("from 0 to 1", "plot"),
    ]
    head = tag("tr", *(tag("th", text, scope="col", class_=style) for text, style in heads))
    return scrolling(f"Figures: {name}", tag("table", tag("thead", head), tag("tbody", *rows)))


def _stands_beside(key: str, section: Mapping[str, Any]) -> bool:
    """Whether a key only tells the interval or the number of cases of another one."""
    return key == "n" or any(key.endswith(end) and key.removesuffix(end) in section for end in ("_ci95", "_n"))


def _guess(key: str, value: Any) -> Kind:
    """How to write a figure that the contract does not name."""
    if isinstance(value, Mapping):
        value = value.get("value")
    if isinstance(value, int):
        return "count"
    share = any(part in key for part in ("rate", "accuracy", "share", "exact", "consistency"))
    number = _number(value)
    return "share" if share and number is not None and 0 <= number <= 1 else "number"


def _bars(
    name: str,
    heads: tuple[str, str],
    values: Mapping[str, Any],
    kind: Kind,
    scale: float | None = None,
    counts: Mapping[str, Any] | None = None,
) -> Html:
    """A table with a bar beside each number; ``scale`` is the value of a full bar, ``counts`` the cases behind each."""
    numbers = {
        key: _number(value["value"] if isinstance(value, Mapping) and "value" in value else value)
        for key, value in values.items()
    }
    full = scale or max((abs(number) for number in numbers.values() if number is not None), default=1.0) or 1.0
    rows = []
    for key, number in numbers.items():
        share = 0.0 if number is None else min(1.0, abs(number) / full)
        cells = [tag("th", words(str(key)), scope="row"), tag("td", _written(number, kind), class_="number")]
        if counts:
            cells.append(tag("td", _written(_number(counts.get(key)), "count"), class_="number"))
        bar = tag("span", tag("i", style=f"width:{100 * share:.1f}%"), class_="bar", aria_hidden="true")
        rows.append(tag("tr", cells, tag("td", bar)))
    titles = [heads[1], "n"] if counts else [heads[1]]
    numeric = [tag("th", title, scope="col", class_="number") for title in titles]
    head = tag("tr", tag("th", heads[0], scope="col"), numeric, tag("th", "", scope="col"))
    return scrolling(name, tag("table", tag("thead", head), tag("tbody", rows)))


def _mapping(section: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = section.get(key)
    return found if isinstance(found, Mapping) else {}


def _beside(table: Html, title: str, content: Html | None) -> Html:
    """A table, and another one beside it where there is room."""
    second = tag("div", tag("h3", title), content or tag("p", "not measured", class_="quiet"))
    return tag("div", tag("div", table), second, class_="columns")


def _critic(section: Mapping[str, Any]) -> Html:
    errors, scale = _mapping(section, "aspect_mae"), Scale()
    counts = _mapping(section, "aspect_mae_n")
    table = _bars("Error by aspect", ("Aspect", "Points"), errors, "score", scale.high - scale.low, counts) if errors else None
    main = _table("critic", _CRITIC, section, apart=("aspect_mae",))
    return _beside(main, f"Mean absolute error by aspect (scores run from {scale})", table)


def _rationales(section: Mapping[str, Any]) -> Html:
    reasons = _mapping(section, "reasons")
    flat: dict[str, Any] = {}
    for key, value in reasons.items():
        if isinstance(value, Mapping) and "value" not in value:
            flat |= {f"{key} · {inner}": count for inner, count in value.items()}
        else:
            flat[str(key)] = value
    table = _bars("Reasons", ("Reason", "Pairs"), flat, "count") if flat else None
    main = _table(
        "rationales", _RATIONALES, section, apart=("reasons", "stages", "sources", "tasks", "labels", "plans", "lengths")
    )
    stages = {stage: found for stage, found in _mapping(section, "stages").items() if isinstance(found, Mapping)}
    if stages:
        came, passed = ({stage: found.get(key) for stage, found in stages.items()} for key in ("in", "out"))
        most = max((number for found in came.values() if (number := _number(found)) is not None), default=None)
        main = join(
            main, tag("h3", "Pairs that passed each stage"), _bars("Stages", ("Stage", "Passed"), passed, "count", most, came)
        )
    return _beside(main, "Why pairs were dropped", table)


def _refine(section: Mapping[str, Any]) -> Html:
    # an arm may be one rate or several figures; in the second case _table writes one row for each
    plain = [f for f in _REFINE if not (isinstance(section.get(f.key), Mapping) and "value" not in section[f.key])]
    unit = tag("p", "Of each arm: the share of held-out requests that are met exactly.", class_="quiet")
    return join(unit, _table("refine", plain, section))


def _cost(summary: Mapping[str, Any]) -> Html:
    seconds = _mapping(summary, "wall_seconds")
    memory = _number(summary.get("peak_rss_gb"))
    rest = {
        key: value
        for key, value in summary.items()
        if key not in ("seed", "wall_seconds", "peak_rss_gb", "critic", "rationales", "rl", "refine")
    }
    memory_line = tag("p", f"Most memory at once: {'not measured' if memory is None else f'{memory:.2f} GB'}.")
    if not seconds:
        return join(tag("p", "Time: not measured.", class_="quiet"), memory_line, _table("further", (), rest) if rest else None)
    times = join(_bars("Seconds by stage", ("Stage", "Seconds"), seconds, "number"), memory_line)
    return _beside(times, "Further figures", _table("further", (), rest)) if rest else times


def _raw(summary: Mapping[str, Any]) -> Html:
    return tag(
        "details",
        tag("summary", "summary.json"),
        tag("pre", json.dumps(summary, indent=2, ensure_ascii=False, default=str)),
    )


# -- the first look


def _tiles(summary: Mapping[str, Any]) -> Html:
    critic, rl, refine = (_section(summary, name) for name in ("critic", "rl", "refine"))
    seconds = [number for value in _mapping(summary, "wall_seconds").values() if (number := _number(value)) is not None]
    memory = _number(summary.get("peak_rss_gb"))
    budget = _number(refine.get("images_per_prompt"))
    at = "" if budget is None else f", {budget:g} pictures per prompt each"
    total = None if not seconds else f"{int(sum(seconds)) // 60} min {int(sum(seconds)) % 60:02d} s"
    return tag(
        "div",
        _tile("Critic: pair accuracy", critic, _CRITIC[1], "untrained_pair_accuracy", "untrained"),
        _tile("RL: exact match", rl, _RL[1], "exact_before", "before"),
        _tile("Refinement: exact match", refine, _REFINE[4], "best_of_n", "best of N", at),
        tag(
            "div",
            tag("h3", "Whole run"),
            tag("p", total or "not measured", class_="big" if total else "big none"),
            tag("p", "memory not measured" if memory is None else f"at most {memory:.2f} GB of memory", class_="quiet"),
            class_="tile",
        ),
        class_="tiles",
    )


def _tile(title: str, section: Mapping[str, Any], figure: _Figure, against: str, name: str, more: str = "") -> Html:
    measured, other = _measured(section, figure.key, figure.n), _measured(section, against)
    value, base = _number(measured.value), _number(other.value)
    lines = []
    if measured.bounds is not None:
        lines.append(f"95 % interval {_bounds(measured, 'share')}")
    if value is not None and measured.n is not None:
        lines.append(f"n = {_written(measured.n, 'count')}")
    comparison: Html | None = None
    if base is not None:
        gain = None if value is None else 100 * (value - base)
        change = None if gain is None else tag("b", f"{signed(gain, 1)} points", class_="good" if gain > 0 else "bad")
        comparison = tag("p", f"{name}: {_written(base, 'share')}{more}", " · " if change else None, change)
    return tag(
        "div",
        tag("h3", title),
        tag("p", _written(value, "share"), class_="big" if value is not None else "big none"),
        *(tag("p", line, class_="quiet") for line in lines),
        comparison,
        class_="tile",
    )


# -- curves and pictures

_CURVES: tuple[tuple[str, tuple[str, ...], tuple[float, float] | None], ...] = (
    ("Reward of the critic, and the truth", ("train/reward", "train/truth"), None),
    ("Correlation of critic and truth within groups", ("train/within_group_corr",), (0.0, 1.0)),
    (
        "Groups and pictures without a signal",
        ("train/unscored_rate", "train/flat_groups", "train/starved_groups"),
        (0.0, 0.1),
    ),
)
_ASPECT = "train/aspect/"


def _curves(history: Sequence[Mapping[str, Any]]) -> Html:
    x_label = "step" if all("step" in row for row in history) else "epoch"

    def points(key: str) -> list[tuple[float, float]]:
        found = []
        for index, row in enumerate(history):
            if key in row:
                x, y = _number(row.get(x_label, index)), _number(row[key])
                found.append((float(index) if x is None else x, math.nan if y is None else y))
        return found

    keys = list(dict.fromkeys(key for row in history for key, value in row.items() if _number(value) is not None))
    drawn, used = [], {"step", "epoch"}
    for title, wanted, y_range in _CURVES:
        series = {_short(key): points(key) for key in wanted if key in keys}
        used |= set(wanted)
        if series:
            drawn.append(charts.line_chart(title, series, y_range, x_label))
    aspects = [key for key in keys if key.startswith(_ASPECT)]
    if aspects:
        series = {words(key.removeprefix(_ASPECT)): points(key) for key in aspects}
        drawn.append(charts.line_chart("Mean score by aspect", series, None, x_label))
    others = [
        charts.line_chart(_short(key), {_short(key): points(key)}, None, x_label) for key in keys if key not in used | {*aspects}
    ]
    if not drawn and not others:
        return tag("p", "not measured", class_="quiet")
    more = (
        tag("details", tag("summary", f"{len(others)} further curves"), tag("div", *others, class_="charts")) if others else None
    )
    return join(tag("div", *drawn, class_="charts"), more)


def _short(key: str) -> str:
    return words(key.removeprefix("train/").replace("/", " · "))


_LONG = 160
"""Captions with more characters than this are folded."""


def _grid(grid: Grid) -> Html:
    cards = []
    for index, prompt in enumerate(grid.prompts):
        sides = (("Before", grid.before, grid.captions_before), ("After", grid.after, grid.captions_after))
        figures = [
            tag(
                "figure",
                picture(paths[index], f"{name}: {prompt}"),
                tag("figcaption", tag("b", name), _caption(captions[index]) if captions else None),
            )
            for name, paths, captions in sides
        ]
        cards.append(tag("article", tag("p", prompt, class_="text"), tag("div", *figures, class_="both"), class_="pair"))
    return tag("div", *cards, class_="pairs") if cards else tag("p", "no pictures", class_="quiet")


def _caption(caption: str) -> Html:
    if len(caption) <= _LONG:
        return tag("div", caption, class_="text")
    return tag("details", tag("summary", caption[:60].split("\n")[0].rstrip() + "…"), tag("div", caption, class_="text"))
