"""What two sets share is found, whatever it is packed in, and nothing else."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from rationalrewards.components.pictures import open_picture, picture_bytes
from rationalrewards.components.records import Preference, PromptRecord, Rationale, write_jsonl
from rationalrewards.datamodules.leakage import KINDS, difference_hash, leakage, main, read_records


def picture(path: Path, seed: int, size: int = 64, **options: object) -> str:
    """Eight by eight blocks of colour, so that something is left of it in a small or a lossy copy."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((size, size), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return str(path)


def pair(name: str, prompt: str, a: str, b: str, *sources: str) -> Preference:
    return Preference(name, "edit" if sources else "t2i", prompt, (a, b), 1.0, sources)


@pytest.fixture
def mine(tmp_path: Path) -> list[Preference]:
    names = [picture(tmp_path / "mine" / f"{seed}.png", seed) for seed in range(8)]
    return [
        pair("m0", "A red cat.", names[0], names[1]),
        pair("m1", "make it blue", names[2], names[3], names[4]),
        pair("m2", "remove the hat", names[5], names[6], names[7]),
    ]


def test_sets_with_nothing_in_common_share_nothing(mine: list[Preference], tmp_path: Path) -> None:
    theirs = [pair("t0", "a dog", *(picture(tmp_path / "theirs" / f"{seed}.png", seed) for seed in (20, 21, 22)))]
    found = leakage(mine, theirs, near=4)
    assert not found and found.rows == (3, 1) and found.unreadable == 0
    assert str(found).splitlines()[0] == "3 rows against 1"
    assert all(line.endswith(": none") for line in str(found).splitlines()[1:])


def test_every_kind_is_found_in_every_package(mine: list[Preference], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    fresh = [picture(theirs / f"{seed}.png", seed) for seed in range(30, 36)]
    # the same pixels in another file format, a zip and a table
    open_picture(mine[0].candidates[1]).save(theirs / "copy.bmp")
    with zipfile.ZipFile(theirs / "x.zip", "w") as archive:
        archive.writestr("s.png", picture_bytes(mine[1].sources[0]))
    pyarrow.parquet.write_table(pyarrow.table({"jpg": [picture_bytes(mine[2].candidates[0])]}), theirs / "t.parquet")
    records = [
        pair("t0", " a RED  cat", fresh[0], str(theirs / "copy.bmp")),
        pair("t1", "other", fresh[1], fresh[2], str(theirs / "x.zip" / "s.png")),
        pair("t2", "another", fresh[3], fresh[4], str(theirs / "t.parquet" / "0" / "jpg")),
        pair("t3", "other", fresh[1], fresh[2], str(theirs / "x.zip" / "s.png")),
    ]
    found = leakage(mine, records)
    assert found
    assert {kind: (len(one.keys), one.rows, one.examples) for kind, one in found.shared.items()} == {
        "prompts": (1, 1, [("m0", "t0")]),
        "candidates": (1, 1, [("m0", "t0")]),
        "sources": (1, 2, [("m1", "t1")]),  # one picture, in two rows
        "roles": (1, 1, [("m2", "t2")]),
    }
    assert "shared sources: 1, in 2 rows\n    m1  =  t1" in str(found)
    # only what is asked for, the other way round too
    assert {kind: bool(leakage(records, mine, [kind])) for kind in KINDS} == dict.fromkeys(KINDS, True)
    assert not leakage(mine, records[2:3], ["prompts", "candidates"])
    with pytest.raises(ValueError, match="unknown kind 'images'; known: prompts, candidates, sources"):
        leakage(mine, records, ["images"])


def test_requests_are_compared_without_pictures(mine: list[Preference]) -> None:
    gone = [PromptRecord("p", "edit", "Make it  blue", ("gone.png",))]
    found = leakage(mine, gone, ["prompts"])
    assert found.shared["prompts"].examples == [("m1", "p")] and found.unreadable == 0
    assert leakage(mine, gone).unreadable == 1
    assert "1 pictures cannot be read and were not compared" in str(leakage(mine, gone))


def test_copies_that_lost_something_are_found_by_their_looks(mine: list[Preference], tmp_path: Path) -> None:
    copies = [
        picture(tmp_path / "copies" / "0.jpg", 0, quality=60),
        picture(tmp_path / "copies" / "5.png", 5, size=40),
        picture(tmp_path / "copies" / "90.png", 90),
    ]
    records = [pair("t0", "new", copies[0], copies[2]), pair("t1", "new", copies[2], copies[1])]
    assert not leakage(mine, records)
    near = leakage(mine, records, near=4).shared["near"]
    assert (len(near.keys), near.rows, near.examples) == (2, 2, [("m0", "t0"), ("m2", "t1")])
    # an exact copy is no near one
    exact = leakage(mine, [pair("t2", "new", mine[0].candidates[0], copies[2])], near=4)
    assert exact.shared["candidates"].keys and not exact.shared["near"].keys


def test_the_hash_is_that_of_its_definition() -> None:
    rising = Image.fromarray(np.tile(np.arange(0, 90, 10, dtype=np.uint8), (8, 1)))
    assert difference_hash(rising) == 2**64 - 1
    assert difference_hash(rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    step = np.zeros((8, 9), np.uint8)
    step[0, 1:] = 200  # the first pixel of the first row is darker than its right neighbour, and no other
    assert difference_hash(Image.fromarray(step)) == 2**63


def test_the_command(mine: list[Preference], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("pairs.jsonl", "rationales.jsonl", "prompts.jsonl", "other.jsonl")]
    write_jsonl(files[0], mine)
    write_jsonl(files[1], [Rationale(mine[1], "", ("", ""), "f")])
    files[2].write_text(json.dumps({"prompt": "A red cat"}) + "\n")
    files[3].write_text(json.dumps({"prompt": "a dog"}) + "\n")
    assert main([str(files[1]), str(files[0])]) == 1
    assert "shared candidates: 2, in 1 rows\n    m1  =  m1" in capsys.readouterr().out
    assert main([str(files[2]), str(files[0])]) == 1
    assert main([str(files[3]), str(files[0]), "--near", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("pictures that look the same (but for at most 3 of 64 bits): none")
    assert main([str(files[1]), str(files[0]), "--kinds", "prompts", "--examples", "0"]) == 1
    assert capsys.readouterr().out == "1 rows against 3\nshared prompts: 1, in 1 rows\n"


def test_the_command_reads_public_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    columns = {"caption": ["a cat"], "label_0": [1.0], "label_1": [0.0], "has_label": [True]}
    jpgs = {f"jpg_{index}": [picture_bytes(picture(tmp_path / f"{index}.png", index))] for index in range(2)}
    pyarrow.parquet.write_table(pyarrow.table({**columns, **jpgs}), tmp_path / "set" / "data" / "test-0.parquet")
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": "A cat"}) + "\n")
    public = f"{{id: yuvalkirstain/pickapic_v2, root: {tmp_path / 'set'}, split: test}}"
    assert main([str(tmp_path / "mine.jsonl"), public]) == 1
    assert "shared prompts: 1, in 1 rows" in capsys.readouterr().out
    assert [record.prompt for record in read_records(public)] == ["a cat"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.jsonl", "gone.jsonl does not exist"),
        ("{id: Pick, root: x}", "no reader for 'Pick'"),
        ("{id: yuvalkirstain/pickapic_v2, folder: x}", "is no set .*folder.*; write it like {id: owner/name, root: FOLDER}"),
        ("{id: [", "is no set"),
    ],
)
def test_what_cannot_be_read_ends_the_command(source: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=message):
        read_records(source)
    with pytest.raises(SystemExit) as caught:
        main([source, source])
    assert caught.value.code == 2
    assert message.split(" .*")[0].split("'")[0] in capsys.readouterr().err


def test_a_broken_file_of_pairs_is_named_as_such(tmp_path: Path) -> None:
    row = {"id": "p", "task": "t2i", "prompt": "a", "candidates": ["a.png", "b.png"], "label": 3}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"pairs\.jsonl, row 1: label must be the probability"):
        read_records(str(tmp_path / "pairs.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    assert list(read_records(str(tmp_path / "empty.jsonl"))) == []
