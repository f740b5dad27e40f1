"""Readers: files of preferences and prompts into records. One function per schema, found by what the file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rationalrewards.components.records import Preference, PromptRecord, from_json, located

from .rows import flip, json_lines, json_list, ranked_pairs, table_columns, table_rows


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a .jsonl, .json (list) or .parquet file, numbered from 1."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the path of a .jsonl, .json or .parquet file")
    if path.suffix == ".parquet":
        rows: Iterator[tuple[int, Any]] = (
            (row.number + 1, row.values) for row in table_rows(path, path.name, table_columns(path))
        )
    else:
        rows = json_list(path) if path.suffix == ".json" else json_lines(path)
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: {str(row)[:40]!r} is not a JSON object")
        yield number, row


def _record(row: dict[str, Any], path: Path, number: int) -> list[Preference]:
    known = {key: value for key, value in row.items() if value is not None}
    return [from_json(Preference, known, path.parent)]


def _ranked(row: dict[str, Any], path: Path, number: int) -> list[Preference]:
    """``{"prompt", "images", "ranking"}``, 1 is best: every pair of images once, in a random but fixed order."""
    name = str(row.get("id", f"{path.stem}-{number}"))
    pairs = []
    if len(row["images"]) != len(row["ranking"]):
        raise ValueError(f"{len(row['images'])} images but {len(row['ranking'])} ranks; give each image one rank")
    for i, j, label in ranked_pairs(row["ranking"]):
        first, second, label = (j, i, 1.0 - label) if flip(name, i, j) else (i, j, label)
        pictures = (str(path.parent / row["images"][first]), str(path.parent / row["images"][second]))
        pairs.append(Preference(f"{name}-{i}-{j}", "t2i", row["prompt"], pictures, label, origin=f"{path.name}, row {number}"))
    return pairs


def _edited(row: dict[str, Any], path: Path, number: int) -> list[Preference]:
    """``{"instruction", "source", "edited"}``: the edit is preferred over the untouched source."""
    name = str(row.get("id", f"{path.stem}-{number}"))
    source, edited = (str(path.parent / row[key]) for key in ("source", "edited"))
    candidates = (source, edited) if flip(name) else (edited, source)
    label = float(candidates[0] == edited)
    return [Preference(name, "edit", row["instruction"], candidates, label, (source,), f"{path.name}, row {number}")]


_PREFERENCE_SCHEMAS: list[tuple[set[str], Callable[[dict[str, Any], Path, int], list[Preference]]]] = [
    ({"id", "task", "prompt", "candidates", "label"}, _record),
    ({"prompt", "images", "ranking"}, _ranked),
    ({"instruction", "source", "edited"}, _edited),
]


def iter_preferences(path: str | Path) -> Iterator[Preference]:
    """Preference pairs of one file, one at a time, in constant memory but for their ids.

    Known schemas: our own record (JSONL or parquet); ranked images of a prompt; source and edited image of an instruction.

    Raises:
        ValueError: On the first bad row, naming file, row and what is wrong.
    """
    path = Path(path)
    seen: set[str] = set()
    for number, row in _rows(path):
        reader = next((read for keys, read in _PREFERENCE_SCHEMAS if keys <= set(row)), None)
        if reader is None:
            # the schema that fits best names the column that is missing
            keys = max((keys for keys, _ in _PREFERENCE_SCHEMAS), key=lambda keys: len(keys & set(row)))
            missing = ", ".join(sorted(keys - set(row)))
            raise ValueError(
                f"{path}, row {number}: no known preference schema; missing: {missing}; found: {', '.join(sorted(row))}"
            )
        try:
            pairs = reader(row, path, number)
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
        for pair in pairs:
            _unique(pair.id, seen, path)
            yield located(pair, path, number)


def read_preferences(path: str | Path) -> list[Preference]:
    """All preference pairs of one file; schemas and errors as of :func:`iter_preferences`."""
    return list(iter_preferences(path))


def read_prompts(path: str | Path) -> list[PromptRecord]:
    """Read requests from one file.

    Known schemas: our own record (JSONL or parquet); any rows with a ``prompt`` (GenEval, ImageReward's benchmark), which are edits
    if they name a source picture as ``image_path`` (the RL rows of RationalRewards) or ``image`` (Edit-R1); rows with
    ``instruction`` and ``source`` (edits). Picture paths start at the file's folder.

    Raises:
        ValueError: On the first bad row, naming file, row and what is wrong.
    """
    path = Path(path)
    records: list[PromptRecord] = []
    seen: set[str] = set()
    for number, row in _rows(path):
        try:
            if {"id", "task", "prompt"} <= set(row):
                record = from_json(PromptRecord, {k: v for k, v in row.items() if v is not None}, path.parent)
            elif "prompt" not in row and not {"instruction", "source"} <= set(row):
                raise ValueError(f"no column 'prompt'; found: {', '.join(sorted(row))}")
            else:
                prompt, source = request_of(row)
                sources = (str(path.parent / source),) if source else ()
                name = str(row.get("id", f"{path.stem}-{number}"))
                record = PromptRecord(name, "edit" if sources else "t2i", prompt, sources, f"{path.name}, row {number}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
        _unique(record.id, seen, path)
        records.append(located(record, path, number))
    return records


def request_of(row: Mapping[str, Any]) -> tuple[Any, str]:
    """The prompt of a row, and the source picture that it names; empty if it names none.

    Raises:
        ValueError: If the source is no path.
    """
    keys = ("instruction", "source") if {"instruction", "source"} <= set(row) else ("prompt", "image_path", "image")
    prompt, *sources = (row.get(key) for key in keys)
    source = next((source for source in sources if source), "")
    if not isinstance(source, str):
        raise ValueError(f"the source picture must be a path, got {str(source)[:60]!r}")
    return prompt, source


def _unique(name: str, seen: set[str], path: Path) -> None:
    if name in seen:
        raise ValueError(f"{path}: id {name!r} occurs twice; ids must be unique")
    seen.add(name)
