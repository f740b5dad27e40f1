"""Rapidata's sets of votes: crowds chose between two pictures of a prompt.

Every set of that owner with one of two schemas is read.

Schema (dataset cards, established): parquet with ``prompt, image1, image2, model1, model2`` and either ``votes_image1,
votes_image2`` (the 700k sets; splits train_0001 and on) or, for each of preference, coherence and alignment,
``weighted_results_image1_preference, …`` (the ``…_t2i_human_preference`` sets). The label is the first picture's share of the
votes, or of the votes weighted by the voters' record.

Traps: the splits ``train_0001`` … of a set are one split here, ``train``. Sets compare fixed models, and which model is
``image1`` may be fixed too, so pairs are shown in an order drawn from the id. Pairs without a vote are left out. Sets of
videos, single pictures or rankings have other columns and are refused. Licences differ from set to set (Apache-2.0,
CDLA-Permissive-2.0).
"""

from __future__ import annotations

from collections.abc import Iterator

from rationalrewards.components.records import Preference

from .reading import Reading
from .rows import table_columns

OWNER = "Rapidata"


def read(reading: Reading) -> Iterator[Preference]:
    """Pairs of a set, all its splits."""
    for name in reading.tables():
        columns = _votes(reading, name)
        for row in reading.table(name, ["prompt", *columns], ["image1", "image2"]):
            first, second = (row[column] or 0 for column in columns)
            for column, votes in zip(columns, (first, second), strict=True):
                if votes < 0:
                    raise row.bad(column, f"must be a number of votes, got {votes!r}")
            if not first + second:
                reading.leave_out("no votes")
                continue
            pictures = row.picture("image1"), row.picture("image2")
            yield from reading.pair(row, row["prompt"], pictures, first / (first + second), shuffle=True)


def _votes(reading: Reading, name: str) -> list[str]:
    """The columns that hold the votes."""
    path = reading.files.path(name)
    found = table_columns(path)
    plain = ["votes_image1", "votes_image2"]
    weighted = [f"weighted_results_image{i}_{reading.subset}" for i in (1, 2)]
    if set(weighted) <= set(found):
        return weighted
    if set(plain) <= set(found) and reading.subset == reading.format.subsets[0]:
        return plain
    raise ValueError(
        f"{path}: neither {', '.join(weighted)} nor, for {reading.format.subsets[0]!r}, {', '.join(plain)}; found: {', '.join(found)}; "
        f"this set of {OWNER}'s holds no votes of that kind on pairs of pictures"
    )
