"""Own wording for the judging requests: the turns that a critic is shown, with slots for the request and its pictures.

For checkpoints that were trained elsewhere and expect the words that they were trained on. A template is the user's file and is
trusted; the request is not, and what stands in a slot is never read again, so that no request can add a slot, a picture, a turn or a
control token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from PIL import Image

from ..records import TASKS, Task

Section = Literal["pointwise", "pairwise"]
SECTIONS: tuple[Section, ...] = ("pointwise", "pairwise")
ROLES = ("system", "user", "assistant")

_PICTURES = {"pointwise": ("image",), "pairwise": ("image_a", "image_b")}
_TEXTS = ("aspects", "answer")
_SLOT = re.compile(r"\{\{(?P<literal>\w+)\}\}|\{(?P<name>\w+)\}")
_CONTROL = re.compile(r"<\|.*?\|>|<(?:image|video)>", re.IGNORECASE)
_OPEN = re.compile(r"[<\[][^<>\[\]\s]*$")
_TOKEN = re.compile(r"<(?=[|/!\uff5cA-Za-z])|\[(?=/?[A-Z_]{3,}\])")


def inert(text: str) -> str:
    """A text that can close no tag and holds no chat-control token (``<|im_end|>``, ``<image>``, ``[IMG]``), else word for word."""
    return _TOKEN.sub(lambda mark: mark[0] + " ", text)


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation, its slots still open."""

    role: str
    text: str


@dataclass(frozen=True)
class Template:
    """Turns by section and task.

    Args:
        name: Where it was read, for messages.
        turns: ``(section, task)`` to turns; a section that the file lacks is missing for both tasks.
        source_label: Text before each source picture; ``{number}`` in it counts them from 1.
    """

    name: str
    turns: Mapping[tuple[Section, Task], tuple[Turn, ...]]
    source_label: str = ""

    def content(self) -> list[Any]:
        """All of it as plain data, for a fingerprint; its name is not part of it."""
        turns = [[*key, [[turn.role, turn.text] for turn in found]] for key, found in sorted(self.turns.items())]
        return [turns, self.source_label]

    def messages(
        self,
        section: Section,
        task: Task,
        prompt: str,
        sources: Sequence[Image.Image],
        images: Mapping[str, Image.Image],
        texts: Mapping[str, str],
    ) -> list[dict[str, Any]]:
        """The conversation with every slot filled, in one pass.

        Args:
            section: ``"pointwise"`` or ``"pairwise"``.
            task: The task.
            prompt: The request.
            sources: Source pictures of an edit.
            images: Pictures by slot.
            texts: ``aspects`` and ``answer``.

        Raises:
            ValueError: If the template has no such section, or none for the task.
        """
        if (section, task) not in self.turns:
            raise ValueError(f"template {self.name} has no {section} section for task {task}; add one, or ask for what it has")
        messages = []
        for turn in self.turns[section, task]:
            parts: list[dict[str, Any]] = []
            text, end = "", 0
            for slot in _SLOT.finditer(turn.text):
                text, end, name = text + turn.text[end : slot.start()], slot.end(), slot["name"]
                if name is None:
                    text += f"{{{slot['literal']}}}"
                elif name == "request":
                    text += _apart(text, prompt)
                elif name in texts:
                    text += texts[name]
                else:
                    shown = [("", images[name])] if name in images else [(self._label(i), s) for i, s in enumerate(sources, 1)]
                    for label, picture in shown:
                        parts += [{"type": "text", "text": text + label}] if text + label else []
                        parts.append({"type": "image", "image": picture})
                        text = ""
            text += turn.text[end:]
            parts += [{"type": "text", "text": text}] if text else []
            messages.append({"role": turn.role, "content": parts})
        return messages

    def _label(self, number: int) -> str:
        return self.source_label.replace("{number}", str(number))


def _apart(before: str, prompt: str) -> str:
    """A request that can complete no token with the text around it."""
    text = inert(prompt).strip()
    return (" " if _OPEN.search(before) else "") + text + (" " if _OPEN.search(text) else "")


@cache
def load_template(name: str) -> Template:
    """Read a template.

    Raises:
        ValueError: If there is no such file, or something in it is wrong; the message names file, section and slot.
    """
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"no template {name!r}; give the path of a YAML file")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not YAML ({error})") from error
    return template_from_dict(data, name)


def template_from_dict(data: Any, where: str) -> Template:
    """Build a template from the content of its YAML file.

    Raises:
        ValueError: As :func:`load_template`; the message starts with ``where``.
    """
    if not isinstance(data, dict) or not any(section in data for section in SECTIONS):
        raise ValueError(f"{where}: a template is a mapping with pointwise, pairwise or both")
    unknown = [str(key) for key in data if key not in (*SECTIONS, "source_label")]
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; a template has: {', '.join(SECTIONS)}, source_label")
    label = data.get("source_label", "")
    if not isinstance(label, str) or _CONTROL.search(label) or any(slot["name"] != "number" for slot in _SLOT.finditer(label)):
        raise ValueError(f"{where}: source_label is a text that may hold {{number}}, got {label!r}")
    turns: dict[tuple[Section, Task], tuple[Turn, ...]] = {}
    for section in SECTIONS:
        if section not in data:
            continue
        found = data[section]
        if isinstance(found, dict):
            wrong = [str(task) for task in found if task not in TASKS]
            if wrong or not found:
                raise ValueError(
                    f"{where}: {section}: a list of turns, or one for each of: {', '.join(TASKS)}; got {wrong or found}"
                )
        both = found if isinstance(found, dict) else dict.fromkeys(TASKS, found)
        for task in TASKS:
            if task in both:
                place = f"{where}: {section}" + (f", {task}" if isinstance(found, dict) else "")
                turns[section, task] = _turns(both[task], place)
                _check_slots(turns[section, task], section, task, isinstance(found, dict), place)
    return Template(where, turns, label)


def _turns(data: Any, place: str) -> tuple[Turn, ...]:
    if not isinstance(data, list) or not data:
        raise ValueError(f"{place}: a list of turns with role and text, got {data!r}")
    turns = []
    for number, entry in enumerate(data, start=1):
        if not isinstance(entry, dict) or set(entry) != {"role", "text"} or not isinstance(entry["text"], str):
            raise ValueError(f"{place}, turn {number}: a turn has role and text, got {entry!r}")
        if entry["role"] not in ROLES or (entry["role"] == "system" and number > 1):
            raise ValueError(f"{place}, turn {number}: role must be user, assistant or, in turn 1, system; got {entry['role']!r}")
        control = _CONTROL.search(entry["text"])
        if control:
            raise ValueError(f"{place}, turn {number}: {control[0]} is added by the model's own chat template; leave it out")
        turns.append(Turn(entry["role"], entry["text"]))
    if turns[-1].role != "user":
        raise ValueError(f"{place}: the last turn must be the user's, as the critic answers it")
    return tuple(turns)


def _check_slots(turns: Sequence[Turn], section: Section, task: Task, own: bool, place: str) -> None:
    """Every required slot once, in a turn of the user's; no other than the known."""
    required = ("request", *_PICTURES[section], *(("sources",) if task == "edit" else ()))
    # a list for both tasks has {sources}, of which text-to-image has none
    known = (*required, *_TEXTS, *(() if own or task == "edit" else ("sources",)))
    seen: set[str] = set()
    for number, turn in enumerate(turns, start=1):
        for slot in _SLOT.finditer(turn.text):
            name = slot["name"]
            if name is None:
                continue
            at = f"{place}, turn {number}: slot {{{name}}}"
            if name not in known:
                listed = ", ".join(f"{{{one}}}" for one in known)
                raise ValueError(f"{at} is unknown here; known: {listed}. Write {{{{{name}}}}} for the text itself")
            if name in seen:
                raise ValueError(f"{at} stands there twice")
            if name not in _TEXTS and turn.role != "user":
                raise ValueError(f"{at} must stand in a turn of the user's, not the {turn.role}'s")
            seen.add(name)
    missing = [name for name in required if name not in seen]
    if missing:
        hint = "" if own or missing[0] != "sources" else f"; a template without edits has its turns below `{section}: t2i:`"
        raise ValueError(f"{place}: slot {{{missing[0]}}} is missing{hint}")
