"""What all readers share: rows of tables and of JSON files, one at a time, and the order in which a pair is shown.

Nothing here holds a file in memory: tables are read in batches without their picture columns, a JSON list item by item. Only
the row at hand is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rationalrewards.components.seeds import seed_for

TABLES = (".parquet", ".arrow")
_BATCH = 1024  # rows of metadata at a time: a few hundred kB
_PICTURE_BATCH = 16  # rows of pictures at a time, where these must be looked at: some MB each
_START = 1 << 10
_CHUNK = 1 << 18
_LONGEST_ITEM = 1 << 26
_BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file.

    Args:
        file: Name of the file in its set.
        path: Where the file is.
        number: From 0.
        values: Columns that were asked for; of a column of pictures, whether its cells have bytes.
    """

    file: str
    path: str
    number: int
    values: dict[str, Any]

    def __getitem__(self, column: str) -> Any:
        return self.values[column]

    @property
    def place(self) -> str:
        """File and row, for messages; rows count from 1 there."""
        return f"{self.path}, row {self.number + 1}"

    def bad(self, column: str, message: str) -> ValueError:
        """An error that names file, row and column."""
        return ValueError(f"{self.place}, column {column!r}: {message}")

    def picture(self, column: str) -> str | None:
        """Name of the picture in a cell, as ``rationalrewards.components.pictures`` opens it; ``None`` if there is none."""
        return f"{self.path}/{self.number}/{column}" if self.values.get(column) else None

    def pictures(self, column: str) -> list[str | None]:
        """Names of the pictures in a cell that holds a list of them."""
        cells = self.values.get(column) or []
        return [f"{self.path}/{self.number}/{column}/{i}" if there else None for i, there in enumerate(cells)]


# -- JSON ---------------------------------------------------------------------------------------------------------------


def json_items(path: Path) -> Iterator[tuple[int, Any]]:
    """Items of a JSON list, or lines of JSONL, whichever the file holds, numbered from 1 (lines by their line).

    Raises:
        ValueError: Where the file is not JSON; the message names file and line.
    """
    with path.open(encoding="utf-8") as file:
        start = file.read(_START)  # not a line: a list may be written in one
    return json_list(path) if start.lstrip().startswith("[") else json_lines(path)


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Values of a JSONL file, numbered by their lines; empty lines are none. Errors as of :func:`json_items`."""
    with path.open(encoding="utf-8", newline="\n") as file:  # U+2028 and the like end no line
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise _not_json(path, number, error.msg) from error


def json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Objects of a JSON list, numbered from 1, one at a time. Errors as of :func:`json_items`."""
    decode = json.JSONDecoder().raw_decode
    with path.open(encoding="utf-8") as file:
        text = file.read(_CHUNK)
        at, lines, number = len(text) - len(text.lstrip()), 1, 0
        if text[at : at + 1] != "[":
            raise ValueError(f"{path} holds no list of rows")
        at += 1
        while True:
            found = _BETWEEN.match(text, at)
            at = found.end() if found else at
            error: json.JSONDecodeError | None = None
            if at < len(text):
                if text[at] == "]":
                    return
                try:
                    item, at = decode(text, at)
                    number += 1
                    yield number, item
                    continue
                except json.JSONDecodeError as caught:  # the item may go on behind what was read
                    error = caught
            more = file.read(max(_CHUNK, len(text) - at))
            if not more or len(text) - at > _LONGEST_ITEM:
                ends = error.pos if error else len(text)
                raise _not_json(path, lines + text.count("\n", 0, ends), error.msg if error else "the list does not end")
            lines += text.count("\n", 0, at)
            text, at = text[at:] + more, 0


def _not_json(path: Path, line: int, reason: str) -> ValueError:
    return ValueError(f"{path}, line {line}: not JSON ({reason}); correct the line or take it out")


# -- tables -------------------------------------------------------------------------------------------------------------


def table_columns(path: Path) -> list[str]:
    """Columns of a parquet or Arrow file."""
    if path.suffix == ".arrow":
        return list(_arrow(path).schema.names)
    import pyarrow.parquet

    return list(pyarrow.parquet.read_schema(path).names)


def table_length(path: Path) -> int:
    """Rows of a parquet or Arrow file, without reading them."""
    if path.suffix == ".arrow":
        return sum(batch.num_rows for batch in _arrow(path))
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)


def table_rows(path: Path, name: str, columns: Sequence[str], pictures: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of a parquet or Arrow file.

    Args:
        path: The file.
        name: Its name in its set.
        columns: Columns to read; those that the file does not have are left out.
        pictures: Columns of pictures, alone or in lists. Their bytes are not read where the file's own statistics say that
            none is missing.
    """
    batches = _arrow_batches(path, columns, pictures) if path.suffix == ".arrow" else _parquet_batches(path, columns, pictures)
    number = 0
    for batch, present in batches:
        for index, values in enumerate(batch.to_pylist()):
            for column, cells in present.items():
                values[column] = True if cells is None else cells[index]
            yield Row(name, str(path), number, values)
            number += 1


Present = dict[str, "list[Any] | None"]
"""Of each column of pictures: which cells have bytes; ``None`` where all have."""


def _parquet_batches(path: Path, columns: Sequence[str], pictures: Sequence[str]) -> Iterator[tuple[Any, Present]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        names = set(file.schema_arrow.names)
        read, shown = [c for c in columns if c in names], [c for c in pictures if c in names]
        for column in shown:
            _check_pictures(path, column, file.schema_arrow.field(column).type)
        for group in range(file.num_row_groups):
            present = {column: _in_group(file, group, column) for column in shown}
            start = 0
            for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=read):
                end = start + batch.num_rows
                yield batch, {column: cells and cells[start:end] for column, cells in present.items()}
                start = end


def _in_group(file: Any, group: int, column: str) -> list[Any] | None:
    """Which cells of a row group have bytes; ``None`` if its statistics say that all have."""
    data = file.metadata.row_group(group)
    leaves = {data.column(i).path_in_schema: data.column(i).statistics for i in range(data.num_columns)}
    known = leaves.get(column) or leaves.get(f"{column}.bytes")
    if known is not None and known.has_null_count and known.null_count == 0:
        return None
    batches = file.iter_batches(batch_size=_PICTURE_BATCH, row_groups=[group], columns=[column])
    return [cell for batch in batches for cell in _have_bytes(batch.column(0))]


def _arrow(path: Path) -> Any:
    """An Arrow file as ``datasets`` writes it (a stream), mapped and not read."""
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))


def _arrow_batches(path: Path, columns: Sequence[str], pictures: Sequence[str]) -> Iterator[tuple[Any, Present]]:
    for batch in _arrow(path):
        names = set(batch.schema.names)
        present: Present = {}
        for column in (column for column in pictures if column in names):
            _check_pictures(path, column, batch.schema.field(column).type)
            present[column] = _have_bytes(batch.column(column))
        yield batch.select([column for column in columns if column in names]), present


def _check_pictures(path: Path, column: str, kind: Any) -> None:
    """See that a column holds pictures as bytes, alone, as ``datasets`` stores them, or in lists."""
    import pyarrow

    inner = kind.value_type if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) else kind
    if pyarrow.types.is_struct(inner) and inner.get_field_index("bytes") >= 0:
        inner = inner.field("bytes").type
    if not (pyarrow.types.is_binary(inner) or pyarrow.types.is_large_binary(inner)):
        raise ValueError(f"{path}, column {column!r}: holds {kind}, no pictures as bytes; this reader needs the pictures inside")


def _have_bytes(cells: Any) -> list[Any]:
    """Of every cell whether it has bytes; of a cell with a list, of each of its items."""
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_list(cells.type) or pyarrow.types.is_large_list(cells.type):
        items = iter(_have_bytes(cells.flatten()))
        return [[next(items) for _ in range(n or 0)] for n in pyarrow.compute.list_value_length(cells).to_pylist()]
    if pyarrow.types.is_struct(cells.type):
        cells = pyarrow.compute.struct_field(cells, "bytes")
    return [bool(length) for length in pyarrow.compute.binary_length(cells).to_pylist()]


# -- pairs --------------------------------------------------------------------------------------------------------------


def flip(*key: str | int) -> bool:
    """Whether a pair is shown the other way round: a fair coin that falls the same way for the same key."""
    return bool(seed_for("order", *key) % 2)


def ranked_pairs(ranks: Sequence[float]) -> Iterator[tuple[int, int, float]]:
    """Every pair of places (i, j), i < j, with the probability that i is the better one; equal ranks are a tie.

    Args:
        ranks: 1 (or the lowest number) is best.
    """
    for i, j in combinations(range(len(ranks)), 2):
        yield i, j, 0.5 if ranks[i] == ranks[j] else float(ranks[i] < ranks[j])
