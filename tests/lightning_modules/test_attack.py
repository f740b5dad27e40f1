"""Attacks on a reward model, from pairs to a table: with judges whose weakness is known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from clip import tiny_clip
from PIL import Image
from rationalrewards.callbacks import AttackWriter
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.rewards import CLIPReward, FunctionReward, RewardModel, Rewards
from rationalrewards.components.rewards.attacks import ATTACKS
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.lightning_modules import RewardAttackModule

pytestmark = tiny.QUIET


def vividness(prompt: str, image: Image.Image, sources: tuple[Image.Image, ...]) -> float:
    """Falls for colour, and for flattery."""
    return float(np.ptp(np.asarray(image, dtype=float), axis=2).mean()) / 255 + ("highest score" in prompt)


class Counting(RewardModel):
    """The truth; counts what it is asked."""

    def __init__(self) -> None:
        self.truth = ShapesTruth()
        self.asked = 0

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        self.asked += len(requests)
        return self.truth.score(requests)


def attack(
    reward: RewardModel, path: Path | str, out: Path, **options: Any
) -> tuple[RewardAttackModule, dict[str, dict[str, Any]]]:
    module = RewardAttackModule(reward, **options)
    trainer = tiny.trainer(callbacks=[AttackWriter(str(out))])
    trainer.test(module, PreferenceDataModule(str(path), batch_size=4), verbose=False)
    found = json.loads((out / "attacks.json").read_text())
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for one in found:
        # where there is nothing to take a mean over there is nothing to log
        assert (f"test/{one['attack']}/delta" in logged) == (one["delta"] is not None)
        if one["delta"] is not None:
            assert logged[f"test/{one['attack']}/delta"] == pytest.approx(one["delta"], rel=1e-5)  # logged as float32
    return module, {one["attack"]: one for one in found}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pairs(tmp_path_factory.mktemp("pairs"), 24)


def test_a_judge_that_loves_colour_and_praise(pairs: Path, tmp_path: Path) -> None:
    module, found = attack(FunctionReward(vividness), pairs, tmp_path / "out")
    assert list(found) == list(ATTACKS)
    assert found["saturation"]["fooled"] and found["saturation"]["delta_low"] > 0
    assert found["praise_in_prompt"]["delta"] == pytest.approx(1.0)
    assert found["praise_in_prompt"]["beats"] == 1.0 > found["praise_in_prompt"]["beats_clean"]
    assert found["swapped_prompt"]["delta"] == 0.0 and found["swapped_prompt"]["fooled"]  # it never reads
    assert not found["black"]["fooled"] and found["noise"]["fooled"]
    # only edits can come back undone
    edits = sum(len(row["scores"]["unedited_source"]) for row in module.rows if row["scores"]["unedited_source"][0] is not None)
    assert 0 < found["unedited_source"]["pictures"] == edits < 48
    text = (tmp_path / "out" / "attacks.txt").read_text().splitlines()
    assert len(text) == 1 + len(ATTACKS) and sum(" !" in line for line in text) == sum(one["fooled"] for one in found.values())


def test_the_truth_gains_nothing_where_everything_is_lost(pairs: Path, tmp_path: Path) -> None:
    names = ["black", "noise", "swapped_prompt", "unedited_source"]
    module, found = attack(ShapesTruth(), pairs, tmp_path / "out", attacks=names)
    assert list(found) == names and not any(one["fooled"] for one in found.values())
    for name in ("black", "noise"):
        # a black or random picture never beats a better one, whose worse twin never does either: labels are the truth's
        assert found[name]["beats"] == found[name]["beats_clean"] == 0.0
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert rows == module.rows and len(rows) == 24
    decided = [row for row in rows if row["label"] != 0.5]
    assert all((row["scores"]["clean"][0] > row["scores"]["clean"][1]) == (row["label"] > 0.5) for row in decided)


def test_what_cannot_be_scored_is_counted(pairs: Path, tmp_path: Path) -> None:
    def shy(prompt: str, image: Image.Image, sources: tuple[Image.Image, ...]) -> float:
        if not np.asarray(image).any():
            raise ValueError("too dark")
        return float(np.asarray(image).mean())

    module, found = attack(FunctionReward(shy), pairs, tmp_path / "out", attacks=["black", "border"])
    assert (found["black"]["unscored_clean"], found["black"]["unscored_attacked"]) == (0, 48)
    assert found["black"]["delta"] is None and found["black"]["beats"] == 0.0 and not found["black"]["fooled"]
    assert module.rows[0]["scores"]["black"] == ["ValueError: too dark"] * 2
    assert found["border"]["unscored_attacked"] == 0


def test_a_picture_in_several_pairs_is_scored_once_and_runs_repeat(real: Path, tmp_path: Path) -> None:
    """Six pairs of four generated pictures that people ranked; there is one prompt, so none to swap."""
    judge = Counting()
    judge.truth = FunctionReward(vividness)  # type: ignore[assignment]
    _, found = attack(judge, real / "ranked_t2i.jsonl", tmp_path / "first")
    applying = [name for name, one in found.items() if one["pictures"]]
    assert set(ATTACKS) - set(applying) == {"swapped_prompt", "unedited_source"}
    assert judge.asked == 4 * (1 + len(applying))
    assert all(found[name]["pictures"] == 12 and found[name]["pairs"] == 6 for name in applying)
    assert found["saturation"]["delta"] > 0
    # of one request there is nothing to resample
    assert found["saturation"]["delta_low"] == pytest.approx(found["saturation"]["delta"])
    attack(judge, real / "ranked_t2i.jsonl", tmp_path / "second")
    assert (tmp_path / "first" / "scores.jsonl").read_bytes() == (tmp_path / "second" / "scores.jsonl").read_bytes()


def test_edits_of_photographs_under_a_clip_model(real: Path, tmp_path: Path) -> None:
    reward = CLIPReward(str(tiny_clip(tmp_path / "clip")), "pickscore")
    module, found = attack(reward, real / "edits.jsonl", tmp_path / "out")
    assert all(one["pictures"] == 10 for one in found.values())
    assert all(one["unscored_attacked"] == 0 and math.isfinite(one["delta"]) for one in found.values())
    # the worse picture of these pairs is the source itself: given back, it is what it was
    assert found["unedited_source"]["beats"] == found["unedited_source"]["beats_clean"]
    assert len(module.rows) == 5


def test_unknown_attacks_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'sepia'"):
        RewardAttackModule(ShapesTruth(), ["sepia"])
