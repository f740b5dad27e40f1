"""Reading critiques: tolerant of how the paper (arXiv 2604.11626, appendix C) and its code vary, and never inventing a score.

A score is only ever a number that stands at a score position; what is missing or out of range is ``Unscored`` with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from ..records import (
    AspectComparison,
    AspectCritique,
    Critique,
    NotApplicable,
    PairCritique,
    Scale,
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
_JUDGED = ("justification", "score", "score_a", "score_b", "winner")
_TOP = ("analysis", "judgement", *_CLOSING)
_FIELD_LINE = re.compile(
    r"^\s*(?P<hashes>#{0,4})\s*(?P<bold>\*\*)?\s*(?P<name>"
    + "|".join(sorted(_FIELDS, key=len, reverse=True))
    # bold may end before or after the colon; further asterisks belong to the text
    + r")\s*(?(bold)(?:\*\*)?)\s*(?P<colon>:?)(?(bold)(?:\s*\*\*)?)(?P<rest>.*)$",
    re.IGNORECASE,
)
_NOT_APPLICABLE = re.compile(r"^[\s*`_]*n\s*/?\s*a[\s*`_.]*$", re.IGNORECASE)
_STRANGE_TITLE = re.compile(r"^\s*#{0,4}\s*\**\s*\d+\s*[.):]\s*\**\s*[^\W\d][^:.]{2,50}\**\s*:?\s*\**\s*$")
_THINK = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


class _Line(str):
    """A line of the answer, or the end of one, that knows where in the answer it begins."""

    at: int

    @classmethod
    def of(cls, text: str, at: int) -> _Line:
        line = cls(text)
        line.at = at
        return line


@dataclass
class _Block:
    """A heading of an aspect, as written, and the text under it (its own line's first)."""

    name: str
    heading: str
    lines: list[str]


@dataclass
class _Sections:
    """The text under each heading: once for the whole answer, and for every aspect whatever headings it has."""

    top: dict[str, list[str]] = field(default_factory=dict)
    aspects: dict[str, list[_Block]] = field(default_factory=dict)


def parse(text: str, task: Task, rubric: Rubric | None = None) -> Critique:
    """Read a critique of one picture.

    Args:
        text: The critic's answer.
        task: Decides which aspects are expected.
        rubric: The rubric that the critic was asked to follow; the default one if omitted.

    Returns:
        A critique with every expected aspect; never raises.
    """
    rubric = rubric or load_rubric()
    aspects, scale = rubric.for_task(task), rubric.scale
    sections = _split(text, aspects)
    judged = {}
    for aspect in aspects:
        fields = _fields(sections.aspects.get(aspect.key, ()), scale)
        score = _score(fields, "score", aspect, scale)
        at = _number_at(fields, "score", scale) if isinstance(score, float) else None
        judged[aspect.key] = AspectCritique(_text(fields, "justification"), score, at=at)
    return Critique(
        judged,
        summary=_text(sections.top, "summary"),
        refinement_comments=_text(sections.top, "refinement_comments"),
        refined_request=_refined_request(sections.top),
        analysis=_text(sections.top, "analysis"),
        text=text,
        scale=scale,
    )


def parse_pair(text: str, task: Task, rubric: Rubric | None = None) -> PairCritique:
    """Read a critique of two pictures; see :func:`parse`."""
    rubric = rubric or load_rubric()
    aspects, scale = rubric.for_task(task), rubric.scale
    sections = _split(text, aspects)
    judged = {}
    for aspect in aspects:
        fields = _fields(sections.aspects.get(aspect.key, ()), scale)
        judged[aspect.key] = AspectComparison(
            _text(fields, "justification"),
            _score(fields, "score_a", aspect, scale),
            _score(fields, "score_b", aspect, scale),
            _winner(fields),
        )
    summary, analysis = _text(sections.top, "summary"), _text(sections.top, "analysis")
    return PairCritique(judged, summary=summary, analysis=analysis, text=text, scale=scale)


def _split(text: str, aspects: Sequence[Aspect]) -> _Sections:
    sections = _Sections()
    lines = _lines(text)
    if re.search(r"\d\.\Z", text) and _field(lines[-1])[0] in _JUDGED:
        lines[-1] = _Line.of(f"{lines[-1]}\u2026", lines[-1].at)  # cut off inside a number, and nobody knows which
    first_body = _body_start([_field(line)[0] for line in lines])
    titles = _titles(lines, aspects)
    current: list[str] | None = None
    aspect: list[_Block] | None = None
    after_aspects = False
    for index, line in enumerate(lines):
        name, rest = _field(line)
        if index in titles and index >= first_body and not after_aspects:
            key = titles[index]
            aspect = sections.aspects.setdefault(key, []) if key else None
            current = None
            continue
        if index < first_body and name != "analysis":
            name = ""  # headings quoted while the request is analysed are not the judgement
        if name in _JUDGED:
            if aspect is not None and not after_aspects:
                current = [_Line.of(rest, line.at + len(line) - len(rest))]
                aspect.append(_Block(name, line, current))
                continue
        elif name in _TOP and name not in sections.top:
            after_aspects = after_aspects or name in _CLOSING
            current = sections.top.setdefault(name, [])
            current.append(rest)
            continue
        if current is not None:
            current.append(line)
    return sections


def _lines(text: str) -> list[_Line]:
    """The lines after the thoughts."""
    thought = _THINK.match(text)
    lines, at = [], thought.end() if thought else 0
    for line in text[at:].splitlines(keepends=True):
        lines.append(_Line.of(line.splitlines()[0], at))
        at += len(line)
    return lines


def _titles(lines: Sequence[str], aspects: Sequence[Aspect]) -> dict[int, str]:
    """The lines that open an aspect, and which ("" for one that nobody asked for, so that its score is not taken for another's).

    In an answer that numbers every aspect, a bare title is running text.
    """
    keys = {aspect.title.lower(): aspect.key for aspect in aspects}
    pattern = re.compile(
        r"^\s*#{0,4}\s*\**\s*(?P<number>\d+\s*[.):]\s*)?\**\s*(?P<title>"
        + "|".join(map(re.escape, sorted(keys, key=len, reverse=True)))
        + r")\s*\**\s*:?\s*\**\s*$",
        re.IGNORECASE,
    )
    found = [(index, match) for index, line in enumerate(lines) if (match := pattern.match(line))]
    known = {index: keys[match["title"].lower()] for index, match in found}
    numbered = {index: keys[match["title"].lower()] for index, match in found if match["number"]}
    titles = numbered if set(numbered.values()) == set(keys.values()) else known
    filled = [index for index, line in enumerate(lines) if line.strip()]
    # before any other heading it would be the last point of a list in a justification
    opening = next((name for line in lines if (name := _field(line)[0]) in _JUDGED), "justification")
    strange = {
        index: ""
        for index, following in pairwise(filled)
        if index not in known and _STRANGE_TITLE.match(lines[index]) and _field(lines[following])[0] == opening
    }
    return titles | strange


def _fields(blocks: Sequence[_Block], scale: Scale) -> dict[str, list[str]]:
    """The fields of one aspect. Of several headings of a name one was meant; the others are quoted, and so are text of the field before.

    After the justification the last readable score was meant: what the justification quotes stands before it. Before the
    justification it is the first. Where two different scores follow each other with nothing between, neither is believed.
    """
    said = next((index for index, block in enumerate(blocks) if block.name == "justification"), len(blocks))
    meant: dict[str, int] = {}
    for index, block in enumerate(blocks):
        earlier = meant.get(block.name)
        if earlier is None or (earlier > said and _readable(block, scale)):
            meant[block.name] = index
    fields: dict[str, list[str]] = {}
    current: list[str] | None = None
    for index, block in enumerate(blocks):
        if meant[block.name] == index:
            current = fields[block.name] = list(block.lines)
            for other in (*blocks[max(0, index - 1) : index], *blocks[index + 1 : index + 2]):
                if _contradict(block, other, scale):
                    current[0] = f"{_written(block)} and {_written(other)}"
        elif current is not None:
            current += [block.heading, *block.lines[1:]]
    return fields


def _written(block: _Block) -> str:
    """What stands after a heading: the first line with words."""
    return next((line.strip() for line in block.lines if line.strip()), "")


def _contradict(block: _Block, neighbour: _Block, scale: Scale) -> bool:
    """Whether two neighbouring headings of one name hold two verdicts, with no other word between or around them."""
    bare = all(sum(bool(line.strip()) for line in one.lines) == 1 and _readable(one, scale) for one in (block, neighbour))
    return block.name == neighbour.name and bare and _written(block) != _written(neighbour)


def _readable(block: _Block, scale: Scale) -> bool:
    if block.name == "winner":
        return not isinstance(_verdict(_written(block)), Unscored)
    return bool(_score_pattern(scale).match(_written(block)) or _NOT_APPLICABLE.match(_written(block)))


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


def _text(fields: dict[str, list[str]], name: str) -> str:
    return "\n".join(fields.get(name, [])).strip()


def _refined_request(fields: dict[str, list[str]]) -> str:
    """The rewritten request; "N/A", whatever follows it, is none."""
    text = _text(fields, "refined_request")
    return "" if _NOT_APPLICABLE.match(text.partition("\n")[0]) else text


@cache
def _score_pattern(scale: Scale) -> re.Pattern[str]:
    """A number, and nothing else on the line but marks and "out of" the best score."""
    best = re.escape(f"{scale.high:g}")
    return re.compile(rf"^[\s*`_]*(?P<number>[+-]?\d+(?:\.\d+)?)[\s*`_]*(?:/\s*{best}(?:\.0+)?)?[\s*`_.]*$")


def _score(fields: dict[str, list[str]], name: str, aspect: Aspect, scale: Scale) -> Score:
    if not fields:
        return Unscored(f"{aspect.title} is missing")
    if name not in fields:
        return Unscored(f"{aspect.title}: no {name.replace('_', ' ')}")
    written = next((line for line in fields[name] if line.strip()), "")
    if _NOT_APPLICABLE.match(written):
        return NotApplicable() if aspect.optional else Unscored(f"{aspect.title}: N/A is not allowed")
    match = _score_pattern(scale).match(written)
    if not match:
        return Unscored(f"{aspect.title}: {written.strip()[:40]!r} is not a score")
    value = float(match["number"])
    if not scale.contains(value):
        return Unscored(f"{aspect.title}: {value:g} is outside {scale}")
    return value


def _number_at(fields: dict[str, list[str]], name: str, scale: Scale) -> int | None:
    """How many characters of the answer stand before a score; ``None`` if that is not known."""
    written = next((line for line in fields.get(name, []) if line.strip()), "")
    match = _score_pattern(scale).match(written)
    return written.at + match.start("number") if match and isinstance(written, _Line) else None


def _winner(fields: dict[str, list[str]]) -> Verdict | NotApplicable | Unscored:
    return _verdict(next((line for line in fields.get("winner", []) if line.strip()), ""))


def _verdict(text: str) -> Verdict | NotApplicable | Unscored:
    written = text.strip(" *`_.\n").lower()
    if _NOT_APPLICABLE.match(written):
        return NotApplicable()
    if written in ("image a", "a"):
        return "A"
    if written in ("image b", "b"):
        return "B"
    if "tie" in written.split() or written == "it's a tie":
        return "tie"
    return Unscored(f"winner {written[:40]!r} is not a verdict")
