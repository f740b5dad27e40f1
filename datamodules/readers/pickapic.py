"""Pick-a-Pic v2: real users chose between two pictures of their own prompt.

Schema (dataset card, established): parquet, ``data/<split>-*.parquet``, splits train (959,040 rows, 322 GB), validation, test,
validation_unique, test_unique. Read here: ``caption``, ``label_0`` and ``label_1`` (1, 0 or 0.5 each), ``has_label``, ``jpg_0``
and ``jpg_1`` (the pictures, as bytes).

Traps: ``image_0_url`` and ``image_1_url`` are dead, the bytes count; rows without ``has_label`` were never judged and are left
out; a tie is 0.5 on both sides; prompts are the users' own, some not safe for work. The two places were shown as they stand, so
the order is kept. ``ranking_id`` is not known to be unique, so file and row make the id.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rationalrewards.components.records import Preference

from .reading import Reading


def read(reading: Reading) -> Iterator[Preference]:
    """Pairs of one split."""
    for name in reading.tables():
        for row in reading.table(name, ["caption", "label_0", "label_1", "has_label"], ["jpg_0", "jpg_1"]):
            if not row["has_label"] or row["label_0"] is None:
                reading.leave_out("no label")
                continue
            if row["label_1"] is None or not math.isclose(row["label_0"] + row["label_1"], 1.0):
                raise row.bad("label_1", f"with label_0 = {row['label_0']} it must be the rest to 1, got {row['label_1']}")
            yield from reading.pair(row, row["caption"], (row.picture("jpg_0"), row.picture("jpg_1")), row["label_0"])
