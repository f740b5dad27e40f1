"""Every public set becomes the same records: the right label for the right picture, whichever way its files lie."""

from __future__ import annotations

import importlib.util
import json
import logging
import random
import re
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from jsonargparse import ArgumentParser
from rationalrewards.components.pictures import open_picture, picture_bytes
from rationalrewards.components.records import Preference, PromptRecord
from rationalrewards.datamodules import PromptDataModule
from rationalrewards.datamodules.readers import PREFERENCE_SETS, PreferenceSet, PromptSet, read_prompts, reading, rows
from rationalrewards.datamodules.readers.editreward_bench import ranking
from rationalrewards.datamodules.readers.rows import Row, json_items, json_list, table_rows
from support import ROOT, run_python


def beside(name: str) -> Any:
    """A file in this folder, which is no package: tests are imported by their paths."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


sets = beside("public_sets")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAIRS = 300


@dataclass(frozen=True)
class Read:
    """A set in miniature, what was put into it, and what was read."""

    case: Any
    root: Path
    gallery: Any
    made: list[Any]
    pairs: list[Preference]


def case_set(case: Any, root: Path) -> PreferenceSet:
    return PreferenceSet(case.id, root=str(root), split=case.split, subset=case.subset)


@pytest.fixture(scope="module")
def public(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Read]:
    """All sets, each of 300 pairs: the first of real pictures, where they are there."""
    real: Path | None = None
    with suppress(pytest.skip.Exception):
        real = request.getfixturevalue("real")
    folder = tmp_path_factory.mktemp("public")
    read = {}
    for case in sets.CASES:
        gallery, root = sets.Gallery(real), folder / str(case)
        made = sets.groups(gallery, PAIRS // 6) if case.ranked else sets.choices(gallery, PAIRS, case.edit, case.ties)
        case.write(root, made)
        read[str(case)] = Read(case, root, gallery, made, list(case_set(case, root).read()))
    return read


EVERY = pytest.mark.parametrize("name", [str(case) for case in sets.CASES])


@EVERY
def test_the_picture_that_people_preferred_is_the_labelled_one(public: dict[str, Read], name: str) -> None:
    read = public[name]
    assert len(read.pairs) == PAIRS
    for pair in read.pairs:
        first, second = (read.gallery.of(candidate) for candidate in pair.candidates)
        assert (pair.label > 0.5) - (pair.label < 0.5) == (first > second) - (first < second), pair.id
    assert any(pair.label == 0.5 for pair in read.pairs) == (read.case.ties and not read.case.ranked)
    assert all(open_picture(name).size > (0, 0) for pair in read.pairs[:2] for name in (*pair.candidates, *pair.sources))


@EVERY
def test_the_order_of_a_pair_does_not_tell_the_label(public: dict[str, Read], name: str) -> None:
    decided = [pair for pair in public[name].pairs if pair.label != 0.5]
    first = sum(pair.label > 0.5 for pair in decided) / len(decided)
    # 260 coins or more: 4.5 standard deviations are 0.14, which a fair one passes in all but 7 of a million cases
    assert abs(first - 0.5) < 4.5 * 0.5 / len(decided) ** 0.5


@EVERY
def test_prompts_sources_and_groups_are_those_of_the_set(public: dict[str, Read], name: str) -> None:
    read = public[name]
    assert {pair.task for pair in read.pairs} == {"edit" if read.case.edit else "t2i"}
    asked = Counter({group.prompt: 6 for group in read.made} if read.case.ranked else (choice.prompt for choice in read.made))
    assert Counter(pair.prompt for pair in read.pairs) == asked
    if read.case.edit:
        source = {choice.prompt: choice.source for choice in read.made}
        assert all([picture_bytes(path) for path in pair.sources] == [source[pair.prompt]] for pair in read.pairs)
        # the same request of another picture is another group, and of the same picture the same one
        few = read.pairs[:9]
        assert len({pair.group for pair in few}) == len({pair.prompt for pair in few})


@EVERY
def test_records_say_where_they_come_from(public: dict[str, Read], name: str) -> None:
    read = public[name]
    case, licence = read.case, PREFERENCE_SETS[read.case.id].licence if read.case.id in PREFERENCE_SETS else "see its card"
    for pair in read.pairs:
        origin, _, where = pair.origin.partition(", ")
        assert origin == f"{case.id}@local ({licence})"
        assert re.match(rf"(\w[\w-]*/)?{case.split} row \d+ of \S+\.(json|parquet|arrow)(, |$)", where), where
        assert pair.id.startswith(case.id.replace("/", ".") + "-")
    assert list(case_set(case, read.root).read()) == read.pairs  # the same whenever it is read


@EVERY
def test_a_moved_folder_keeps_its_ids(public: dict[str, Read], name: str, tmp_path: Path) -> None:
    read = public[name]
    shutil.copytree(read.root, tmp_path / "elsewhere")
    moved = case_set(read.case, tmp_path / "elsewhere").read()
    assert [(pair.id, pair.label) for pair in moved] == [(pair.id, pair.label) for pair in read.pairs]


def test_ids_are_unique_across_all_sets(public: dict[str, Read]) -> None:
    ids = Counter(pair.id for name, read in public.items() if not name.endswith("-json") for pair in read.pairs)
    assert ids.total() == PAIRS * (len(public) - 1) and max(ids.values()) == 1
    # the two layouts of one set are the one pair of cases that may share ids, since nobody reads both
    assert {read.case.id for read in public.values()} >= set(PREFERENCE_SETS)


@EVERY
def test_rows_are_counted_from_metadata_alone(public: dict[str, Read], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = public[name]
    known = PREFERENCE_SETS.get(read.case.id)
    monkeypatch.setattr(reading, "table_rows", None)  # no row is read for it
    in_tables = any(path.suffix in rows.TABLES for path in read.root.rglob("*"))
    assert case_set(read.case, read.root).count() == (PAIRS if in_tables and (known is None or known.by_row) else None)
    if known is None or not known.no_hub:
        assert PreferenceSet(read.case.id, revision=COMMIT).count() is None  # that would download all of it


# -- labels by hand -----------------------------------------------------------------------------------------------------


@pytest.fixture
def gallery() -> Any:
    return sets.Gallery()


def draws(gallery: Any, better: str = "first", source: bool = False) -> Any:
    first, second = {"first": (2, 1), "second": (1, 2), "tie": (1, 1)}[better]
    return sets.Choice("a red cube", gallery.draw(first), gallery.draw(second), better, gallery.draw(0) if source else None)


def wins(pairs: list[Preference], gallery: Any) -> list[float]:
    """Of each pair, the probability that the picture of higher quality is preferred."""
    return [
        pair.label if gallery.of(pair.candidates[0]) >= gallery.of(pair.candidates[1]) else 1.0 - pair.label for pair in pairs
    ]


def test_pick_a_pic_has_ties_and_rows_without_a_label(tmp_path: Path, gallery: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = [sets.pickapic(draws(gallery, better)) for better in ("first", "second", "tie")]
    unlabelled = {**made[0], "has_label": False, "label_0": 0.0, "label_1": 0.0}
    without = {**made[1], "jpg_1": None}
    unasked = {**made[1], "caption": "  "}
    sets.parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [*made, unlabelled, without, unasked, made[0]], sets.PICKAPIC)
    with caplog.at_level(logging.WARNING):
        pairs = list(PreferenceSet("yuvalkirstain/pickapic_v2", root=str(tmp_path), split="test").read())
    assert [pair.label for pair in pairs] == [1.0, 0.0, 0.5, 1.0]
    assert caplog.messages == [
        "yuvalkirstain/pickapic_v2 test: 4 records read, 3 left out: 1 no label, 1 a picture is missing or empty, 1 no prompt"
    ]
    assert [pair.id.rpartition("-")[2] for pair in pairs] == ["1", "2", "3", "7"]  # ids do not move when a row is left out
    assert [Path(pair.candidates[0]).parts[-2:] for pair in pairs][3] == ("6", "jpg_0")


def test_votes_become_shares(tmp_path: Path, gallery: Any, caplog: pytest.LogCaptureFixture) -> None:
    votes = [(19, 7), (7, 19), (5, 5), (0, 26), (0, 0)]
    made = [replace(draws(gallery), better="first") for _ in votes]
    parquet = [sets.rapidata(choice, vote) for choice, vote in zip(made, votes, strict=True)]
    sets.parquet(tmp_path / "data" / "train_0001-00000-of-00001.parquet", parquet, sets.RAPIDATA)
    with caplog.at_level(logging.WARNING):
        pairs = list(PreferenceSet("Rapidata/some_votes", root=str(tmp_path)).read())
    assert wins(pairs, gallery) == pytest.approx([19 / 26, 7 / 26, 0.5, 0.0], abs=1e-12)  # rounding of 1 - p
    assert "1 no votes" in caplog.text
    with pytest.raises(ValueError, match=r"neither weighted_results_image1_coherence, .*found: prompt, image1"):
        list(PreferenceSet("Rapidata/some_votes", root=str(tmp_path), subset="coherence").read())


def test_weighted_votes_are_of_one_dimension(tmp_path: Path, gallery: Any) -> None:
    row = sets.rapidata(draws(gallery), (0, 0))
    values = {"preference": (12.0, 4.0), "coherence": (1.5, 4.5), "alignment": (0.0, 2.0)}
    row |= {f"weighted_results_image{i + 1}_{name}": value[i] for name, value in values.items() for i in (0, 1)}
    sets.parquet(tmp_path / "train.parquet", [row], sets.RAPIDATA_WEIGHTED)
    for name, share in (("preference", 0.75), ("coherence", 0.25), ("alignment", 0.0)):
        (pair,) = PreferenceSet("Rapidata/x_t2i_human_preference", root=str(tmp_path), subset=name).read()
        assert wins([pair], gallery) == [share]


@pytest.mark.parametrize(
    ("dist", "share"), [([12, 7], 12 / 19), ([7, 12], 12 / 19), ([6, 6], 0.5), ([3, 0], 1.0), ([0, 0], 1.0), (None, 1.0)]
)
def test_hpdv3_votes_are_for_the_first_path_however_they_are_sorted(
    tmp_path: Path, gallery: Any, dist: list[int] | None, share: float
) -> None:
    pictures: dict[str, bytes] = {}
    row = sets.preferred_first(draws(gallery), 0, pictures, "images/")
    sets.store(tmp_path, pictures)
    sets.dump(tmp_path / "all.json", [{**row, "choice_dist": dist}])
    (pair,) = PreferenceSet("MizzenAI/HPDv3", root=str(tmp_path), split="all").read()
    assert wins([pair], gallery) == pytest.approx([share], abs=1e-12)  # rounding of 1 - p


def test_hpdv3_pairs_stand_in_both_orders(public: dict[str, Read]) -> None:
    read = public["MizzenAI.HPDv3-train"]
    paths = [json.loads(read.root.joinpath("train.json").read_text())[n]["path1"] for n in range(PAIRS)]
    kept = sum(pair.candidates[0].endswith(path) for pair, path in zip(read.pairs, paths, strict=True))
    assert 0.36 * PAIRS < kept < 0.64 * PAIRS  # 4.8 standard deviations of a fair coin


def test_an_edit_that_ties(tmp_path: Path, gallery: Any) -> None:
    pictures: dict[str, bytes] = {}
    made = [draws(gallery, "tie", source=True), draws(gallery, "second", source=True)]
    row = [sets.preferred_first(choice, number, pictures, f"{number}/") for number, choice in enumerate(made)]
    sets.store(tmp_path, pictures)
    sets.dump(tmp_path / "train.json", [{**row[0], "tie_case": True}, row[1]])
    pairs = list(PreferenceSet("TIGER-Lab/EditReward-Data", root=str(tmp_path)).read())
    assert wins(pairs, gallery) == [0.5, 1.0]


def test_both_kinds_of_tie_are_told_apart(tmp_path: Path, gallery: Any, caplog: pytest.LogCaptureFixture) -> None:
    row = sets.genai_generation(draws(gallery))
    votes = ["leftvote", "rightvote", "tievote", "bothbad_vote", None]
    made = [{**row, "vote_type": vote} for vote in votes]
    sets.parquet(tmp_path / "image_generation" / "test_v1-00000-of-00001.parquet", made, sets.GENERATION)
    with caplog.at_level(logging.WARNING):
        pairs = list(PreferenceSet("TIGER-Lab/GenAI-Bench", root=str(tmp_path)).read())
    assert [pair.label for pair in pairs] == [1.0, 0.0, 0.5, 0.5]
    assert [pair.origin.rpartition(", ")[2] for pair in pairs[2:]] == ["tievote", "bothbad_vote"]
    assert "1 no label" in caplog.text


def test_hpdv2_ranks_and_votes(tmp_path: Path, gallery: Any) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg"]
    pictures = {name: gallery.draw(quality) for name, quality in zip(names, (3, 2, 1), strict=True)}
    annotations = [{"rank": rank, "user_hash": "x"} for rank in ([1, 2, 3], [2, 1, 3], [1, 3, 3], [1, 2, 2])]
    row = {"prompt": "a cat", "image_path": names, "rank": [1, 2, 2], "raw_annotations": annotations}
    sets.dump(tmp_path / "test.json", [row])
    sets.store(tmp_path / "test", pictures)
    ranked = list(PreferenceSet("ymhao/HPDv2", root=str(tmp_path), split="test").read())
    voted = list(PreferenceSet("ymhao/HPDv2", root=str(tmp_path), split="test", subset="votes").read())
    assert wins(ranked, gallery) == [1.0, 1.0, 0.5]  # a over b, a over c, b ties with c
    assert wins(voted, gallery) == [0.75, 1.0, 0.75]  # 3 of 4; 4 of 4; 2 of 4 and two ties
    assert {pair.id for pair in ranked}.isdisjoint(pair.id for pair in voted)


def test_hpdv2_rows_without_one_winner_are_left_out(tmp_path: Path, gallery: Any, caplog: pytest.LogCaptureFixture) -> None:
    pictures = {f"{i}.jpg": gallery.draw(i) for i in range(3)}
    human = [([0, 1], 2), ([1, 1], 2), ([0, 0], 2), ([1], 1), ([0, 0, 1], 3)]
    made = [{"prompt": "a cat", "file_path": [f"{i}.jpg" for i in range(n)], "human_preference": h} for h, n in human]
    sets.dump(tmp_path / "train.json", made)
    sets.store(tmp_path / "train", pictures)
    with caplog.at_level(logging.WARNING):
        pairs = list(PreferenceSet("ymhao/HPDv2", root=str(tmp_path)).read())
    assert wins(pairs, gallery) == [1.0, 1.0, 1.0]  # of two; and the best of three against each of the others
    assert "2 no single preferred picture, 1 fewer than two pictures" in caplog.text


def test_equal_ranks_give_no_pair_and_broken_pictures_none_either(
    tmp_path: Path, gallery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    group = sets.Ranked("a cat", tuple(gallery.draw(quality) for quality in (4, 2, 2, 1)), (1, 2, 2, 3))
    broken = sets.Ranked("a dog", (gallery.draw(2), b"", gallery.draw(1)), (1, 2, 3))
    made, pictures = sets.imagereward([group, broken])
    sets.parquet(tmp_path / "metadata-validation.parquet", made, sets.IMAGEREWARD)
    sets.write_zips(tmp_path, made, pictures)
    with caplog.at_level(logging.WARNING):
        pairs = list(PreferenceSet("zai-org/ImageRewardDB", root=str(tmp_path), split="validation").read())
    assert wins(pairs, gallery) == [1.0] * 6
    assert "1 equal ranks, which give no pair" in caplog.text and "2 a picture is missing or empty" in caplog.text


def test_editreward_bench_rankings(tmp_path: Path, gallery: Any) -> None:
    signs = [("AvsB", "A>B", 1.0), ("AvsC", "C>A", 0.0), ("BvsC", " B > C ", 1.0), ("BvsD", "B=D", 0.5), (None, "B>A", 0.0)]
    choice = draws(gallery, source=True)
    made = [
        {**sets.erbench(choice, n, "3pair"), "comparison_type": kind, "ranking": sign} for n, (kind, sign, _) in enumerate(signs)
    ]
    sets.parquet(tmp_path / "3pair" / "train-00000-of-00001.parquet", made, sets.ERBENCH)
    pairs = list(PreferenceSet("TIGER-Lab/EditReward-Bench", root=str(tmp_path), subset="3pair").read())
    assert [pair.label for pair in pairs] == [label for _, _, label in signs]
    assert [pair.candidates[0].rpartition("/")[2] for pair in pairs] == ["candidate_1"] * 5


def test_editreward_bench_rows_with_many_candidates_give_every_pair(tmp_path: Path, gallery: Any) -> None:
    features = {**sets.ERBENCH, "candidate_3": sets.IMAGE, "candidate_4": sets.IMAGE}
    pictures = {f"candidate_{i + 1}": sets.image(gallery.draw(quality)) for i, quality in enumerate((2, 4, 2, 1))}
    made = {"id": "x_0", "instruction": "add a hat", "source_image": sets.image(gallery.draw(0)), "ranking": "B>A=C>D"}
    three = {**made, "id": "x_1", "ranking": "B>A=C"}
    few = {name: pictures[name] for name in list(pictures)[:3]}
    sets.parquet(tmp_path / "train.parquet", [{**made, **pictures}, {**three, **few}], features)
    pairs = list(PreferenceSet("TIGER-Lab/EditReward-Bench", root=str(tmp_path), subset="4pair").read())
    assert wins(pairs[:6], gallery) == [1.0, 0.5, 1.0, 1.0, 1.0, 1.0]  # A with B, C, D; B with C, D; C with D
    assert wins(pairs[6:], gallery) == [1.0, 0.5, 1.0]
    assert [pair.id.partition("x_")[2] for pair in pairs][:3] == ["0-0-1", "0-0-2", "0-0-3"]


@pytest.mark.parametrize("text", ["A", "A>B>C", "A>C", "A>A", "AB", "A<B", "B>A>", "", "tie"])
def test_a_ranking_that_ranks_something_else_is_refused(text: str) -> None:
    row = Row("x.parquet", "x.parquet", 3, {"ranking": text, "comparison_type": "AvsB"})
    with pytest.raises(ValueError, match=r"x\.parquet, row 4, column 'ranking': must rank A, B"):
        ranking(row, 2)


def test_one_dimension_of_editscore(tmp_path: Path, gallery: Any, caplog: pytest.LogCaptureFixture) -> None:
    choice = draws(gallery, source=True)
    made = [sets.editscore(choice, n, dimension) for n, dimension in enumerate(("overall", "consistency", "prompt_following"))]
    made[1] = sets.editscore(replace(choice, better="second"), 1, "consistency")
    lonely = {**made[0], "output_images": made[0]["output_images"][:1]}
    empty = {**made[0], "output_images": [made[0]["output_images"][0], None]}
    sets.table([*made, lonely, empty], sets.EDITSCORE).save_to_disk(tmp_path)
    with caplog.at_level(logging.WARNING):
        read = {
            dimension: list(PreferenceSet("EditScore/EditReward-Bench", root=str(tmp_path), subset=dimension).read())
            for dimension in ("overall", "prompt_following", "consistency")
        }
    assert {name: wins(pairs, gallery) for name, pairs in read.items()} == {
        "overall": [1.0],
        "prompt_following": [1.0],
        "consistency": [0.0],
    }
    assert "1 not two pictures, 1 a picture is missing or empty" in caplog.text


def test_mmrb2_keeps_the_place_of_each_source(tmp_path: Path, gallery: Any) -> None:
    choice, sources = draws(gallery), [gallery.draw(0), gallery.draw(0)]
    expected = "Put <image_1> on the head of <image_2> ."
    pictures: dict[str, bytes] = {}
    row = sets.mmrb2_json(choice, 0, pictures, sources)
    images = row["prompt_content"][:2]
    row["prompt_content"] = [["text", "Put"], images[0], ["text", "on the head of"], images[1], ["text", "."]]
    del row["pair_id"], row["chosen"]
    older = {**row, "id": "pair-9", "human_preference": "a"}  # as the converter and the first release name them
    sets.dump(tmp_path / "git" / "edit.json", [older])
    sets.store(tmp_path / "git", pictures)
    hub = {**sets.mmrb2_hub(choice, 9, sources), "prompt_text": "Put <image_0> on the head of <image_1>."}
    sets.parquet(tmp_path / "hub" / "edit" / "test-00000-of-00001.parquet", [hub], sets.MMRB2)
    ids = {"git": "facebookresearch/MMRB2", "hub": "rl-research/multimodal-rewardbench-2"}
    for folder, id in ids.items():
        (pair,) = PreferenceSet(id, root=str(tmp_path / folder), subset="edit").read()
        assert pair.prompt.replace(" .", ".") == expected.replace(" .", ".") and pair.label == 1.0
        assert [picture_bytes(source) for source in pair.sources] == sources
        assert pair.id.endswith("edit.test.pair-9")


def test_mmrb2_answers_without_a_picture_are_left_out(tmp_path: Path, gallery: Any, caplog: pytest.LogCaptureFixture) -> None:
    choice = draws(gallery, source=True)
    whole = sets.mmrb2_hub(choice, 0)
    silent = {**whole, "pair_id": "b", "response_b_images": []}
    several = {**whole, "pair_id": "c", "response_a_images": [*whole["response_a_images"], sets.image(gallery.draw(9))]}
    blank = {**whole, "pair_id": "d", "prompt_images": None, "prompt_text": "Add a hat"}
    undecided = {**whole, "pair_id": "e", "chosen": None}
    sets.parquet(tmp_path / "edit" / "test.parquet", [whole, silent, several, blank, undecided], sets.MMRB2)
    with caplog.at_level(logging.WARNING):
        pairs = list(PreferenceSet("rl-research/multimodal-rewardbench-2", root=str(tmp_path), subset="edit").read())
    assert [pair.id.rpartition(".")[2] for pair in pairs] == ["pair-0", "c"] and wins(pairs, gallery) == [1.0, 1.0]
    reasons = ("1 an answer without a picture", "1 an edit without a source picture", "1 no label")
    assert all(reason in caplog.text for reason in reasons)


def test_one_kind_of_the_evaluation_data(public: dict[str, Read]) -> None:
    read = public[str(next(case for case in sets.CASES if case.id == sets.EVALUATION))]
    kinds = {
        kind: list(PreferenceSet(sets.EVALUATION, root=str(read.root), subset=kind).read())
        for kind in ("mmrb2", "genai-bench-edit")
    }
    assert {kind: len(pairs) for kind, pairs in kinds.items()} == {"mmrb2": PAIRS // 3, "genai-bench-edit": PAIRS // 3}
    assert [pair.candidates for pair in kinds["mmrb2"]] == [pair.candidates for pair in read.pairs[PAIRS // 3 : 2 * PAIRS // 3]]
    assert not list(PreferenceSet(sets.EVALUATION, root=str(read.root), subset="genai-bench-t2i").read())


def test_an_id_that_occurs_twice_gets_its_row(tmp_path: Path, gallery: Any) -> None:
    made = [sets.editreward(draws(gallery, source=True), 7) for _ in range(3)]
    sets.parquet(tmp_path / "data" / "train-00000-of-00001.parquet", made, sets.EDITREWARD)
    pairs = PreferenceSet("TIGER-Lab/EditReward-Data", root=str(tmp_path)).read()
    assert [pair.id.partition("-Data-")[2] for pair in pairs] == [
        "train.00000007_0",
        "train.00000007_0-row2",
        "train.00000007_0-row3",
    ]
    sets.parquet(tmp_path / "data" / "train-00001-of-00001.parquet", made, sets.EDITREWARD)
    pairs = PreferenceSet("TIGER-Lab/EditReward-Data", root=str(tmp_path)).read()
    assert [pair.id.partition("-Data-")[2] for pair in pairs][3:] == [
        "train.00000007_0-row1",
        "train.00000007_0-row2-data.train-00001-of-00001.parquet",
        "train.00000007_0-row3-data.train-00001-of-00001.parquet",
    ]


def test_what_datasets_keeps_of_its_own_work_is_no_data(public: dict[str, Read], tmp_path: Path) -> None:
    read = next(read for read in public.values() if read.case.id == "EditScore/EditReward-Bench")
    shutil.copytree(read.root, tmp_path / "set")
    (file, *_) = sorted((tmp_path / "set").rglob("*.arrow"))
    shutil.copyfile(file, file.with_name("cache-0123456789abcdef.arrow"))
    assert [pair.id for pair in case_set(read.case, tmp_path / "set").read()] == [pair.id for pair in read.pairs]


# -- files that are not as they should be -------------------------------------------------------------------------------


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


# -- pictures beside JSON -----------------------------------------------------------------------------------------------


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


# -- the hub ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_set_on_the_hub_reads_like_its_folder(public: dict[str, Read], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = public["zai-org.ImageRewardDB-validation"]
    files = beside("test_files")  # its server speaks the hub's protocol
    monkeypatch.setattr(files, "REPO", read.case.id)
    server = files.Hub({str(path.relative_to(read.root)): path.read_bytes() for path in read.root.rglob("*") if path.is_file()})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    program = f"""
import json
from rationalrewards.components.pictures import picture_bytes
from rationalrewards.datamodules.readers import PreferenceSet
stream = PreferenceSet({read.case.id!r}, revision={COMMIT!r}, split="validation").read()
pairs = [(pair.id, pair.label, pair.origin, len(picture_bytes(pair.candidates[0]))) for pair in stream]
print(json.dumps(pairs))
"""
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    try:
        done = run_python(["-c", program], timeout=240, env={**environment, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"})
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.returncode == 0, done.stderr
    pairs = json.loads(done.stdout)
    assert [tuple(pair[:2]) for pair in pairs] == [(pair.id, pair.label) for pair in read.pairs]
    assert pairs[0][2].startswith(f"zai-org/ImageRewardDB@{COMMIT[:7]} (Apache-2.0), validation row ")
    assert [pair[3] for pair in pairs] == [len(picture_bytes(pair.candidates[0])) for pair in read.pairs]
    asked = {request.rpartition("/")[2] for request in server.asked if request.startswith("GET /datasets/")}
    assert asked == {"metadata-validation.parquet", "validation_1.zip", "validation_2.zip"}  # and no other split's


# -- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("GenAI-Bench", "'GenAI-Bench' may be TIGER-Lab/GenAI-Bench or BaiqiL/GenAI-Bench, which are different sets"),
        ("EditReward-Bench", "may be TIGER-Lab/EditReward-Bench or EditScore/EditReward-Bench, which are different sets"),
        ("HPDv3", "'HPDv3' is no full id; did you mean 'MizzenAI/HPDv3'?"),
        ("hpdv3", "did you mean 'MizzenAI/HPDv3'?"),
        ("mizzenai/hpdv3", "did you mean 'MizzenAI/HPDv3'?"),
        ("BaiqiL/GenAI-Bench", "holds ratings of single pictures and no pairs; the set of pairs with that name is TIGER-Lab"),
        ("THUDM/ImageRewardDB", "THUDM/ImageRewardDB has moved to zai-org/ImageRewardDB"),
        ("TIGER-Lab/RationalRewards-SFTData", "holds conversations to distill from and no pairs"),
        ("TIGER-Lab/RationalRewards_DiffusionNFT_TrainData", "holds requests and no pairs: read it with PromptSet"),
        ("someone/something", "no reader for 'someone/something'; known sets: yuvalkirstain/pickapic_v2, ymhao/HPDv2, "),
        ("Rapidata", "no reader for 'Rapidata'; known sets: .*, Rapidata/<any set of votes on pairs>"),
        ("Rapidata/", "no reader for 'Rapidata/'"),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_may_be_meant(id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceSet(id, root="somewhere")


def test_sets_of_pairs_are_no_sets_of_requests() -> None:
    with pytest.raises(ValueError, match="MizzenAI/HPDv3 holds pairs: read it with PreferenceSet"):
        PromptSet("MizzenAI/HPDv3", root="somewhere")
    with pytest.raises(ValueError, match="no reader for 'x/y'; known sets: TIGER-Lab/RationalRewards_DiffusionNFT_TrainData$"):
        PromptSet("x/y", root="somewhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "TIGER-Lab/GenAI-Bench", "split": "train"}, "no split 'train'; it has: test_v1, test"),
        (
            {"id": "TIGER-Lab/GenAI-Bench", "subset": "video_generation"},
            "no subset 'video_generation'; it has: image_generation, ",
        ),
        ({"id": "facebookresearch/MMRB2", "subset": "reasoning"}, "no subset 'reasoning'; it has: t2i, edit"),
        ({"id": "MizzenAI/HPDv3", "subset": "images"}, "no subset 'images'; it has no subsets"),
        ({"id": "MizzenAI/HPDv3", "split": ""}, "no split ''; it has: train, test, all"),
        ({"id": "ymhao/HPDv2", "root": None}, "give either root .* or revision"),
        ({"id": "yuvalkirstain/pickapic_v2", "revision": COMMIT}, "give either root .* or revision .*, not both"),
        ({"id": "yuvalkirstain/pickapic_v2", "root": None, "revision": "main"}, "revision must be a commit, .* got 'main'"),
        ({"id": "yuvalkirstain/pickapic_v2", "root": None, "revision": COMMIT[:7]}, "revision must be a commit"),
        ({"id": "MizzenAI/HPDv3", "root": None, "revision": COMMIT}, r"cannot be read from the hub: .*cat images\.tar\.gz\.\*"),
        ({"id": "ymhao/HPDv2", "root": None, "revision": COMMIT}, r"cannot be read from the hub: .*train\.tar\.gz"),
        ({"id": "facebookresearch/MMRB2", "root": None, "revision": COMMIT}, "it is a GitHub repository: build"),
    ],
)
def test_options_that_a_set_does_not_have_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceSet(**{"root": "somewhere", **options})


def test_the_votes_of_hpdv2_are_of_its_test(public: dict[str, Read]) -> None:
    with pytest.raises(ValueError, match="the train split has no raw annotations"):
        list(PreferenceSet("ymhao/HPDv2", root=str(public["ymhao.HPDv2-train"].root), subset="votes").read())


def test_the_documentation_lists_every_set_with_its_splits() -> None:
    lines = ROOT.joinpath("docs", "data.md").read_text(encoding="utf-8").splitlines()
    listed = {line.split("|")[1].strip(" `"): line.split("|")[2:] for line in lines if line.startswith("| `")}
    assert set(listed) == {*PREFERENCE_SETS, "Rapidata/…"}
    for id, format in PREFERENCE_SETS.items():
        names = re.sub(r"\(.*?\)", "", listed[id][0]).replace(";", ",").replace(" ", "").strip().split(",")
        assert names == [*format.splits, *(subset for subset in format.subsets if subset)]


def test_sets_are_given_in_yaml(requests: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PromptDataModule, "data")
    parser.add_argument("--sets", type=list[PreferenceSet])
    given = {
        "data": {"train": {"id": RL, "root": str(requests)}},
        "sets": [{"id": "MizzenAI/HPDv3", "root": "x", "split": "all"}],
    }
    made = parser.instantiate_classes(parser.parse_object(given))
    assert made.data.train_path == PromptSet(RL, root=str(requests))
    assert made.sets == [PreferenceSet("MizzenAI/HPDv3", root="x", split="all")]
    with pytest.raises(ValueError, match="may be TIGER-Lab/GenAI-Bench or BaiqiL/GenAI-Bench"):
        parser.instantiate_classes(parser.parse_object({"sets": [{"id": "GenAI-Bench", "root": "x"}]}))


# -- requests -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def requests(tmp_path: Path, gallery: Any) -> Path:
    """The RL data: requests for pictures, and edits in the way of RationalRewards and in that of Edit-R1."""

    def lines(name: str, made: list[dict[str, Any]]) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in made))

    sets.store(tmp_path / "edit" / "images", {"a.png": gallery.draw(1), "b.png": gallery.draw(2)})
    lines("t2i/train.jsonl", [{"prompt": "a cat"}, {"prompt": "two dogs"}])
    lines(
        "edit/train.jsonl",
        [
            {"prompt": "add a hat", "image_path": "images/a.png", "requirement": "keep the face"},
            {"prompt": "add a hat", "image_path": "images/b.png"},
            {"prompt": "add a coat", "image_path": "images/gone.png"},
            {"prompt": "add a scarf"},
        ],
    )
    lines("edit/test_metadata.jsonl", [{"prompt": "turn it green", "image": "images/b.png", "requirement": ""}])
    return tmp_path


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


# -- streaming ----------------------------------------------------------------------------------------------------------


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
