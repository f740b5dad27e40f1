"""Preference pairs in file order, for rationalization and evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rationalrewards.datamodules import PreferenceDataModule


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    names = []
    for part in "xy":
        rows = [
            {"id": f"{part}{index}", "task": "t2i", "prompt": "a", "candidates": ["1.png", "2.png"], "label": index / 4}
            for index in range(5)
        ]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        names.append(str(tmp_path / f"{part}.jsonl"))
    return names


def _ids(data: PreferenceDataModule) -> list[list[str]]:
    data.setup("predict")
    batches = [[pair.id for pair in batch] for batch in data.predict_dataloader()]
    assert batches == [[pair.id for pair in batch] for batch in data.test_dataloader()]
    return batches


def test_files_follow_each_other(paths: list[str]) -> None:
    assert _ids(PreferenceDataModule(paths, batch_size=4)) == [["x0", "x1", "x2", "x3"], ["x4", "y0", "y1", "y2"], ["y3", "y4"]]
    assert _ids(PreferenceDataModule(paths[0])) == [["x0", "x1", "x2", "x3", "x4"]]


def test_ties_are_left_out_before_the_limit_counts(paths: list[str]) -> None:
    assert _ids(PreferenceDataModule(paths[0], limit=3)) == [["x0", "x1", "x2"]]
    assert _ids(PreferenceDataModule(paths[0], limit=3, decided_only=True)) == [["x0", "x1", "x3"]]


def test_no_pairs_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    tie = {"id": "t", "task": "t2i", "prompt": "a", "candidates": ["1.png", "2.png"], "label": 0.5}
    (tmp_path / "ties.jsonl").write_text(json.dumps(tie))
    with pytest.raises(ValueError, match=r"ties\.jsonl: no pairs without a tie"):
        PreferenceDataModule(str(tmp_path / "ties.jsonl"), decided_only=True).setup("test")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl: no pairs$"):
        PreferenceDataModule(str(tmp_path / "empty.jsonl")).setup("test")


def test_an_id_in_two_files_is_refused(paths: list[str]) -> None:
    Path(paths[1]).write_text(Path(paths[1]).read_text().replace('"y3"', '"x3"'))
    with pytest.raises(ValueError, match=r"id 'x3' is in .*x\.jsonl and in .*y\.jsonl; .*rename it in one"):
        PreferenceDataModule(paths).setup("predict")
