"""What is judged: aspects, their levels and the instructions around them. A rubric is a YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..records import TASKS, Scale, Task

RUBRIC_FOLDER = Path(__file__).parent / "rubrics"


@dataclass(frozen=True)
class Aspect:
    """One thing to judge.

    Args:
        key: Name in records and logs, e.g. ``text_faithfulness``.
        title: Heading in critiques, e.g. ``Text Faithfulness``.
        tasks: Tasks that the aspect is judged in.
        optional: Whether ``N/A`` is a legal score.
        levels: Scores and what each means, best first.
    """

    key: str
    title: str
    tasks: tuple[Task, ...]
    optional: bool = False
    levels: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Rubric:
    """Aspects in order, and the instructions that open every judging request.

    Args:
        name: Name of the rubric.
        aspects: All aspects; each task uses those that name it.
        pointwise: Instructions for one picture. ``{aspects}`` and ``{answer}`` are replaced by the written-out aspects and by
            the form of the answer.
        pairwise: Instructions for two pictures, likewise.
        scale: The scores that every aspect can get.
    """

    name: str
    aspects: tuple[Aspect, ...]
    pointwise: str
    pairwise: str
    scale: Scale = field(default_factory=Scale)

    def for_task(self, task: Task) -> tuple[Aspect, ...]:
        """The aspects of a task, in order."""
        return tuple(aspect for aspect in self.aspects if task in aspect.tasks)

    def keys(self, task: Task) -> tuple[str, ...]:
        """The aspect keys of a task, in order."""
        return tuple(aspect.key for aspect in self.for_task(task))


def rubric_from_dict(data: dict[str, Any], where: str) -> Rubric:
    """Build a rubric from the content of its YAML file.

    ``scale`` is a mapping of ``low``, ``high`` and ``step`` (1, 4 and 0.1 if omitted). An aspect's ``levels`` are either a list of
    texts, for the best score and those below it in whole points, or a mapping of scores to texts.

    Raises:
        ValueError: If a field is missing or unknown; the message starts with ``where``.
    """
    try:
        if not isinstance(data, dict) or not isinstance(data.get("aspects", []), list):
            raise ValueError("a rubric is a mapping with name, aspects (a list), pointwise and pairwise")
        extra = sorted(set(data) - {"name", "aspects", "pointwise", "pairwise", "scale"})
        if extra:
            raise ValueError(f"unknown field {extra[0]!r}; a rubric has: name, aspects, pointwise, pairwise, scale")
        scale = _scale(data["scale"]) if "scale" in data else Scale()
        aspects = []
        for entry in data["aspects"]:
            if not isinstance(entry, dict):
                raise ValueError(f"aspect {entry!r} must be a mapping with key and title")
            unknown = sorted(set(entry) - {"key", "title", "tasks", "optional", "levels"})
            if unknown:
                raise ValueError(
                    f"unknown field {unknown[0]!r} in aspect {entry.get('key')!r}; an aspect has: key, title, tasks, optional, levels"
                )
            tasks = tuple(entry.get("tasks", TASKS))
            bad = [task for task in tasks if task not in TASKS]
            if bad:
                raise ValueError(f"aspect {entry['key']!r}: unknown task {bad[0]!r}; known: {', '.join(TASKS)}")
            aspects.append(
                Aspect(
                    entry["key"],
                    entry["title"],
                    tasks,
                    bool(entry.get("optional", False)),
                    _levels(entry.get("levels", ()), scale, entry["key"]),
                )
            )
        rubric = Rubric(data["name"], tuple(aspects), data["pointwise"].strip(), data["pairwise"].strip(), scale)
    except KeyError as error:
        raise ValueError(f"{where}: field {error.args[0]!r} is missing") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if len({aspect.key for aspect in aspects}) != len(aspects):
        raise ValueError(f"{where}: two aspects share a key")
    return rubric


def _scale(data: Any) -> Scale:
    known = [spec.name for spec in fields(Scale)]
    if not isinstance(data, dict):
        raise ValueError(f"scale must be a mapping of {', '.join(known)}, got {data!r}")
    unknown = [str(name) for name in data if name not in known]
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r} in scale; it has: {', '.join(known)}")
    return Scale(**data)


def _levels(levels: Any, scale: Scale, key: str) -> tuple[tuple[float, str], ...]:
    if isinstance(levels, dict):
        scores = list(levels)
    elif isinstance(levels, (list, tuple)):
        scores = [scale.high - index for index in range(len(levels))]
    else:
        raise ValueError(f"aspect {key!r}: levels must be a list, best first, or a mapping of scores to texts, got {levels!r}")
    texts = list(levels.values()) if isinstance(levels, dict) else list(levels)
    for score, text in zip(scores, texts, strict=True):
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not isinstance(text, str):
            raise ValueError(f"aspect {key!r}: level {score!r}: {text!r} must be a score and a text")
        if not scale.contains(score):
            raise ValueError(f"aspect {key!r}: {len(texts)} levels, one of them for {score:g}, but the scale is {scale}")
    return tuple(sorted(((float(score), text) for score, text in zip(scores, texts, strict=True)), reverse=True))


@cache
def load_rubric(name: str = "default") -> Rubric:
    """Load a rubric by name (those shipped: ``default``, ``shapes``) or by the path of a YAML file.

    Raises:
        ValueError: If there is no such rubric, or its file is wrong.
    """
    path = RUBRIC_FOLDER / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
        if not path.is_file():
            known = ", ".join(sorted(found.stem for found in RUBRIC_FOLDER.glob("*.yaml")))
            raise ValueError(f"no rubric {name!r}; give the path of a YAML file or one of: {known}")
    return rubric_from_dict(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
