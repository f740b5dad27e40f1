"""Reading critiques: tolerant of how the paper (arXiv 2604.11626, appendix C) and its code vary, and never inventing a score.

A score is only ever a number that stands at a score position; what is missing or out of range is ``Unscored`` with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

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
_JUDGED = ("justification", "score", "score_a", "score_b", "winner")
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
_STRANGE_TITLE = re.compile(r"^\s*#{0,4}\s*\**\s*\d+\s*[.):]\s*\**\s*[^\W\d][^:.]{2,50}\**\s*:?\s*\**\s*$")
_THINK = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


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
    aspects = (rubric or load_rubric()).for_task(task)
    sections = _split(text, aspects)
    judged = {}
    for aspect in aspects:
        fields = _fields(sections.aspects.get(aspect.key, ()))
        judged[aspect.key] = AspectCritique(_text(fields, "justification"), _score(fields, "score", aspect))
    return Critique(
        judged,
        summary=_text(sections.top, "summary"),
        refinement_comments=_text(sections.top, "refinement_comments"),
        refined_request=_refined_request(sections.top),
        analysis=_text(sections.top, "analysis"),
        text=text,
    )


def parse_pair(text: str, task: Task, rubric: Rubric | None = None) -> PairCritique:
    """Read a critique of two pictures; see :func:`parse`."""
    aspects = (rubric or load_rubric()).for_task(task)
    sections = _split(text, aspects)
    judged = {}
    for aspect in aspects:
        fields = _fields(sections.aspects.get(aspect.key, ()))
        judged[aspect.key] = AspectComparison(
            _text(fields, "justification"),
            _score(fields, "score_a", aspect),
            _score(fields, "score_b", aspect),
            _winner(fields),
        )
    return PairCritique(judged, summary=_text(sections.top, "summary"), analysis=_text(sections.top, "analysis"), text=text)


def _split(text: str, aspects: Sequence[Aspect]) -> _Sections:
    sections = _Sections()
    lines = _THINK.sub("", text).splitlines()
    if re.search(r"\d\.\Z", text) and _field(lines[-1])[0] in _JUDGED:
        lines[-1] += "\u2026"  # cut off inside a number, and nobody knows which
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
                current = [rest]
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


def _fields(blocks: Sequence[_Block]) -> dict[str, list[str]]:
    """The fields of one aspect. Of several headings of a name one was meant; the others are quoted, and so are text of the field before.

    After the justification the last readable score was meant: what the justification quotes stands before it. Before the
    justification it is the first. Where two different scores follow each other with nothing between, neither is believed.
    """
    said = next((index for index, block in enumerate(blocks) if block.name == "justification"), len(blocks))
    meant: dict[str, int] = {}
    for index, block in enumerate(blocks):
        earlier = meant.get(block.name)
        if earlier is None or (earlier > said and _readable(block)):
            meant[block.name] = index
    fields: dict[str, list[str]] = {}
    current: list[str] | None = None
    for index, block in enumerate(blocks):
        if meant[block.name] == index:
            current = fields[block.name] = list(block.lines)
            for other in (*blocks[max(0, index - 1) : index], *blocks[index + 1 : index + 2]):
                if _contradict(block, other):
                    current[0] = f"{_written(block)} and {_written(other)}"
        elif current is not None:
            current += [block.heading, *block.lines[1:]]
    return fields


def _written(block: _Block) -> str:
    """What stands after a heading: the first line with words."""
    return next((line.strip() for line in block.lines if line.strip()), "")


def _contradict(block: _Block, neighbour: _Block) -> bool:
    """Whether two neighbouring headings of one name hold two verdicts, with no other word between or around them."""
    bare = all(sum(bool(line.strip()) for line in one.lines) == 1 and _readable(one) for one in (block, neighbour))
    return block.name == neighbour.name and bare and _written(block) != _written(neighbour)


def _readable(block: _Block) -> bool:
    if block.name == "winner":
        return not isinstance(_verdict(_written(block)), Unscored)
    return bool(_SCORE.match(_written(block)) or _NOT_APPLICABLE.match(_written(block)))


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


def _score(fields: dict[str, list[str]], name: str, aspect: Aspect) -> Score:
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
