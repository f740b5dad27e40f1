"""Exports hold what was kept, whole and by themselves, and the trainers of others read them."""

from __future__ import annotations

import gc
import io
import json
import shutil
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard
from PIL import Image
from rationalrewards.components.conversations import read_conversations, supervised_rows
from rationalrewards.components.critique import CritiqueFormat, swap_pair
from rationalrewards.components.parrot import Ledger, ParrotOptions, rationalize, write_rationales
from rationalrewards.components.parrot.card import ExportReport, card, licence_of
from rationalrewards.components.parrot.export import export, main
from rationalrewards.components.pictures import open_picture, picture_digest
from rationalrewards.components.records import Preference, Rationale, read_jsonl, write_jsonl
from rationalrewards.components.shapes.pairs import write_preferences
from rationalrewards.components.shapes.teacher import ShapesTeacher
from support import OWN_WORDING, needs, run_python

FORMAT = CritiqueFormat("shapes")
module = sys.modules[export.__module__]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rationales of decided pairs, edits among them, from a teacher without faults."""
    folder = tmp_path_factory.mktemp("source")
    path = write_preferences(folder, 12, seed=2, label_noise=0.0, tie=0.0)
    ledger = Ledger()
    rationalize(
        read_jsonl(path, Preference), ShapesTeacher(0.0, 0.0, 0.0, 0.0, 0.0), FORMAT, ParrotOptions(control_share=0.0), ledger
    )
    write_rationales(ledger, folder / "rationales.jsonl")
    return folder / "rationales.jsonl"


@pytest.fixture(scope="module")
def rationales(source: Path) -> list[Rationale]:
    found = read_jsonl(source, Rationale)
    assert len(found) >= 8 and {one.pair.task for one in found} == {"t2i", "edit"}
    return found


@pytest.fixture(scope="module")
def exported(rationales: list[Rationale], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All forms, moved to where they were not written."""
    written = tmp_path_factory.mktemp("written") / "export"
    export(rationales, FORMAT, written)
    moved = tmp_path_factory.mktemp("moved") / "here"
    shutil.move(written, moved)
    return moved


def _load(folder: Path, cache: Path) -> Any:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))


def _texts(rationale: Rationale, **changes: Any) -> Rationale:
    return replace(rationale, **changes)


def _pixels(image: Image.Image) -> tuple[tuple[int, int], bytes]:
    return image.size, image.convert("RGB").tobytes()


# -- what is in them -----------------------------------------------------------------------------------------------------


def test_own_form_is_the_same_rationales_with_pictures_beside(exported: Path, rationales: list[Rationale]) -> None:
    again = read_jsonl(exported / "rationales.jsonl", Rationale)
    assert len(again) == len(rationales)
    for one, other in zip(again, rationales, strict=True):
        names = [(*r.pair.sources, *r.pair.candidates) for r in (one, other)]
        assert all(Path(name).parent == exported / "pictures" for name in names[0])
        assert [Path(a).read_bytes() == Path(b).read_bytes() for a, b in zip(*names, strict=True)] == [True] * len(names[0])
        assert replace(one, pair=replace(one.pair, sources=other.pair.sources, candidates=other.pair.candidates)) == other
    named = {name for one in again for name in (*one.pair.sources, *one.pair.candidates)}
    assert {str(path) for path in (exported / "pictures").iterdir()} == named


def test_sharegpt_has_every_row_in_both_orders(exported: Path, rationales: list[Rationale]) -> None:
    rows = json.loads((exported / "sharegpt.json").read_text())
    assert [(row["pair"], row["kind"], row["index"]) for row in rows] == [
        (one.pair.id, kind, index) for one in rationales for kind in ("point", "pair") for index in (0, 1)
    ]
    by_name = {(row["pair"], row["kind"], row["index"]): row for row in rows}
    for one in rationales:
        first, second = (by_name[one.pair.id, "pair", index] for index in (0, 1))
        sources = len(one.pair.sources)
        assert second["images"] == [*first["images"][:sources], *reversed(first["images"][sources:])]
        assert first["messages"][:-1] == second["messages"][:-1]
        told, swapped = (FORMAT.parse_pair(row["messages"][-1]["content"], one.pair.task) for row in (first, second))
        assert swapped == swap_pair(told) and told.verdict() == one.pair.winner
        for index in (0, 1):
            row = by_name[one.pair.id, "point", index]
            assert row["images"] == [*first["images"][:sources], first["images"][sources + index]]
            assert row["messages"][-1] == {"role": "assistant", "content": one.point_texts[index]}
        for row in (first, second, by_name[one.pair.id, "point", 0]):
            assert row["messages"][1]["content"].count("<image>") == len(row["images"])
            assert (row["task"], row["origin"]) == (one.pair.task, one.pair.origin)
    assert json.loads((exported / "dataset_info.json").read_text())["rationales"]["file_name"] == "sharegpt.json"


def test_datasets_loads_the_folder_as_it_is(exported: Path, rationales: list[Rationale], tmp_path: Path) -> None:
    loaded = _load(exported / "datasets", tmp_path)
    assert loaded.features["images"] == datasets.List(datasets.Image())
    rows = [row for one in rationales for row in supervised_rows(one)]
    assert len(loaded) == len(rows) == 4 * len(rationales)
    for found, row in zip(loaded, rows, strict=True):
        messages, answer = row.load(FORMAT)
        assert [part["text"] for turn in found["completion"] for part in turn["content"]] == [answer]
        assert [turn["role"] for turn in found["prompt"]] == [turn["role"] for turn in messages]
        images = iter(found["images"])
        for told, turn in zip(found["prompt"], messages, strict=True):
            for part, given in zip(told["content"], turn["content"], strict=True):
                assert part["type"] == given["type"]
                if part["type"] == "text":
                    assert part["text"] == given["text"]
                else:
                    assert _pixels(next(images)) == _pixels(given["image"])
        assert next(images, None) is None
        assert (found["pair"], found["kind"], found["index"]) == (row.rationale.pair.id, row.kind, row.index)


def test_all_forms_hold_the_same_conversations(exported: Path) -> None:
    beside = list(read_conversations(exported / "sharegpt.json"))
    (shard,) = (exported / "datasets" / "data").iterdir()
    inside = list(read_conversations(shard))
    for a, b in zip(beside, inside, strict=True):
        assert replace(a, images=(), where="") == replace(b, images=(), where="")
        assert [_pixels(open_picture(name)) for name in a.images] == [_pixels(open_picture(name)) for name in b.images]


def test_the_format_travels_with_every_folder(exported: Path, rationales: list[Rationale], tmp_path: Path) -> None:
    for folder in (exported, exported / "datasets"):
        assert json.loads((folder / "critique_format.json").read_text()) == {
            "rubric": "shapes",
            "fingerprint": FORMAT.fingerprint,
        }
    # a rubric and template of the user's own go along: others could not ask in this format without
    rubric = tmp_path / "mine.yml"
    rubric.write_text(Path(str(module.__file__)).parents[1].joinpath("critique", "rubrics", "shapes.yaml").read_text())
    own = CritiqueFormat(str(rubric), OWN_WORDING)
    export([_texts(rationales[0], format=own.fingerprint)], own, tmp_path / "out", ["datasets"])
    stored = json.loads((tmp_path / "out" / "datasets" / "critique_format.json").read_text())
    place = tmp_path / "out" / "datasets"
    assert stored == {"rubric": "rubric.yaml", "template": "template.yaml", "fingerprint": own.fingerprint}
    assert CritiqueFormat(str(place / stored["rubric"]), str(place / stored["template"])).fingerprint == own.fingerprint
    assert str(tmp_path) not in "".join(path.read_text() for path in place.iterdir() if path.is_file())


@pytest.mark.parametrize(("kinds", "count"), [(["pair"], 2), (["point"], 2), (["point", "pair"], 4)])
def test_kinds_and_forms_are_chosen(kinds: Any, count: int, rationales: list[Rationale], tmp_path: Path) -> None:
    report = export(rationales[:3], FORMAT, tmp_path, ["sharegpt"], kinds)
    rows = json.loads((tmp_path / "sharegpt.json").read_text())
    assert len(rows) == 3 * count and {row["kind"] for row in rows} == set(kinds) and report.rows == dict.fromkeys(kinds, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("README.md", "critique_format.json", "dataset_info.json", "export.json", "pictures", "sharegpt.json")
    ]
    export(rationales[:3], FORMAT, tmp_path / "more", ["datasets"], kinds)
    assert sorted(path.name for path in (tmp_path / "more").iterdir()) == ["datasets", "export.json"]
    assert _load(tmp_path / "more" / "datasets", tmp_path / "cache").num_rows == 3 * count


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"to": ["json"]}, "to must name one or more of jsonl, sharegpt, datasets, got json"),
        ({"to": []}, "to must name one or more of .*, got none"),
        ({"kinds": ["points"]}, "kinds must name one or more of point, pair, got points"),
    ],
)
def test_unknown_choices_are_refused(given: dict[str, Any], says: str, rationales: list[Rationale], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        export(rationales, FORMAT, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


# -- pictures ------------------------------------------------------------------------------------------------------------


def _with_pictures(rationale: Rationale, first: str, second: str) -> Rationale:
    return replace(rationale, pair=replace(rationale.pair, candidates=(first, second)))


def _noise(seed: int, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("kind", "options", "kept"),
    [
        ("PNG", {}, "png"),
        ("JPEG", {"quality": 80}, "jpg"),
        ("WEBP", {}, "webp"),
        ("JPEG", {"orientation": 6}, None),
        ("PNG", {"orientation": 3}, None),
        ("JPEG", {"orientation": 1}, "jpg"),
        ("BMP", {}, None),
        ("GIF", {}, None),
        ("TIFF", {}, None),
        ("PNG", {"mode": "RGBA"}, "png"),
        ("PNG", {"mode": "P"}, "png"),
        ("JPEG", {"mode": "CMYK"}, "jpg"),
    ],
)
def test_bytes_stay_where_others_see_in_them_what_we_do(
    kind: str, options: dict[str, Any], kept: str | None, rationales: list[Rationale], tmp_path: Path
) -> None:
    image = _noise(1).resize((48, 64))
    if "mode" in options:
        image = image.convert(options.pop("mode"))
        if image.mode == "RGBA":
            image.putalpha(100)
    if "orientation" in options:
        exif = Image.Exif()
        exif[0x0112] = options.pop("orientation")
        options["exif"] = exif
    path = tmp_path / "picture.bin"  # what it is shows in its content
    image.save(path, kind, **options)
    one = next(r for r in rationales if r.pair.task == "t2i")
    export([_with_pictures(one, str(path), one.pair.candidates[1])], FORMAT, tmp_path / "out")
    (again,) = read_jsonl(tmp_path / "out" / "rationales.jsonl", Rationale)
    written = Path(again.pair.candidates[0])
    assert written.suffix == f".{kept or 'png'}"
    assert (written.read_bytes() == path.read_bytes()) == (kept is not None)
    assert picture_digest(written) == picture_digest(path)
    # others open it without a look at its EXIF data
    with Image.open(written) as seen:
        assert _pixels(seen) == _pixels(open_picture(path))
    assert _pixels(_load(tmp_path / "out" / "datasets", tmp_path / "cache")[0]["images"][0]) == _pixels(open_picture(path))


def test_pictures_in_archives_come_out_and_shared_ones_once(rationales: list[Rationale], tmp_path: Path) -> None:
    buffers = []
    for seed in (1, 2):
        buffers.append(io.BytesIO())
        _noise(seed).save(buffers[-1], "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/x.png", buffers[0].getvalue())
    table = pyarrow.Table.from_pylist([{"jpg_0": buffers[1].getvalue()}])
    pq.write_table(table, tmp_path / "b.parquet")
    one = next(r for r in rationales if r.pair.task == "t2i")
    pair = _with_pictures(one, f"{tmp_path}/a.zip/in/x.png", f"{tmp_path}/b.parquet/0/jpg_0")
    (tmp_path / "copy.png").write_bytes(buffers[0].getvalue())
    other = _with_pictures(pair, str(tmp_path / "copy.png"), pair.pair.candidates[1])
    report = export([pair, other], FORMAT, tmp_path / "out")
    assert report.pictures == 2 == len(list((tmp_path / "out" / "pictures").iterdir()))
    for again in read_jsonl(tmp_path / "out" / "rationales.jsonl", Rationale):
        assert [Path(name).read_bytes() for name in again.pair.candidates] == [buffer.getvalue() for buffer in buffers]


def _noisy(rationale: Rationale, folder: Path, count: int, side: int) -> Iterator[Rationale]:
    """Copies of a rationale, each on two pictures of its own that cannot be compressed."""
    for number in range(count):
        names = [folder / f"{number}_{which}.png" for which in "ab"]
        for index, name in enumerate(names):
            _noise(2 * number + index, side).save(name)
        yield _with_pictures(replace(rationale, pair=replace(rationale.pair, id=f"n{number}")), *map(str, names))


def test_shards_and_row_groups_are_cut_and_a_picture_is_stored_once(
    rationales: list[Rationale], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = 96
    size = 3 * side**2  # noise does not compress
    monkeypatch.setattr(module, "GROUP_BYTES", 6 * size)
    monkeypatch.setattr(module, "SHARD_BYTES", 12 * size)
    (tmp_path / "drawn").mkdir()
    one = next(r for r in rationales if r.pair.task == "t2i")
    export(list(_noisy(one, tmp_path / "drawn", 14, side)), FORMAT, tmp_path / "out", ["datasets"])
    shards = sorted((tmp_path / "out" / "datasets" / "data").iterdir())
    # two pictures a pair: three pairs a row group, two groups a shard, of fourteen pairs
    assert [path.name for path in shards] == [f"train-{number:05d}-of-00003.parquet" for number in range(3)]
    groups = [
        [pq.ParquetFile(path).metadata.row_group(g).num_rows for g in range(pq.ParquetFile(path).num_row_groups)]
        for path in shards
    ]
    assert groups == [[12, 12], [12, 12], [8]]
    loaded = _load(tmp_path / "out" / "datasets", tmp_path / "cache")
    assert loaded["pair"][::4] == [f"n{number}" for number in range(14)]
    assert _pixels(loaded[-1]["images"][0]) == _pixels(_noise(27, side))
    # each picture is in three rows; the rest of the file is texts
    stored = sum(path.stat().st_size for path in shards)
    assert 28 * size < stored < 28 * size * 1.2
    monkeypatch.setattr(module, "GROUP_BYTES", 2**30)
    monkeypatch.setattr(module, "GROUP_ROWS", 16)
    export(list(_noisy(one, tmp_path / "drawn", 5, 8)), FORMAT, tmp_path / "rows", ["datasets"])
    file = pq.ParquetFile(tmp_path / "rows" / "datasets" / "data" / "train-00000-of-00001.parquet")
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [16, 4]


def test_pictures_are_not_held(rationales: list[Rationale], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side, count = 128, 40
    size = 3 * side**2
    monkeypatch.setattr(module, "GROUP_BYTES", 4 * size)
    (tmp_path / "drawn").mkdir()
    one = next(r for r in rationales if r.pair.task == "t2i")
    pairs = list(_noisy(one, tmp_path / "drawn", count, side))
    export(pairs[:2], FORMAT, tmp_path / "warm")  # imports
    gc.collect()
    pool = pyarrow.default_memory_pool()
    before = pool.max_memory()
    tracemalloc.start()
    export(pairs, FORMAT, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 80 pictures in all; held are those of a row group (four, each three times in arrow and once more in its dictionary) and one
    # that is being looked at
    assert peak < 16 * size
    assert pool.max_memory() < max(before, 60 * size)


# -- what is left out --------------------------------------------------------------------------------------------------------


def test_what_gives_the_label_or_the_teacher_away_is_left_out_and_counted(rationales: list[Rationale], tmp_path: Path) -> None:
    good, echo, named, unread, blind = (replace(r, pair=replace(r.pair, id=f"p{i}")) for i, r in enumerate(rationales[:5]))
    echo = _texts(echo, pair_text=echo.pair_text.replace("# Summary: ", "# Summary: people preferred it; "))
    named = _texts(
        named, point_texts=(named.point_texts[0], named.point_texts[1].replace("# Summary: ", "# Summary: unlike Image A, "))
    )
    unread = _texts(unread, point_texts=(unread.point_texts[0].replace("## Score: ", "## Score: 9"), unread.point_texts[1]))
    blind = replace(blind, pair=replace(blind.pair, candidates=(blind.pair.candidates[0], str(tmp_path / "gone.png"))))
    # what the request itself says is no echo of a label
    poster = replace(good, pair=replace(good.pair, id="p5", prompt=f"{good.pair.prompt}, on it: people prefer tea"))
    poster = _texts(
        poster, pair_text=poster.pair_text.replace("# Summary: ", "# Summary: the words people prefer tea are there; ")
    )
    report = export([good, echo, named, unread, blind, poster], FORMAT, tmp_path / "out")
    assert (report.rationales, report.kept) == (6, 2)
    assert report.pictures == len(list((tmp_path / "out" / "pictures").iterdir()))
    assert report.left_out == {"label echo": 1, "teacher wording": 1, "unreadable": 1, "picture cannot be read": 1}
    assert (
        report.examples["label echo"].endswith("label echo: 'people prefer'")
        and "gone.png" in report.examples["picture cannot be read"]
    )
    kept = {"p0", "p5"}
    assert {one.pair.id for one in read_jsonl(tmp_path / "out" / "rationales.jsonl", Rationale)} == kept
    assert {row["pair"] for row in json.loads((tmp_path / "out" / "sharegpt.json").read_text())} == kept
    assert set(_load(tmp_path / "out" / "datasets", tmp_path / "cache")["pair"]) == kept
    for text in (
        str(report),
        (tmp_path / "out" / "datasets" / "README.md").read_text(),
        (tmp_path / "out" / "README.md").read_text(),
    ):
        assert "2 of 6 rationales" in text and all(reason in text for reason in report.left_out)
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == report.as_json()
    # what is not written is not held against a rationale
    assert export([named, unread], FORMAT, tmp_path / "pairs", ["sharegpt"], ["pair"]).kept == 2
    assert export([echo], FORMAT, tmp_path / "points", ["sharegpt"], ["point"]).kept == 1


def test_nothing_left_is_an_error_and_leaves_what_was_there(rationales: list[Rationale], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(rationales[:2], FORMAT, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    gone = _with_pictures(rationales[0], str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    with pytest.raises(
        ValueError, match=r"nothing to export: 0 of 1 rationales(.|\n)*1 picture cannot be read \(.*a\.png does not exist"
    ):
        export([gone], FORMAT, out)
    with pytest.raises(ValueError, match="nothing to export: no rationales"):
        export([], FORMAT, out)

    def broken() -> Iterator[Rationale]:
        yield rationales[3]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        export(broken(), FORMAT, out)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # pictures may have come; everything that names them is as before, and nothing half-written is left
    assert {path: content for path, content in after.items() if path.parent.name != "pictures" or path in before} == before
    assert not list(out.rglob("*.part"))
    export(rationales[2:3], FORMAT, out)
    assert [one.pair.id for one in read_jsonl(out / "rationales.jsonl", Rationale)] == [rationales[2].pair.id]
    assert set(_load(out / "datasets", tmp_path / "cache")["pair"]) == {rationales[2].pair.id}


def test_another_format_is_refused_by_row(rationales: list[Rationale], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"rationales\.jsonl, row 1: written in format {FORMAT.fingerprint}, but the student learns 'default'"
    ):
        export(rationales, CritiqueFormat(), tmp_path)
    with pytest.raises(ValueError, match="row 2: written in format 0{12}"):
        export([rationales[0], _located(replace(rationales[1], format="0" * 12), rationales[1])], FORMAT, tmp_path)


def _located(copy: Rationale, read: Rationale) -> Rationale:
    object.__setattr__(copy, "_read_from", read._read_from)  # type: ignore[attr-defined]
    return copy


def test_a_template_with_the_teachers_words_is_refused(rationales: list[Rationale], tmp_path: Path) -> None:
    wording = yaml.safe_load(Path(OWN_WORDING).read_text())
    wording["pairwise"][0]["text"] += " You may consult the given human preference."
    (tmp_path / "told.yaml").write_text(yaml.safe_dump(wording))
    told = CritiqueFormat("shapes", str(tmp_path / "told.yaml"))
    with pytest.raises(ValueError, match=r"told\.yaml' asks a student \(pairwise, t2i\) with .*human preference"):
        export([replace(r, format=told.fingerprint) for r in rationales], told, tmp_path / "out")


def test_a_template_without_comparisons_gives_points_only(rationales: list[Rationale], tmp_path: Path) -> None:
    wording = yaml.safe_load(Path(OWN_WORDING).read_text())
    del wording["pairwise"]
    (tmp_path / "points.yaml").write_text(yaml.safe_dump(wording))
    points = CritiqueFormat("shapes", str(tmp_path / "points.yaml"))
    written = [replace(r, format=points.fingerprint) for r in rationales]
    with pytest.raises(ValueError, match="rationale 1: template .* has no pairwise section .*; or leave 'pair' out of `kinds`"):
        export(written, points, tmp_path / "out")
    report = export(written, points, tmp_path / "out", kinds=["point"])
    assert report.rows == {"point": 2 * len(written)}


# -- the card ------------------------------------------------------------------------------------------------------------


def test_the_hub_can_read_the_card(rationales: list[Rationale], tmp_path: Path) -> None:
    origins = [
        "MizzenAI/HPDv3@1a2b3c4 (MIT), train row 5",
        "MizzenAI/HPDv3@1a2b3c4 (MIT), train row 6",
        "a/b (CC BY-NC 4.0), row 1",
        "",
    ]
    provenance = {
        "teacher": "Qwen/Qwen3-VL-32B at http://10.0.0.7:8000/v1, http://10.0.0.8:8000/v1",
        "options": {"check_votes": 3},
    }
    mixed = [
        replace(r, pair=replace(r.pair, origin=origin), provenance={**provenance, "seed": number // 2, "run": number})
        for number, (r, origin) in enumerate(zip(rationales * 2, [*origins, *origins], strict=False))
    ]
    export(mixed, FORMAT, tmp_path, ["datasets"])
    loaded = DatasetCard.load(tmp_path / "datasets" / "README.md")
    assert loaded.data.license == ["cc-by-nc-4.0", "mit", "unknown"] and loaded.data.size_categories == ["n<1K"]
    assert {"preference", "critique", "parrot"} <= set(loaded.data.tags)
    assert loaded.data.configs == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}]
    lines = loaded.text.splitlines()
    for line in (
        "| MizzenAI/HPDv3@1a2b3c4 (MIT) | mit | 4 |",
        "| a/b (CC BY-NC 4.0) | cc-by-nc-4.0 | 2 |",
        "| not stated | unknown | 2 |",
        "| teacher | Qwen/Qwen3-VL-32B |",
        "| options.check_votes | 3 |",
        "| seed | 0 (2), 1 (2), 2 (2), 3 (2) |",
        "| run | 8 different values |",
        f"| format of requests and answers | {FORMAT.fingerprint} (`critique_format.json`) |",
    ):
        assert line in lines, line
    assert "10.0.0.7" not in loaded.content and "load_dataset" in loaded.text


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        ("x (MIT)", "mit"),
        ("x (CC BY-NC 4.0)", "cc-by-nc-4.0"),
        ("x (own terms)", "other"),
        ("x", "unknown"),
        ("x (y) z", "unknown"),
    ],
)
def test_licences_by_their_names_on_the_hub(source: str, licence: str) -> None:
    assert licence_of(source) == licence


@pytest.mark.parametrize(("rows", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (250_000, "100K<n<1M"), (10**7, "n>10M")])
def test_size_of_the_set_as_the_hub_has_it(rows: int, size: str) -> None:
    report = ExportReport(kept=1, rationales=1)
    report.rows["pair"] = rows
    assert yaml.safe_load(card(report, ["datasets"]).split("---")[1])["size_categories"] == [size]


# -- as a program, and for others --------------------------------------------------------------------------------------------


def _main(*arguments: str | Path) -> None:
    main([str(argument) for argument in arguments])


def test_the_program_exports_several_files(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(read_jsonl(source, Rationale))
    _main(source, source, "--rubric", "shapes", "--to", "sharegpt", "--kinds", "pair", "--out", tmp_path / "out")
    assert f"{2 * count} of {2 * count} rationales written ({4 * count} pair rows" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out" / "sharegpt.json").read_text())) == 4 * count


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "out"], "row 1: written in format"),
        (["--rubric", "shapes", "--out", "SOURCE"], "lies in the folder to write; choose another --out"),
        (["--rubric", "none", "--out", "out"], "no rubric 'none'"),
    ],
)
def test_the_program_says_what_is_wrong(
    arguments: Sequence[str],
    says: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = source.read_bytes()
    with pytest.raises(SystemExit) as left:
        _main(source, *[str(source.parent) if word == "SOURCE" else word for word in arguments])
    error = capsys.readouterr().err
    assert left.value.code == 1 and says in error and "Traceback" not in error and source.read_bytes() == before


@pytest.mark.slow
@needs("llamafactory")
def test_llama_factory_reads_the_same_tokens_and_pictures(exported: Path, tmp_path: Path) -> None:
    done = run_python([Path(__file__).with_name("read_llamafactory.py"), exported], timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{len(json.loads((exported / 'sharegpt.json').read_text()))} rows alike"


@pytest.mark.slow
@needs("trl")
def test_trl_trains_on_the_same_tokens_and_pictures(exported: Path, tmp_path: Path) -> None:
    done = run_python([Path(__file__).with_name("train_trl.py"), exported], timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{len(json.loads((exported / 'sharegpt.json').read_text()))} rows alike"


def test_exports_can_be_written_again_from_an_export(exported: Path, rationales: list[Rationale], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "again.jsonl", read_jsonl(exported / "rationales.jsonl", Rationale))
    export(read_jsonl(tmp_path / "again.jsonl", Rationale), FORMAT, tmp_path / "out")
    for name in ("rationales.jsonl", "sharegpt.json"):
        assert (tmp_path / "out" / name).read_bytes() == (exported / name).read_bytes()
