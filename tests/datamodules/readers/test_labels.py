"""Labels, ties and ids of each set by hand: one row for each rule of its reader."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import public_sets as sets
import pytest
from rationalrewards.components.pictures import picture_bytes
from rationalrewards.datamodules.readers import PreferenceSet
from rationalrewards.datamodules.readers.editreward_bench import ranking
from rationalrewards.datamodules.readers.rows import Row
from set_reading import PAIRS, Read, draws, wins


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
