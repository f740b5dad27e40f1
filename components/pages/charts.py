"""Charts as inline SVG: curves over steps, and intervals on a common axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .markup import Html, join, tag

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 250
"""Size of a chart in its own units; it is drawn as wide as there is room, so that text stays readable on a phone."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 10, 40
_DASHES = (None, "7 3", "2 3", "9 3 2 3", "4 2", "1 2")

STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1.5rem 2rem; }
.chart { min-width: 0; max-width: 38rem; }
.chart > svg { display: block; width: 100%; height: auto; }
.legend svg { display: block; flex: none; }
.chart text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
.chart .grid { stroke: var(--line); } .chart .zero { stroke: var(--quiet); }
.chart .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .25rem 0 .4rem; padding: 0; list-style: none;
  font-size: .85rem; }
.legend li { display: flex; align-items: center; gap: .4rem; }
.interval { display: block; width: 9rem; height: 1.1rem; }
.interval .axis { stroke: var(--line); } .interval .range { stroke: var(--c0); stroke-width: 7; opacity: .35; }
.interval .value { fill: var(--c0); }
""" + "".join(f".s{i} {{ stroke: var(--c{i}); }} .d{i} {{ fill: var(--c{i}); }}\n" for i in range(6))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that span ``[low, high]``; the first and last may lie outside."""
    if not high > low:
        pad = abs(low) * 0.5 or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _label(value: float, step: float) -> str:
    digits = 0
    # as many digits as tell neighbouring ticks apart
    while digits < 6 and abs(round(step, digits) - step) > 1e-9 * max(1.0, abs(step)):
        digits += 1
    if abs(value) >= 1e5 or step < 1e-6:
        return f"{value:.3g}"
    return f"{value:.{digits}f}".replace("-", "\u2212")


def line_chart(
    title: str, series: Mapping[str, Points], y_range: tuple[float, float] | None = None, x_label: str = "step"
) -> Html:
    """Curves with axes, labels and a legend.

    Args:
        title: Heading of the chart.
        series: Name to points ``(x, y)`` in the order of x; points that are not finite interrupt the line.
        y_range: Least range of the y axis; it grows to hold every point.
        x_label: What x counts.
    """
    finite = [point for points in series.values() for point in points if all(map(math.isfinite, point))]
    xs = [x for x, _ in finite] or [0.0]
    ys = [y for _, y in finite] + list(y_range or ())
    y_ticks = ticks(min(ys, default=0.0), max(ys, default=1.0), 4)
    x_low, x_high = min(xs), max(xs)
    x_ticks = [tick for tick in ticks(x_low, x_high, 6) if x_low <= tick <= x_high and tick == round(tick)] or [x_low]

    def at_x(x: float) -> float:
        share = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def at_y(y: float) -> float:
        return _TOP + (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - _TOP - _BOTTOM)

    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for tick in y_ticks:
        level = f"{at_y(tick):.1f}"
        kind = "zero" if tick == 0 and y_ticks[0] < 0 else "grid"
        parts.append(tag("line", x1=_LEFT, x2=right, y1=level, y2=level, class_=kind))
        text = _label(tick, y_ticks[1] - y_ticks[0])
        parts.append(tag("text", text, x=_LEFT - 6, y=level, dy="0.35em", text_anchor="end"))
    x_step = x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else 1.0
    for tick in x_ticks:
        parts.append(tag("text", _label(tick, x_step), x=f"{at_x(tick):.1f}", y=bottom + 16, text_anchor="middle"))
    parts.append(tag("text", x_label, x=f"{(_LEFT + right) / 2:.1f}", y=HEIGHT - 6, text_anchor="middle"))
    legend = []
    for index, (name, points) in enumerate(series.items()):
        colour, dash = index % 6, _DASHES[index % 6]
        path, pen = [], "M"
        for x, y in points:
            if not (math.isfinite(x) and math.isfinite(y)):
                pen = "M"
                continue
            path.append(f"{pen}{at_x(x):.1f} {at_y(y):.1f}")
            pen = "L"
            note = tag("title", f"{name}: {y:.4g} at {x_label} {x:g}")
            # the dots are there to be pointed at, and for curves of one point
            parts.append(tag("circle", note, cx=f"{at_x(x):.1f}", cy=f"{at_y(y):.1f}", r=2, class_=f"d{colour}"))
        parts.append(tag("path", d="".join(path), class_=f"curve s{colour}", stroke_dasharray=dash))
        stroke = tag("line", x1=0, x2=26, y1=4, y2=4, class_=f"s{colour}", stroke_width=2, stroke_dasharray=dash)
        swatch = tag("svg", stroke, width=26, height=8, aria_hidden="true")
        legend.append(tag("li", swatch, name))
    summary = "; ".join(
        f"{name} from {kept[0]:.3g} to {kept[-1]:.3g}"
        for name, points in series.items()
        if (kept := [y for _, y in points if math.isfinite(y)])
    )
    drawing = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title}: {summary or 'no points'}")
    return tag("figure", tag("h3", title), tag("ul", *legend, class_="legend"), drawing, class_="chart")


def interval(value: float, bounds: tuple[float, float] | None) -> Html:
    """A value as a dot and its interval as a bar, on an axis from 0 to 1; the table beside it says the numbers."""

    def at(x: float) -> float:
        return 4 + 136 * min(1.0, max(0.0, x))

    marks = [tag("line", x1=f"{at(x):.1f}", x2=f"{at(x):.1f}", y1=4, y2=12, class_="axis") for x in (0.0, 0.5, 1.0)]
    parts = [tag("line", x1=4, x2=140, y1=8, y2=8, class_="axis"), *marks]
    if bounds is not None:
        parts.append(tag("line", x1=f"{at(bounds[0]):.1f}", x2=f"{at(bounds[1]):.1f}", y1=8, y2=8, class_="range"))
    parts.append(tag("circle", cx=f"{at(value):.1f}", cy=8, r=2.5, class_="value"))
    return tag("svg", join(*parts), viewBox="0 0 144 16", class_="interval", aria_hidden="true")
