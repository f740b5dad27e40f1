"""Ids, splits, subsets and revisions: what is meant is read, and what is not clear is refused with what may be meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hub import COMMIT
from jsonargparse import ArgumentParser
from rationalrewards.datamodules import PromptDataModule
from rationalrewards.datamodules.readers import PREFERENCE_SETS, PreferenceSet, PromptSet
from set_reading import Read
from support import ROOT

RL = "TIGER-Lab/RationalRewards_DiffusionNFT_TrainData"


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
        ("TIGER-Lab/RationalRewards-SFTData", "holds conversations and no pairs: read it with ConversationSet"),
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
    with pytest.raises(ValueError, match="MizzenAI/HPDv3 holds pairs and no requests: read it with PreferenceSet"):
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
