"""Groups for RL: whole, on one rank, the same samples whatever the number of processes."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from rationalrewards.components.records import PromptRecord, write_jsonl
from rationalrewards.datamodules import PromptDataModule, RolloutBatch


@pytest.fixture
def path(tmp_path: Path) -> str:
    write_jsonl(tmp_path / "prompts.jsonl", [PromptRecord(f"p{index:02d}", "t2i", f"scene {index}") for index in range(26)])
    return str(tmp_path / "prompts.jsonl")


def _data(path: str, **changes: Any) -> PromptDataModule:
    settings = {"groups_per_epoch": 8, "group_size": 4, "batch_size": 4, "visits": 3, "seed": 1}
    data = PromptDataModule(train=path, **{**settings, **changes})
    data.setup("fit")
    return data


def _samples(batches: list[RolloutBatch]) -> list[tuple[str, int]]:
    return [(record.id, copy) for batch in batches for record, copy in zip(batch.records, batch.copies, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 16])
def test_a_round_is_whole_groups(path: str, batch_size: int) -> None:
    data = _data(path, batch_size=batch_size)
    batches = data.batches(0, 0, 1)
    assert {len(batch.records) for batch in batches} == {batch_size}
    calls = 8 * 4 // batch_size
    # every call's visits stand together, so that training on it can begin while later calls are being scored
    assert [(batch.index, batch.visits) for batch in batches] == [
        (index, (visit,)) for index in range(calls) for visit in range(3)
    ]
    for visit in range(3):
        samples = _samples([batch for batch in batches if batch.visits == (visit,)])
        assert samples == _samples([batch for batch in batches if 0 in batch.visits])  # every visit is to the same pictures
        names = [name for name, _ in samples]
        assert len(set(names)) == 8
        # the copies of a group stand together, each once
        assert samples == [(name, copy) for name in dict.fromkeys(names) for copy in range(4)]
    assert len(data.train_dataloader()) == len(batches)
    assert list(data.train_dataloader()) == batches


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_samples_of_a_round_do_not_depend_on_the_number_of_processes(path: str, processes: int) -> None:
    data = _data(path)
    for epoch in range(7):  # over the end of a pass
        alone = data.batches(epoch, 0, 1)
        first_visit = [batch for batch in alone if 0 in batch.visits]
        ranks = [data.batches(epoch, rank, processes) for rank in range(processes)]
        assert len({len(batches) for batches in ranks}) == 1  # collectives stay aligned
        shared = [batch for batches in ranks for batch in batches if 0 in batch.visits]
        assert _samples(shared) == _samples(first_visit)
        homes: dict[str, set[int]] = {}
        for rank, batches in enumerate(ranks):
            for name, _ in _samples(batches):
                homes.setdefault(name, set()).add(rank)
        assert all(len(home) == 1 for home in homes.values())  # whole groups on one rank
        assert {batch.epoch for batches in ranks for batch in batches} == {epoch}


def test_every_pass_goes_once_through_the_requests(path: str) -> None:
    data = _data(path)  # 26 requests: three rounds of 8 a pass, 2 left over
    rounds = [{name for name, _ in _samples(data.batches(epoch, 0, 1))} for epoch in range(12)]
    passes = [rounds[start : start + 3] for start in range(0, 12, 3)]
    for one in passes:
        assert len(set.union(*one)) == 24
    for before, after in pairwise(passes):
        assert before != after
    assert len(set.union(*rounds)) == 26  # what one pass leaves over, another takes
    assert [set(map(str, part)) for part in rounds] == [
        {name for name, _ in _samples(_data(path).batches(epoch, 0, 1))} for epoch in range(12)
    ]  # whatever was asked for before
    assert _samples(_data(path, seed=2).batches(0, 0, 1)) != _samples(data.batches(0, 0, 1))


def test_the_loader_follows_its_epoch(path: str) -> None:
    data = _data(path)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(5)
    assert list(loader) == data.batches(5, 0, 1)


# -- divisibility ------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 40), st.integers(2, 12), st.integers(1, 48), st.integers(1, 8))
def test_what_is_refused_names_a_legal_number(groups: int, size: int, batch: int, processes: int) -> None:
    try:
        data = PromptDataModule(groups_per_epoch=groups, group_size=size, batch_size=batch)
    except ValueError as error:
        nearest = re.search(r"batch_size \d+ must be a multiple.*nearest multiple: (\d+)$", str(error))
        assume(nearest is not None)
        assert nearest is not None
        legal = int(nearest[1])
        assert legal % size == 0 and abs(legal - batch) <= size
        PromptDataModule(groups_per_epoch=legal, group_size=size, batch_size=legal)
        return
    data.prompts = [PromptRecord(str(index), "t2i", "x") for index in range(400)]
    try:
        whole = data.batches(0, 0, processes)
    except ValueError as error:
        found = re.search(rf"groups_per_epoch {groups} does not.*on {processes} processes; nearest legal: (\d+)$", str(error))
        assert found is not None
        better = PromptDataModule(groups_per_epoch=int(found[1]), group_size=size, batch_size=batch)
        better.prompts = data.prompts
        assert len(_samples(better.batches(0, 0, processes))) > 0
        # nothing legal is nearer
        for nearer in range(max(1, groups - abs(groups - int(found[1])) + 1), groups + abs(groups - int(found[1]))):
            whole_groups = nearer % processes == 0
            assert not (whole_groups and nearer // processes * size % batch == 0)
        return
    assert all(len(batch_.records) == batch for batch_ in whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2 to compare pictures, got 1"),
        ({"batch_size": 6}, "batch_size 6 must be a multiple or a divisor of group_size 4; nearest multiple: 8"),
        ({"batch_size": 8, "groups_per_epoch": 3}, "= 12 pictures do not divide into batches of 8"),
        ({"groups_per_epoch": 27}, "has 26 requests, fewer than groups_per_epoch = 27"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_loaded(path: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _data(path, **changes)


def test_edits_take_one_set_of_sources_a_call(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "s.png")
    edits = [PromptRecord(f"e{index}", "edit", "turn it", (str(tmp_path / "s.png"),)) for index in range(8)]
    write_jsonl(tmp_path / "edits.jsonl", edits)
    with pytest.raises(ValueError, match=r"edits\.jsonl holds edits.*at most group_size = 4, got 8"):
        _data(str(tmp_path / "edits.jsonl"), batch_size=8)
    for batch in _data(str(tmp_path / "edits.jsonl"), batch_size=2).batches(0, 0, 1):
        assert len({record.id for record in batch.records}) == 1


def test_files_that_are_not_named_are_asked_for(path: str) -> None:
    with pytest.raises(ValueError, match=r"give `data\.train`"):
        PromptDataModule().setup("fit")
    with pytest.raises(ValueError, match=r"give `data\.predict`"):
        PromptDataModule().predict_dataloader()
    assert PromptDataModule().val_dataloader() == []
    PromptDataModule(predict=path).setup("predict")  # nothing to read for training


def test_requests_to_validate_and_to_refine_come_in_file_order(path: str) -> None:
    data = PromptDataModule(val=path, predict=path, eval_batch_size=4, limit=10)
    for loader in (data.val_dataloader(), data.predict_dataloader()):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert [record.id for batch in batches for record in batch] == [f"p{index:02d}" for index in range(10)]
