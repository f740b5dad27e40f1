"""Every kind of reward model runs in RL, refinement and evaluation as a critic does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from clip import tiny_clip
from PIL import Image
from rationalrewards.callbacks import RefinementWriter
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.records import Refinement, read_jsonl
from rationalrewards.components.refine import RefineOptions
from rationalrewards.components.rewards import CLIPReward, FunctionReward, PreferenceHeadReward, RewardModel
from rationalrewards.components.shapes.teacher import ShapesTeacher
from rationalrewards.datamodules import PreferenceDataModule, PromptDataModule
from rationalrewards.lightning_modules import PreferenceRewardModule, RefineLoop, RewardEvaluationModule

pytestmark = tiny.QUIET
KINDS = ("head", "clip", "function")


def brightness(prompt: str, image: Image.Image, sources: tuple[Image.Image, ...]) -> float:
    """The mean of all values, and nothing for pictures that it does not like."""
    mean = float(np.asarray(image).mean())
    if "letter" in prompt:
        raise ValueError("no letters")
    return mean


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RewardModel]:
    folder = tmp_path_factory.mktemp("rewards")
    module = PreferenceRewardModule("embedded:shapes-critic", CritiqueFormat("shapes"), "gaussian")
    module.configure_model()
    module.export(str(folder / "head"))
    return {
        "head": PreferenceHeadReward(str(folder / "head"), CritiqueFormat("shapes"), pessimism=0.5),
        "clip": CLIPReward(str(tiny_clip(folder / "clip")), "pickscore"),
        "function": FunctionReward(brightness),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation(kind: str, rewards: dict[str, RewardModel], tmp_path: Path) -> None:
    module = RewardEvaluationModule(rewards[kind])
    data = PreferenceDataModule(str(tiny.pairs(tmp_path / "pairs", 6)), batch_size=4)
    (found,) = tiny.trainer().test(module, data, verbose=False)
    # untrained, or blind to the request: any share of the decided pairs, but all of them counted
    assert 0.0 <= found["test/pair_accuracy"] <= 1.0 and len(module.rows) == 6
    assert (found["test/unscored_rate"] > 0) == (kind == "function")


@pytest.mark.parametrize("kind", KINDS)
def test_one_round_of_rl(kind: str, rewards: dict[str, RewardModel], tmp_path: Path) -> None:
    module = tiny.rl_module(reward=rewards[kind], min_resolution=None)
    trainer = tiny.trainer(max_epochs=1, accumulate_grad_batches=2)
    trainer.fit(module, tiny.rl_data(tiny.requests(tmp_path / "rl", 8)))
    assert module.last_rollout is not None and trainer.global_step == 2
    scored = module.last_rollout.rewards
    if kind != "function":  # it refuses letters, which are asked for by chance
        assert scored.valid.all() and scored.total.std() > 0
        assert module.last_rollout.advantages.weights.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_of_n_by_any_reward_without_a_critic(kind: str, rewards: dict[str, RewardModel], tmp_path: Path) -> None:
    loop = RefineLoop(tiny.generator(steps=2), arms=("base", "best_of_n"), options=RefineOptions(3), reward=rewards[kind])
    data = PromptDataModule(predict=str(tiny.requests(tmp_path / "requests", 2)))
    tiny.trainer(callbacks=[RefinementWriter(str(tmp_path / "out"))]).predict(loop, data, return_predictions=False)
    records = read_jsonl(tmp_path / "out" / "refinements.jsonl", Refinement)
    assert [(record.arm, len(record.candidates)) for record in records] == [("base", 1)] * 2 + [("best_of_n", 3)] * 2
    for record in records:
        given = [one.reward for one in record.candidates]
        if None not in given:
            assert record.chosen == given.index(max(given))  # type: ignore[type-var]
        assert all(bool(one.unscored) == (one.reward is None) for one in record.candidates)
    assert (tmp_path / "out" / "gallery.html").is_file()


def test_a_critic_rewrites_and_another_reward_picks(rewards: dict[str, RewardModel], tmp_path: Path) -> None:
    critic = Critic(ShapesTeacher(), CritiqueFormat("shapes"))
    options = RefineOptions(3, threshold=4.0)
    loop = RefineLoop(tiny.generator(steps=2), critic, ("refine_keep_best",), options, sanity=None, reward=rewards["clip"])
    tiny.trainer(callbacks=[RefinementWriter(str(tmp_path / "out"))]).predict(
        loop, PromptDataModule(predict=str(tiny.requests(tmp_path / "requests", 2))), return_predictions=False
    )
    for record in read_jsonl(tmp_path / "out" / "refinements.jsonl", Refinement):
        given = [one.reward for one in record.candidates]
        assert record.chosen == given.index(max(given)) and all(one.critique for one in record.candidates)  # type: ignore[type-var]
        # of CLIP's scale, not of a critique's
        assert any(not 0 <= reward <= 1 for reward in given if reward is not None)


def test_arms_that_rewrite_need_a_critic(rewards: dict[str, RewardModel]) -> None:
    with pytest.raises(ValueError, match="arm 'refine_keep_best' rewrites requests: give `critic`"):
        RefineLoop(tiny.generator(), reward=rewards["clip"])
    with pytest.raises(ValueError, match="give `critic`, or for the arms that rewrite nothing any `reward`"):
        RefineLoop(tiny.generator(), arms=("base",))
