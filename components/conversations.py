"""What a student learns, and the form in which trainers of others read it: conversations with pictures.

A row of theirs is sharegpt with OpenAI's tags, as LLaMA-Factory reads it and RationalRewards-SFTData is written::

    {"messages": [{"role": "system" | "user" | "assistant", "content": text}, ...], "images": [picture, ...]}

The k-th ``<image>`` of the turns after the system's stands for ``images[k]``; the last turn is the answer. Our own rows also say which
``pair`` they are of, their ``kind``, ``index``, ``task`` and ``origin``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from .critique import CritiqueFormat, swap_pair
from .critique.formats import FINGERPRINT_FILE, Message, image_part, text_part
from .pictures import open_picture
from .records import TASKS, Rationale, Task, Unscored, open_pictures

Kind = Literal["pair", "point"]
KINDS: tuple[Kind, ...] = ("point", "pair")
Turns = tuple[tuple[str, str], ...]
"""Role and text of each turn of a request, with ``<image>`` where a picture stands."""

PLACEHOLDER = "<image>"
CHUNK = 2**20
"""Characters of a JSON list to read at once."""
# LLaMA-Factory's placeholders and the control tokens of ChatML, as which tokenizers read these words wherever they stand
_ACTIVE = re.compile(r"<(?=(?:image|video|audio)>|\|[^<>|\s]*\|>)", re.IGNORECASE)
_NO_THOUGHT = re.compile(r"^\s*<think>\s*</think>\s*")
_TWO_SCORES = re.compile(r"\bscore\s+a\b", re.IGNORECASE)
_REQUEST = "\x00"


def plain(text: str) -> str:
    """A text in which no ``<image>``, ``<|im_end|>`` or the like acts; it is word for word the same but for a space after their ``<``."""
    return _ACTIVE.sub("< ", text)


def without_empty_thought(answer: str) -> str:
    """An answer without the empty think block that LLaMA-Factory's reasoning templates open answers with."""
    return _NO_THOUGHT.sub("", answer)


# -- messages and turns ------------------------------------------------------------------------------------------------------


def flatten(messages: Sequence[Message]) -> tuple[Turns, list[Any]]:
    """Messages of text and picture parts as turns of text.

    Chat templates put parts together with nothing between them, and so does this: a model is shown the same tokens.

    Returns:
        The turns, and what the picture parts hold, in the order of their placeholders. Only these are ``<image>``: the word as part of
        a text is made :func:`plain`.

    Raises:
        ValueError: If a part is neither text nor a picture, or a picture stands in a system turn, where no trainer looks for one.
    """
    turns, images = [], []
    for message in messages:
        role, content = message["role"], message["content"]
        parts = [text_part(content)] if isinstance(content, str) else content
        text = run = ""
        for part in parts:
            if part["type"] == "text":
                run += part["text"]
            elif part["type"] == "image" and role != "system":
                text, run = text + plain(run) + PLACEHOLDER, ""
                images.append(part.get("image"))
            else:
                raise ValueError(
                    f"a {role} turn has a part of type {part['type']!r}; it may hold text" + " and images" * (role != "system")
                )
        turns.append((role, text + plain(run)))
    return tuple(turns), images


def unflatten(turns: Turns, images: Sequence[Any]) -> list[Message]:
    """Turns of text as messages of text and picture parts; undoes :func:`flatten`.

    Raises:
        ValueError: If there are more or fewer ``<image>`` than pictures.
    """
    places = _places(turns)
    if places != len(images):
        raise ValueError(f"{places} {PLACEHOLDER} in the messages, but {len(images)} images; each needs the other")
    rest = iter(images)
    messages = []
    for role, text in turns:
        parts = []
        for number, piece in enumerate([text] if role == "system" else text.split(PLACEHOLDER)):
            parts += [image_part(next(rest))] if number else []
            parts += [text_part(plain(piece))] if piece else []
        messages.append({"role": role, "content": parts})
    return messages


def _places(turns: Turns) -> int:
    return sum(text.count(PLACEHOLDER) for role, text in turns if role != "system")


# -- rows --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SupervisedRow:
    """One thing for a student to learn: a request, and the critique it should answer with.

    Args:
        kind: ``"pair"`` or ``"point"``.
        rationale: Where it comes from.
        index: For a pair: 0 the pair's own order, 1 swapped. For a point: which picture.
    """

    kind: Kind
    rationale: Rationale
    index: int

    def load(self, format: CritiqueFormat) -> tuple[list[Message], str]:
        """``(messages, answer)``; reads the pictures."""
        return self.render(format, lambda names: open_pictures(self.rationale.pair, names))

    def render(self, format: CritiqueFormat, show: Callable[[Sequence[str]], Sequence[Any]]) -> tuple[list[Message], str]:
        """``(messages, answer)`` with whatever ``show`` makes of the names of pictures in their places."""
        pair = self.rationale.pair
        sources = show(pair.sources)
        if self.kind == "point":
            (image,) = show([pair.candidates[self.index]])
            messages = format.pointwise_messages(pair.task, pair.prompt, sources, image)
            return messages, plain(self.rationale.point_texts[self.index])
        first, second = show(pair.candidates)
        critique = format.parse_pair(self.rationale.pair_text, pair.task)
        if self.index:
            first, second, critique = second, first, swap_pair(critique)
        messages = format.pairwise_messages(pair.task, pair.prompt, sources, (first, second))
        return messages, plain(format.render_pair(critique, pair.task))

    @property
    def length(self) -> float:
        """Estimated length in characters, a picture counting as 100; only its order matters."""
        text = self.rationale.pair_text if self.kind == "pair" else self.rationale.point_texts[self.index]
        pictures = len(self.rationale.pair.sources) + (2 if self.kind == "pair" else 1)
        return len(text) + 100.0 * pictures


def supervised_rows(rationale: Rationale, kinds: Sequence[Kind] = KINDS, both_orders: bool = True) -> list[SupervisedRow]:
    """The rows of a rationale: a critique of each picture, and the comparison in both orders."""
    rows = [SupervisedRow("point", rationale, index) for index in (0, 1)] if "point" in kinds else []
    if "pair" in kinds:
        rows += [SupervisedRow("pair", rationale, index) for index in ((0, 1) if both_orders else (0,))]
    return rows


def check_written_in(rationale: Rationale, format: CritiqueFormat, fingerprint: str, where: str) -> None:
    """Refuse a rationale of another format.

    Args:
        rationale: The rationale.
        format: The student's format.
        fingerprint: That of ``format``, which takes time to find.
        where: File and row.

    Raises:
        ValueError: If the formats differ; the message names both.
    """
    if rationale.format != fingerprint:
        raise ValueError(f"{where}: {_differs(rationale.format, format, fingerprint)}; or rationalize again")


def _differs(written: str, format: CritiqueFormat, fingerprint: str) -> str:
    template = "" if format.template is None else f" with template {format.template!r}"
    return (
        f"written in format {written}, but the student learns {format.rubric!r}{template} ({fingerprint}); set `format` to the one it "
        "was written in"
    )


def check_data_fingerprint(path: Path, format: CritiqueFormat, fingerprint: str) -> bool:
    """Refuse conversations of another format, if the fingerprint of theirs lies beside the file (or the folder ``data`` that it is in).

    Returns:
        Whether there is a fingerprint.

    Raises:
        ValueError: If the formats differ; the message names both.
    """
    folder = path.parent.parent if path.parent.name == "data" else path.parent
    stored = folder / FINGERPRINT_FILE
    if not stored.is_file():
        return False
    written = json.loads(stored.read_text(encoding="utf-8"))["fingerprint"]
    if written != fingerprint:
        raise ValueError(f"{path}: {_differs(written, format, fingerprint)}")
    return True


@dataclass(frozen=True, slots=True)
class Conversation:
    """One thing for a student to learn, read from a row of theirs.

    Args:
        turns: The request; the k-th ``<image>`` after the system turn stands for ``images[k]``.
        answer: What the student should answer.
        images: Names of its pictures.
        where: File and row, for messages.
        kind: ``"pair"`` or ``"point"``; ``None`` until :func:`recognised`, if the row does not say it.
        task: Likewise.
        pair: Id of its preference pair; ``where`` if the row does not say it.
        index: As that of :class:`SupervisedRow`; 0 if the row does not say it.
    """

    turns: Turns
    answer: str
    images: tuple[str, ...]
    where: str
    kind: Kind | None = None
    task: Task | None = None
    pair: str = ""
    index: int = 0

    def load(self, format: CritiqueFormat) -> tuple[list[Message], str]:
        """``(messages, answer)`` in the row's own words; reads the pictures.

        Raises:
            ValueError: If a picture cannot be read; the message names file, row and picture.
        """
        try:
            return unflatten(self.turns, [open_picture(name) for name in self.images]), self.answer
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error

    @property
    def length(self) -> float:
        """Estimated length in characters, a picture counting as 100; only its order matters."""
        return len(self.answer) + 100.0 * len(self.images)


def recognised(row: Conversation, format: CritiqueFormat) -> Conversation | Unscored:
    """A row with its kind and task, which its answer and the number of its pictures tell if it does not say them itself.

    Returns:
        The row, or why a critic of ``format`` could make nothing of its answer.
    """
    pictures, reasons = len(row.images), []
    likely: list[tuple[Kind, int]] = [("pair", 2), ("point", 1)]
    for kind, shown in likely if _TWO_SCORES.search(row.answer) else reversed(likely):
        if pictures < shown or row.kind not in (None, kind):
            continue
        task: Task = row.task or ("edit" if pictures > shown else "t2i")
        if kind == "pair":
            verdict = format.parse_pair(row.answer, task).verdict()
            reason = verdict.reason if isinstance(verdict, Unscored) else ""
        else:
            reason = format.parse(row.answer, task).failure
        if not reason:
            return replace(row, kind=kind, task=task)
        reasons.append(f"as a {kind}: {reason}")
    return Unscored("; ".join(reasons) or f"{pictures} images")


class Wording:
    """Whether requests are in the words in which a format asks, whatever the user's request in them is.

    Args:
        format: The format.
    """

    def __init__(self, format: CritiqueFormat) -> None:
        self.format = format
        self._known: dict[tuple[Kind, Task, int], list[tuple[str, list[str]]] | None] = {}

    def asks(self, row: Conversation) -> bool:
        """Whether the format asks so; ``row`` has been :func:`recognised`."""
        assert row.kind is not None and row.task is not None
        key = (row.kind, row.task, len(row.images))
        if key not in self._known:
            self._known[key] = self._turns(*key)
        asked = self._known[key]
        if asked is None or [role for role, _ in asked] != [role for role, _ in row.turns]:
            return False
        return all(_fits(text, around) for (_, text), (_, around) in zip(row.turns, asked, strict=True))

    def _turns(self, kind: Kind, task: Task, pictures: int) -> list[tuple[str, list[str]]] | None:
        sources: list[Any] = [None] * (pictures - (2 if kind == "pair" else 1))
        try:
            messages = (
                self.format.pairwise_messages(task, _REQUEST, sources, (None, None))  # type: ignore[arg-type]
                if kind == "pair"
                else self.format.pointwise_messages(task, _REQUEST, sources, None)  # type: ignore[arg-type]
            )
        except ValueError:  # the format's template has no wording for it
            return None
        return [(role, text.split(_REQUEST)) for role, text in flatten(messages)[0]]


def _fits(text: str, around: Sequence[str]) -> bool:
    if len(around) == 1:
        return text == around[0]
    return len(text) >= len(around[0]) + len(around[-1]) and text.startswith(around[0]) and text.endswith(around[-1])


# -- files -------------------------------------------------------------------------------------------------------------------


def to_row(turns: Turns, answer: str, images: Sequence[str], **more: Any) -> dict[str, Any]:
    """A row as it is written, with further columns.

    Raises:
        ValueError: If the turns do not take turns, as LLaMA-Factory asks for: one system turn at most, then user and assistant.
    """
    spoken = [role for role, _ in turns[turns[0][0] == "system" :]]
    if spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        raise ValueError(f"the request has turns of {', '.join(role for role, _ in turns)}; user and assistant must alternate")
    said = [*turns, ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in said], "images": list(images), **more}


def from_row(data: Any, where: str, root: Path, known: dict[str, str] | None = None) -> Conversation:
    """A row as it was read.

    Args:
        data: The row. ``content`` may also be a list of text and image parts, and ``prompt`` and ``completion`` may stand in place of
            ``messages``.
        where: File and row.
        root: Folder that relative names of pictures start from.
        known: Texts that other rows hold too, so that they are kept once.

    Raises:
        ValueError: If it is no such row, or has more or fewer ``<image>`` than images; the message names file and row.
    """
    try:
        if not isinstance(data, dict) or not ("messages" in data or {"prompt", "completion"} <= set(data)):
            columns = f"has {', '.join(map(str, data)) or 'nothing'}" if isinstance(data, dict) else "is no JSON object"
            raise ValueError(f"the row {columns}; a conversation has messages and images")
        said = data["messages"] if "messages" in data else [*data["prompt"], *data["completion"]]
        turns = _turns(said)
        images = data.get("images") or []
        if not all(isinstance(name, str) for name in images):
            raise ValueError(f"images must be a list of paths, got {images!r}")
        (*request, (role, answer)) = turns
        if role != "assistant" or not request or request[-1][0] != "user":
            raise ValueError(
                f"the turns are of {', '.join(role for role, _ in turns)}; the last two must be of user and assistant"
            )
        # an answer shows no picture, so that the word can only be meant as a word
        answer = plain(without_empty_thought(answer))
        request = [(role, plain(text) if role == "system" else text) for role, text in request]
        places = _places(tuple(request))
        if places != len(images):
            raise ValueError(f"{places} {PLACEHOLDER} in the messages, but {len(images)} images; correct the row or take it out")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if known is not None:
        request = [(role, known.setdefault(text, text)) for role, text in request]
    ours = data.get("kind") in KINDS and data.get("task") in TASKS and data.get("index") in (0, 1)
    named = tuple(name if Path(name).is_absolute() else str(root / name) for name in images)
    if not ours:
        return Conversation(tuple(request), answer, named, where, pair=where)
    pair = str(data.get("pair", where))
    return Conversation(tuple(request), answer, named, where, data["kind"], data["task"], pair, int(data["index"]))


def _turns(said: Any) -> list[tuple[str, str]]:
    turns: list[tuple[str, str]] = []
    if not isinstance(said, list) or not said:
        raise ValueError(f"messages must be a list of turns, got {said!r}")
    for number, turn in enumerate(said, start=1):
        if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
            raise ValueError(f"turn {number} must have role and content, got {turn!r}")
        role, content = turn["role"], turn["content"]
        if role not in ("user", "assistant") and (role, number) != ("system", 1):
            raise ValueError(f"turn {number} is of role {role!r}; user, assistant or, at first, system")
        if isinstance(content, list):
            ((_, content),), _ = flatten([dict(turn)])
        if not isinstance(content, str):
            raise ValueError(f"the content of turn {number} is no text: {content!r}")
        turns.append((role, content))
    return turns


def read_conversations(path: str | Path, root: str | Path | None = None) -> Iterator[Conversation]:
    """Read rows one by one: a JSON list, JSON lines (both whatever the file is called), or parquet with the pictures inside.

    Args:
        path: The file.
        root: Folder that relative names of pictures start from; the file's own if omitted.

    Raises:
        ValueError: On the first bad row; the message names file, row and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; give the path of a JSON, JSON-lines or parquet file with a conversation in each row"
        )
    known: dict[str, str] = {}
    rows = _parquet_rows(path) if path.suffix == ".parquet" else json_objects(path)
    for number, data in rows:
        yield from_row(data, f"{path}, row {number}", Path(root) if root is not None else path.parent, known)


def json_objects(path: Path) -> Iterator[tuple[int, Any]]:
    """The members of a JSON list or of a file of JSON lines, numbered from 1 (lines as editors do), without holding them all.

    Raises:
        ValueError: Where it is no JSON; the message names file and row.
    """
    with path.open(encoding="utf-8") as file:
        try:
            start = file.read(1)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is no text in UTF-8 ({error}); give a file of JSON or, named .parquet, of parquet"
            ) from error
        while start.isspace():
            start = file.read(1)
        if start == "[":
            yield from _list_members(file, path)
            return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}, row {number}: no JSON ({error})") from error


def _list_members(file: IO[str], path: Path) -> Iterator[tuple[int, Any]]:
    """The members of a list whose ``[`` has been read."""
    decoder, text, at, number, wanted, ended = json.JSONDecoder(), "", 0, 0, CHUNK, False
    while True:
        # a separator, then a member
        while at < len(text) and (text[at].isspace() or (text[at] == "," and number)):
            at += 1
        if at < len(text):
            if text[at] == "]":
                return
            try:
                member, at = decoder.raw_decode(text, at)
                number, wanted = number + 1, CHUNK
                yield number, member
                continue
            except ValueError as error:
                if ended:
                    raise ValueError(f"{path}, row {number + 1}: no JSON ({error})") from error
        if ended:
            raise ValueError(f"{path}, row {number + 1}: the list does not end; the file is cut off")
        more = file.read(wanted)
        # twice as much each time, or a large member would be tried once for every chunk of it
        text, at, wanted, ended = text[at:] + more, 0, 2 * wanted, not more


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows of a parquet file; a picture inside is named by its place (``FILE/ROW/images/NUMBER``) and not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns = list(file.schema_arrow.names)
        kind = file.schema_arrow.field("images").type if "images" in columns else pa.null()
        cell = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else pa.null()
        stored = pa.types.is_struct(cell) or pa.types.is_binary(cell) or pa.types.is_large_binary(cell)
        if pa.types.is_struct(cell) and cell.get_field_index("path") >= 0:
            # how many there are can be seen from their paths, without reading them
            leaves = [file.schema.column(number).path for number in range(len(file.schema))]
            columns[columns.index("images")] = next(
                leaf for leaf in leaves if leaf.startswith("images.") and leaf.endswith(".path")
            )
        number = 0
        for batch in file.iter_batches(64, columns=columns):
            for row in batch.to_pylist():
                if stored:
                    row["images"] = [f"{path.absolute()}/{number}/images/{k}" for k in range(len(row["images"] or ()))]
                number += 1
                yield number, row


def is_conversation(path: Path) -> bool:
    """Whether the first row of a file is one of theirs; false for a file that is empty or not there."""
    if path.suffix == ".parquet" or not path.is_file():
        return path.is_file()
    _, first = next(json_objects(path), (0, None))
    return isinstance(first, dict) and ("messages" in first or "conversations" in first or {"prompt", "completion"} <= set(first))
