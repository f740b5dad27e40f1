"""Pictures by name: a file, or a place inside an archive, read without unpacking it.

A name that leads into an archive goes on after the archive's own name:

==============================  =========================================================================================
``train_1.zip/a/b.webp``        member of a zip
``images.tar/a/b.png``          member of an uncompressed tar
``part-0.parquet/17/jpg_0``     row (counted from 0) and column of a parquet file, or of an ``.arrow`` file of ``datasets``
``part-0.parquet/17/images/0``  the same, one picture of a list (``/field`` leads into a struct)
==============================  =========================================================================================

A cell holds the encoded picture, alone or as ``{"bytes", "path"}``, as ``datasets`` writes pictures. Archives are opened when they are
first asked for and stay open, each with its index, the last :data:`OPEN_ARCHIVES` per process; a forked process starts without any,
so that no two share a place in a file. All functions may be called from several threads.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
import stat
import tarfile
import threading
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageOps

OPEN_ARCHIVES = 64
"""Archives that stay open in one process."""
WARM_ARCHIVES = 8
"""Archives of those, the last used, that keep what they have read ahead; of the others only the index stays."""
CURSORS = 2
"""Places per column at which a parquet file is read at the same time: one reader may be ahead of another."""
AHEAD = 1 << 20
"""Bytes of a parquet column to decode at once, about; at least one row."""

T = TypeVar("T")
_INSIDE = re.compile(r"\.(zip|tar|parquet|arrow|tgz|tar\.[a-z0-9]+)/", re.IGNORECASE)


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture as RGB, all of it, the way up that its EXIF data say (as every viewer shows it).

    Raises:
        ValueError: If there is none under this name, it is not a picture or cut off; the message names it.
    """
    stored = picture_bytes(path)
    try:
        with Image.open(io.BytesIO(stored)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"picture {path} cannot be read ({error}): the file is cut off or not a picture; replace it or take its row out"
        ) from error


def picture_digest(path: str | Path) -> str:
    """SHA-256 of a picture's RGB pixels, so that a copy or a re-encoding without loss is the same picture."""
    return pixel_digest(open_picture(path))


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of size and pixels; see :func:`picture_digest`."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def picture_bytes(path: str | Path) -> bytes:
    """A picture as it is stored, to copy it without encoding it anew. It is not decoded, so it may turn out to be no picture.

    Raises:
        ValueError: If there is nothing under this name, or its archive cannot be read; the message names both and says what to do.
    """
    name = os.fspath(path)
    try:
        place = _place(name)
        if place is not None:
            archive, inner = place
            return archive.read(inner)
        with open(name, "rb") as file:
            return file.read()
    except LookupError as error:
        raise ValueError(f"picture {name}: {error.args[0]}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"picture {name} does not exist; put it there or correct its path") from None
    # RuntimeError: a zip with a password, or packed in a way that zipfile does not know
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise ValueError(
            f"picture {name} cannot be read ({error}): the file is damaged or not what its name says; get it again"
        ) from error


def _place(name: str) -> tuple[_Archive, str] | None:
    """The archive that a name leads into, and the rest of the name; ``None`` for a file of its own."""
    for found in _INSIDE.finditer(name):
        outer = name[: found.end() - 1]
        try:
            status = os.stat(outer)
        except OSError:
            return None  # nothing lies below what is not there
        if stat.S_ISREG(status.st_mode):  # else a folder with such a name, perhaps of what was unpacked
            return _opened(outer, status, found[1].lower()), name[found.end() :]
    return None


class _Archive(ABC):
    """A file that holds pictures, open for reading from any thread."""

    @abstractmethod
    def read(self, inner: str) -> bytes:
        """The bytes under a name inside; ``LookupError`` with a message if there are none."""

    def rest(self) -> None:  # noqa: B027 (most have nothing to give up)
        """Give up what is held in memory beside the index."""


class _Zip(_Archive):
    def __init__(self, path: str) -> None:
        self.path = path
        self.file = zipfile.ZipFile(path)
        self.index = {posixpath.normpath(info.filename): info for info in self.file.infolist() if not info.is_dir()}

    def read(self, inner: str) -> bytes:
        return self.file.read(_member(self.path, inner, self.index))  # takes turns with other threads by itself


class _Tar(_Archive):
    def __init__(self, path: str) -> None:
        self.path = path
        self.index: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    name, linked = posixpath.normpath(member.name), posixpath.normpath(member.linkname)
                    if member.isreg():
                        self.index[name] = (member.offset_data, member.size)
                    elif member.islnk() and linked in self.index:  # a second name of an earlier member
                        self.index[name] = self.index[linked]
                    tar.members = []  # type: ignore[attr-defined]  # it keeps a kilobyte of each otherwise
        except tarfile.ReadError as error:
            raise tarfile.ReadError(f"{path} is not an uncompressed tar: {error}") from error
        self.file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)

    def read(self, inner: str) -> bytes:
        offset, size = _member(self.path, inner, self.index)
        found = os.pread(self.file, size, offset)  # no shared place in the file to move
        if len(found) < size:
            raise EOFError(f"{self.path} ends inside of {inner}")
        return found


class _Table(_Archive):
    """Rows of record batches: what parquet and arrow files have in common."""

    kind: str

    def __init__(self, path: str, columns: Sequence[str], rows: Sequence[int]) -> None:
        self.path = path
        self.columns = columns
        self.ends = list(accumulate(rows))
        """Number of the row after the last one of every row group or record batch."""

    @abstractmethod
    def cell(self, part: int, row: int, column: str) -> Any:
        """The pyarrow scalar in a row of the file, which lies in this row group or record batch."""

    def read(self, inner: str) -> bytes:
        number, _, rest = inner.partition("/")
        column, *within = rest.split("/")
        rows = self.ends[-1] if self.ends else 0
        if not number.isdecimal() or not column:
            raise LookupError(
                f"a picture of {self.path} is named by row and column, like {self.path}/0/{self.columns[0]}; correct its path"
            )
        if column not in self.columns:
            raise LookupError(f"{self.path} has no column {column!r}; correct its path to one of: {', '.join(self.columns)}")
        row = int(number)
        if row >= rows:
            raise LookupError(f"{self.path} has {rows} rows, counted from 0, but none with number {row}; correct its path")
        found = self.cell(bisect_right(self.ends, row), row, column)
        where = f"row {row}, column {column!r} of {self.path}"
        for step in within:
            found = _step(found, step, where)
        if hasattr(found, "keys") and "bytes" in found:  # {"bytes", "path"}
            found = found["bytes"]
        value = found.as_py()
        if not isinstance(value, bytes):
            what = "is empty" if value is None else f"holds {found.type}, no picture"
            raise LookupError(f"{where} {what}; correct its path, fill the cell, or take its row out")
        return value


class _Parquet(_Table):
    def __init__(self, path: str) -> None:
        import pyarrow.parquet

        # A buffered stream and no reading ahead: else the whole column of a row group is in memory twice. Not mapped: that gains
        # little, and its pages count as this process's memory.
        self.file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False)
        self.metadata = self.file.metadata
        sizes = [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]
        super().__init__(path, self.file.schema_arrow.names, sizes)
        self.cursors: dict[str, list[_Cursor]] = {}
        self.lock = threading.Lock()

    def rest(self) -> None:
        with self.lock:
            self.cursors.clear()

    def cell(self, part: int, row: int, column: str) -> Any:
        with self.lock:
            cursors = self.cursors.setdefault(column, [])
            usable = [cursor for cursor in cursors if cursor.group == part and cursor.first <= row]
            if usable:
                cursor = max(usable, key=lambda cursor: cursor.first)
                cursors.remove(cursor)
            else:
                # one that is through with its row group goes on in another, else the one that was not used for longest
                if done := [cursor for cursor in cursors if cursor.done]:
                    cursors.remove(done[0])
                elif len(cursors) == CURSORS:
                    del cursors[0]
                cursor = self._cursor(part, column)
            cursors.append(cursor)
            return cursor.cell(row)

    def _cursor(self, group: int, column: str) -> _Cursor:
        import pyarrow

        metadata = self.metadata.row_group(group)
        chunks = [metadata.column(index) for index in range(metadata.num_columns)]
        stored = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
        # at most 64: a column whose pictures repeat is stored in less than it decodes to
        rows = max(1, min(64, AHEAD * metadata.num_rows // max(1, stored)))
        kind = self.file.schema_arrow.field(column).type
        name = f"{column}.bytes" if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else column
        batches = self.file.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False)
        end = self.ends[group]
        return _Cursor(group, batches, end - metadata.num_rows, end)


class _Cursor:
    """A place in a row group's column that only moves forward, and the few rows there.

    Parquet has no way to a single row: a page is decoded as a whole, and the pages before it first. In the order of the rows each is
    read once.
    """

    def __init__(self, group: int, batches: Any, first: int, end: int) -> None:
        self.group = group
        self.batches = batches
        self.first = self.next = first
        self.end = end
        self.held: Any = None

    @property
    def done(self) -> bool:
        return self.next == self.end

    def cell(self, row: int) -> Any:
        while row >= self.next:
            batch = next(self.batches)
            self.held, self.first, self.next = batch.column(0), self.next, self.next + len(batch)
            if self.done:
                self.batches = None  # with it go the pages
        return self.held[row - self.first]


class _Arrow(_Table):
    def __init__(self, path: str) -> None:
        import pyarrow

        source = pyarrow.memory_map(path)
        try:
            self.batches = list(pyarrow.ipc.open_stream(source))  # as `datasets` writes
        except pyarrow.ArrowInvalid:
            file = pyarrow.ipc.open_file(source)
            self.batches = [file.get_batch(index) for index in range(file.num_record_batches)]
        names = self.batches[0].schema.names if self.batches else []
        super().__init__(path, names, [len(batch) for batch in self.batches])

    def cell(self, part: int, row: int, column: str) -> Any:
        return self.batches[part].column(column)[row - self.ends[part]]


def _step(found: Any, step: str, where: str) -> Any:
    """One step into a nested cell: an item of a list, or a field of a struct."""
    if found.as_py() is None:
        raise LookupError(f"{where} is empty; correct its path, fill the cell, or take its row out")
    if hasattr(found, "keys"):
        if step not in found:
            raise LookupError(f"{where} has no field {step!r}; correct its path to one of: {', '.join(found)}")
        return found[step]
    items = getattr(found, "values", None)
    if items is None or not step.isdecimal() or int(step) >= len(items):
        holds = f"{len(items)} pictures, counted from 0" if items is not None else f"{found.type}"
        raise LookupError(f"{where} holds {holds}; {step!r} leads to none of them: correct its path")
    return items[int(step)]


def _member(path: str, inner: str, index: Mapping[str, T]) -> T:
    """What an archive's index holds under a name; a member that is called alike is the likely meaning of one that it does not know."""
    name = posixpath.normpath(inner)
    if name not in index:
        base = posixpath.basename(name)
        near = next((known for known in index if posixpath.basename(known) == base), None) or next(iter(index), None)
        there = f"there is, for example, {near!r}" if near else "it is empty"
        raise LookupError(f"{path} has no member {name!r}; correct its path ({there})")
    return index[name]


_KINDS: dict[str, type[Any]] = {"zip": _Zip, "tar": _Tar, "parquet": _Parquet, "arrow": _Arrow}
_lock = threading.RLock()
_archives: OrderedDict[tuple[int, ...], _Archive] = OrderedDict()


def _opened(path: str, status: os.stat_result, kind: str) -> _Archive:
    """The archive of this name, opened at the first time and again when the file has changed."""
    if kind not in _KINDS:
        raise LookupError(
            f"{path} is compressed as a whole, so that a picture in it cannot be reached without reading all before it; "
            f"unpack it, and name the pictures in the folder instead"
        )
    key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)  # one file by whatever path
    with _lock:
        warm = list(islice(reversed(_archives), WARM_ARCHIVES))
        if key not in _archives:
            _archives[key] = _KINDS[kind](path)
            while len(_archives) > OPEN_ARCHIVES:
                _archives.popitem(last=False)
        if key not in warm:
            _archives.move_to_end(key)
            if len(warm) == WARM_ARCHIVES:
                _archives[warm[-1]].rest()
        return _archives[key]


def _forget() -> None:
    """Start without archives and with a free lock: another thread may have held it when this process was forked."""
    global _lock, _archives
    _lock, _archives = threading.RLock(), OrderedDict()


os.register_at_fork(after_in_child=_forget)
