"""A head on a real tiny Qwen3-VL: what it reads, what is stored, what cannot be scored."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rationalrewards.components.backbone import freeze, language_linears, load_backbone
from rationalrewards.components.chat import ChatRequest, TransformersChat
from rationalrewards.components.chat.transformers_chat import load_processor
from rationalrewards.components.checkpoints import resolve
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.rewards import PreferenceHeadReward
from rationalrewards.components.rewards.preference_head import HEAD_FILE, PreferenceHead, hidden_width, load_head, save_head
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_edit, random_scene
from rationalrewards.components.split_weights import whole_weights
from transformers import AutoModelForImageTextToText

BASE = "embedded:shapes-critic"
FORMAT = CritiqueFormat("shapes")


@pytest.fixture(scope="module")
def requests() -> list[CritiqueRequest]:
    """Requests of unequal length, one with a source picture."""
    rng = random.Random(4)
    scenes = [random_scene(rng) for _ in range(4)]
    made = [
        CritiqueRequest("t2i", scene.request("terse" if i % 2 else "detailed"), draw(scene)) for i, scene in enumerate(scenes)
    ]
    source = random_scene(rng)
    return [*made, CritiqueRequest("edit", random_edit(source, rng).request("terse"), made[0].image, (draw(source),))]


def write(folder: Path, outputs: int = 1, format: CritiqueFormat = FORMAT) -> PreferenceHead:
    """A folder as a trained head's, with first weights."""
    backbone = load_backbone(BASE)
    model = PreferenceHead(backbone, hidden_width(backbone), outputs, seed=outputs)
    backbone.save_pretrained(folder)
    load_processor(BASE).save_pretrained(folder)
    save_head(folder, dict(model.head.state_dict()), format, {"loss": "bradley_terry"})
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("head")
    write(made)
    return made


def test_the_score_is_the_head_of_the_last_state_of_what_a_critic_is_asked(folder: Path, requests: list[CritiqueRequest]) -> None:
    reward = PreferenceHeadReward(str(folder), FORMAT, batch_size=3)
    rewards = reward.score(requests)
    assert rewards.aspects == ("score",) and rewards.valid.all() and rewards.reasons == [""] * 5
    assert torch.equal(rewards.values[:, 0], rewards.total) and rewards.total.dtype == torch.float32
    # by the whole model with its language head, one request at a time and so without padding
    full = AutoModelForImageTextToText.from_pretrained(resolve(BASE))
    chat = TransformersChat(BASE).attach(full, load_processor(BASE))
    head = load_head(folder)
    for request, score in zip(requests, rewards.total.tolist(), strict=True):
        asked = FORMAT.pointwise_messages(request.task, request.prompt, request.sources, request.image)
        with torch.no_grad():
            state = full(**chat.encode([ChatRequest(asked)]), output_hidden_states=True).hidden_states[-1][0, -1]
        # float32 sums over other shapes, through a few layers, on scores of size one
        assert score == pytest.approx(float(head["weight"][0] @ state + head["bias"][0]), abs=1e-4)
    assert rewards.total.std() > 0.01


def test_any_batch_gives_the_same(folder: Path, requests: list[CritiqueRequest]) -> None:
    reward = PreferenceHeadReward(str(folder), FORMAT, batch_size=5)
    together = reward.score(requests).total
    reward.batch_size = 1
    alone = reward.score(requests[::-1]).total.flip(0)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)  # padding; as above


def test_uncertainty_has_a_column_and_may_be_taken_off(tmp_path: Path, requests: list[CritiqueRequest]) -> None:
    model = write(tmp_path / "two", outputs=2)
    plain = PreferenceHeadReward(str(tmp_path / "two"), FORMAT).score(requests)
    assert plain.aspects == ("mean", "sigma") and torch.equal(plain.total, plain.values[:, 0])
    reward = PreferenceHeadReward(str(tmp_path / "two"), FORMAT, pessimism=0.5)
    careful = reward.score(requests)
    assert torch.equal(careful.values, plain.values)
    torch.testing.assert_close(careful.total, plain.values[:, 0] - 0.5 * plain.values[:, 1])
    with torch.no_grad():
        outputs = model(**reward.encode(requests))
    torch.testing.assert_close(plain.values, torch.stack([outputs[:, 0], outputs[:, 1].exp()], dim=1), atol=1e-4, rtol=1e-4)


def test_a_picture_that_the_processor_refuses_is_unscored_and_the_others_are_not(
    folder: Path, requests: list[CritiqueRequest]
) -> None:
    # Qwen-VL's processor takes no picture that is more than 200 times as long as it is wide
    thread = replace(requests[1], image=Image.new("RGB", (32 * 201, 32)))
    reward = PreferenceHeadReward(str(folder), FORMAT, batch_size=4)
    rewards = reward.score([requests[0], thread, requests[2]])
    assert rewards.valid.tolist() == [True, False, True]
    assert "aspect ratio" in rewards.reasons[1] and rewards.reasons[::2] == ["", ""]
    expected = reward.score([requests[0], requests[2]]).total
    torch.testing.assert_close(rewards.total[[0, 2]], expected, atol=1e-4, rtol=0)  # alone and together


def test_a_head_of_nans_scores_nothing(folder: Path, requests: list[CritiqueRequest]) -> None:
    reward = PreferenceHeadReward(str(folder), FORMAT)
    reward.load("cpu")
    assert reward.model is not None and not any(p.requires_grad for p in reward.model.parameters())
    reward.model.head.bias.fill_(float("nan"))
    rewards = reward.score(requests[:2])
    assert rewards.reasons == ["the score is nan, no finite number"] * 2 and not rewards.valid.any()


def test_what_does_not_fit_is_refused_when_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was trained on format 'shapes' .* but is asked in format 'default'"):
        PreferenceHeadReward(str(folder)).load()
    with pytest.raises(ValueError, match=rf"has no {HEAD_FILE}: give a folder that PreferenceRewardModule exported"):
        PreferenceHeadReward(BASE, FORMAT).load()
    with pytest.raises(ValueError, match="knows no uncertainty; leave out pessimism"):
        PreferenceHeadReward(str(folder), FORMAT, pessimism=1.0).load()
    with pytest.raises(ValueError, match="number of sigmas taken off"):
        PreferenceHeadReward(str(folder), pessimism=-1.0)
    save_head(tmp_path, {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, FORMAT, {})
    with pytest.raises(ValueError, match=r"no head of 1 or 2 outputs but .*'weight': \[3, 4\]"):
        load_head(tmp_path)


def test_first_weights_are_the_seeds_alone() -> None:
    backbone: Any = torch.nn.Identity()
    first = PreferenceHead(backbone, 64, seed=3)
    torch.rand(5)
    second, third = PreferenceHead(backbone, 64, seed=3), PreferenceHead(backbone, 64, seed=4)
    assert torch.equal(first.head.weight, second.head.weight) and not torch.equal(first.head.weight, third.head.weight)
    assert float(first.head.weight.detach().norm()) == pytest.approx(1.0, abs=0.4)  # of 64 values of N(0, 1/64)
    assert not first.head.bias.any()


def test_parts_of_a_backbone_go_by_their_names() -> None:
    backbone = load_backbone(BASE)
    freeze(backbone, vision=True, projector=False)
    trains = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
    assert {on for name, on in trains.items() if "merger" in name} == {True}
    assert {on for name, on in trains.items() if name.startswith("visual.") and "merger" not in name} == {False}
    assert {on for name, on in trains.items() if name.startswith("language_model.")} == {True}
    assert all(name.startswith("language_model.") for name in language_linears(backbone, BASE))
    with pytest.raises(ValueError, match="nothing: found no linear layer"):
        language_linears(torch.nn.Conv2d(1, 1, 1), "nothing")
    weights = whole_weights(backbone, keep=True)
    assert weights.keys() == backbone.state_dict().keys() and whole_weights(backbone, keep=False) == {}
    assert all("language_model" in name for name in whole_weights(backbone, keep=True, only="language_model"))


def test_it_is_a_reward_among_others(folder: Path) -> None:
    rewards = PreferenceHeadReward(str(folder), FORMAT).score([])
    assert rewards.total.shape == (0,) and rewards.values.shape == (0, 1)
