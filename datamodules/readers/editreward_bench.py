"""EditReward-Bench of TIGER-Lab: two, three or four edits of one picture, compared.

Schema (dataset card and the official evaluation, established): parquet in ``2pair/``, ``3pair/`` and ``4pair/``: ``id,
instruction, source_image, candidate_1, candidate_2, ranking, comparison_type``, and scores. In ``2pair`` the ranking is
``A>B``, ``B>A`` or ``A=B``. In ``3pair`` and ``4pair`` a row is one comparison of a group (``comparison_type`` ``AvsC``), and
the ranking speaks of the group's letters: in that row ``A`` is ``candidate_1`` and ``C`` is ``candidate_2``.

Also read, since the card names ``candidate_3`` and ``candidate_4``: rows with more than two pictures and a ranking of them all
(``B>A=C``), which give every pair, in an order drawn from its id. Pairs that come as pairs keep their places.

Traps: the ranking must be parsed; ties are in ``2pair`` only; K = 3 and 4 are scored by whole groups, whose rows have ids that
start alike. EditScore/EditReward-Bench is another set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rationalrewards.components.records import Preference

from .reading import Reading
from .rows import Row, ranked_pairs

CANDIDATES = ["candidate_1", "candidate_2", "candidate_3", "candidate_4"]


def read(reading: Reading) -> Iterator[Preference]:
    """Pairs of one subset."""
    for name in reading.tables():
        yield from read_table(reading, name, only=reading.subset)


def read_table(reading: Reading, name: str, only: str = "") -> Iterator[Preference]:
    """Pairs of one file.

    Args:
        reading: The pass over the set.
        name: The file.
        only: Of a file that holds several subsets, told apart by the column ``dataset``, read this one.
    """
    optional = ["id", "comparison_type", "dataset", *CANDIDATES[2:]]
    for row in reading.table(name, ["instruction", "ranking"], ["source_image", *CANDIDATES], optional):
        if only and row.values.get("dataset") not in (None, only):
            continue
        if not row["ranking"]:
            reading.leave_out("no label")
            continue
        pictures = [row.picture(column) for column in CANDIDATES]
        count = 2 + sum(picture is not None for picture in pictures[2:])
        ranks = ranking(row, count)
        key = str(row.values.get("id") or "")
        for i, j, label in ranked_pairs(ranks):
            own = f"{key or row.number + 1}-{i}-{j}" if count > 2 else key
            shown = pictures[i], pictures[j]
            source = [row.picture("source_image")]
            yield from reading.pair(row, row["instruction"], shown, label, sources=source, key=own, shuffle=count > 2)


def ranking(row: Row, count: int) -> list[int]:
    """Ranks of the candidates, 1 is best, from a ranking such as ``B>A=C``.

    Raises:
        ValueError: If it does not rank exactly the candidates of the row.
    """
    text = re.sub(r"\s", "", str(row["ranking"]))
    kind = re.fullmatch(r"([A-D])vs([A-D])", str(row.values.get("comparison_type") or "")) if count == 2 else None
    letters = list(kind.groups()) if kind else list("ABCD"[:count])
    ranks: dict[str, int] = {}
    for place, equals in enumerate(text.split(">"), start=1):
        for letter in equals.split("="):
            ranks.setdefault(letter, place)
    if sorted(ranks) != sorted(letters) or len(re.split("[>=]", text)) != count:
        raise row.bad("ranking", f"must rank {', '.join(letters)} with '>' and '=', got {row['ranking']!r}")
    return [ranks[letter] for letter in letters]
