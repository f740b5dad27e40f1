"""Pairs of each kind of outcome, with their pictures and what the teacher wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .markup import Html, join, picture, tag, words
from .report import _written


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


def examples_of_each(summary: Mapping[str, Any], examples: Mapping[str, Sequence[Example]], max_side: int) -> Html:
    """The chosen pairs, by kind of outcome."""
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
