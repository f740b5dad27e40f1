"""Readers: files of preferences and prompts into records. One function per schema, found by what the file holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from rationalrewards.components.generation.noise import seed_for
from rationalrewards.components.records import Preference, PromptRecord, from_json, located


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a .jsonl, .json (list) or .parquet file, numbered from 1."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the path of a .jsonl, .json or .parquet file")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)
        return
    text = path.read_text(encoding="utf-8")
    first = 0
    try:
        if path.suffix == ".json":
            data = json.loads(text)
            if not isinstance(data, list):
                raise ValueError(f"{path} holds no list of rows")
            yield from enumerate(data, start=1)
            return
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                first = number - 1  # what json counts from: one line, or the whole file
                yield number, json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {first + error.lineno}: not JSON ({error.msg}); correct the line or take it out"
        ) from error


def _flip(*key: str | int) -> bool:
    return bool(seed_for("order", *key) % 2)


def _record(row: dict[str, Any], path: Path, number: int) -> list[Preference]:
    known = {key: value for key, value in row.items() if value is not None}
    return [from_json(Preference, known, path.parent)]


def _ranked(row: dict[str, Any], path: Path, number: int) -> list[Preference]:
    """``{"prompt", "images", "ranking"}``, 1 is best: every pair of images once, in a random but fixed order."""
    name = str(row.get("id", f"{path.stem}-{number}"))
    pairs = []
    if len(row["images"]) != len(row["ranking"]):
        raise ValueError(f"{len(row['images'])} images but {len(row['ranking'])} ranks; give each image one rank")
    for i, j in combinations(range(len(row["images"])), 2):
        first, second = (j, i) if _flip(name, i, j) else (i, j)
        better = row["ranking"][second] - row["ranking"][first]
        pairs.append(
            Preference(
                f"{name}-{i}-{j}",
                "t2i",
                row["prompt"],
                (str(path.parent / row["images"][first]), str(path.parent / row["images"][second])),
                0.5 if better == 0 else float(better > 0),
                origin=f"{path.name}, row {number}",
            )
        )
    return pairs


def _edited(row: dict[str, Any], path: Path, number: int) -> list[Preference]:
    """``{"instruction", "source", "edited"}``: the edit is preferred over the untouched source."""
    name = str(row.get("id", f"{path.stem}-{number}"))
    source, edited = (str(path.parent / row[key]) for key in ("source", "edited"))
    candidates = (source, edited) if _flip(name) else (edited, source)
    label = float(candidates[0] == edited)
    return [Preference(name, "edit", row["instruction"], candidates, label, (source,), f"{path.name}, row {number}")]


_PREFERENCE_SCHEMAS: list[tuple[set[str], Callable[[dict[str, Any], Path, int], list[Preference]]]] = [
    ({"id", "task", "prompt", "candidates", "label"}, _record),
    ({"prompt", "images", "ranking"}, _ranked),
    ({"instruction", "source", "edited"}, _edited),
]


def read_preferences(path: str | Path) -> list[Preference]:
    """Read preference pairs from one file.

    Known schemas: our own record (JSONL or parquet); ranked images of a prompt; source and edited image of an instruction.

    Raises:
        ValueError: On the first bad row, naming file, row and what is wrong.
    """
    path = Path(path)
    pairs: list[Preference] = []
    for number, row in _rows(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: {str(row)[:40]!r} is not a JSON object")
        reader = next((read for keys, read in _PREFERENCE_SCHEMAS if keys <= set(row)), None)
        if reader is None:
            # the schema that fits best names the column that is missing
            keys = max((keys for keys, _ in _PREFERENCE_SCHEMAS), key=lambda keys: len(keys & set(row)))
            missing = ", ".join(sorted(keys - set(row)))
            raise ValueError(
                f"{path}, row {number}: no known preference schema; missing: {missing}; found: {', '.join(sorted(row))}"
            )
        try:
            pairs += [located(pair, path, number) for pair in reader(row, path, number)]
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    _unique([pair.id for pair in pairs], path)
    return pairs


def read_prompts(path: str | Path) -> list[PromptRecord]:
    """Read requests from one file.

    Known schemas: our own record (JSONL or parquet); any rows with a ``prompt`` (GenEval, ImageReward's benchmark); rows with
    ``instruction`` and ``source`` (edits).

    Raises:
        ValueError: On the first bad row, naming file, row and what is wrong.
    """
    path = Path(path)
    records = []
    for number, row in _rows(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: {str(row)[:40]!r} is not a JSON object")
        try:
            if {"id", "task", "prompt"} <= set(row):
                records.append(from_json(PromptRecord, {k: v for k, v in row.items() if v is not None}, path.parent))
            elif {"instruction", "source"} <= set(row):
                source = str(path.parent / row["source"])
                name = str(row.get("id", f"{path.stem}-{number}"))
                records.append(PromptRecord(name, "edit", row["instruction"], (source,), f"{path.name}, row {number}"))
            elif "prompt" in row:
                name = str(row.get("id", f"{path.stem}-{number}"))
                records.append(PromptRecord(name, "t2i", row["prompt"], origin=f"{path.name}, row {number}"))
            else:
                raise ValueError(f"no column 'prompt'; found: {', '.join(sorted(row))}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
        located(records[-1], path, number)
    _unique([record.id for record in records], path)
    return records


def _unique(ids: list[str], path: Path) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ValueError(f"{path}: id {name!r} occurs twice; ids must be unique")
        seen.add(name)
