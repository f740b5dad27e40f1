"""Rows come one by one: from long lists in little memory, and from tables without their pictures."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from collections.abc import Generator
from pathlib import Path

import public_sets as sets
import pyarrow
import pytest
from rationalrewards.datamodules.readers import rows
from rationalrewards.datamodules.readers.rows import json_items, json_list, table_rows
from set_reading import Read, case_set


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 18])
@pytest.mark.parametrize("indent", [None, 4])
def test_a_list_is_read_item_by_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None) -> None:
    rng = random.Random(chunk)
    letters = 'ab\u2028\\"[]{}, é\n'
    items = [
        {"".join(rng.choices(letters, k=9)): [rng.random(), None, {"x": "".join(rng.choices(letters, k=30))}]} for _ in range(50)
    ]
    monkeypatch.setattr(rows, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(items, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert list(json_list(path)) == list(json_items(path)) == list(enumerate(items, start=1))
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    assert list(json_items(path)) == list(enumerate(items, start=1))
    path.write_text("[]")
    assert list(json_items(path)) == []


@pytest.mark.parametrize(
    ("text", "line"), [('[\n{"a": 1},\n{"a": oops}\n]', 3), ('[\n{"a": 1}\n', 3), ('[\n{"a": "x', 2), ('{"a": 1}\n{"a"\n', 2)]
)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_broken_list_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, chunk: int
) -> None:
    monkeypatch.setattr(rows, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, line {line}: not JSON"):
        list(json_items(path))


@pytest.mark.parametrize("between", [",\n", ", "])
def test_a_long_list_needs_little_memory(tmp_path: Path, between: str) -> None:
    row = {"prompt": "a cat " * 20, "choice_dist": [3, 1], "path1": "images/1.png", "path2": "images/2.png"}
    path = tmp_path / "train.json"
    path.write_text("[" + between.join([json.dumps(row)] * 40_000) + "]")
    size = path.stat().st_size
    tracemalloc.start()
    try:
        assert sum(1 for _ in json_items(path)) == 40_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 8e6 and peak < 2e6  # five times a quarter of a million letters: what was read, decoded, and joined to the rest


def test_pictures_are_not_read_to_list_the_pairs(tmp_path: Path) -> None:
    noise = random.Random(0)
    features = {"prompt": sets.TEXT, "image": sets.IMAGE, "broken": sets.IMAGE}
    made = [{"prompt": str(n), "image": sets.image(noise.randbytes(1_000_000)), "broken": sets.image(b"x")} for n in range(30)]
    made[7]["broken"] = None
    sets.parquet(tmp_path / "x.parquet", made, features, batch=10)
    pool = pyarrow.default_memory_pool()
    proxy = pyarrow.proxy_memory_pool(pool)
    pyarrow.set_memory_pool(proxy)
    try:
        read = list(table_rows(tmp_path / "x.parquet", "x.parquet", ["prompt", "gone"], ["image", "broken"]))
    finally:
        pyarrow.set_memory_pool(pool)
    assert [row["prompt"] for row in read] == [str(n) for n in range(30)]
    assert all(row.picture("image") for row in read)
    assert [n for n, row in enumerate(read) if row.picture("broken") is None] == [7]
    assert proxy.max_memory() < 1_000_000  # less than a single picture


def test_a_reader_stops_when_nobody_asks_for_more(public: dict[str, Read], caplog: pytest.LogCaptureFixture) -> None:
    read = public["MizzenAI.HPDv3-train"]
    stream = case_set(read.case, read.root).read()
    assert isinstance(stream, Generator)
    assert next(stream) == read.pairs[0]
    stream.close()
    assert not caplog.messages
