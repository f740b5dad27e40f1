"""ImageRewardDB: up to nine pictures of a prompt, ranked by experts.

Schema (dataset card, loading script and its threads, established): ``metadata-<split>.parquet`` and
``images/<split>/<split>_<n>.zip``, with the same rows as JSON inside each zip. Read here, one row a picture: ``image_path``
(``images/train/train_1/<uuid>.webp``), ``prompt_id``, ``prompt``, ``rank`` (1 is best). Splits train (32 zips), validation and
test (2 each).

Assumed: where in its zip a picture lies; only the last part of its name is compared. Unpacked zips are found too, in
``images/<split>/<split>_<n>/`` with or without a folder of the same name inside, and so is JSON without the parquet.

Traps: ``datasets`` runs no loading scripts any more, so the zips are read directly; some pictures are empty files and are left
out; equal ranks give no pair; pictures of one prompt may lie in two zips. A pair is shown in an order drawn from its id, since
the files may be sorted by rank. Zips are opened, and from the hub downloaded, when their first picture comes up.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from rationalrewards.components.records import Preference

from .reading import PictureFinder, Reading, archive_members
from .rows import Row, ranked_pairs

_COLUMNS = ["image_path", "prompt_id", "prompt", "rank"]


def read(reading: Reading) -> Iterator[Preference]:
    """Pairs of one split, prompt by prompt."""
    groups: dict[str, list[Row]] = {}
    for row in _rows(reading):
        if row["rank"] is None:
            reading.leave_out("pictures without a rank")
        else:
            groups.setdefault(str(row["prompt_id"]), []).append(row)
    find = _Shards(reading)
    for prompt_id, rows in groups.items():
        rows.sort(key=lambda row: _last(row["image_path"]))  # the same order whichever files tell it
        pictures = [find(row["image_path"]) for row in rows]
        for i, j, label in ranked_pairs([row["rank"] for row in rows]):
            if rows[i]["rank"] == rows[j]["rank"]:
                reading.leave_out("equal ranks, which give no pair")
                continue
            key = f"{prompt_id}-{i}-{j}"
            shown = pictures[i], pictures[j]
            yield from reading.pair(rows[i], rows[i]["prompt"], shown, label, key=key, shuffle=True)


def _rows(reading: Reading) -> Iterator[Row]:
    """One row for each picture: of the metadata, or else of the JSON files."""
    tables = reading.tables(required=False)
    for name in tables:
        yield from reading.table(name, _COLUMNS)
    if tables:
        return
    loose = [name for name in reading.listed("*.json") if f"{reading.split}_" in name or _last(name) == f"{reading.split}.json"]
    for name in loose:
        yield from reading.json(name, _COLUMNS)
    zips = [] if loose else reading.listed(f"{reading.split}_*.zip")
    if not loose and not zips:
        raise ValueError(
            f"{reading.files.label}: neither metadata-{reading.split}.parquet nor {reading.split}_1.zip is there; "
            f"give the folder that holds the files of {reading.format.id}"
        )
    for name in zips:
        path = reading.files.path(name)
        with zipfile.ZipFile(path) as archive:
            for member in sorted(member for member in archive.namelist() if member.endswith(".json")):
                items = json.loads(archive.read(member))  # one zip's pictures: some MB
                for number, item in enumerate(items, start=1):
                    yield reading.row(f"{name}/{member}", path / member, number, item, _COLUMNS)


class _Shards:
    """Finds a picture in its zip, or unpacked where there are no zips."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._zips = {PurePosixPath(name).stem: name for name in reading.listed(f"{reading.split}_*.zip")}
        self._members: dict[str, dict[str, str]] = {}
        self._unpacked = PictureFinder(reading, "", f"images/{reading.split}", reading.split)

    def __call__(self, image_path: str) -> str | None:
        shard, last = PurePosixPath(image_path).parent.name, _last(image_path)
        if not self._zips:
            return self._unpacked(f"{shard}/{last}") or self._unpacked(f"{shard}/{shard}/{last}")
        if shard not in self._members and shard in self._zips:
            path = self._reading.files.path(self._zips[shard])
            self._members[shard] = {_last(member): f"{path}/{member}" for member in archive_members(path)}
        return self._members.get(shard, {}).get(last)


def _last(name: str) -> str:
    return name.rpartition("/")[2]
