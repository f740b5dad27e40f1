"""One pass over a public set: which files belong to it, where its pictures are, what its records are called, what is left out."""

from __future__ import annotations

import logging
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import TYPE_CHECKING, Any

from rationalrewards.components.records import Preference, PromptRecord, Task, located

from .rows import TABLES, Row, flip, json_items, table_columns, table_rows

if TYPE_CHECKING:
    from .files import Files

logger = logging.getLogger(__name__)

_HOPELESS = 100  # rows without a picture before anything was found: the pictures are somewhere else, not missing


@dataclass(frozen=True)
class SetFormat:
    """What is known of a public set.

    Args:
        id: Owner and name, as on the hub.
        licence: As its card states it, without commas.
        read: Its records; one module per set or family tells the schema.
        splits: The first is the default.
        subsets: The first is the default.
        folders: Whether subsets are folders of the set; otherwise they are told apart by the rows.
        by_row: Whether no row gives more than one pair, so that counting rows tells how many pairs there are at most.
        no_hub: Why it cannot be read from the hub, and what to do instead; empty if it can.
    """

    id: str
    licence: str
    read: Callable[[Reading], Iterator[Any]]
    splits: tuple[str, ...]
    subsets: tuple[str, ...] = ("",)
    folders: bool = False
    by_row: bool = True
    no_hub: str = ""


@dataclass
class Reading:
    """One pass over a set.

    Args:
        format: What is known of the set.
        files: Its files.
        root: Its folder on this machine; ``None`` if it is on the hub.
        split: Split to read.
        subset: Subset to read; empty if the set has none.
        version: What the files are: a shortened commit, or ``"local"``.
    """

    format: SetFormat
    files: Files
    root: Path | None
    split: str
    subset: str
    version: str
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    _names: set[str] = field(default_factory=set)
    _stems: dict[str, str] = field(default_factory=dict)

    # -- files ----------------------------------------------------------------------------------------------------------

    def listed(self, *patterns: str) -> list[str]:
        """Names of files at any depth, in natural order (2 before 10), e.g. ``listed("*.json")``."""
        return sorted({name for pattern in patterns for name in self.files.list("**/" + pattern)}, key=_natural)

    def tables(self, required: bool = True) -> list[str]:
        """Parquet and Arrow files of this split and subset.

        A split or subset is known by a folder of that name or by the file's name (``train-00000-of-00002.parquet``,
        ``train_0007-…``, ``metadata-train.parquet``). Where no file carries the name of any subset, the folder that was given is
        taken for the subset; where a set has one split only, all files are of it.

        Args:
            required: Whether there must be some.

        Raises:
            ValueError: If there must be some and are none.
        """
        # `datasets` leaves what `map` made beside the data it was made of
        found = self.listed(*(f"*{suffix}" for suffix in TABLES))
        names = every = [name for name in found if not name.rpartition("/")[2].startswith("cache-")]
        if self.format.folders:
            named = [name for name in names if any(_belongs(name, subset) for subset in self.format.subsets)]
            names = [name for name in named if _belongs(name, self.subset)] if named else names
        if len(self.format.splits) > 1:
            names = [name for name in names if _belongs(name, self.split)]
        if required and not names:
            there = f"found: {_few(every)}; a folder or the file's name must tell split and subset" if every else self._empty
            raise ValueError(f"{self.files.label}: no table of {self.wanted}; {there}")
        return names

    def one_json(self, *names: str) -> str:
        """The first of these JSON files that is there.

        Raises:
            ValueError: If there is none.
        """
        for depth in ("", "**/"):  # at the root, before looking through a million pictures
            for name in names:
                if found := self.files.list(depth + name):
                    return found[0]
        raise ValueError(f"{self.files.label}: {' or '.join(names)} is not there; {self._empty}")

    @property
    def _empty(self) -> str:
        return f"found: {_few(self.listed('*')) or 'nothing'}; give the folder that holds the files of {self.format.id}"

    @property
    def wanted(self) -> str:
        """Split and subset, for messages and origins."""
        return f"{self.subset}/{self.split}" if self.subset else self.split

    # -- rows -----------------------------------------------------------------------------------------------------------

    def table(
        self, name: str, columns: Sequence[str], pictures: Sequence[str] = (), optional: Sequence[str] = ()
    ) -> Iterator[Row]:
        """Rows of a parquet or Arrow file; see :func:`rationalrewards.datamodules.readers.rows.table_rows`.

        Raises:
            ValueError: If a column is missing that is not optional.
        """
        path = self.files.path(name)
        found = table_columns(path)
        missing = sorted({*columns, *pictures} - set(found) - set(optional))
        if missing:
            raise ValueError(
                f"{path}: no column {', '.join(map(repr, missing))}, so this is not {self.format.id} as known here; "
                f"found: {', '.join(found)}"
            )
        yield from table_rows(path, name, [*columns, *(c for c in optional if c not in pictures)], pictures)

    def json(self, name: str, columns: Sequence[str]) -> Iterator[Row]:
        """Rows of a JSON list or of JSONL.

        Raises:
            ValueError: If a row is no object or lacks a column; the message names file, row and column.
        """
        path = self.files.path(name)
        for number, item in json_items(path):
            yield self.row(name, path, number, item, columns)

    def row(self, name: str, path: Path, number: int, item: Any, columns: Sequence[str]) -> Row:
        """A checked row from what JSON holds; ``number`` counts from 1."""
        row = Row(name, str(path), number - 1, item)
        if not isinstance(item, dict):
            raise ValueError(f"{row.place}: {str(item)[:40]!r} is not a JSON object")
        for column in columns:
            if column not in item:
                raise row.bad(column, f"missing; found: {', '.join(sorted(item))}")
        return row

    # -- records --------------------------------------------------------------------------------------------------------

    def pair(
        self,
        row: Row,
        prompt: Any,
        candidates: tuple[str | None, str | None],
        label: float,
        *,
        sources: Sequence[str | None] = (),
        key: str = "",
        shuffle: bool = False,
        note: str = "",
    ) -> Iterator[Preference]:
        """One record, or none if the row cannot be used, which is counted.

        Args:
            row: Where it comes from.
            prompt: The request.
            candidates: Names of the pictures; ``None`` where there is no picture.
            label: Probability that the first is preferred.
            sources: Source pictures; an edit has some.
            key: The set's own id of the row; file and row by default.
            shuffle: Show a pair in an order drawn from its id, because its place in the file tells the label.
            note: What else to keep in the record's origin.
        """
        if not self._usable(row, prompt, (*candidates, *sources)):
            return
        name = self._name(row, key)
        first, second = map(str, candidates)
        if shuffle and flip(name):
            first, second, label = second, first, 1.0 - label
        task: Task = "edit" if sources else "t2i"
        try:
            pair = Preference(name, task, prompt, (first, second), label, tuple(map(str, sources)), self._origin(row, note))
        except ValueError as error:
            raise ValueError(f"{row.place}: {error}") from error
        self.kept += 1
        yield located(pair, row.path, row.number + 1)

    def request(self, row: Row, prompt: Any, sources: Sequence[str | None] = ()) -> Iterator[PromptRecord]:
        """One request to generate from, or none if the row cannot be used, which is counted."""
        if self._usable(row, prompt, sources):
            task: Task = "edit" if sources else "t2i"
            record = PromptRecord(self._name(row, ""), task, prompt, tuple(map(str, sources)), self._origin(row, ""))
            self.kept += 1
            yield located(record, row.path, row.number + 1)

    def _usable(self, row: Row, prompt: Any, pictures: Sequence[str | None]) -> bool:
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"{row.place}: the prompt must be a text, got {prompt!r}")
        if not prompt or not prompt.strip():
            self.leave_out("no prompt")
        elif None in pictures:
            self.leave_out("a picture is missing or empty")
        else:
            return True
        return False

    def _origin(self, row: Row, note: str) -> str:
        where = f"{self.wanted} row {row.number + 1} of {row.file}"
        return f"{self.format.id}@{self.version} ({self.format.licence}), {where}" + (f", {note}" if note else "")

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count a row that cannot be used."""
        self.left_out[reason] += count

    def report(self) -> None:
        """Say what was left out and why, if anything was."""
        if self.left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
            logger.warning(
                "%s %s: %d records read, %d left out: %s",
                self.format.id,
                self.wanted,
                self.kept,
                self.left_out.total(),
                reasons,
            )

    def _name(self, row: Row, key: str) -> str:
        """The record's id: the set, then its own id of the row, or file and row; the same wherever the folder lies."""
        if not key:
            if row.file not in self._stems:
                file = row.file.removesuffix(PurePosixPath(row.file).suffix).removeprefix("data/")
                for part in (self.split, self.subset):
                    if part and not _belongs(file, part):
                        file = f"{part}/{file}"
                self._stems[row.file] = self._prefix + file.replace("/", ".")
            return f"{self._stems[row.file]}-{row.number + 1}"
        name = self._prefix + ".".join(filter(None, (self.subset, self.split, key)))
        if name in self._names:  # not as unique as it should be: the row tells them apart, and of two files the file
            name += f"-row{row.number + 1}"
        if name in self._names:
            name += f"-{row.file.replace('/', '.')}"
        self._names.add(name)
        return name

    @property
    def _prefix(self) -> str:
        return self.format.id.replace("/", ".") + "-"


class PictureFinder:
    """Finds the pictures that rows of JSON files name: loose below the root, or in the zip and tar files there.

    Args:
        reading: The pass over the set.
        folders: Folders that names may start from, tried in this order; "" is the root.
    """

    def __init__(self, reading: Reading, *folders: str) -> None:
        self._reading = reading
        self._folders = [folder + "/" if folder else "" for folder in folders]
        self._archived: dict[str, str] | None = None
        self._listed: set[str] | None = None
        self._searched = 0
        self._found = False

    def __call__(self, name: Any) -> str | None:
        """Where the picture is; ``None`` if nowhere, or if it is an empty file.

        Raises:
            ValueError: If none of the first hundred pictures is anywhere.
        """
        place = self._loose(name) or self._in_archive(name) if isinstance(name, str) and name else None
        if place is None and not self._found:
            self._searched += 1
            if self._searched >= _HOPELESS:
                reading = self._reading
                packed = reading.listed("*.tar.gz*", "*.tgz")
                unpack = f"; unpack {_few(packed)} first: gzip cannot be read picture by picture" if packed else ""
                raise ValueError(
                    f"{reading.files.label}: none of the first {_HOPELESS} pictures of {reading.format.id} is there, e.g. {name!r}; "
                    f"looked in: {', '.join(folder or 'the root' for folder in self._folders)}, and in zip and tar files{unpack}"
                )
        self._found = self._found or place is not None
        return place

    def _loose(self, name: str) -> str | None:
        root = self._reading.root
        for index, folder in enumerate(self._folders):
            if root is not None:
                place = f"{root}/{folder}{name}"
                try:
                    there = os.stat(place).st_size > 0
                except OSError:
                    there = False
            else:
                if self._listed is None:
                    self._listed = set(self._reading.listed("*"))
                there = folder + name in self._listed
                place = str(self._reading.files.path(folder + name)) if there else ""
            if there:
                if index:  # the others will be there too
                    self._folders.insert(0, self._folders.pop(index))
                return place
        return None

    def _in_archive(self, name: str) -> str | None:
        if self._archived is None:
            archives = self._reading.listed("*.zip", "*.tar")
            places = [str(self._reading.files.path(archive)) for archive in archives]
            self._archived = {member: place for place in places for member in archive_members(Path(place))}
        inside = (*(folder + name for folder in self._folders), name, name.partition("/")[2])
        return next((f"{self._archived[member]}/{member}" for member in inside if member in self._archived), None)


def archive_members(path: Path) -> list[str]:
    """Names of the files in a zip or tar that are not empty, as ``rationalrewards.components.pictures`` knows them."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return [normpath(member.filename) for member in archive.infolist() if member.file_size and not member.is_dir()]
    names = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.isfile() and member.size:
                names.append(normpath(member.name))
            vars(tar)["members"] = []  # it keeps a kilobyte of each otherwise
    return names


def _belongs(name: str, part: str) -> bool:
    """Whether a folder or file of this name is of a split or subset."""
    return re.search(rf"(?:^|[/-]){re.escape(part)}(?:_\d+)?(?=[/.-]|$)", name) is not None


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
