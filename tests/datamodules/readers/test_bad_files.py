"""Files that are not as they should be are refused, and the message names file, row and column."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import public_sets as sets
import pytest
from rationalrewards.datamodules.readers import PreferenceSet
from set_reading import Read, case_set, draws

BAD_TABLES: list[tuple[str, str | None, str, dict[str, Any], Callable[[Any], dict[str, Any]], dict[str, Any], str]] = [
    # set, subset, file, features, row, what is wrong with the second row, message
    (
        *("yuvalkirstain/pickapic_v2", None, "data/train-0.parquet", sets.PICKAPIC, sets.pickapic),
        *({"label_1": 0.5}, r"train-0\.parquet, row 2, column 'label_1': with label_0 = 1\.0 it must be the rest to 1, got 0\.5"),
    ),
    (
        *("Rapidata/x", None, "data/train-0.parquet", sets.RAPIDATA, lambda choice: sets.rapidata(choice, (3, 4))),
        *({"votes_image2": -1}, r"train-0\.parquet, row 2, column 'votes_image2': must be a number of votes, got -1"),
    ),
    (
        *(
            "TIGER-Lab/GenAI-Bench",
            "image_generation",
            "image_generation/test_v1-0.parquet",
            sets.GENERATION,
            sets.genai_generation,
        ),
        *({"vote_type": "left"}, r"test_v1-0\.parquet, row 2, column 'vote_type': must be one of leftvote, .*, got 'left'"),
    ),
    (
        *("TIGER-Lab/EditReward-Data", None, "data/train-0.parquet", sets.EDITREWARD, lambda choice: sets.editreward(choice, 0)),
        *(
            {"vote_type": "bothbad_vote"},
            r"row 2, column 'vote_type': must be one of leftvote, rightvote, tie, got 'bothbad_vote'",
        ),
    ),
    (
        *("TIGER-Lab/EditReward-Bench", "2pair", "2pair/train-0.parquet", sets.ERBENCH, lambda c: sets.erbench(c, 0, "2pair")),
        *({"ranking": "A>C"}, r"row 2, column 'ranking': must rank A, B with '>' and '=', got 'A>C'"),
    ),
    (
        *("EditScore/EditReward-Bench", "overall", "x.parquet", sets.EDITSCORE, lambda choice: sets.editscore(choice, 0)),
        *({"dimension": "taste"}, r"row 2, column 'dimension': must be one of overall, .*, got 'taste'"),
    ),
    (
        *("rl-research/multimodal-rewardbench-2", "edit", "edit/test-0.parquet", sets.MMRB2, lambda c: sets.mmrb2_hub(c, 0)),
        *({"chosen": "both"}, r"row 2, column 'chosen': must be 'A' or 'B', got 'both'"),
    ),
]


@pytest.mark.parametrize(("id", "subset", "file", "features", "row", "wrong", "message"), BAD_TABLES)
def test_a_bad_cell_is_named(
    tmp_path: Path,
    gallery: Any,
    id: str,
    subset: str | None,
    file: str,
    features: dict[str, Any],
    row: Callable[[Any], dict[str, Any]],
    wrong: dict[str, Any],
    message: str,
) -> None:
    good = row(draws(gallery, source=True))
    sets.parquet(tmp_path / file, [good, {**good, **wrong}], features)
    with pytest.raises(ValueError, match=message) as caught:
        list(PreferenceSet(id, root=str(tmp_path), subset=subset).read())
    assert str(tmp_path / file) in str(caught.value)


@pytest.mark.parametrize(("id", "subset", "file", "features", "row", "wrong", "message"), BAD_TABLES)
def test_a_missing_column_is_named(
    tmp_path: Path,
    gallery: Any,
    id: str,
    subset: str | None,
    file: str,
    features: dict[str, Any],
    row: Callable[[Any], dict[str, Any]],
    wrong: dict[str, Any],
    message: str,
) -> None:
    (column,) = wrong
    sets.parquet(tmp_path / file, [row(draws(gallery, source=True))], {k: v for k, v in features.items() if k != column})
    if id.startswith("yuvalkirstain"):
        column = "label_1"
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / file))}: n.*{column}.*; found: ") as caught:
        list(PreferenceSet(id, root=str(tmp_path), subset=subset).read())
    assert "prompt" in str(caught.value) or "caption" in str(caught.value) or "instruction" in str(caught.value)


@pytest.mark.parametrize(
    ("id", "file", "row", "message"),
    [
        ("MizzenAI/HPDv3", "train.json", {"prompt": "x", "path1": "a"}, r"row 2, column 'path2': missing; found: path1, prompt"),
        (
            "MizzenAI/HPDv3",
            "train.json",
            {"choice_dist": [1, 2, 3]},
            r"row 2, column 'choice_dist': must be two numbers of votes",
        ),
        ("MizzenAI/HPDv3", "train.json", {"choice_dist": [-1, 2]}, r"row 2, column 'choice_dist': must be two numbers of votes"),
        ("MizzenAI/HPDv3", "train.json", "text", r"row 2: 'text' is not a JSON object"),
        ("MizzenAI/HPDv3", "train.json", {"prompt": ["x"]}, r"row 2: the prompt must be a text, got \['x'\]"),
        ("TIGER-Lab/EditReward-Data", "train.json", {}, r"row 2, column 'path_src': missing"),
        (
            "ymhao/HPDv2",
            "train.json",
            {"human_preference": [1]},
            r"row 2, column 'human_preference': must be a list with one number",
        ),
        (
            "ymhao/HPDv2",
            "train.json",
            {"human_preference": [2, 0]},
            r"row 2, column 'human_preference': must be 1 for the preferred",
        ),
        ("facebookresearch/MMRB2", "t2i.json", {"response_b": {}}, r"row 2, column 'response_b': has no 'response_content'"),
        ("facebookresearch/MMRB2", "t2i.json", {"prompt_content": "x"}, r"row 2, column 'prompt_content': must be a list of"),
        ("facebookresearch/MMRB2", "t2i.json", {"chosen": 3}, r"row 2, column 'chosen': must be 'A' or 'B', got 3"),
    ],
)
def test_a_bad_row_of_json_is_named(tmp_path: Path, gallery: Any, id: str, file: str, row: Any, message: str) -> None:
    pictures: dict[str, bytes] = {}
    choice = draws(gallery, source=id.startswith("TIGER"))
    good = sets.preferred_first(choice, 0, pictures, "")
    if id.startswith("ymhao"):
        good = {"prompt": "x", "file_path": [good["path1"], good["path2"]], "human_preference": [1, 0]}
    elif id.startswith("facebook"):
        good = sets.mmrb2_json(choice, 0, pictures)
    sets.store(tmp_path, pictures)
    whole = not isinstance(row, dict) or {"prompt", "path1"} <= set(row)
    bad = row if whole else {k: v for k, v in {**good, **row}.items() if row or k != "path_src"}
    sets.dump(tmp_path / file, [good, bad])
    with pytest.raises(ValueError, match=message) as caught:
        list(PreferenceSet(id, root=str(tmp_path)).read())
    assert str(tmp_path / file) in str(caught.value)


def test_urls_are_no_pictures(tmp_path: Path) -> None:
    gone = {"prompt": "x", "image1": "https://example.invalid/1.png", "image2": "https://example.invalid/2.png"}
    features = {**sets.RAPIDATA, "image1": sets.TEXT, "image2": sets.TEXT}
    sets.parquet(tmp_path / "train.parquet", [{**gone, "votes_image1": 1, "votes_image2": 0}] * 2, features)
    with pytest.raises(ValueError, match=r"column 'image1': holds string, no pictures as bytes"):
        list(PreferenceSet("Rapidata/x", root=str(tmp_path)).read())


@pytest.mark.parametrize("case", sets.CASES, ids=str)
def test_an_empty_folder_is_named(tmp_path: Path, case: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        list(case_set(case, tmp_path).read())
    with pytest.raises(ValueError, match="gone is no folder"):
        list(case_set(case, tmp_path / "gone").read())


def test_a_folder_without_the_split_says_what_is_there(public: dict[str, Read]) -> None:
    read = public["yuvalkirstain.pickapic_v2-validation"]
    with pytest.raises(
        ValueError, match=r"no table of test; found: data/validation-00000-of-00002-.*; a folder or the file's name"
    ):
        list(PreferenceSet("yuvalkirstain/pickapic_v2", root=str(read.root), split="test").read())
    read = public["TIGER-Lab.GenAI-Bench-image_generation-test_v1"]
    with pytest.raises(ValueError, match=r"no table of image_edition/test_v1"):
        list(PreferenceSet("TIGER-Lab/GenAI-Bench", root=str(read.root), subset="image_edition").read())


def test_other_splits_and_subsets_stay_out(public: dict[str, Read]) -> None:
    unique = PreferenceSet(
        "yuvalkirstain/pickapic_v2", root=str(public["yuvalkirstain.pickapic_v2-validation"].root), split="validation_unique"
    )
    assert len(list(unique.read())) == unique.count() == 3
    genai = public["TIGER-Lab.GenAI-Bench-image_generation-test_v1"]
    assert len(list(PreferenceSet("TIGER-Lab/GenAI-Bench", root=str(genai.root), split="test").read())) == 3
    # the folder of a subset is as good as the folder above it, and gives the same ids
    inner = PreferenceSet("TIGER-Lab/GenAI-Bench", root=str(genai.root / "image_generation"))
    assert [pair.id for pair in inner.read()] == [pair.id for pair in genai.pairs]


def test_what_datasets_keeps_of_its_own_work_is_no_data(public: dict[str, Read], tmp_path: Path) -> None:
    read = next(read for read in public.values() if read.case.id == "EditScore/EditReward-Bench")
    shutil.copytree(read.root, tmp_path / "set")
    (file, *_) = sorted((tmp_path / "set").rglob("*.arrow"))
    shutil.copyfile(file, file.with_name("cache-0123456789abcdef.arrow"))
    assert [pair.id for pair in case_set(read.case, tmp_path / "set").read()] == [pair.id for pair in read.pairs]
