"""A picture is the same wherever it lies: in a file, a zip, a tar or a table; and what cannot be read is named."""

from __future__ import annotations

import io
import os
import random
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from rationalrewards.components import pictures
from rationalrewards.components.pictures import open_picture, picture_bytes, picture_digest
from rationalrewards.components.records import Preference, open_pictures, read_jsonl, relative_to, write_jsonl
from support import run_python


def encoded(seed: int, size: tuple[int, int] = (6, 5)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def as_zip(folder: Path, stored: list[bytes]) -> list[str]:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("pictures/", b"")
        for index, data in enumerate(stored):
            method = zipfile.ZIP_DEFLATED if index % 2 else zipfile.ZIP_STORED
            archive.writestr(f"./pictures/{index}.png", data, method)
    return [f"{folder}/a.zip/pictures/{index}.png" for index in range(len(stored))]


def as_tar(folder: Path, stored: list[bytes]) -> list[str]:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for index, data in enumerate(stored):
            member = tarfile.TarInfo(f"./{index}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return [f"{folder}/a.tar/{index}.png" for index in range(len(stored))]


def _table(stored: list[bytes]) -> pyarrow.Table:
    struct = [{"bytes": data, "path": "x.png"} for data in stored]
    columns = {
        "plain": pyarrow.array(stored, pyarrow.binary()),
        "image": pyarrow.array(struct, pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
        "many": pyarrow.array([[item] * 2 for item in struct]),
        "answer": pyarrow.array([{"images": [data], "n": 1} for data in stored]),
        "caption": pyarrow.array(["a cat"] * len(stored)),
    }
    return pyarrow.table(columns)


TABLE_PLACES = ["plain", "image", "many/1", "answer/images/0"]


def as_parquet(folder: Path, stored: list[bytes]) -> list[str]:
    pyarrow.parquet.write_table(_table(stored), folder / "a.parquet", row_group_size=3)
    return [f"{folder}/a.parquet/{row}/{TABLE_PLACES[row % 4]}" for row in range(len(stored))]


def as_stream(folder: Path, stored: list[bytes]) -> list[str]:
    table = _table(stored)
    with pyarrow.ipc.new_stream(str(folder / "a.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=3)
    return [f"{folder}/a.arrow/{row}/{TABLE_PLACES[row % 4]}" for row in range(len(stored))]


def as_arrow_file(folder: Path, stored: list[bytes]) -> list[str]:
    table = _table(stored)
    with pyarrow.ipc.new_file(str(folder / "b.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=3)
    return [f"{folder}/b.arrow/{row}/{TABLE_PLACES[row % 4]}" for row in range(len(stored))]


KINDS: list[Callable[[Path, list[bytes]], list[str]]] = [as_zip, as_tar, as_parquet, as_stream, as_arrow_file]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@every_kind
def test_a_picture_in_an_archive_is_the_picture_in_a_file(kind: Any, tmp_path: Path) -> None:
    stored = [encoded(seed) for seed in range(11)]
    names = kind(tmp_path, stored)
    order = [*range(11), *random.Random(0).sample(range(11), 11), 0, 0]  # in order, then as it comes, then once more
    for index in order:
        assert picture_bytes(names[index]) == stored[index]
    (tmp_path / "file.png").write_bytes(stored[7])
    assert picture_digest(names[7]) == picture_digest(tmp_path / "file.png") != picture_digest(names[6])
    assert open_picture(Path(names[7])).tobytes() == open_picture(tmp_path / "file.png").tobytes()


@every_kind
def test_records_lead_into_archives_wherever_their_tree_moves(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "one" / "data").mkdir(parents=True)
    names = kind(tmp_path / "one" / "data", [encoded(seed) for seed in range(3)])
    pair = Preference("p", "edit", "turn it blue", (names[0], names[1]), 1.0, (names[2],))
    write_jsonl(tmp_path / "one" / "out" / "pairs.jsonl", [pair])
    assert str(tmp_path) not in (tmp_path / "one" / "out" / "pairs.jsonl").read_text()
    group = pair.group
    (tmp_path / "one").rename(tmp_path / "two")
    (again,) = read_jsonl(tmp_path / "two" / "out" / "pairs.jsonl", Preference)
    assert again.group == group
    assert relative_to(again, tmp_path / "two") == relative_to(pair, tmp_path / "one")
    assert [picture.size for picture in open_pictures(again, again.candidates)] == [(5, 6)] * 2


def test_a_folder_may_be_called_like_an_archive(tmp_path: Path) -> None:
    (tmp_path / "unpacked.zip" / "x.tar").mkdir(parents=True)
    (tmp_path / "unpacked.zip" / "x.tar" / "a.png").write_bytes(encoded(0))
    assert picture_bytes(tmp_path / "unpacked.zip" / "x.tar" / "a.png") == encoded(0)
    # and an archive may lie in it
    names = as_zip(tmp_path / "unpacked.zip", [encoded(1)])
    assert picture_bytes(names[0]) == encoded(1)


def test_an_archive_that_changed_is_read_anew(tmp_path: Path) -> None:
    for kind in KINDS:
        (name,) = kind(tmp_path, [encoded(0)])
        assert picture_bytes(name) == encoded(0)
        other = encoded(1, (9, 9))
        assert kind(tmp_path, [other, other])[0] == name
        assert picture_bytes(name) == other


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.png", r"gone\.png does not exist; put it there"),
        ("gone.zip/a.png", r"gone\.zip/a\.png does not exist; put it there"),
        ("file.png/a.png", r"file\.png/a\.png does not exist; put it there"),
        ("a.zip/other/1.png", r"a\.zip has no member 'other/1\.png'; .*there is, for example, 'pictures/1\.png'"),
        ("a.zip/pictures", r"a\.zip has no member 'pictures'; correct its path"),
        ("a.tar/7.png", r"a\.tar has no member '7\.png'; correct its path \(there is, for example, '0\.png'\)"),
        ("a.parquet/3/plain", r"a\.parquet has 3 rows, counted from 0, but none with number 3; correct its path"),
        ("a.parquet/0/jpg", r"a\.parquet has no column 'jpg'; correct its path to one of: plain, image, many, answer, caption"),
        ("a.parquet/0", r"named by row and column, like .*a\.parquet/0/plain"),
        ("a.parquet/x/plain", r"named by row and column"),
        ("a.parquet/-1/plain", r"named by row and column"),
        ("a.parquet/0/caption", r"row 0, column 'caption' of .*a\.parquet holds string, no picture"),
        ("a.parquet/0/many", r"row 0, column 'many' of .*a\.parquet holds list<.*no picture"),
        ("a.parquet/0/many/2", r"row 0, column 'many' of .*holds 2 pictures, counted from 0; '2' leads to none"),
        ("a.parquet/0/plain/0", r"row 0, column 'plain' of .*holds binary; '0' leads to none"),
        ("a.parquet/0/answer/image", r"row 0, column 'answer' of .*has no field 'image'; correct its path to one of: images, n"),
        ("a.arrow/3/plain", r"a\.arrow has 3 rows"),
        ("b.arrow/0/caption", r"row 0, column 'caption' of .*b\.arrow holds string"),
        ("nulls.parquet/1/plain", r"row 1, column 'plain' of .*is empty; .*take its row out"),
        ("nulls.parquet/1/image", r"row 1, column 'image' of .*is empty; .*take its row out"),
        ("nulls.parquet/1/many/0", r"row 1, column 'many' of .*is empty; .*take its row out"),
        ("nulls.parquet/2/image", r"row 2, column 'image' of .*is empty; .*take its row out"),
        ("packed.tar.gz/0.png", r"packed\.tar\.gz is compressed as a whole.*; unpack it"),
        ("packed.tgz/0.png", r"packed\.tgz is compressed as a whole.*; unpack it"),
        ("packed.tar/0.png", r"packed\.tar/0\.png cannot be read .*packed\.tar is not an uncompressed tar"),
        ("cut.zip/pictures/0.png", r"cut\.zip/pictures/0\.png cannot be read .*get it again"),
        ("cut.tar/2.png", r"cut\.tar/2\.png cannot be read .*get it again"),
        ("cut.parquet/0/plain", r"cut\.parquet/0/plain cannot be read .*get it again"),
        ("bad.zip/pictures/0.png", r"bad\.zip/pictures/0\.png cannot be read .*CRC.*get it again"),
        ("text.parquet/0/plain", r"text\.parquet/0/plain cannot be read .*get it again"),
        ("text.arrow/0/plain", r"text\.arrow/0/plain cannot be read .*get it again"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, message: str, tmp_path: Path) -> None:
    stored = [encoded(seed, (40, 40)) for seed in range(3)]  # noise: packing does not shrink it, so a cut goes through a picture
    for kind in KINDS:
        kind(tmp_path, stored)
    (tmp_path / "file.png").write_bytes(stored[0])
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "file.png", "0.png")
    for copy in ("packed.tgz", "packed.tar"):
        (tmp_path / copy).write_bytes((tmp_path / "packed.tar.gz").read_bytes())
    for whole in ("zip", "tar", "parquet"):
        content = (tmp_path / f"a.{whole}").read_bytes()
        end = content.index(stored[2]) + 99 if whole == "tar" else len(content) // 2
        (tmp_path / f"cut.{whole}").write_bytes(content[:end])
    (tmp_path / "bad.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace(stored[0][60:70], bytes(10)))
    for kind_name in ("parquet", "arrow"):
        (tmp_path / f"text.{kind_name}").write_text("<html>not found</html>")
    holes = {
        "plain": [stored[0], None, stored[0]],
        "image": [{"bytes": stored[0]}, None, {"bytes": None}],
        "many": [[stored[0]], None, [None]],
    }
    pyarrow.parquet.write_table(pyarrow.table(holes), tmp_path / "nulls.parquet")
    with pytest.raises(ValueError, match=message) as caught:
        picture_bytes(tmp_path / name)
    assert str(caught.value).startswith(f"picture {tmp_path / name}")
    # the row of the record is named too
    pair = Preference("p", "t2i", "a cat", (str(tmp_path / name), "b.png"), 1.0)
    with pytest.raises(ValueError, match=f"record 'p': picture {tmp_path / name}"):
        open_pictures(pair, pair.candidates[:1])


def test_what_is_stored_need_not_be_a_picture(tmp_path: Path) -> None:
    (name,) = as_zip(tmp_path, [b"<html>not found</html>"])
    assert picture_bytes(name).startswith(b"<html>")
    with pytest.raises(ValueError, match=r"a\.zip/pictures/0\.png cannot be read .*not a picture"):
        open_picture(name)


def test_a_hard_link_in_a_tar_is_the_picture_it_links_to(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        (tmp_path / "one.png").write_bytes(encoded(3))
        archive.add(tmp_path / "one.png", "one.png")
        link = tarfile.TarInfo("two.png")
        link.type, link.linkname = tarfile.LNKTYPE, "one.png"
        archive.addfile(link)
    assert picture_bytes(tmp_path / "a.tar" / "two.png") == encoded(3)


def test_threads_share_archives(tmp_path: Path) -> None:
    stored = [encoded(seed) for seed in range(40)]
    names = [kind(tmp_path, stored) for kind in KINDS]
    wrong: list[str] = []

    def look(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            index = rng.randrange(40)
            name = rng.choice(names)[index]
            try:
                if picture_bytes(name) != stored[index]:
                    wrong.append(name)
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORKED = """
import os, random, sys
from pathlib import Path
from rationalrewards.components.pictures import picture_bytes

names = sys.argv[1:]
expected = [picture_bytes(name) for name in names]  # every archive is open now, in the middle
children = []
for seed in range(4):
    child = os.fork()
    if child == 0:
        order = [*range(len(names))] * 5
        random.Random(seed).shuffle(order)
        os._exit(any(picture_bytes(names[index]) != expected[index] for index in order))
    children.append(child)
for _ in range(5):
    assert [picture_bytes(name) for name in names] == expected
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


def test_forked_processes_read_at_the_same_time(tmp_path: Path) -> None:
    # a place in a file that parent and child share would move under the reader
    names = [name for kind in KINDS for name in kind(tmp_path, [encoded(seed, (60, 60)) for seed in range(6)])]
    done = run_python(["-c", FORKED, *names], timeout=60)
    assert done.returncode == 0, done.stderr


class Decoded:
    """Counts the rows that a parquet file decodes, by column, while its own reader does the work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[str, int] = {}
        whole = pyarrow.parquet.ParquetFile.iter_batches

        def counted(file: Any, *arguments: Any, columns: list[str], **options: Any) -> Any:
            for batch in whole(file, *arguments, columns=columns, **options):
                self.rows[columns[0]] = self.rows.get(columns[0], 0) + len(batch)
                yield batch

        monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counted)


def test_rows_in_order_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = [encoded(seed, (30, 30)) for seed in range(90)]
    table = pyarrow.table({"a": stored, "b": [{"bytes": data} for data in stored], "c": stored})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=40)
    monkeypatch.setattr(pictures, "AHEAD", 10_000)  # three or four of these pictures at a time
    decoded = Decoded(monkeypatch)
    for row in range(90):
        for column in "ab":
            assert picture_bytes(f"{tmp_path}/x.parquet/{row}/{column}") == stored[row]
            assert picture_bytes(f"{tmp_path}/x.parquet/{row}/{column}") == stored[row]
    assert decoded.rows == {"a": 90, "b.bytes": 90}
    # a second reader some rows behind the first, as a fold looks at sources before a module does: each reads every row once
    decoded.rows.clear()
    for row in range(90 + 25):
        for place in (row, row - 25):
            if 0 <= place < 90:
                assert picture_bytes(f"{tmp_path}/x.parquet/{place}/c") == stored[place]
    assert 90 < decoded.rows["c"] <= 2 * 90


def test_few_archives_stay_open_and_fewer_keep_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "WARM_ARCHIVES", 2)
    monkeypatch.setattr(pictures, "OPEN_ARCHIVES", 4)
    for part in range(6):
        pyarrow.parquet.write_table(pyarrow.table({"a": [encoded(part)] * 5}), tmp_path / f"{part}.parquet")
    decoded = Decoded(monkeypatch)
    read_anew = []
    for part in (0, 1, 0, 1, 2, 1, 2, 0, 3, 4, 5):
        before = decoded.rows.get("a", 0)
        assert picture_bytes(f"{tmp_path}/{part}.parquet/1/a") == encoded(part)
        read_anew.append(decoded.rows["a"] > before)
    assert read_anew == [True, True, False, False, True, False, False, True, True, True, True]
    descriptors = (Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
    opened = sorted(path.readlink().name for path in descriptors if path.is_symlink() and path.readlink().parent == tmp_path)
    assert opened == ["0.parquet", "3.parquet", "4.parquet", "5.parquet"]


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.png").write_bytes(encoded(0, (50, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read .*exceeds limit of 2000 pixels"):
        open_picture(tmp_path / "bomb.png")
