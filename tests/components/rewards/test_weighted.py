"""Mixes of rewards: what they weigh, what they leave unscored, and what waits for what."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import jsonargparse
import numpy as np
import pytest
import tiny
import torch
from rationalrewards.components.chat import CachedChat, OpenAIChat
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.rewards import (
    AdvantageOptions,
    CritiqueReward,
    FunctionReward,
    RewardModel,
    RewardPart,
    Rewards,
    WeightedReward,
    joined,
    reward_advantages,
)
from rationalrewards.components.shapes.truth import ShapesTruth

NAN = float("nan")


def brightness(prompt: str, image: Any, sources: Any) -> float | None:
    """Mean grey value, 0 to 255; nothing for a request that says so."""
    return None if "dark" in prompt else float(np.asarray(image).mean())


PROMPTS = ("a red circle at the top left", "a blue square at the bottom right", "a green cross at the top right")


def requests(prompts: Sequence[str] = PROMPTS) -> list[CritiqueRequest]:
    pictures = tiny.drawings(len(prompts), seed=3)
    return [CritiqueRequest("t2i", prompt, picture) for prompt, picture in zip(prompts, pictures, strict=True)]


def critic() -> CritiqueReward:
    return CritiqueReward(Critic(tiny.truthful(), CritiqueFormat("shapes")))


def test_a_mix_is_the_weighted_mean_of_its_parts() -> None:
    asked = requests()
    mix = WeightedReward(
        {
            "critic": RewardPart(critic(), 3.0),
            "light": RewardPart(FunctionReward(brightness), high=255.0),
            "truth": RewardPart(ShapesTruth(), 0.0),
        }
    )
    said, light, truth = critic().score(asked), FunctionReward(brightness).score(asked), ShapesTruth().score(asked)
    rewards = mix.score(asked)
    assert torch.allclose(rewards.total, (3 * said.total + light.total / 255) / 4, atol=1e-6)  # float32
    columns = dict(zip(rewards.aspects, rewards.values.unbind(dim=1), strict=True))
    assert torch.equal(columns["critic"], said.total) and torch.allclose(columns["light"], light.total / 255)
    assert torch.equal(columns["truth"], truth.total)
    assert torch.equal(columns["critic/text_faithfulness"], said.values[:, said.aspects.index("text_faithfulness")])
    assert torch.equal(columns["light/score"], light.total)
    assert rewards.weights is not None and rewards.bounds is not None
    assert dict(zip(rewards.aspects, rewards.weights, strict=True)) == {
        name: {"critic": 3.0, "light": 1.0}.get(name, 0.0) for name in rewards.aspects
    }
    assert rewards.bounds[rewards.aspects.index("critic/text_faithfulness")] == (1.0, 4.0)
    assert rewards.critiques == said.critiques and rewards.reasons == [""] * 3
    # each part is compared in the group by itself, as MixGRPO and GenRL do
    result = reward_advantages(rewards, ["g"] * 3, AdvantageOptions("per_aspect"))
    parts = [reward_advantages(one, ["g"] * 3).values for one in (said, Rewards(light.total / 255, (), light.values, []))]
    assert result.aspects == ("critic", "light")
    assert torch.allclose(result.values, (3 * parts[0] + parts[1]) / 4, atol=1e-5)


def test_an_unscored_part_leaves_the_mix_unscored_unless_told_otherwise() -> None:
    asked = requests(("a red circle", "a red circle, dark"))
    parts = {"light": RewardPart(FunctionReward(brightness), high=255.0), "truth": RewardPart(FunctionReward(half), 3.0)}
    strict, lenient = (WeightedReward(parts, missing).score(asked) for missing in ("unscored", "renormalised"))
    assert strict.valid.tolist() == [True, False] and strict.reasons == ["", "light: the function gave None, no number"]
    assert lenient.total[1].item() == 0.5 and lenient.reasons == ["", ""]
    assert torch.equal(strict.total[:1], lenient.total[:1])
    assert lenient.applicable[1].tolist() == [False, True, False, True] and not strict.applicable[1].any()
    # a part that only watches is nobody's loss
    watched = WeightedReward({"light": RewardPart(FunctionReward(brightness), 0.0), "half": RewardPart(FunctionReward(half))})
    assert watched.score(asked).total.tolist() == [0.5, 0.5]


def half(prompt: str, image: Any, sources: Any) -> float:
    return 0.5


class Meeting(RewardModel):
    """A server that answers when as many others are asked as the barrier has places."""

    remote = True  # type: ignore[assignment]

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        self.barrier.wait(timeout=30)
        return Rewards(torch.full((len(requests),), 0.25), (), torch.zeros(len(requests), 0), [""] * len(requests))


def test_servers_are_asked_at_the_same_time_and_the_rest_meanwhile() -> None:
    barrier = threading.Barrier(3)
    threads = []

    def here(prompt: str, image: Any, sources: Any) -> float:
        threads.append(threading.current_thread())
        if len(threads) == 1:
            barrier.wait(timeout=30)  # no server has answered yet
        return 0.75

    parts = {
        "one": RewardPart(Meeting(barrier)),
        "here": RewardPart(FunctionReward(here), 2.0),
        "two": RewardPart(Meeting(barrier)),
    }
    mix = WeightedReward(parts)
    assert mix.score(requests()).total.tolist() == [0.5] * 3
    assert set(threads) == {threading.current_thread()}
    assert not mix.remote and WeightedReward({"one": parts["one"]}).remote
    broken = WeightedReward({"one": RewardPart(Meeting(threading.Barrier(2))), "here": RewardPart(FunctionReward(half))})
    broken.parts["one"].model.barrier.abort()  # type: ignore[attr-defined]
    with pytest.raises(threading.BrokenBarrierError):
        broken.score(requests())


def test_a_critic_behind_a_server_is_remote() -> None:
    server = OpenAIChat("http://127.0.0.1:9/v1", "critic")
    assert CritiqueReward(Critic(server)).remote and CritiqueReward(Critic(CachedChat(server, "cache"))).remote
    assert not critic().remote and not ShapesTruth().remote


def test_scoring_again_asks_the_parts_again() -> None:
    asked = requests()
    mix = WeightedReward({"truth": RewardPart(ShapesTruth()), "light": RewardPart(FunctionReward(brightness), high=255.0)})
    first, second = mix.score(asked), mix.again(asked, 1)
    # noise that nobody sees: other pixels, the same picture
    difference = (first.values - second.values)[:, first.aspects.index("light/score")].abs()
    assert 0 < float(difference.max()) <= 2
    assert torch.equal(mix.again(asked, 1).total, second.total) and torch.equal(mix.again(asked[1:], 1).total, second.total[1:])
    assert not torch.equal(mix.again(asked, 2).total, second.total)


@pytest.mark.parametrize(
    ("parts", "missing", "message"),
    [
        ({}, "unscored", "a part with a weight above 0"),
        ({"a": RewardPart(ShapesTruth(), 0.0)}, "unscored", "a part with a weight above 0"),
        ({"a/b": RewardPart(ShapesTruth())}, "unscored", "has no slash, got 'a/b'"),
        ({"a": RewardPart(ShapesTruth())}, "dropped", "missing is unscored or renormalised"),
    ],
)
def test_mixes_are_checked(parts: dict[str, RewardPart], missing: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedReward(parts, missing)


def test_parts_are_checked() -> None:
    with pytest.raises(ValueError, match="weight must be a number of at least 0, got -1"):
        RewardPart(ShapesTruth(), -1.0)
    with pytest.raises(ValueError, match="low must be below its high, got 1 and 1"):
        RewardPart(ShapesTruth(), low=1.0)


def test_from_a_config() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--reward", type=RewardModel)
    truth = {"class_path": "rationalrewards.components.shapes.truth.ShapesTruth"}
    light = {
        "class_path": "rationalrewards.components.rewards.FunctionReward",
        "init_args": {"function": f"{__name__}.brightness"},
    }
    parts = {"truth": {"model": truth, "weight": 2.0}, "light": {"model": light, "high": 255.0}}
    config = {"class_path": "rationalrewards.components.rewards.WeightedReward", "init_args": {"parts": parts}}
    reward = parser.instantiate_classes(parser.parse_object({"reward": config})).reward
    assert isinstance(reward, WeightedReward) and isinstance(reward.parts["truth"].model, ShapesTruth)
    assert [part.weight for part in reward.parts.values()] == [2.0, 1.0] and reward.parts["light"].high == 255.0
    assert reward.score(requests()).valid.all()


# -- batches put together ------------------------------------------------------------------------------------------------


def test_batches_of_other_columns_are_joined() -> None:
    one = Rewards(torch.tensor([0.5]), ("a", "b"), torch.tensor([[1.0, 2.0]]), [""], None, (1.0, 2.0), ((1.0, 4.0), None))
    two = Rewards(
        torch.tensor([NAN, 0.25]),
        ("c", "a"),
        torch.tensor([[3.0, 4.0], [5.0, NAN]]),
        ["lost", ""],
        None,
        (1.0, 1.0),
        (None, (1.0, 4.0)),
    )
    whole = joined([one, two])
    assert whole.aspects == ("a", "b", "c") and whole.weights == (1.0, 2.0, 1.0) and whole.bounds == ((1.0, 4.0), None, None)
    assert whole.values.nan_to_num(9).tolist() == [[1.0, 2.0, 9.0], [4.0, 9.0, 3.0], [9.0, 9.0, 5.0]]
    assert whole.valid.tolist() == [True, False, True] and whole.reasons == ["", "lost", ""] and whole.critiques is None
    # not applicable and unscored are told apart, whatever stands in the row
    assert whole.applicable.tolist() == [[True, True, False], [False] * 3, [False, False, True]]
    assert whole.scaled()[1].isnan().all() and whole.scaled()[0, 0] == 0.0 and whole.scaled()[2, 2] == 5.0
    with pytest.raises(ValueError, match="different weights for 'a'"):
        joined([one, Rewards(torch.zeros(1), ("a",), torch.zeros(1, 1), [""], None, (3.0,))])
    with pytest.raises(ValueError, match="only some batches have weights"):
        joined([one, Rewards(torch.zeros(1), ("d",), torch.zeros(1, 1), [""])])
    with pytest.raises(ValueError, match="no rewards to join"):
        joined([])


def test_scores_outside_the_scale_are_clamped() -> None:
    rewards = Rewards(torch.tensor([0.0, 0.0]), ("a",), torch.tensor([[0.5], [9.0]]), ["", ""], None, (1.0,), ((1.0, 4.0),))
    assert rewards.scaled().tolist() == [[0.0], [1.0]] and math.isclose(float(rewards.values[0, 0]), 0.5)
