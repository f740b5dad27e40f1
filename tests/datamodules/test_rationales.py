"""Rationales as rows to learn from: complete, in both orders, and only in the student's own format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import yaml
from rationalrewards.components.conversations import Conversation, SupervisedRow
from rationalrewards.components.critique import CritiqueFormat, swap_pair
from rationalrewards.components.critique.rubric import RUBRIC_FOLDER
from rationalrewards.components.critique.teacher import HINT
from rationalrewards.components.parrot import Ledger, ParrotOptions, rationalize, write_rationales
from rationalrewards.components.parrot.export import export
from rationalrewards.components.pictures import open_picture
from rationalrewards.components.records import Preference, Rationale, read_jsonl, write_jsonl
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
    ledger = Ledger()
    rationalize(decided, teacher, FORMAT, ParrotOptions(control_share=0.0), ledger)
    write_rationales(ledger, folder / "rationales.jsonl")
    rationales = read_jsonl(folder / "rationales.jsonl", Rationale)
    assert len(rationales) >= 10 and {rationale.pair.task for rationale in rationales} == {"t2i", "edit"}
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
        batches = [rows for rows, _ in plan(epoch, 0, 1)]
        assert sorted(id(row) for batch in batches for row in batch) == everything
        for processes in (2, 3):
            ranks = [[rows for rows, _ in plan(epoch, rank, processes)] for rank in range(processes)]
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
    spread = [max(row.length for row in batch) - min(row.length for row in batch) for batch, _ in plan(0, 0, 1)]
    whole = max(row.length for row in data.rows) - min(row.length for row in data.rows)
    assert sorted(spread)[len(spread) // 2] < whole / 4
    # or batches of similar length, of rows that are not
    totals = []
    for pool in (1, 16):
        shares = _data(folder, batch_size=6, length_pool=pool).train_dataloader().sampler.plan(0, 0, 1)
        totals.append([sum(row.length for row in rows) for rows, _ in shares if len(rows) == 6])
    assert max(totals[0]) - min(totals[0]) < 0.7 * (max(totals[1]) - min(totals[1]))


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_batches_know_the_answers_of_their_step(micro_batches: int, processes: int, folder: Path) -> None:
    data = _data(folder, batch_size=3)
    data.trainer = tiny.trainer(accumulate_grad_batches=micro_batches)
    loader = data.train_dataloader()
    for rank in range(processes):
        batches = [data._fetch_share(share) for share in loader.sampler.plan(0, rank, processes)]
        for first in range(0, len(batches), micro_batches):
            step = batches[first : first + micro_batches]
            assert step[0].later == tuple(answer for batch in step[1:] for _, answer in batch)
            assert all(batch.later is None for batch in step[1:])
        # the last step of an epoch may be shorter
        assert len(batches) == -(-len(data.rows) // 3) // processes


def test_where_steps_are_counted_across_epochs_an_epoch_holds_whole_steps(folder: Path) -> None:
    class Counts:
        """What a data module asks a Trainer of DeepSpeed."""

        accumulate_grad_batches = 4
        strategy = SimpleNamespace(handles_gradient_accumulation=True)

    data = _data(folder, batch_size=3)
    data.trainer = Counts()  # type: ignore[assignment]
    plan = data.train_dataloader().sampler
    whole = -(-len(data.rows) // 3)
    assert whole % 4 and len(plan.plan(0, 0, 1)) == plan.length(1) == whole - whole % 4
    for processes in (2, 3):
        assert len(plan.plan(0, 1, processes)) == plan.length(processes) == whole // processes - whole // processes % 4
    with pytest.raises(ValueError, match="an epoch has 2 batches for each process, less than one step of 4"):
        plan.length(whole // 2)


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


# -- conversations ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rationales in the forms of others, moved to where they were not written."""
    written = tmp_path_factory.mktemp("written") / "export"
    export(read_jsonl(folder / "rationales.jsonl", Rationale), FORMAT, written)
    moved = tmp_path_factory.mktemp("moved") / "here"
    shutil.move(written, moved)
    rows = json.loads((moved / "sharegpt.json").read_text())
    (moved / "sharegpt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (moved / "datasets" / "one.parquet").symlink_to(next((moved / "datasets" / "data").iterdir()))
    return moved


FILES = ["sharegpt.json", "sharegpt.jsonl", "datasets", "datasets/one.parquet", "rationales.jsonl", "."]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"both_orders": False, "seed": 3},
        {"pairwise": False},
        {"pointwise": False, "batch_size": 3},
        {"pairwise_share": 0.5, "seed": 5},
    ],
    ids=["all", "one order", "points", "pairs", "share"],
)
def test_every_form_gives_the_same_batches(file: str, changes: dict[str, Any], folder: Path, exported: Path) -> None:
    ours, theirs = _data(folder, **changes), _data(exported, train=str(exported / file), **changes)
    assert [row.length for row in theirs.rows] == [row.length for row in ours.rows]
    for epoch in (0, 1):
        batches = []
        for data in (ours, theirs):
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            batches.append(list(loader))
        # pictures compare by their pixels
        assert batches[0] == batches[1] and len(batches[0]) > 4


def test_every_form_gives_the_same_loss(folder: Path, exported: Path) -> None:
    module = tiny.distill_module()
    module.configure_model()
    losses = []
    for train in (folder / "rationales.jsonl", exported / "sharegpt.json", exported / "datasets"):
        batches = list(_data(folder, train=str(train)).train_dataloader())[:3]
        with torch.no_grad():
            losses.append([float(module._loss(batch)[0]) for batch in batches])
    assert losses[0] == losses[1] == losses[2] and len(set(losses[0])) == 3


@pytest.mark.parametrize("file", FILES)
def test_validation_on_every_form_is_cut_by_pairs(file: str, folder: Path, exported: Path) -> None:
    both = [
        _data(folder, val=val, limit_val=3, val_preferences=str(folder / "preferences.jsonl"))
        for val in (str(folder / "rationales.jsonl"), str(exported / file))
    ]
    ours, theirs = (list(data.val_dataloader()[0]) for data in both)
    assert ours == theirs and [len(batch) for batch in ours] == [4, 4, 4]


def test_several_files_follow_each_other(folder: Path, exported: Path) -> None:
    one = _data(folder)
    paths = [str(exported / "sharegpt.json"), str(folder / "rationales.jsonl"), str(exported / "datasets")]
    several = _data(folder, train=paths, val=paths[:2], limit_val=1)
    loaded = [row.load(FORMAT) for row in several.rows]
    assert loaded == [row.load(FORMAT) for row in one.rows] * 3
    assert [type(row) for row in several.val_rows] == [Conversation] * 4 + [SupervisedRow] * 4


@pytest.mark.parametrize("file", ["sharegpt.json", "datasets", "datasets/one.parquet"])
def test_conversations_in_another_format_are_refused_by_both_names(file: str, exported: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"written in format {FORMAT.fingerprint}, but the student learns 'default' \(.*set `format`"
    ):
        _data(exported, train=str(exported / file), format=None)
    with pytest.raises(ValueError, match=rf"with template '.*own_wording\.yaml' \({OWN.fingerprint}\)"):
        _data(exported, val=str(exported / file), format=OWN, train=_written_in(OWN, exported, exported.parent))


def test_without_a_fingerprint_answers_are_read_and_wording_is_compared(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "plain", symlinks=True)
    for path in (tmp_path / "plain").rglob("critique_format.json"):
        path.unlink()
    path = str(tmp_path / "plain" / "sharegpt.json")
    # what it says of itself and what is found out are the same, and warnings would be errors
    rows = json.loads(Path(path).read_text())
    bare = tmp_path / "plain" / "bare.json"
    bare.write_text(json.dumps([{key: row[key] for key in ("messages", "images")} for row in rows]))
    told, found = _data(exported, train=path), _data(exported, train=str(bare))
    assert [(row.kind, row.task) for row in found.rows] == [(row.kind, row.task) for row in told.rows]  # type: ignore[union-attr]
    assert _fetched(found) == _fetched(told) == _fetched(_data(exported))
    # two aspects instead of three are another rubric's
    two = yaml.safe_load((RUBRIC_FOLDER / "shapes.yaml").read_text())
    two["aspects"] = [aspect for aspect in two["aspects"] if aspect["key"] != "text_rendering"]
    two["pointwise"] = "look at it"
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(two))
    with pytest.warns(
        UserWarning, match=rf"sharegpt\.json: {len(rows) // 2} of {len(rows)} conversations ask in other words than format"
    ):
        _data(exported, train=path, format=CritiqueFormat(str(tmp_path / "two.yaml")))
    two["aspects"] = [{"key": "charm", "title": "Charm"}]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(two))
    with pytest.raises(
        ValueError, match=r"no answer is one that the student's format \(.*other.yaml'\) can read; .*row 1: .*Charm is missing"
    ):
        _data(exported, train=path, format=CritiqueFormat(str(tmp_path / "other.yaml")))


def _fetched(data: RationaleDataModule) -> list[Any]:
    return data._fetch(data.rows)


def test_rows_that_cannot_be_read_are_left_out_with_a_warning(exported: Path, tmp_path: Path) -> None:
    rows = json.loads((exported / "sharegpt.json").read_text())
    rows[0]["messages"][-1]["content"] = "a nice picture"
    rows[5]["messages"][-1]["content"] = rows[5]["messages"][-1]["content"].replace("## Score", "## Mark")
    _beside(exported, tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.warns(UserWarning) as caught:
        data = _data(exported, train=str(tmp_path / "rows.json"))
    (warning,) = caught
    assert "2 of" in str(warning.message) and "rows.json, row 1: as a point: Text Faithfulness is missing" in str(warning.message)
    assert len(data.rows) == len(rows) - 2


def _beside(exported: Path, folder: Path) -> None:
    (folder / "pictures").symlink_to(exported / "pictures")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda row: row["images"].append(row["images"][0]), "row 3: .* <image> in the messages, but .* images; correct the row"),
        (lambda row: row["messages"].pop(), "row 3: the turns are of system, user; the last two must be"),
        (lambda row: row.pop("messages"), "row 3: the row has images, .*; a conversation has messages and images"),
    ],
)
def test_a_broken_conversation_is_an_error_by_row(edit: Any, says: str, exported: Path, tmp_path: Path) -> None:
    rows = json.loads((exported / "sharegpt.json").read_text())
    edit(rows[2])
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    _beside(exported, tmp_path)
    with pytest.raises(ValueError, match=rf"rows\.json, {says}"):
        _data(exported, train=str(tmp_path / "rows.json"))


def test_pictures_that_are_not_there_are_missed_at_setup(exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported / "sharegpt.json", tmp_path / "rows.json")
    with pytest.raises(ValueError, match=r"rows\.json, row 1: picture .*pictures/.* does not exist"):
        _data(exported, train=str(tmp_path / "rows.json"))
    found = _data(exported, train=str(tmp_path / "rows.json"), pictures_root=str(exported))
    assert _fetched(found) == _fetched(_data(exported))


def test_folders_and_files_that_hold_nothing(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has neither a rationales.jsonl nor parquet files; give the path of a file"):
        _data(tmp_path, train=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        _data(tmp_path, train=str(tmp_path / "gone.json"))
    rows = [row for row in json.loads((exported / "sharegpt.json").read_text()) if row["kind"] == "point"]
    (tmp_path / "points.json").write_text(json.dumps(rows))
    _beside(exported, tmp_path)
    with pytest.raises(ValueError, match=rf"points\.json: none of {len(rows)} conversations are of the kinds that are asked for"):
        _data(tmp_path, train=str(tmp_path / "points.json"), pointwise=False)
