"""What the gallery's script reads: records as plain data, and every picture once, as small as their number asks for."""

from __future__ import annotations

import base64
import difflib
import html
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from PIL import Image

from ..pictures import open_picture
from ..records import Candidate, Refinement
from .markup import SMALL, Html, escape, tag

SIDES = (512, 384, 320, 256, 192, 160, 128)
"""Longest sides in pixels that pictures are reduced to, from few pictures to many."""

_SAMPLE = 16
"""Pictures that tell how much a picture of a certain side takes."""

Change = tuple[int, str]
"""A passage of a request: -1 for words that it lost, 1 for words that are new, 0 for words that stayed."""


def word_changes(original: str, text: str) -> list[Change]:
    """How the words of ``text`` came from those of ``original``, in the order of ``text``; spaces are not compared.

    Returns:
        Passages whose kinds 0 and 1 make up ``text``, and whose kinds -1 and 0 make up ``original``, spaces aside.
    """
    # the space after a word goes with it and is not compared: equal spaces would chop a changed passage into words
    before, after = (re.findall(r"(\w+|[^\w\s])(\s*)", part.strip()) for part in (original, text))
    matcher = difflib.SequenceMatcher(None, [word for word, _ in before], [word for word, _ in after], autojunk=False)
    parts: list[Change] = []
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        lost, new = ("".join(map("".join, tokens)) for tokens in (before[i1:i2], after[j1:j2]))
        if kind == "equal":
            parts.append((0, new))
            continue
        for sign, changed in ((-1, lost), (1, new)):
            if kept := changed.rstrip():
                parts.append((sign, kept))
                if space := changed[len(kept) :]:
                    parts.append((0, space))
    return parts


def encoded(image: Image.Image, side: int) -> tuple[Image.Image, str]:
    """A picture as the page keeps it, no longer than ``side``, and the text that stands for it after ``data:``."""
    small = max(image.size) <= SMALL
    if not small and max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=75, method=3)
    return image, f"image/{'png' if small else 'webp'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def side_for(paths: Sequence[str], budget: int, max_side: int) -> int:
    """The longest side at which pictures take about ``budget`` bytes in all, by a sample of them; the least of :data:`SIDES` if none does.

    Args:
        paths: The pictures; those that cannot be read, and those too small to be reduced, need no room.
        budget: Bytes in the page.
        max_side: Never more than this many pixels.
    """
    allowed = [side for side in SIDES if side < max_side]
    sample = []
    for path in paths[:: -(-len(paths) // _SAMPLE)] if paths else ():
        with suppress(ValueError):
            sample.append(open_picture(path))
    large = [image for image in sample if max(image.size) > SMALL]
    for side in [max_side, *allowed]:
        if sum(len(encoded(image, side)[1]) for image in large) / max(1, len(sample)) * len(paths) <= budget:
            return side
    return min([max_side, *allowed])


class Pictures:
    """Every picture of a page once: arms share theirs.

    Args:
        paths: All pictures, in the order in which they will be looked at.
        max_side: Longer pictures are reduced to this many pixels at most.
        budget: Bytes that all pictures may take in the page, about; many are reduced further.
    """

    def __init__(self, paths: Iterable[str], max_side: int, budget: int) -> None:
        self.numbers: dict[str, int] = {path: number for number, path in enumerate(dict.fromkeys(paths))}
        self.side = side_for(list(self.numbers), budget, max_side)
        self.shapes: list[dict[str, Any]] = []
        self.blocks: list[Html] = []
        for path, number in self.numbers.items():
            self._add(path, number)

    def _add(self, path: str, number: int) -> None:
        try:
            image, content = encoded(open_picture(path), self.side)
        except ValueError as error:
            self.shapes.append({"missing": str(error) if path else "there is no picture"})
            return
        self.shapes.append({"width": image.width, "height": image.height, "small": content.startswith("image/png")})
        # a block of text and not an <img>: nothing is decoded before it comes into view
        self.blocks.append(tag("script", Html(content), type="text/plain", id=f"p{number}"))


def island(data: Any, name: str) -> Html:
    """Data that a script reads by ``JSON.parse``: nothing in it can end the block or begin a comment, and it is all ASCII."""
    text = json.dumps(_clean(data), separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return tag("script", Html(text), type="application/json", id=name)


def _clean(data: Any) -> Any:
    """Without what Python writes and a browser does not read: numbers that are none, and characters that no HTML file may hold."""
    if isinstance(data, str):
        # as in the rest of the page, so that a filter's value and what it looks for are the same text
        return html.unescape(escape(data))
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {_clean(key): _clean(value) for key, value in data.items()}
    return [_clean(value) for value in data] if isinstance(data, (list, tuple)) else data


def grouped(refinements: Sequence[Refinement]) -> list[list[Refinement]]:
    """Records of one request, arm by arm: those with the same id, request and sources."""
    requests: dict[tuple[str, str, tuple[str, ...]], list[Refinement]] = {}
    for record in refinements:
        requests.setdefault((record.id, record.prompt, tuple(record.sources)), []).append(record)
    return list(requests.values())


def paths_of(groups: Iterable[Sequence[Refinement]]) -> list[str]:
    """Every picture of every group, in the order of the page."""
    found: list[str] = []
    for group in groups:
        found += group[0].sources
        found += [candidate.image for record in group for candidate in record.candidates]
    return found


def items_of(groups: Sequence[Sequence[Refinement]], pictures: Pictures) -> list[dict[str, Any]]:
    """One item per request, as :data:`~.gallery_script.SCRIPT` reads it."""
    return [
        {
            "id": group[0].id,
            "edit": group[0].task == "edit",
            "prompt": group[0].prompt,
            "sources": [pictures.numbers[path] for path in group[0].sources],
            "arms": [_arm(record, pictures) for record in group],
        }
        for group in groups
    ]


def _arm(record: Refinement, pictures: Pictures) -> dict[str, Any]:
    made = [_made(record, candidate, pictures) for candidate in record.candidates]
    # -1 would be Python's last one, not "none"
    chosen = record.chosen if 0 <= record.chosen < len(made) else None
    return {"arm": record.arm, "stop": record.stop, "tokens": record.tokens, "chosen": chosen, "made": made}


def _made(record: Refinement, candidate: Candidate, pictures: Pictures) -> dict[str, Any]:
    aspects = [
        [key, value, None if value is None else round(candidate.scale.fraction(value), 4)]
        for key, value in candidate.aspects.items()
    ]
    same = candidate.request == record.prompt
    return {
        "round": candidate.round,
        "parent": candidate.parent,
        "picture": pictures.numbers[candidate.image],
        "reward": candidate.reward,
        "unscored": candidate.unscored,
        "heldOut": candidate.held_out,
        "tokens": candidate.tokens,
        "aspects": aspects,
        "request": None if same else word_changes(record.prompt, candidate.request),
        "critique": candidate.critique,
    }
