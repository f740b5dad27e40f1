"""Files of several schemas become the same records; a bad row is named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from rationalrewards.components.records import Preference, PromptRecord, read_jsonl, write_jsonl
from rationalrewards.datamodules.readers import read_preferences, read_prompts


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


OWN = [
    {"id": "a", "task": "t2i", "prompt": "a cat", "candidates": ["1.png", "2.png"], "label": 0.25},
    {
        "id": "b",
        "task": "edit",
        "prompt": "line\u2028one",
        "candidates": ["1.png", "2.png"],
        "label": 1.0,
        "sources": ["s/0.png"],
    },
]


def test_own_records_read_alike_from_every_kind_of_file(tmp_path: Path) -> None:
    lines = _jsonl(tmp_path / "pairs.jsonl", OWN)
    (tmp_path / "pairs.json").write_text(json.dumps(OWN))
    # a column that only some rows have is null in the others
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"sources": None, **row} for row in OWN]), tmp_path / "pairs.parquet")
    expected = [
        Preference("a", "t2i", "a cat", (str(tmp_path / "1.png"), str(tmp_path / "2.png")), 0.25),
        Preference(
            "b",
            "edit",
            "line\u2028one",
            (str(tmp_path / "1.png"), str(tmp_path / "2.png")),
            1.0,
            (str(tmp_path / "s" / "0.png"),),
        ),
    ]
    for path in (lines, tmp_path / "pairs.json", tmp_path / "pairs.parquet"):
        assert read_preferences(path) == expected
    write_jsonl(tmp_path / "again.jsonl", expected)
    assert read_preferences(tmp_path / "again.jsonl") == read_jsonl(tmp_path / "again.jsonl", Preference) == expected


def test_ranked_pictures_become_every_pair_once(tmp_path: Path) -> None:
    row = {"prompt": "a cat", "images": ["w.png", "x.png", "y.png", "z.png"], "ranking": [2, 1, 3, 2]}
    path = _jsonl(tmp_path / "ranked.jsonl", [row, {**row, "id": "named"}])
    pairs = read_preferences(path)
    assert len(pairs) == 12 and len({pair.id for pair in pairs}) == 12
    assert {pair.id.rsplit("-", 2)[0] for pair in pairs} == {"ranked-1", "named"}
    rank = dict(zip(row["images"], row["ranking"], strict=True))
    for pair in pairs:
        first, second = (Path(candidate).name for candidate in pair.candidates)
        assert pair.candidates[0] == str(tmp_path / first)
        assert pair.label == (0.5 if rank[first] == rank[second] else float(rank[first] < rank[second]))  # 1 is best
        assert (pair.task, pair.prompt, pair.sources) == ("t2i", "a cat", ())
        assert pair.origin.startswith("ranked.jsonl, row ")
    seen = Counter(frozenset(pair.candidates) for pair in pairs[:6])
    assert len(seen) == 6


def test_an_edit_is_preferred_over_its_source(tmp_path: Path) -> None:
    row = {"instruction": "add a hat", "source": "s.jpg", "edited": "e.jpg"}
    path = _jsonl(tmp_path / "edits.jsonl", [row] * 40)
    pairs = read_preferences(path)
    for pair in pairs:
        assert pair.sources == (str(tmp_path / "s.jpg"),) and pair.task == "edit" and pair.prompt == "add a hat"
        assert Path(pair.candidates[0 if pair.label == 1.0 else 1]).name == "e.jpg"
    # in either place, so that no judge gains by its love of the first picture; and in the same one whenever it is read
    labels = Counter(pair.label for pair in pairs)
    assert set(labels) == {0.0, 1.0} and min(labels.values()) >= 8  # 40 fair coins: 1 in 10 000 to be below
    assert read_preferences(path) == pairs


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "x", "images": ["1.png"]}', "row 1: no known preference schema; missing: ranking; found: images"),
        ("a.jsonl", '{"id": "a", "task": "t2i", "prompt": "x", "label": 1}', "row 1: no known.*missing: candidates"),
        ("a.jsonl", json.dumps({**OWN[0], "label": 2}), "row 1: label must be the probability"),
        ("a.jsonl", json.dumps({**OWN[0], "labels": 2}), "row 1: unknown column 'labels'"),
        ("a.jsonl", json.dumps(OWN[0]) + "\n\n" + json.dumps({**OWN[1], "sources": []}), "row 3: an edit needs source pictures"),
        ("a.jsonl", json.dumps({**OWN[1], "sources": "s.png"}), "row 1: column 'sources' must be a list"),
        ("a.jsonl", '{"prompt": "x", "images": ["1.png", "2.png"], "ranking": [1]}', "row 1"),
        ("a.jsonl", json.dumps(OWN[0]) + "\n" + json.dumps(OWN[0]), "id 'a' occurs twice"),
        ("a.jsonl", '{"id": ', "not JSON"),
        ("a.json", '{"id": 1}', "holds no list of rows"),
        ("a.json", "[" + json.dumps(OWN[0]) + ",\n", "line 2: not JSON"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_preferences(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("read", [read_preferences, read_prompts])
def test_a_missing_file_is_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(ValueError, match=r"gone\.jsonl does not exist; give the path of a \.jsonl, \.json or \.parquet file"):
        read(tmp_path / "gone.jsonl")


def test_requests_of_every_schema(tmp_path: Path) -> None:
    rows = [
        {"id": "own", "task": "edit", "prompt": "add a hat", "sources": ["s.png"], "origin": "somewhere"},
        {"instruction": "add a hat", "source": "s.png", "edited": "e.png"},
        {"id": 7, "prompt": "a cat", "tag": "single_object", "include": []},
        {"prompt": "two\u2028dogs"},
    ]
    path = _jsonl(tmp_path / "mixed.jsonl", rows)
    source = str(tmp_path / "s.png")
    assert read_prompts(path) == [
        PromptRecord("own", "edit", "add a hat", (source,), "somewhere"),
        PromptRecord("mixed-2", "edit", "add a hat", (source,), "mixed.jsonl, row 2"),
        PromptRecord("7", "t2i", "a cat", (), "mixed.jsonl, row 3"),
        PromptRecord("mixed-4", "t2i", "two\u2028dogs", (), "mixed.jsonl, row 4"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"caption": "a cat"}], "row 1: no column 'prompt'; found: caption"),
        ([{"prompt": "a cat"}, {"prompt": " "}], "row 2: the prompt is empty"),
        ([{"prompt": 3}], "row 1: the prompt is empty"),
        ([{"id": "x", "prompt": "a"}, {"id": "x", "prompt": "b"}], "id 'x' occurs twice"),
    ],
)
def test_a_bad_request_is_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompts(_jsonl(tmp_path / "bad.jsonl", rows))


def test_groups_of_read_edits_tell_sources_apart(tmp_path: Path) -> None:
    for name, shade in (("a", 0), ("b", 9), ("c", 0)):
        Image.new("RGB", (3, 3), (shade, 0, 0)).save(tmp_path / f"{name}.png")
    rows = [{"instruction": "remove it", "source": f"{name}.png"} for name in "abc"]
    first, other, copy = (record.group for record in read_prompts(_jsonl(tmp_path / "edits.jsonl", rows)))
    assert first == copy != other
