"""Rationales as rows to learn from: complete, in both orders, and only in the student's own format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rationalrewards.components.critique import CritiqueFormat, swap_pair
from rationalrewards.components.critique.teacher import HINT
from rationalrewards.components.parrot import Ledger, ParrotOptions, rationalize
from rationalrewards.components.records import Preference, Rationale, open_picture, read_jsonl, write_jsonl
from rationalrewards.components.shapes.pairs import write_preferences
from rationalrewards.components.shapes.teacher import ShapesTeacher
from rationalrewards.datamodules import RationaleDataModule
from support import OWN_WORDING

FORMAT = CritiqueFormat("shapes")
OWN = CritiqueFormat("shapes", OWN_WORDING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preference set and the rationales of its decided pairs, from a teacher without faults."""
    folder = tmp_path_factory.mktemp("set")
    path = write_preferences(folder, 24, seed=2, label_noise=0.0, tie=0.12)
    decided = [pair for pair in read_jsonl(path, Preference) if pair.winner != "tie"]
    teacher = ShapesTeacher(0.0, 0.0, 0.0, 0.0, 0.0)
    outcomes = rationalize(decided, teacher, FORMAT, ParrotOptions(control_share=0.0), Ledger())
    rationales = [outcome.rationale for outcome in outcomes if outcome.rationale is not None]
    assert len(rationales) >= 10 and {rationale.pair.task for rationale in rationales} == {"t2i", "edit"}
    write_jsonl(folder / "rationales.jsonl", rationales)
    return folder


def _data(folder: Path, **changes: Any) -> RationaleDataModule:
    data = RationaleDataModule(**{"train": str(folder / "rationales.jsonl"), "format": FORMAT, "batch_size": 4, **changes})
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, [("pair", 0), ("pair", 1), ("point", 0), ("point", 1)]),
        ({"both_orders": False}, [("pair", 0), ("point", 0), ("point", 1)]),
        ({"pairwise": False}, [("point", 0), ("point", 1)]),
        ({"pointwise": False}, [("pair", 0), ("pair", 1)]),
    ],
)
def test_rows_of_a_rationale(folder: Path, changes: dict[str, bool], kinds: list[tuple[str, int]]) -> None:
    data = _data(folder, **changes)
    rationales = read_jsonl(folder / "rationales.jsonl", Rationale)
    rows = {(row.rationale.pair.id, row.kind, row.index) for row in data.rows}
    assert rows == {(rationale.pair.id, *kind) for rationale in rationales for kind in kinds}
    assert len(data.rows) == len(rows)


def test_a_share_of_the_pairs_gives_pairwise_rows(folder: Path) -> None:
    def paired(share: float) -> set[str]:
        rows = _data(folder, pairwise_share=share).rows
        points = [row for row in rows if row.kind == "point"]
        assert len(points) == 2 * len(read_jsonl(folder / "rationales.jsonl", Rationale))  # all give pointwise rows
        names = [row.rationale.pair.id for row in rows if row.kind == "pair"]
        assert all(names.count(name) == 2 for name in names)
        return set(names)

    none, few, many, every = (paired(share) for share in (0.0, 0.3, 0.7, 1.0))
    assert none == set() and none < few < many < every
    assert paired(0.3) == few


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="both pairwise and pointwise are off"):
        RationaleDataModule("x", pairwise=False, pointwise=False)


@pytest.mark.parametrize("format", [FORMAT, OWN], ids=["rubric", "template"])
def test_rows_ask_what_the_critic_will_be_asked(format: CritiqueFormat, folder: Path, tmp_path: Path) -> None:
    data = _data(folder, format=format, train=_written_in(format, folder, tmp_path))
    ((asked, _),) = data._fetch(data.rows[:1])
    assert asked == data.rows[0].load(format)[0] and (asked == data.rows[0].load(FORMAT)[0]) == (format == FORMAT)
    for row in data.rows:
        pair = row.rationale.pair
        sources = [open_picture(path) for path in pair.sources]
        first, second = (open_picture(path) for path in pair.candidates)
        messages, answer = row.load(format)
        if row.kind == "point":
            assert messages == format.pointwise_messages(pair.task, pair.prompt, sources, (first, second)[row.index])
            assert answer == row.rationale.point_texts[row.index]
            assert FORMAT.parse(answer, pair.task).failure == ""
        else:
            shown = (second, first) if row.index else (first, second)
            assert messages == format.pairwise_messages(pair.task, pair.prompt, sources, shown)
            told = FORMAT.parse_pair(answer, pair.task)
            # the winner is the preferred picture, in whichever place it is shown
            assert told.verdict() == (pair.winner if not row.index else {"A": "B", "B": "A"}[pair.winner])
            original = FORMAT.parse_pair(row.rationale.pair_text, pair.task)
            assert told == (swap_pair(original) if row.index else original)
        assert HINT not in str(messages) + answer


def test_an_epoch_holds_every_row_once_and_ranks_share_it(folder: Path) -> None:
    data = _data(folder)
    loader = data.train_dataloader()
    plan = loader.sampler.plan
    everything = sorted(map(id, data.rows))
    for epoch in range(2):
        batches = plan(epoch, 0, 1)
        assert sorted(id(row) for batch in batches for row in batch) == everything
        for processes in (2, 3):
            ranks = [plan(epoch, rank, processes) for rank in range(processes)]
            assert {len(rank) for rank in ranks} == {loader.sampler.length(processes)}
            shared = [id(row) for rank in ranks for batch in rank for row in batch]
            assert len(set(shared)) == len(shared) >= len(everything) - (processes - 1) * data.batch_size
            assert {tuple(map(id, batch)) for rank in ranks for batch in rank} <= {tuple(map(id, batch)) for batch in batches}
    assert plan(0, 0, 1) != plan(1, 0, 1)
    fetched = list(loader)
    assert len(fetched) == len(loader) and sum(map(len, fetched)) == len(data.rows)
    messages, answer = fetched[0][0]
    assert [turn["role"] for turn in messages] == ["system", "user"] and answer


def test_batches_hold_rows_of_similar_length(folder: Path) -> None:
    data = _data(folder, batch_size=6)
    plan = data.train_dataloader().sampler.plan
    spread = [max(row.length for row in batch) - min(row.length for row in batch) for batch in plan(0, 0, 1)]
    whole = max(row.length for row in data.rows) - min(row.length for row in data.rows)
    assert sorted(spread)[len(spread) // 2] < whole / 4


def test_rationales_in_another_format_are_refused_by_row_and_both_names(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 1") as caught:
        _data(folder, format=None)
    for name in ("rationales.jsonl", FORMAT.fingerprint, "'default'", CritiqueFormat("default").fingerprint, "set `format`"):
        assert name in str(caught.value)
    rationales = read_jsonl(folder / "rationales.jsonl", Rationale)
    mixed = [*rationales[:2], replace(rationales[2], format="0" * 12)]
    write_jsonl(tmp_path / "rationales.jsonl", mixed)
    with pytest.raises(ValueError, match="row 3: written in format 0{12}"):
        _data(tmp_path)
    with pytest.raises(ValueError, match="row 1: written in format"):
        _data(folder, train=str(folder / "rationales.jsonl"), val=_other(tmp_path, rationales))


def test_rationales_without_the_template_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"row 1: .* learns 'shapes' with template '.*own_wording\.yaml' \({OWN.fingerprint}\)"):
        _data(folder, format=OWN)


def _written_in(format: CritiqueFormat, folder: Path, out: Path) -> str:
    """The rationales, as if they had been asked for in other words: the answers are the same."""
    path = out / "rationales.jsonl"
    write_jsonl(path, [replace(one, format=format.fingerprint) for one in read_jsonl(folder / "rationales.jsonl", Rationale)])
    return str(path)


@pytest.mark.parametrize(
    ("section", "task", "changes", "says"),
    [
        ("pairwise", None, {}, "rationales.jsonl: template .* has no pairwise section for task edit"),
        ("pairwise", None, {"pairwise_share": 0.01}, "has no pairwise section"),
        ("pairwise", None, {"pairwise": False}, ""),
        ("pairwise", None, {"pairwise_share": 0.0}, ""),
        ("pointwise", None, {}, "rationales.jsonl: template .* has no pointwise section for task edit"),
        ("pointwise", None, {"pointwise": False}, ""),
        ("pointwise", "t2i", {}, "rationales.jsonl: template .* has no pointwise section for task t2i"),
        ("pointwise", None, {"pointwise": False, "val_preferences": "preferences.jsonl"}, "preferences.jsonl: .* no pointwise"),
    ],
)
def test_what_a_template_lacks_is_missed_at_setup(
    section: str, task: str | None, changes: dict[str, Any], says: str, folder: Path, tmp_path: Path
) -> None:
    template = yaml.safe_load(Path(OWN_WORDING).read_text())
    if task is None:
        del template[section]
    else:
        del template[section][task]
    (tmp_path / "half.yaml").write_text(yaml.safe_dump(template))
    half = CritiqueFormat("shapes", str(tmp_path / "half.yaml"))
    if "val_preferences" in changes:
        changes = {**changes, "val_preferences": str(folder / changes["val_preferences"])}
    given = {"format": half, "train": _written_in(half, folder, tmp_path), **changes}
    if says:
        with pytest.raises(ValueError, match=says):
            _data(folder, **given)
    else:
        data = _data(folder, **given)
        assert sum(map(len, data.train_dataloader())) == len(data.rows) > 0


def _other(folder: Path, rationales: list[Rationale]) -> str:
    write_jsonl(folder / "val.jsonl", [replace(rationales[0], format="1" * 12)])
    return str(folder / "val.jsonl")


def test_no_rationales_points_to_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "rationales.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"rationales\.jsonl: no rationales; did every pair fall out\? See the ledger"):
        _data(tmp_path)


def test_validation_is_read_in_order_and_cut(folder: Path) -> None:
    data = _data(folder, val=str(folder / "rationales.jsonl"), val_preferences=str(folder / "preferences.jsonl"), limit_val=2)
    rows, pairs = data.val_dataloader()
    # two rationales: a pointwise row for each picture, a pairwise one for each order
    assert [len(batch) for batch in rows] == [4, 4]
    ids = [pair.id for batch in pairs for pair in batch]
    assert ids == [pair.id for pair in read_jsonl(folder / "preferences.jsonl", Preference)][:2]
    empty_rows, empty_pairs = _data(folder).val_dataloader()
    assert list(empty_rows) == [] == list(empty_pairs)
