"""Multimodal RewardBench 2: pairs of answers with strong expert consensus. The tasks t2i and edit are read.

Schemas (the repository's README and its converter between the two, established). JSON, as its build scripts write it:
``t2i.json`` and ``edit.json``, ``{"pairs": [{"pair_id" or "id", "prompt_content": [["text"|"image", value], …], "response_a":
{"response_content": […]}, "response_b": {…}, "chosen": "A"|"B"}]}``, pictures in ``images/`` and ``input_images/`` beside it.
Parquet on the hub (rl-research/multimodal-rewardbench-2), folders ``t2i/`` and ``edit/``, split test: ``pair_id, prompt_text``
(with ``<image_N>``)``, prompt_images[], response_a_images[], response_b_images[], chosen``.

Traps: the README's ``pair_id`` is ``id`` in the files of the converter, and ``human_preference`` was the older name of
``chosen``. An edit may have several source pictures: the prompt keeps a mark for each where it stood, ``<image_1>`` and on in
the order of ``sources`` (the N of the hub's marks is not known to start at 0 or 1, so its n-th mark is the n-th picture, as in
the converter); with one source the mark is dropped. Of an answer with several pictures the first counts, as in the evaluation
of RationalRewards; an answer without one is left out. The tasks interleaved and reasoning compare texts with pictures, which is
no pair of pictures. For evaluation only: not to be trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from rationalrewards.components.records import Preference

from .reading import PictureFinder, Reading
from .rows import Row

NO_HUB = (
    "it is a GitHub repository: build the benchmark there (benchmark/build_from_hf.py) and give that folder as root, or read "
    "rl-research/multimodal-rewardbench-2 with a revision"
)
LISTS = ["prompt_images", "response_a_images", "response_b_images"]
_MARK = re.compile(r"<image_\d+>")


def read_json(reading: Reading) -> Iterator[Preference]:
    """Pairs of ``t2i.json`` or ``edit.json``."""
    name = reading.one_json(f"{reading.subset}.json")
    path = reading.files.path(name)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))  # a thousand pairs of texts and names
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}); build or download it again") from error
    pairs = data.get("pairs") if isinstance(data, dict) else data
    if not isinstance(pairs, list):
        raise ValueError(
            f"{path}: holds no list 'pairs'; found: {', '.join(data) if isinstance(data, dict) else type(data).__name__}"
        )
    folder = name.rpartition("/")[0]
    find = PictureFinder(reading, folder, *([""] if folder else []))
    for number, item in enumerate(pairs, start=1):
        row = reading.row(name, path, number, item, ["prompt_content", "response_a", "response_b"])
        texts, sources = _content(row, "prompt_content", row["prompt_content"])
        answers = []
        for column in ("response_a", "response_b"):
            response = row[column]
            if not isinstance(response, dict) or "response_content" not in response:
                raise row.bad(column, "has no 'response_content'")
            answers.append(_content(row, column, response["response_content"])[1])
        key = str(item.get("pair_id") or item.get("id") or "")
        chosen = item.get("chosen") or item.get("human_preference")
        found = [find(source) for source in sources]
        shown = [[find(answer[0])] if answer else [] for answer in answers]
        yield from _pair(reading, row, key, "".join(texts), found, shown, chosen)


def _content(row: Row, column: str, content: object) -> tuple[list[str], list[str]]:
    """Text, with a mark where a picture stood, and the names of the pictures."""
    texts: list[str] = []
    pictures: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        if (
            not isinstance(part, (list, tuple))
            or len(part) != 2
            or part[0] not in ("text", "image")
            or not isinstance(part[1], str)
        ):
            raise row.bad(column, f"must be a list of ['text', …] and ['image', …], got {str(part)[:60]}")
        kind, value = part
        if kind == "image":
            pictures.append(value)
        texts.append(f" <image_{len(pictures)}> " if kind == "image" else value)
    return texts, pictures


def read_hub(reading: Reading) -> Iterator[Preference]:
    """Pairs of the parquet files of a subset."""
    for name in reading.tables():
        yield from read_table(reading, name)


def read_table(reading: Reading, name: str) -> Iterator[Preference]:
    """Pairs of one parquet file."""
    for row in reading.table(name, ["pair_id", "prompt_text", "chosen"], LISTS, optional=["prompt_images"]):
        sources, first, second = (row.pictures(column) for column in LISTS)
        yield from _pair(reading, row, str(row["pair_id"] or ""), row["prompt_text"], sources, [first, second], row["chosen"])


def _pair(
    reading: Reading,
    row: Row,
    key: str,
    prompt: str | None,
    sources: Sequence[str | None],
    answers: Sequence[Sequence[str | None]],
    chosen: str | None,
) -> Iterator[Preference]:
    if not chosen:
        return reading.leave_out("no label")
    label = {"A": 1.0, "B": 0.0}.get(str(chosen).strip().upper())
    if label is None:
        raise row.bad("chosen", f"must be 'A' or 'B', got {chosen!r}")
    if not all(answers):
        return reading.leave_out("an answer without a picture")
    if reading.subset == "edit" and not sources:
        return reading.leave_out("an edit without a source picture")
    shown = answers[0][0], answers[1][0]
    yield from reading.pair(row, _marked(prompt, len(sources)), shown, label, sources=sources, key=key)


def _marked(prompt: str | None, sources: int) -> str | None:
    """The prompt with ``<image_1>`` and on where its pictures stood if there are several, and without marks otherwise."""
    if prompt is None:
        return None
    marks = iter(range(1, sources + 1))
    text = _MARK.sub(lambda found: f"<image_{next(marks, sources)}>" if sources > 1 else " ", prompt)
    return re.sub(r"[ \t]{2,}", " ", text).strip()
