"""Critiques become reward tensors without a failure ever becoming a number."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.records import AspectCritique, Critique, NotApplicable, Unscored
from rationalrewards.components.rewards import CritiqueReward, critique_rewards
from rationalrewards.components.shapes import judge
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.phrases import Asked
from rationalrewards.components.shapes.scenes import random_edit, random_scene


def _critique(**scores: float | NotApplicable | Unscored) -> Critique:
    return Critique({key: AspectCritique("", score) for key, score in scores.items()})


def test_mixed_tasks_share_columns() -> None:
    edit = _critique(text=4.0, image=1.0, quality=4.0, lettering=NotApplicable())
    t2i = _critique(text=2.5, quality=2.5, lettering=2.5)
    failed = _critique(text=4.0, quality=Unscored("no score"), lettering=NotApplicable())
    rewards = critique_rewards([edit, t2i, failed])
    assert rewards.aspects == ("text", "image", "quality", "lettering")
    assert rewards.total[:2].tolist() == [torch.tensor(2 / 3).item(), 0.5] and rewards.total[2].isnan()
    assert rewards.valid.tolist() == [True, True, False]
    assert rewards.reasons == ["", "", "no score"]
    numbers = rewards.values.nan_to_num(-1).tolist()
    assert numbers == [[4.0, 1.0, 4.0, -1], [2.5, -1, 2.5, 2.5], [4.0, -1, -1, -1]]
    assert rewards.critiques == [edit, t2i, failed]
    assert rewards.total.dtype == rewards.values.dtype == torch.float32


def test_several_critiques_of_a_picture_are_averaged_over_those_that_can_be_read() -> None:
    good, bad = _critique(text=4.0, quality=4.0), _critique(text=1.0, quality=2.5)
    failed = Critique.unscored("cut off", ("text", "quality"))
    rewards = critique_rewards([good, failed, failed], [bad, bad, failed], [good, failed, failed])
    assert torch.allclose(rewards.total, torch.tensor([(1.0 + 0.25 + 1.0) / 3, 0.25, float("nan")]), equal_nan=True)
    assert torch.allclose(rewards.values[0], torch.tensor([3.0, 3.5])) and rewards.values[1].tolist() == [1.0, 2.5]
    assert rewards.values[2].isnan().all() and rewards.reasons == ["", "", "cut off"]
    assert rewards.critiques == [good, failed, failed]


class _Counting(ChatModel):
    """Remembers how it was asked; answers with a score that depends on the seed, and fails where told."""

    identity = "counting"  # type: ignore[assignment]

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        self.asked += [(request.seed, request.temperature) for request in requests]
        lines = (
            "# Detailed Judgement:\n1. Text Faithfulness:\n## Justification: so\n## Score: {}\n2. Physical and Visual Quality:\n"
        )
        lines += "## Justification: so\n## Score: 4.0\n3. Text Rendering:\n## Justification: no\n## Score: N/A\n# Summary: so"
        return [ChatReply(lines.format(1 + request.seed)) for request in requests]


def test_the_first_critique_is_greedy_and_the_others_are_sampled() -> None:
    chat = _Counting()
    request = CritiqueRequest("t2i", "a cat", draw(random_scene(random.Random(0))))
    rewards = CritiqueReward(Critic(chat), samples=3, sample_temperature=0.8).score([request, request])
    assert chat.asked == [(0, 0.0), (0, 0.0), (1, 0.8), (1, 0.8), (2, 0.8), (2, 0.8)]
    assert rewards.values[:, rewards.aspects.index("text_faithfulness")].tolist() == [2.0, 2.0]  # of 1, 2 and 3
    for wrong in ({"samples": 0}, {"samples": 2, "sample_temperature": 0.0}):
        with pytest.raises(ValueError, match="samples is at least 1"):
            CritiqueReward(Critic(chat), **wrong)  # type: ignore[arg-type]


def test_nothing_in_nothing_out() -> None:
    rewards = critique_rewards([])
    assert rewards.total.shape == (0,) and rewards.values.shape == (0, 0) and rewards.reasons == []


def test_an_edit_that_destroys_its_source_does_not_earn_the_best_reward() -> None:
    """The reward of the official RL code drops image faithfulness and gives this edit 1.0, against Eq. 13 of arXiv 2604.11626."""
    destroyed = _critique(text_faithfulness=4.0, image_faithfulness=1.0, physical_quality=4.0, text_rendering=NotApplicable())
    assert critique_rewards([destroyed]).total.item() < 0.7


def test_a_seeing_critic_rewards_as_the_truth_does(seeing: Callable[[], ChatModel]) -> None:
    rng = random.Random(1)
    requests, truth = [], []
    for index in range(20):
        scene = random_scene(rng)
        shown = draw(random_scene(rng) if index % 2 else scene)
        if index % 3:
            requests.append(CritiqueRequest("t2i", scene.request(), shown))
            truth.append(Asked(scene.request()).reward(judge.read([shown])[0]))
        else:
            edit = random_edit(scene, rng)
            requests.append(CritiqueRequest("edit", edit.request(), shown, (draw(scene),)))
            truth.append(Asked(edit.request(), scene).reward(judge.read([shown])[0]))
    requests.insert(3, CritiqueRequest("t2i", "a portrait of a cat", draw(scene)))
    truth.insert(3, float("nan"))
    rewards = CritiqueReward(Critic(seeing(), CritiqueFormat("shapes"))).score(requests)
    assert rewards.valid.tolist() == [index != 3 for index in range(21)]
    # critiques round the scores of the four aspects to 0.1, and quality to 0.5 of a scale of 3
    assert torch.allclose(rewards.total, torch.tensor(truth), atol=0.06, equal_nan=True)
    assert "is missing" in rewards.reasons[3] and all(not reason for i, reason in enumerate(rewards.reasons) if i != 3)
    assert rewards.aspects[:1] == ("text_faithfulness",)
    assert rewards.critiques is not None and rewards.critiques[0].text
