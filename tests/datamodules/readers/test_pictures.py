"""Pictures beside JSON: loose, in tars and zips, packed or gone."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import public_sets as sets
import pytest
from set_reading import PAIRS, Read, case_set


def test_pictures_are_found_in_a_tar(public: dict[str, Read], tmp_path: Path) -> None:
    read = public["MizzenAI.HPDv3-train"]
    shutil.copy(read.root / "train.json", tmp_path)
    stored = {f"images/{path.name}": path.read_bytes() for path in (read.root / "images").iterdir()}
    names = sorted(stored)
    for part, some in enumerate((names[::2], names[1::2])):  # "image tars": a pair's pictures may lie in two
        sets.write_tar(tmp_path / f"images-{part}.tar", {name: stored[name] for name in some})
    pairs = list(case_set(read.case, tmp_path).read())
    assert [(pair.id, pair.label) for pair in pairs] == [(pair.id, pair.label) for pair in read.pairs]
    assert all(
        read.gallery.of(pair.candidates[0]) == read.gallery.of(own.candidates[0])
        for pair, own in zip(pairs, read.pairs, strict=True)
    )


def test_a_gzipped_tar_is_to_be_unpacked(public: dict[str, Read], tmp_path: Path) -> None:
    read = public["ymhao.HPDv2-train"]
    shutil.copy(read.root / "train.json", tmp_path)
    sets.write_tar(
        tmp_path / "train.tar.gz", {f"train/{path.name}": path.read_bytes() for path in (read.root / "train").iterdir()}, "w:gz"
    )
    with pytest.raises(ValueError, match=r"none of the first 100 pictures .*unpack train\.tar\.gz first"):
        list(case_set(read.case, tmp_path).read())
    subprocess.run(["tar", "-xzf", "train.tar.gz"], cwd=tmp_path, check=True)
    assert [pair.id for pair in case_set(read.case, tmp_path).read()] == [pair.id for pair in read.pairs]


def test_a_few_missing_pictures_are_left_out(public: dict[str, Read], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read = public["MizzenAI.HPDv3-train"]
    shutil.copytree(read.root, tmp_path, dirs_exist_ok=True)
    gone = [Path(read.pairs[n].candidates[0]).name for n in (0, 7)]
    (tmp_path / "images" / gone[0]).unlink()
    (tmp_path / "images" / gone[1]).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        pairs = list(case_set(read.case, tmp_path).read())
    assert [pair.id for pair in pairs] == [pair.id for n, pair in enumerate(read.pairs) if n not in (0, 7)]
    assert f"{PAIRS - 2} records read, 2 left out: 2 a picture is missing or empty" in caplog.text


@pytest.mark.parametrize(
    "layout", ["zips without metadata", "unpacked", "unpacked twice", "unpacked without metadata", "one shard"]
)
def test_imagereward_in_every_layout(public: dict[str, Read], tmp_path: Path, layout: str) -> None:
    read = public["zai-org.ImageRewardDB-validation"]
    shutil.copytree(read.root, tmp_path, dirs_exist_ok=True)
    if "without metadata" in layout:
        (tmp_path / "metadata-validation.parquet").unlink()
    shards = sorted((tmp_path / "images" / "validation").glob("*.zip"))
    if "unpacked" in layout:
        for shard in shards:
            folder = shard.with_suffix("") if "twice" in layout else shard.parent  # zips hold a folder of their own name
            shutil.unpack_archive(shard, folder)
            shard.unlink()
    if layout == "one shard":
        shards[1].unlink()
    pairs = {pair.id: pair for pair in case_set(read.case, tmp_path).read()}
    whole = {pair.id: pair.label for pair in read.pairs}
    assert all(whole[id] == pair.label for id, pair in pairs.items())
    assert all(read.gallery.of(pair.candidates[0]) > read.gallery.of(pair.candidates[1]) for pair in pairs.values() if pair.label)
    assert set(pairs) == set(whole) if layout != "one shard" else 0 < len(pairs) < len(whole)
