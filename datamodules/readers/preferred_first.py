"""HPDv3, and the JSON that EditReward trains on: rows with ``path1`` and ``path2``, and ``path1`` is always the preferred one.

Schema (README of HPSv3 and of EditReward, established): a JSON list of ``prompt``, ``choice_dist``, ``confidence``, ``path1``,
``path2``, ``model1``, ``model2``; edits add ``path_src`` and ``tie_case``. HPDv3 has ``train.json``, ``all.json`` (all pairs
but the test's) and ``test.json`` (without votes). ``pickapic.json`` and ``imagereward.json`` lie beside them, but their
pictures do not: read those sets themselves.

Traps: the file order tells the label, so every pair is shown in an order drawn from its id. ``choice_dist`` holds the votes,
and the code of HPSv3 sorts them: the larger share is ``path1``'s, whichever comes first; where it is null (Midjourney, HPDv2)
the label is 1. ``tie_case`` is a tie. On the hub, HPDv3's pictures are one gzipped tar cut in pieces, of which no picture can
be read by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from rationalrewards.components.records import Preference

from .reading import PictureFinder, Reading
from .rows import Row

HPDV3_NO_HUB = (
    "its pictures are one gzipped tar cut in pieces (images.tar.gz.00 and on), which cannot be read picture by picture: download "
    "the data set, run `cat images.tar.gz.* | gunzip > images.tar` (or `| tar -xz`) in its folder, and give the folder as root"
)


def read(reading: Reading) -> Iterator[Preference]:
    """Pairs of HPDv3: train, all or test."""
    yield from read_json(reading, reading.one_json(f"{reading.split}.json", f"{reading.split}.jsonl"))


def read_json(reading: Reading, name: str, edit: bool = False) -> Iterator[Preference]:
    """Pairs of one file in which ``path1`` is preferred.

    Args:
        reading: The pass over the set.
        name: The file.
        edit: Whether the pictures are edits of ``path_src``.
    """
    folder = name.rpartition("/")[0]
    find = PictureFinder(reading, folder, *([""] if folder else []), "images")
    for row in reading.json(name, ["prompt", "path1", "path2", *(["path_src"] if edit else [])]):
        pictures = find(row["path1"]), find(row["path2"])
        sources = [find(row["path_src"])] if edit else []
        yield from reading.pair(row, row["prompt"], pictures, _label(row), sources=sources, shuffle=True)


def _label(row: Row) -> float:
    """Probability that ``path1`` is preferred."""
    if row.values.get("tie_case"):
        return 0.5
    votes = row.values.get("choice_dist")
    if votes is None:
        return 1.0
    if not isinstance(votes, list) or len(votes) != 2 or not all(isinstance(n, (int, float)) and n >= 0 for n in votes):
        raise row.bad("choice_dist", f"must be two numbers of votes or null, got {votes!r}")
    return max(votes) / sum(votes) if sum(votes) else 1.0
