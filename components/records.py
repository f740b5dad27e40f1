"""The record types that every stage reads and writes: the same in memory, in a batch and on disk.

All are frozen dataclasses that go to JSON and back. Pictures are held as paths, which may lead into an archive
(:mod:`rationalrewards.components.pictures`); a path in a file may be relative to that file. What could not be scored is
:class:`Unscored`, a type of its own, never a number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image

from .pictures import open_picture, picture_digest

Task = Literal["t2i", "edit"]
TASKS: tuple[Task, ...] = ("t2i", "edit")


@dataclass(frozen=True)
class Scale:
    """The scores that an aspect can get; by default those of arXiv 2604.11626, 1 to 4.

    Args:
        low: Worst score.
        high: Best score.
        step: Distance between two scores as they are written. What is read may lie between two steps.

    Raises:
        ValueError: If these are no numbers, ``low`` is not below ``high``, or steps do not lead from one to the other.
    """

    low: float = 1.0
    high: float = 4.0
    step: float = 0.1

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"scale: {name} must be a number, got {value!r}")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 are the same scale, in JSON too
        if self.low >= self.high:
            raise ValueError(f"scale: low must be below high, got {self.low:g} and {self.high:g}")
        steps = (_exact(self.high) - _exact(self.low)) / _exact(self.step) if self.step > 0 else Decimal(0)
        if steps < 1 or steps != steps.to_integral_value():
            raise ValueError(
                f"scale: step {self.step:g} does not lead from {self.low:g} to {self.high:g}; it must divide {self.high - self.low:g}"
            )
        if steps > 1000:
            raise ValueError(
                f"scale: {steps:.0f} steps from {self.low:g} to {self.high:g} are too many to choose from; at most 1000"
            )

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def contains(self, score: float) -> bool:
        """Whether a score lies on the scale, on a step or between two."""
        return self.low <= score <= self.high

    def fraction(self, score: float) -> float:
        """A score as a share of the way from worst to best, in [0, 1]; what lies outside is clamped."""
        return (min(self.high, max(self.low, score)) - self.low) / (self.high - self.low)

    def written(self, score: float) -> str:
        """A score to the nearest step, with as many decimals as the steps have."""
        steps = ((Decimal(score) - _exact(self.low)) / _exact(self.step)).quantize(Decimal(1), ROUND_HALF_EVEN)
        return f"{_exact(self.low) + steps * _exact(self.step):.{self._decimals}f}"

    def options(self) -> tuple[str, ...]:
        """All ways to write a score: whole ones without decimals, then every step with its decimals."""
        return _options(self)

    @property
    def _decimals(self) -> int:
        return max(0, *(-int(_exact(value).normalize().as_tuple().exponent) for value in (self.low, self.step)))


@cache
def _options(scale: Scale) -> tuple[str, ...]:
    low, step = _exact(scale.low), _exact(scale.step)
    scores = [low + step * index for index in range(int((_exact(scale.high) - low) / step) + 1)]
    whole = [f"{score:.0f}" for score in scores if score == score.to_integral_value()]
    return tuple(dict.fromkeys([*whole, *(f"{score:.{scale._decimals}f}" for score in scores)]))


def _exact(value: float) -> Decimal:
    """A number as it was written: 0.1, and not the binary fraction next to it."""
    return Decimal(repr(value))


@dataclass(frozen=True)
class Unscored:
    """A score that could not be had, and why. Falsy, and no arithmetic is defined on it."""

    reason: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class NotApplicable:
    """An aspect that does not apply to a request, e.g. text rendering where no text was asked for. Falsy."""

    def __bool__(self) -> bool:
        return False


Score = float | NotApplicable | Unscored


@dataclass(frozen=True)
class AspectCritique:
    """One aspect of a critique of one picture: why, then how good, on the critique's scale.

    Args:
        justification: Why.
        score: The written score.
        expected: The mean over all scores that might stand in its place, each as probable as the critic finds it after all that it
            wrote before; ``None`` if that was not asked.
        at: Characters of the answer before the written number, if there is one.
    """

    justification: str
    score: Score
    expected: float | None = None
    at: int | None = field(default=None, compare=False)

    @property
    def value(self) -> Score:
        """The score that counts: the expected one where there is one, else the written one."""
        return self.score if self.expected is None else self.expected


@dataclass(frozen=True)
class Critique:
    """What a critic said about one picture.

    Args:
        aspects: Aspect key to judgement, in the rubric's order.
        summary: The closing summary; empty if there was none.
        refinement_comments: What a better request should change.
        refined_request: The rewritten request; empty if the critic gave none.
        analysis: The opening analysis of the request, if any.
        text: The critic's answer as it came.
        scale: What the scores run from and to.
        tokens: Tokens that the critic read and wrote for it, as its backend counts them, answers that could not be read included;
            0 where it does not tell. Looking for expected scores is not in it.
    """

    aspects: Mapping[str, AspectCritique]
    summary: str = ""
    refinement_comments: str = ""
    refined_request: str = ""
    analysis: str = ""
    text: str = field(default="", compare=False)
    scale: Scale = field(default_factory=Scale)
    tokens: int = field(default=0, compare=False)

    @classmethod
    def unscored(cls, reason: str, aspects: Sequence[str], text: str = "", scale: Scale | None = None) -> Critique:
        """A critique that never came: every aspect is unscored for ``reason``."""
        return cls({key: AspectCritique("", Unscored(reason)) for key in aspects}, text=text, scale=scale or Scale())

    def score(self, aspect: str) -> Score:
        """The score of an aspect, or why there is none. Unknown aspects are unscored."""
        found = self.aspects.get(aspect)
        return found.score if found is not None else Unscored(f"aspect {aspect!r} is not part of this critique")

    def value(self, aspect: str) -> Score:
        """The score that counts in :meth:`reward`: the expected one where there is one, else the written one."""
        found = self.aspects.get(aspect)
        return found.value if found is not None else self.score(aspect)

    def justification(self, aspect: str) -> str:
        """The text that leads to the score; empty if there is none."""
        found = self.aspects.get(aspect)
        return found.justification if found is not None else ""

    def reward(self) -> float | Unscored:
        """Mean over applicable aspects (arXiv 2604.11626, Eq. 13), each clamped to the scale, mapped to [0, 1].

        Expected scores count in place of written ones where a critic gives them (:attr:`AspectCritique.value`).

        Returns:
            A number in [0, 1]; :class:`Unscored` if any aspect is unscored (a mean over what happened to be parsed would be
            a different quantity) or none applies.
        """
        return mean_reward([judged.value for judged in self.aspects.values()], self.scale)

    @property
    def failure(self) -> str:
        """Why the critique has no reward; empty if it has one."""
        reward = self.reward()
        return reward.reason if isinstance(reward, Unscored) else ""


def mean_reward(scores: Sequence[Score], scale: Scale | None = None) -> float | Unscored:
    """Mean of applicable scores mapped to [0, 1], by default from 1 to 4; see :meth:`Critique.reward`."""
    scale = scale or Scale()
    low, high = scale.low, scale.high
    values = []
    for score in scores:
        if isinstance(score, Unscored):
            return score
        if not isinstance(score, NotApplicable):
            values.append(min(high, max(low, float(score))))
    if not values:
        return Unscored("no aspect applies")
    return (sum(values) / len(values) - low) / (high - low)


Verdict = Literal["A", "B", "tie"]


@dataclass(frozen=True)
class AspectComparison:
    """One aspect of a critique of two pictures."""

    justification: str
    score_a: Score
    score_b: Score
    winner: Verdict | NotApplicable | Unscored


@dataclass(frozen=True)
class PairCritique:
    """What a critic said about two pictures of one request."""

    aspects: Mapping[str, AspectComparison]
    summary: str = ""
    analysis: str = ""
    text: str = field(default="", compare=False)
    scale: Scale = field(default_factory=Scale)

    @classmethod
    def unscored(cls, reason: str, aspects: Sequence[str], text: str = "", scale: Scale | None = None) -> PairCritique:
        """A comparison that never came."""
        missing = Unscored(reason)
        judged = {key: AspectComparison("", missing, missing, missing) for key in aspects}
        return cls(judged, text=text, scale=scale or Scale())

    def scores(self, aspect: str) -> tuple[Score, Score]:
        """The scores of both pictures in one aspect."""
        found = self.aspects.get(aspect)
        if found is None:
            missing = Unscored(f"aspect {aspect!r} is not part of this critique")
            return missing, missing
        return found.score_a, found.score_b

    def rewards(self) -> tuple[float | Unscored, float | Unscored]:
        """The reward of each picture, as :meth:`Critique.reward`."""
        judged = list(self.aspects.values())
        return mean_reward([a.score_a for a in judged], self.scale), mean_reward([a.score_b for a in judged], self.scale)

    def verdict(self) -> Verdict | Unscored:
        """Which picture has the higher reward; the written winners are ignored, as in the paper's evaluation code."""
        a, b = self.rewards()
        if isinstance(a, Unscored):
            return a
        if isinstance(b, Unscored):
            return b
        return "tie" if a == b else ("A" if a > b else "B")


@dataclass(frozen=True)
class Preference:
    """Two pictures for one request, and which one people preferred.

    Args:
        id: Unique within its set.
        task: ``"t2i"`` or ``"edit"``.
        prompt: The request.
        candidates: Paths of pictures A and B.
        label: Probability that A is preferred: 1 for A, 0 for B, 0.5 for a tie; votes give values between.
        sources: Paths of the source pictures of an edit, in order.
        origin: Where the pair comes from (data set, revision, row), free text.
    """

    id: str
    task: Task
    prompt: str
    candidates: tuple[str, str]
    label: float
    sources: tuple[str, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        _check_task(self.task, self.prompt, self.sources)
        if not isinstance(self.label, (int, float)) or not 0.0 <= self.label <= 1.0:
            raise ValueError(f"label must be the probability that A is preferred, 0 to 1, got {self.label!r}")
        if len(self.candidates) != 2:
            raise ValueError(f"a pair has 2 candidates, got {len(self.candidates)}")

    @property
    def winner(self) -> Verdict:
        """The label as a verdict."""
        return "tie" if self.label == 0.5 else ("A" if self.label > 0.5 else "B")

    @property
    def group(self) -> str:
        """Identity of (prompt, source pictures); see :func:`group_id`."""
        return group_id(self.prompt, self.sources)

    @property
    def dataset(self) -> str:
        """The data set that the pair comes from: :attr:`origin` up to its first comma; empty where nothing is known."""
        return self.origin.partition(",")[0].strip()


@dataclass(frozen=True)
class PromptRecord:
    """A request to generate from: what RL and refinement read."""

    id: str
    task: Task
    prompt: str
    sources: tuple[str, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        _check_task(self.task, self.prompt, self.sources)

    @property
    def group(self) -> str:
        """Identity of (prompt, source pictures); see :func:`group_id`."""
        return group_id(self.prompt, self.sources)


@dataclass(frozen=True)
class Rationale:
    """A preference pair with the critiques that survived PARROT: what distillation reads.

    Args:
        pair: The preference pair.
        pair_text: The pairwise critique, in the student's format and in the pair's own order.
        point_texts: The pointwise critique of each picture, refinement included.
        format: Fingerprint of the format that the texts follow.
        provenance: Teacher, sampling and stage options.
    """

    pair: Preference
    pair_text: str
    point_texts: tuple[str, str]
    format: str
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One picture made during refinement, scored against the original request.

    Args:
        round: 0 for what was made before any critique was there.
        request: What it was made for.
        image: Path; empty if it could not be made, and then ``unscored`` says why.
        critique: The critic's answer.
        reward: What picks; ``None`` if there is none.
        unscored: Why there is no reward.
        aspects: Written scores, ``None`` where an aspect does not apply or has none.
        scale: What they run from and to.
        held_out: The score of a judge that had no part in the loop; ``None`` if there was no judge, or it gave none.
        copy: Which noise of the request's it began from: pictures of one request with the same number began alike.
        parent: The candidate whose critique led to its request.
        tokens: Tokens that the critic read and wrote for its request and for its critique.
    """

    round: int
    request: str
    image: str
    critique: str
    reward: float | None
    unscored: str = ""
    aspects: Mapping[str, float | None] = field(default_factory=dict)
    scale: Scale = field(default_factory=Scale)
    held_out: float | None = None
    copy: int = 0
    parent: int | None = None
    tokens: int = 0


@dataclass(frozen=True)
class Refinement:
    """The way one request took through an arm of the refine loop; ``chosen`` indexes ``candidates``.

    ``tokens`` are all that the critic read and wrote in it: those of the candidates, and of rewrites that led to no picture.
    """

    id: str
    task: Task
    prompt: str
    arm: str
    candidates: tuple[Candidate, ...]
    chosen: int
    stop: str
    sources: tuple[str, ...] = ()
    tokens: int = 0


def _check_task(task: str, prompt: str, sources: Sequence[str]) -> None:
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("the prompt is empty; write the request or take the row out")
    if (task == "edit") != bool(sources):
        raise ValueError("an edit needs source pictures" if task == "edit" else "a text-to-image request has no source pictures")


def group_id(prompt: str, sources: Sequence[str]) -> str:
    """Identity of a group: one (prompt, source pictures). Equal prompts on different sources are different groups.

    Returns:
        16 hexadecimal digits (64 bits).
    """
    digest = hashlib.sha256(prompt.encode())
    for source in sources:
        digest.update(bytes.fromhex(picture_digest(source)))
    return digest.hexdigest()[:16]


def located(record: R, path: str | Path, number: int) -> R:
    """Remember in which row of which file a record was read, for messages. Not a field: it is neither compared nor written."""
    for part in (record, *([record.pair] if isinstance(record, Rationale) else [])):
        object.__setattr__(part, "_read_from", f"{path}, row {number}")
    return record


def open_pictures(record: Preference | PromptRecord, paths: Sequence[str]) -> tuple[Image.Image, ...]:
    """Pictures of a record, as :func:`open_picture` reads them.

    Raises:
        ValueError: As there; the message also names the row that the record was read from, or else its id.
    """
    try:
        return tuple(open_picture(path) for path in paths)
    except ValueError as error:
        raise ValueError(f"{getattr(record, '_read_from', f'record {record.id!r}')}: {error}") from error


R = TypeVar("R")
_NESTED: dict[str, type[Any]] = {"pair": Preference, "scale": Scale}


def to_json(record: Any) -> dict[str, Any]:
    """A record as plain JSON data."""
    return dataclasses.asdict(record)


def from_json(kind: type[R], data: Mapping[str, Any], root: Path | None = None) -> R:
    """A record from plain JSON data.

    Args:
        kind: The record type.
        data: Its fields. An unknown or missing one is an error.
        root: Folder that relative picture paths start from.

    Raises:
        ValueError: If the fields are not those of ``kind``; the message names the field and lists the known ones.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ValueError(f"unknown column {unknown[0]!r}; a {kind.__name__} has: {', '.join(fields)}")
    for name, spec in fields.items():
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ValueError(f"column {name!r} is missing; a {kind.__name__} has: {', '.join(fields)}")
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name in _NESTED and isinstance(value, Mapping):
            value = from_json(_NESTED[name], value, root)
        elif name == "aspects" and kind in (Critique, PairCritique):
            judgement = AspectCritique if kind is Critique else AspectComparison
            value = {key: judgement(**{name: _judged(part) for name, part in item.items()}) for key, item in value.items()}
        elif name == "candidates" and kind is Refinement:
            value = tuple(from_json(Candidate, item, root) for item in value)
        elif name in ("candidates", "sources"):
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"column {name!r} must be a list of picture paths, got {value!r}")
            value = tuple(str(_rooted(item, root)) if root is not None else item for item in value)
        elif name == "image" and value and root is not None:
            value = str(_rooted(value, root))
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return kind(**values)


def _judged(value: Any) -> Any:
    """A score, verdict or justification from what ``dataclasses.asdict`` makes of it."""
    if isinstance(value, Mapping):
        return Unscored(value["reason"]) if "reason" in value else NotApplicable()
    return value


def _rooted(path: str, root: Path) -> Path:
    return Path(path) if Path(path).is_absolute() else root / path


def relative_to(record: R, root: Path) -> R:
    """A copy of a record whose picture paths start at ``root``, so that the tree around it can be moved as a whole."""

    def shorten(path: str) -> str:
        return Path(os.path.relpath(path, root)).as_posix()

    changes: dict[str, Any] = {}
    for spec in dataclasses.fields(record):  # type: ignore[arg-type]
        value = getattr(record, spec.name)
        if spec.name == "pair" or (spec.name == "candidates" and isinstance(record, Refinement)):
            nested = value if isinstance(value, tuple) else (value,)
            shortened = tuple(relative_to(item, root) for item in nested)
            changes[spec.name] = shortened if isinstance(value, tuple) else shortened[0]
        elif spec.name in ("candidates", "sources"):
            changes[spec.name] = tuple(shorten(path) for path in value)
        elif spec.name == "image" and value:
            changes[spec.name] = shorten(value)
    return dataclasses.replace(record, **changes)  # type: ignore[type-var]


def read_jsonl(path: str | Path, kind: type[R]) -> list[R]:
    """Read a file of records, one JSON object a line; relative picture paths start at the file's folder.

    Raises:
        ValueError: On the first bad row; the message names file, row and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the path of a .jsonl file with one {kind.__name__} a line")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise ValueError("the row is not a JSON object")
            records.append(located(from_json(kind, data, path.parent), path, number))
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    return records


def write_jsonl(path: str | Path, records: Sequence[Any]) -> None:
    """Write records, one JSON object a line, atomically; picture paths below the file's folder become relative."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(to_json(relative_to(record, path.parent)), ensure_ascii=False) for record in records]
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    temporary.replace(path)
