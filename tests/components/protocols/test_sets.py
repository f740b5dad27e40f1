"""Each protocol counts the pairs that its set's reader reads: a judge that knows the truth is right in all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import public_sets as sets
import pytest
import tiny
from rationalrewards.components.protocols import PROTOCOLS, Judgement, Place, Ties, evaluate, read_judgements
from rationalrewards.datamodules.readers import PreferenceSet
from support import ROOT

from rationalrewards import cli

pytestmark = tiny.QUIET
Write = Callable[[Path, Any], None]


def as_split(write: Write, old: str, new: str) -> Write:
    """A writer whose files belong to another split."""

    def renamed(root: Path, made: Any) -> None:
        write(root, made)
        for path in sorted(root.rglob(f"*{old}*"), reverse=True):
            path.rename(path.with_name(path.name.replace(old, new)))

    return renamed


def imagereward(root: Path, made: Any) -> None:
    rows, pictures = sets.imagereward(made, split="test")
    sets.parquet(root / "metadata-test.parquet", rows, sets.IMAGEREWARD)
    sets.write_zips(root, rows, pictures)


CASES: list[tuple[str, str, str | None, str, Write, bool, bool]] = [
    # protocol, set, subset, split, writer, edits, ties
    ("mmrb2/both-orders", "facebookresearch/MMRB2", "t2i", "test", sets.write_mmrb2_json, False, False),
    ("mmrb2/both-orders", "rl-research/multimodal-rewardbench-2", "edit", "test", sets.write_mmrb2_hub, True, False),
    (
        "genai-tiger/test_v1/4way",
        "TIGER-Lab/GenAI-Bench",
        "image_generation",
        "test_v1",
        sets.write_genai_generation,
        False,
        True,
    ),
    ("genai-tiger/test_v1/decided", "TIGER-Lab/GenAI-Bench", "image_edition", "test_v1", sets.write_genai_edition, True, True),
    ("erbench-tiger/K2/3way", "TIGER-Lab/EditReward-Bench", "2pair", "train", sets.write_erbench, True, True),
    ("erbench-tiger/K2/decided", "TIGER-Lab/EditReward-Bench", "2pair", "train", sets.write_erbench, True, True),
    ("erbench-tiger/K3", "TIGER-Lab/EditReward-Bench", "3pair", "train", sets.write_erbench_3, True, False),
    ("erbench-editscore", "EditScore/EditReward-Bench", "overall", "train", sets.write_editscore, True, False),
    ("hpdv3/test", "MizzenAI/HPDv3", None, "test", as_split(sets.write_hpdv3, "train", "test"), False, False),
    ("imagereward/test", "zai-org/ImageRewardDB", None, "test", imagereward, False, False),
    (
        "pickapic/test",
        "yuvalkirstain/pickapic_v2",
        None,
        "test",
        as_split(sets.write_pickapic, "validation", "test"),
        False,
        True,
    ),
]


@pytest.mark.parametrize(
    ("protocol", "id", "subset", "split", "write", "edit", "ties"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES]
)
def test_the_truth_is_right(
    protocol: str, id: str, subset: str | None, split: str, write: Write, edit: bool, ties: bool, tmp_path: Path
) -> None:
    gallery = sets.Gallery()
    ranked = id == "zai-org/ImageRewardDB"
    write(tmp_path, sets.groups(gallery, 6) if ranked else sets.choices(gallery, 30, edit, ties))
    pairs = list(PreferenceSet(id, root=str(tmp_path), split=split, subset=subset).read())
    judged = [
        Judgement(pair.id, str(index), pair.label, pair.origin, (gallery.of(pair.candidates[0]), gallery.of(pair.candidates[1])))
        for index, pair in enumerate(pairs)
    ]
    notes = {one.place.note for one in judged if one.winner == "tie"}
    # the pictures of both kinds of tie are alike here, so that the level can only be right for one
    level = Ties(0.0, 0.0 if notes == {"tievote"} else 99.0, "the truth") if protocol.endswith("4way") else None
    result = evaluate(protocol, judged, ties=level)
    right = result.also["bare_ties_credited"] if protocol.endswith("4way") else result.value
    assert right == 1.0
    assert result.rows.startswith(f"{id}@local ")
    assert result.denominators["pairs"] == len(pairs) > 2
    if ties:
        assert result.denominators["tied by people"] > 0
    worst = [Judgement(j.id, j.group, j.label, j.origin, j.forward[::-1]) for j in judged if isinstance(j.forward, tuple)]
    # a judge that turns everything round is right on ties alone
    assert evaluate("pairs/decided", worst).value == 0.0
    if ranked or subset == "3pair":
        return
    # every other protocol refuses these rows, but for the one on the same rows and the one for any
    for other in PROTOCOLS.values():
        place = Place.of(pairs[0].origin)
        if other.sets and place.rows not in other.sets.get(place.set, ()):
            with pytest.raises(ValueError, match=f"but pair .* is from {place.rows} of {place.set}"):
                evaluate(other, judged)


def test_erbench_groups_have_all_their_comparisons(tmp_path: Path) -> None:
    gallery = sets.Gallery()
    sets.write_erbench_3(tmp_path, sets.choices(gallery, 30, True, False))
    pairs = list(PreferenceSet("TIGER-Lab/EditReward-Bench", root=str(tmp_path), subset="3pair").read())
    judged = [Judgement(pair.id, pair.group, pair.label, pair.origin, (pair.label, 0.5)) for pair in pairs]
    result = evaluate("erbench-tiger/K3", judged)
    assert (result.n, result.value) == (10, 1.0)


def test_a_config_with_another_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``rationalrewards test -c configs/evaluate/erbench_k2.yaml``, its judge changed on the command line."""
    gallery = sets.Gallery()
    sets.write_erbench(tmp_path / "data" / "erbench", sets.choices(gallery, 12, True, True))
    (tmp_path / "reward_of_a_user.py").write_text("def redness(prompt, image, sources):\n    return image.getpixel((0, 0))[0]\n")
    reward = "--model.init_args.reward"
    arguments = [
        *("test", "-c", str(ROOT / "configs" / "evaluate" / "erbench_k2.yaml")),
        *(f"{reward}=rationalrewards.components.rewards.FunctionReward", f"{reward}.init_args.function=reward_of_a_user.redness"),
        *("--trainer.accelerator=cpu", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"),
    ]
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.setenv("RR_DATA", str(tmp_path / "data"))
        patch.setenv("RR_OUT", str(tmp_path / "out"))
        cli.run(arguments)
    out = tmp_path / "out" / "evaluate" / "erbench_k2"
    judged = read_judgements(out / "judgements.jsonl")  # alone: a function compares no pairs
    pairs = list(PreferenceSet("TIGER-Lab/EditReward-Bench", root=str(tmp_path / "data" / "erbench"), subset="2pair").read())
    assert [one.id for one in judged] == [pair.id for pair in pairs]
    first, second = json.loads((out / "evaluation.json").read_text())["results"]
    assert (first["protocol"], second["protocol"]) == ("erbench-tiger/K2/3way", "erbench-tiger/K2/decided")
    assert first["judge"]["name"] == "FunctionReward redness"
    # by hand: the redness of the drawn pictures counts them in the order of their making, A before B, so that B is always redder
    later = [pair.winner == "B" for pair in pairs[1:]]
    assert (
        first["value"] == (sum(later) + (pairs[0].winner == "A")) / 12
    )  # the first is a picture and its source, drawn before it
