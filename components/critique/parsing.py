"""Reading critiques: tolerant of the variants in ``paper.md`` 1.8, and never inventing a score.

A score is only ever a number that stands at a score position; what is missing or out of range is ``Unscored`` with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..records import (
    SCORE_RANGE,
    AspectComparison,
    AspectCritique,
    Critique,
    NotApplicable,
    PairCritique,
    Score,
    Task,
    Unscored,
    Verdict,
)
from .rubric import Aspect, Rubric, load_rubric

_FIELDS = {
    "justification": "justification",
    "score": "score",
    "score a": "score_a",
    "score b": "score_b",
    "winner": "winner",
    "summary": "summary",
    "user request analysis": "analysis",
    "detailed judgement": "judgement",
    "detailed judgment": "judgement",
    "user request refinement": "refinement",
    "refinement comments": "refinement_comments",
    "refined request": "refined_request",
}
_CLOSING = ("summary", "refinement", "refinement_comments", "refined_request")
_TOP = ("analysis", "judgement", *_CLOSING)
_FIELD_LINE = re.compile(
    r"^\s*(?P<hashes>#{0,4})\s*(?P<bold>\*\*)?\s*(?P<name>"
    + "|".join(sorted(_FIELDS, key=len, reverse=True))
    # bold may end before or after the colon; further asterisks belong to the text
    + r")\s*(?(bold)(?:\*\*)?)\s*(?P<colon>:?)(?(bold)(?:\s*\*\*)?)(?P<rest>.*)$",
    re.IGNORECASE,
)
_SCORE = re.compile(r"^[\s*`_]*(?P<number>[+-]?\d+(?:\.\d+)?)[\s*`_]*(?:/\s*4(?:\.0+)?)?[\s*`_.]*$")
_NOT_APPLICABLE = re.compile(r"^[\s*`_]*n\s*/?\s*a[\s*`_.]*$", re.IGNORECASE)
_THINK = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


@dataclass
class _Sections:
    """The text under each field heading; aspect fields are kept per aspect."""

    top: dict[str, list[str]] = field(default_factory=dict)
    aspects: dict[str, dict[str, list[str]]] = field(default_factory=dict)


def parse(text: str, task: Task, rubric: Rubric | None = None) -> Critique:
    """Read a critique of one picture.

    Args:
        text: The critic's answer.
        task: Decides which aspects are expected.
        rubric: The rubric that the critic was asked to follow; the default one if omitted.

    Returns:
        A critique with every expected aspect; never raises.
    """
    aspects = (rubric or load_rubric()).for_task(task)
    sections = _split(text, aspects)
    judged = {}
    for aspect in aspects:
        fields = sections.aspects.get(aspect.key)
        judged[aspect.key] = AspectCritique(_text(fields, "justification"), _score(fields, "score", aspect))
    return Critique(
        judged,
        summary=_text(sections.top, "summary"),
        refinement_comments=_text(sections.top, "refinement_comments"),
        refined_request=_text(sections.top, "refined_request"),
        analysis=_text(sections.top, "analysis"),
        text=text,
    )


def parse_pair(text: str, task: Task, rubric: Rubric | None = None) -> PairCritique:
    """Read a critique of two pictures; see :func:`parse`."""
    aspects = (rubric or load_rubric()).for_task(task)
    sections = _split(text, aspects)
    judged = {}
    for aspect in aspects:
        fields = sections.aspects.get(aspect.key)
        judged[aspect.key] = AspectComparison(
            _text(fields, "justification"),
            _score(fields, "score_a", aspect),
            _score(fields, "score_b", aspect),
            _winner(fields),
        )
    return PairCritique(judged, summary=_text(sections.top, "summary"), analysis=_text(sections.top, "analysis"), text=text)


def _split(text: str, aspects: Sequence[Aspect]) -> _Sections:
    sections = _Sections()
    text = _THINK.sub("", text)
    titles = {aspect.title.lower(): aspect.key for aspect in aspects}
    title_line = re.compile(
        r"^\s*#{0,4}\s*\**\s*(?:\d+\s*[.):]\s*)?\**\s*(?P<title>" + "|".join(map(re.escape, titles)) + r")\s*\**\s*:?\s*\**\s*$",
        re.IGNORECASE,
    )
    lines = text.splitlines()
    first_body = _body_start([_field(line)[0] for line in lines])
    current: list[str] | None = None
    aspect: dict[str, list[str]] | None = None
    after_aspects = False
    for index, line in enumerate(lines):
        heading = title_line.match(line)
        name, rest = _field(line)
        if heading and index >= first_body and not after_aspects:
            aspect = sections.aspects.setdefault(titles[heading["title"].lower()], {})
            current = None
            continue
        if index < first_body and name != "analysis":
            name = ""  # headings quoted while the request is analysed are not the judgement
        if name in ("justification", "score", "score_a", "score_b", "winner"):
            if aspect is not None and not after_aspects and name not in aspect:
                current = aspect.setdefault(name, [])
                current.append(rest)
                continue
        elif name in _TOP and name not in sections.top:
            after_aspects = after_aspects or name in _CLOSING
            current = sections.top.setdefault(name, [])
            current.append(rest)
            continue
        if current is not None:
            current.append(line)
    return sections


def _body_start(names: Sequence[str]) -> int:
    """The line where the judgement begins: its last heading that no refined request stands before.

    Such a heading may be quoted earlier, in the analysis of the request, and later, in the refined request.
    """
    start, scored = 0, False
    for index, name in enumerate(names):
        if name == "refined_request" and scored:
            break
        if name == "judgement":
            start, scored = index, False
        scored = scored or name in ("score", "score_a")
    return start


def _field(line: str) -> tuple[str, str]:
    """The field that a line opens and the rest of the line; ``("", "")`` for any other line.

    A heading needs its hashes or its colon: the word "Summary" in running text opens nothing.
    """
    match = _FIELD_LINE.match(line)
    if not match or not (match["colon"] or (match["hashes"] and not match["rest"].strip())):
        return "", ""
    return _FIELDS[match["name"].lower()], match["rest"]


def _text(fields: dict[str, list[str]] | None, name: str) -> str:
    return "\n".join((fields or {}).get(name, [])).strip()


def _score(fields: dict[str, list[str]] | None, name: str, aspect: Aspect) -> Score:
    if not fields:
        return Unscored(f"{aspect.title} is missing")
    if name not in fields:
        return Unscored(f"{aspect.title}: no {name.replace('_', ' ')}")
    written = next((line for line in fields[name] if line.strip()), "")
    if _NOT_APPLICABLE.match(written):
        return NotApplicable() if aspect.optional else Unscored(f"{aspect.title}: N/A is not allowed")
    match = _SCORE.match(written)
    if not match:
        return Unscored(f"{aspect.title}: {written.strip()[:40]!r} is not a score")
    value = float(match["number"])
    low, high = SCORE_RANGE
    if not low <= value <= high:
        return Unscored(f"{aspect.title}: {value:g} is outside {low:g} to {high:g}")
    return value


def _winner(fields: dict[str, list[str]] | None) -> Verdict | NotApplicable | Unscored:
    written = _text(fields, "winner").strip(" *`_.").lower()
    if _NOT_APPLICABLE.match(written):
        return NotApplicable()
    if written in ("image a", "a"):
        return "A"
    if written in ("image b", "b"):
        return "B"
    if "tie" in written.split() or written == "it's a tie":
        return "tie"
    return Unscored(f"winner {written[:40]!r} is not a verdict")
