"""EditReward-Bench of EditScore: pairs of edits, each judged in one dimension.

Schema (dataset card and the official evaluation, established): two Arrow files as ``datasets`` saves them
(``data-00000-of-00002.arrow``), ``key[2], instruction, input_image, output_images[2], task_type, dimension``. Dimensions:
``overall``, ``prompt_following``, ``consistency``, here the subsets. Parquet with the same columns is read too.

The kind of edit (``task_type``) is kept in the origin.

Traps: the first output is always the better one, so pairs are shown in an order drawn from the id; ``load_dataset`` calls the
one split train, ``state.json`` calls it test. The same pictures are in several dimensions with labels that may differ.
TIGER-Lab/EditReward-Bench is another set.
"""

from __future__ import annotations

from collections.abc import Iterator

from rationalrewards.components.records import Preference

from .reading import Reading

DIMENSIONS = ("overall", "prompt_following", "consistency")


def read(reading: Reading) -> Iterator[Preference]:
    """Pairs of one dimension."""
    for name in reading.tables():
        for row in reading.table(name, ["instruction", "dimension"], ["input_image", "output_images"], ["task_type"]):
            if row["dimension"] not in DIMENSIONS:
                raise row.bad("dimension", f"must be one of {', '.join(DIMENSIONS)}, got {row['dimension']!r}")
            if row["dimension"] != reading.subset:
                continue
            edits = row.pictures("output_images")
            if len(edits) != 2:
                reading.leave_out("not two pictures")
                continue
            source, kind = [row.picture("input_image")], str(row.values.get("task_type") or "")
            yield from reading.pair(row, row["instruction"], (edits[0], edits[1]), 1.0, sources=source, shuffle=True, note=kind)
