"""What was left out of a set is told once, by whoever has read all of it, however many read along."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import public_sets as sets
import pytest
from rationalrewards.datamodules.readers import PreferenceSet
from set_reading import draws
from support import run_python

SAID = "yuvalkirstain/pickapic_v2 test: 6 records read, 2 left out: 2 no label"


@pytest.fixture
def pickapic(tmp_path: Path, gallery: sets.Gallery) -> Path:
    """Six pairs, and two rows without a label before them."""
    made = [sets.pickapic(draws(gallery, better)) for better in ("first", "second") * 4]
    for row in made[:2]:
        row["has_label"] = False
    sets.parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", made, sets.PICKAPIC)
    return tmp_path / "set"


def test_it_is_told_when_all_was_read_and_once(pickapic: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = PreferenceSet("yuvalkirstain/pickapic_v2", root=str(pickapic), split="test")
    with caplog.at_level(logging.WARNING):
        next(one.read())  # as `setup` does, to see whether it can be read
        list(islice(one.read(), 3))
        assert caplog.messages == []
        for _ in range(3):
            assert len(list(one.read())) == 6
    assert caplog.messages == [SAID]


def test_other_files_in_the_folder_are_told_again(pickapic: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = PreferenceSet("yuvalkirstain/pickapic_v2", root=str(pickapic), split="test")
    with caplog.at_level(logging.WARNING):
        list(one.read())
        file = pickapic / "data" / "test-00000-of-00001.parquet"
        file.with_name("test-00001-of-00001.parquet").write_bytes(file.read_bytes())
        list(one.read())
    assert caplog.messages == [SAID, SAID.replace("6 records read, 2 left out: 2", "12 records read, 4 left out: 4")]


PROGRAM = """
import logging, sys
import torch
import torch.multiprocessing
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.datamodules.readers import PreferenceSet


def read(rank, store):
    logging.basicConfig(level=logging.WARNING)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    one = PreferenceSet("yuvalkirstain/pickapic_v2", root=%r, split="test")
    data = PreferenceDataModule(sets=[one], batch_size=1, num_workers=2)
    data.setup("predict")
    assert sum(map(len, data.predict_dataloader())) == 3
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(read, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_of_two_processes_with_two_workers_each_one_tells(pickapic: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM % str(pickapic))
    done = run_python([tmp_path / "program.py", tmp_path / "store"], timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("records read") == 1, done.stderr
