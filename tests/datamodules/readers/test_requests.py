"""Requests of the RL data, in the way of RationalRewards and in that of Edit-R1."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from rationalrewards.components.records import PromptRecord
from rationalrewards.datamodules import PromptDataModule
from rationalrewards.datamodules.readers import PromptSet, read_prompts

RL = "TIGER-Lab/RationalRewards_DiffusionNFT_TrainData"


def test_requests_of_the_rl_data(requests: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        edits = list(PromptSet(RL, root=str(requests)).read())
    assert [(record.task, record.prompt, Path(*record.sources).name) for record in edits] == [
        ("edit", "add a hat", "a.png"),
        ("edit", "add a hat", "b.png"),
    ]
    assert edits[0].group != edits[1].group  # one request of two pictures
    assert edits[0].origin == f"{RL}@local (MIT), edit/train row 1 of edit/train.jsonl"
    assert "1 a picture is missing or empty" in caplog.text and "1 an edit without a source picture" in caplog.text
    (other,) = PromptSet(RL, root=str(requests), split="test").read()
    assert (other.prompt, Path(*other.sources).name) == ("turn it green", "b.png")
    for root in (requests, requests / "t2i"):
        drawn = list(PromptSet(RL, root=str(root), subset="t2i").read())
        assert [(record.task, record.prompt, record.sources) for record in drawn] == [
            ("t2i", "a cat", ()),
            ("t2i", "two dogs", ()),
        ]
    ids = [record.id for record in [*edits, other, *drawn]]
    assert len(set(ids)) == 5
    with pytest.raises(ValueError, match="no test.jsonl or test_metadata.jsonl with requests of t2i/test"):
        list(PromptSet(RL, root=str(requests / "t2i"), subset="t2i", split="test").read())


def test_the_files_of_the_rl_data_read_as_they_are(requests: Path) -> None:
    (record,) = read_prompts(requests / "edit" / "test_metadata.jsonl")
    source = str(requests / "edit" / "images" / "b.png")
    expected = PromptRecord("test_metadata-1", "edit", "turn it green", (source,), "test_metadata.jsonl, row 1")
    assert record == expected
    rows = read_prompts(requests / "edit" / "train.jsonl")
    assert [len(record.sources) for record in rows] == [1, 1, 1, 0]  # a file of our own choice may mix edits and pictures
    (requests / "odd.jsonl").write_text(json.dumps({"prompt": "x", "image": {"bytes": "…"}}) + "\n")
    with pytest.raises(ValueError, match=r"odd\.jsonl, row 1: the source picture must be a path"):
        read_prompts(requests / "odd.jsonl")


def test_rl_trains_on_a_public_set(requests: Path) -> None:
    options: dict[str, Any] = {"groups_per_epoch": 2, "group_size": 2, "batch_size": 2}
    data = PromptDataModule(train=PromptSet(RL, root=str(requests)), **options)
    data.setup("fit")
    assert [record.prompt for record in data.prompts] == ["add a hat", "add a hat"]
    file = PromptDataModule(train=str(requests / "t2i" / "train.jsonl"), **options)
    file.setup("fit")
    assert [record.prompt for record in file.prompts] == ["a cat", "two dogs"]
