"""The form of an answer: fixed text with slots, spelled for every engine that can force it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Prose:
    """A slot for one paragraph of free text, never empty. Of one line, so that no lexer has to look back at a heading."""

    name: str


@dataclass(frozen=True)
class Choice:
    """A slot for one of several strings, e.g. a score."""

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Maybe:
    """Parts that stand in the answer together or not at all."""

    parts: tuple[str | Prose | Choice, ...]


Part = str | Prose | Choice | Maybe


@dataclass(frozen=True)
class AnswerForm:
    """What an answer must look like: fixed text, slots, and parts that may be left out.

    Args:
        parts: The answer from left to right.
        prose_tokens: Most tokens of each piece of prose; ``None`` leaves them free. Only :meth:`lark` can say so.

    Raises:
        ValueError: If two slots share a name, or a choice has no options.
    """

    parts: tuple[Part, ...]
    prose_tokens: int | None = None

    def __post_init__(self) -> None:
        slots = [slot for slot, _ in self._slots()]
        if len({slot.name for slot in slots}) < len(slots):
            raise ValueError(f"two slots share a name: {', '.join(slot.name for slot in slots)}")
        empty = [slot.name for slot in slots if isinstance(slot, Choice) and not all((slot.options, *slot.options))]
        if empty:
            raise ValueError(f"{empty[0]}: a choice needs options, none of them empty")

    def lark(self) -> str:
        """The form as a grammar in llguidance's Lark dialect."""
        terminals: dict[tuple[str, ...], str] = {}
        quoted = partial(json.dumps, ensure_ascii=False)

        def spell(parts: Sequence[Part]) -> str:
            words = []
            for part in parts:
                if isinstance(part, str):
                    words.append(quoted(part))
                elif isinstance(part, Maybe):
                    words.append(f"({spell(part.parts)})?")
                elif isinstance(part, Choice):
                    words.append(terminals.setdefault(part.options, f"CHOICE_{len(terminals) + 1}"))
                else:
                    words.append("prose")
            return " ".join(words)

        start = spell(self.parts)
        limit = "" if self.prose_tokens is None else f"[max_tokens={self.prose_tokens}]"
        choices = [f"{name}: {' | '.join(map(quoted, options))}" for options, name in terminals.items()]
        return "\n".join([f"start: {start}", f"prose{limit}: PROSE", "PROSE: /[^\\n]+/", *choices])

    def regex(self) -> str:
        """The form as a regular expression, in the syntax that all engines share."""

        def spell(parts: Sequence[Part]) -> str:
            words = []
            for part in parts:
                if isinstance(part, str):
                    words.append(_escape(part))
                elif isinstance(part, Maybe):
                    words.append(f"({spell(part.parts)})?")
                elif isinstance(part, Choice):
                    words.append(f"({'|'.join(map(_escape, part.options))})")
                else:
                    words.append("[^\\n]+")
            return "".join(words)

        return spell(self.parts)

    def schema(self) -> dict[str, Any]:
        """The slots as a JSON schema, for engines that force JSON only; :meth:`fill` turns such an answer into text.

        Every property is required, as strict engines want it; slots that may be left out may be null.
        """
        properties: dict[str, Any] = {}
        for slot, optional in self._slots():
            kind: dict[str, Any] = {"type": ["string", "null"] if optional else "string"}
            if isinstance(slot, Choice):
                kind["enum"] = [*slot.options, None] if optional else list(slot.options)
            properties[slot.name] = kind
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    def fill(self, slots: Mapping[str, Any]) -> str:
        """The answer with these slots.

        Args:
            slots: Slot name to text. Parts that may be left out are, unless all their slots are given.

        Raises:
            ValueError: If a slot is missing, empty, or none of its options.
        """

        def write(parts: Sequence[Part]) -> str:
            words = []
            for part in parts:
                if isinstance(part, str):
                    words.append(part)
                elif isinstance(part, Maybe):
                    names = [inner.name for inner in part.parts if not isinstance(inner, str)]
                    if names and all(slots.get(name) for name in names):
                        words.append(write(part.parts))
                else:
                    words.append(_slot(part, slots.get(part.name)))
            return "".join(words)

        return write(self.parts)

    def _slots(self) -> Iterator[tuple[Prose | Choice, bool]]:
        for part in self.parts:
            if isinstance(part, Maybe):
                yield from ((inner, True) for inner in part.parts if not isinstance(inner, str))
            elif not isinstance(part, str):
                yield part, False


def _slot(slot: Prose | Choice, value: Any) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text:
        raise ValueError(f"the answer has no {slot.name}")
    if isinstance(slot, Choice) and text not in slot.options:
        raise ValueError(f"{slot.name} is {text[:40]!r}, none of its options")
    return text


def _escape(text: str) -> str:
    """As ``re.escape``, which also escapes spaces and hashes: not every engine takes those."""
    return re.sub(r"([\\.^$*+?{}\[\]|()/])", r"\\\1", text).replace("\n", "\\n")
