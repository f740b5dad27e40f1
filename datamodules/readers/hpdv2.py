"""HPDv2: pairs for training, nine ranked pictures of each prompt for testing.

Schema (dataset card, established): JSON lists ``train.json`` (``prompt, file_path[2], human_preference[2]``, 1 for the
preferred one) and ``test.json`` (``prompt, image_path[9], rank[9], raw_annotations[{rank, user_hash}]``), pictures in
``train.tar.gz`` and ``test.tar.gz``.

Assumed: that the archives unpack to ``train/`` and ``test/``; names are tried there, at the root and in ``images/``. That 1 is
the best rank, as in the code of HPSv2.

Traps: two schemas; the loading script does not run in ``datasets`` 4; gzipped tars cannot be read picture by picture. The test
set's ``rank`` is an average over annotators and its labels are 1, 0 or, for equal ranks, a tie: that is the protocol of HPSv2.
With the subset ``votes``, the label of a test pair is the share of annotators who ranked the first one higher (a tie counts
half).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rationalrewards.components.records import Preference

from .reading import PictureFinder, Reading
from .rows import Row, ranked_pairs

NO_HUB = (
    "its pictures are in train.tar.gz and test.tar.gz, which cannot be read picture by picture: download the data set, unpack "
    "them in its folder, and give the folder as root"
)


def read(reading: Reading) -> Iterator[Preference]:
    """Pairs of the train or the test split."""
    find = PictureFinder(reading, reading.split, "", "images", f"images/{reading.split}")
    name = reading.one_json(f"{reading.split}.json", f"{reading.split}.jsonl")
    if reading.split == "train":
        if reading.subset == "votes":
            raise ValueError(
                f"{reading.format.id}: the train split has no raw annotations; leave out the subset, or read the test split"
            )
        for row in reading.json(name, ["prompt", "file_path", "human_preference"]):
            yield from _chosen(reading, find, row)
    else:
        for row in reading.json(name, ["prompt", "image_path", "rank"]):
            yield from _ranked(reading, find, row)


def _chosen(reading: Reading, find: PictureFinder, row: Row) -> Iterator[Preference]:
    """The preferred picture against each of the others: there is one other."""
    pictures, chosen = row["file_path"], row["human_preference"]
    _same_length(row, "human_preference", chosen, pictures)
    if any(value not in (0, 1) for value in chosen):
        raise row.bad("human_preference", f"must be 1 for the preferred picture and 0 for others, got {chosen!r}")
    if len(pictures) < 2 or sum(chosen) != 1:
        return reading.leave_out("fewer than two pictures" if len(pictures) < 2 else "no single preferred picture")
    best = chosen.index(1)
    for other in (index for index in range(len(pictures)) if index != best):
        key = f"{row.number + 1}-{other}" if len(pictures) > 2 else ""
        first, second = (best, other) if best < other else (other, best)
        shown = find(pictures[first]), find(pictures[second])
        yield from reading.pair(row, row["prompt"], shown, float(first == best), key=key, shuffle=True)


def _ranked(reading: Reading, find: PictureFinder, row: Row) -> Iterator[Preference]:
    """Every pair of the ranked pictures once."""
    names, ranks = row["image_path"], row["rank"]
    _same_length(row, "rank", ranks, names)
    if len(names) < 2:
        return reading.leave_out("fewer than two pictures")
    votes = _votes(row, len(names)) if reading.subset == "votes" else []
    pictures = [find(name) for name in names]
    for i, j, label in ranked_pairs(ranks):
        if votes:
            label = sum((vote[i] < vote[j]) + (vote[i] == vote[j]) / 2 for vote in votes) / len(votes)
        key = f"{row.number + 1}-{i}-{j}"
        yield from reading.pair(row, row["prompt"], (pictures[i], pictures[j]), label, key=key, shuffle=True)


def _votes(row: Row, pictures: int) -> list[Sequence[float]]:
    annotations = row.values.get("raw_annotations")
    if not isinstance(annotations, list) or not annotations:
        raise row.bad("raw_annotations", "the subset 'votes' needs the annotators' own ranks; leave out the subset to use `rank`")
    votes: list[Sequence[float]] = []
    for item in annotations:
        vote = item.get("rank") if isinstance(item, dict) else None
        if not isinstance(vote, list) or len(vote) != pictures:
            raise row.bad("raw_annotations", f"every annotator must rank all {pictures} pictures, got {vote!r}")
        votes.append(vote)
    return votes


def _same_length(row: Row, column: str, values: Any, pictures: Any) -> None:
    if not isinstance(values, list) or not isinstance(pictures, list) or len(values) != len(pictures):
        raise row.bad(column, f"must be a list with one number for each picture, got {values!r} for {pictures!r}")
