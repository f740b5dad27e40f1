"""Every public set becomes the same records: the right label for the right picture, whichever way its files lie."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hub import COMMIT
from rationalrewards.components.pictures import open_picture, picture_bytes
from rationalrewards.datamodules.readers import PREFERENCE_SETS, PreferenceSet, reading, rows
from set_reading import EVERY, PAIRS, Read, case_set


@EVERY
def test_the_picture_that_people_preferred_is_the_labelled_one(public: dict[str, Read], name: str) -> None:
    read = public[name]
    assert len(read.pairs) == PAIRS
    for pair in read.pairs:
        first, second = (read.gallery.of(candidate) for candidate in pair.candidates)
        assert (pair.label > 0.5) - (pair.label < 0.5) == (first > second) - (first < second), pair.id
    assert any(pair.label == 0.5 for pair in read.pairs) == (read.case.ties and not read.case.ranked)
    assert all(open_picture(name).size > (0, 0) for pair in read.pairs[:2] for name in (*pair.candidates, *pair.sources))


@EVERY
def test_the_order_of_a_pair_does_not_tell_the_label(public: dict[str, Read], name: str) -> None:
    decided = [pair for pair in public[name].pairs if pair.label != 0.5]
    first = sum(pair.label > 0.5 for pair in decided) / len(decided)
    # 260 coins or more: 4.5 standard deviations are 0.14, which a fair one passes in all but 7 of a million cases
    assert abs(first - 0.5) < 4.5 * 0.5 / len(decided) ** 0.5


@EVERY
def test_prompts_sources_and_groups_are_those_of_the_set(public: dict[str, Read], name: str) -> None:
    read = public[name]
    assert {pair.task for pair in read.pairs} == {"edit" if read.case.edit else "t2i"}
    asked = Counter({group.prompt: 6 for group in read.made} if read.case.ranked else (choice.prompt for choice in read.made))
    assert Counter(pair.prompt for pair in read.pairs) == asked
    if read.case.edit:
        source = {choice.prompt: choice.source for choice in read.made}
        assert all([picture_bytes(path) for path in pair.sources] == [source[pair.prompt]] for pair in read.pairs)
        # the same request of another picture is another group, and of the same picture the same one
        few = read.pairs[:9]
        assert len({pair.group for pair in few}) == len({pair.prompt for pair in few})


@EVERY
def test_records_say_where_they_come_from(public: dict[str, Read], name: str) -> None:
    read = public[name]
    case, licence = read.case, PREFERENCE_SETS[read.case.id].licence if read.case.id in PREFERENCE_SETS else "see its card"
    for pair in read.pairs:
        origin, _, where = pair.origin.partition(", ")
        assert origin == f"{case.id}@local ({licence})"
        assert re.match(rf"(\w[\w-]*/)?{case.split} row \d+ of \S+\.(json|parquet|arrow)(, |$)", where), where
        assert pair.id.startswith(case.id.replace("/", ".") + "-")
    assert list(case_set(case, read.root).read()) == read.pairs  # the same whenever it is read


@EVERY
def test_a_moved_folder_keeps_its_ids(public: dict[str, Read], name: str, tmp_path: Path) -> None:
    read = public[name]
    shutil.copytree(read.root, tmp_path / "elsewhere")
    moved = case_set(read.case, tmp_path / "elsewhere").read()
    assert [(pair.id, pair.label) for pair in moved] == [(pair.id, pair.label) for pair in read.pairs]


def test_ids_are_unique_across_all_sets(public: dict[str, Read]) -> None:
    ids = Counter(pair.id for name, read in public.items() if not name.endswith("-json") for pair in read.pairs)
    assert ids.total() == PAIRS * (len(public) - 1) and max(ids.values()) == 1
    # the two layouts of one set are the one pair of cases that may share ids, since nobody reads both
    assert {read.case.id for read in public.values()} >= set(PREFERENCE_SETS)


@EVERY
def test_rows_are_counted_from_metadata_alone(public: dict[str, Read], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = public[name]
    known = PREFERENCE_SETS.get(read.case.id)
    monkeypatch.setattr(reading, "table_rows", None)  # no row is read for it
    in_tables = any(path.suffix in rows.TABLES for path in read.root.rglob("*"))
    assert case_set(read.case, read.root).count() == (PAIRS if in_tables and (known is None or known.by_row) else None)
    if known is None or not known.no_hub:
        assert PreferenceSet(read.case.id, revision=COMMIT).count() is None  # that would download all of it
