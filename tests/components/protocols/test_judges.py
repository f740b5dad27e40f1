"""What a judge says of itself, and picture tokens counted from real replies."""

from __future__ import annotations

import torch
from PIL import Image
from rationalrewards.components.chat import OpenAIChat, TransformersChat
from rationalrewards.components.checkpoints import fingerprint
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.protocols import Judge, counting, describe
from rationalrewards.components.rewards import CLIPReward, CritiqueReward, FunctionReward, PreferenceHeadReward
from rationalrewards.components.shapes.truth import ShapesTruth

SHAPES = CritiqueFormat("shapes")


def test_what_judges_say_of_themselves() -> None:
    critic = Critic(TransformersChat("embedded:shapes-critic"), SHAPES)
    said = describe(critic)
    assert said == describe(CritiqueReward(critic))
    assert (said.name, said.weights, said.format) == ("embedded:shapes-critic", critic.chat.fingerprint, SHAPES.fingerprint)
    # a head on a backbone: folder, format, and a digest of the folder
    head = describe(PreferenceHeadReward("embedded:shapes-critic", SHAPES))
    assert (head.name, head.format) == ("PreferenceHeadReward embedded:shapes-critic", SHAPES.fingerprint)
    assert head.weights == fingerprint("", "embedded:shapes-critic")
    assert describe(CLIPReward("openai/clip-vit-base-patch32", "clipscore", revision="0123abc")) == Judge(
        "CLIPReward openai/clip-vit-base-patch32@0123abc"
    )
    assert describe(FunctionReward("math.hypot")) == Judge("FunctionReward hypot")
    assert describe(ShapesTruth()) == Judge("ShapesTruth")
    # settings in full are too long for a table
    server = describe(Critic(OpenAIChat(model="critic", base_url="http://localhost:1/v1"), SHAPES))
    assert server.name == "critic at http://localhost:1/v1" and server.weights is not None and len(server.weights) == 16


def test_picture_tokens_of_real_requests() -> None:
    torch.set_num_threads(1)
    chat = TransformersChat("embedded:shapes-critic", batch_size=4)
    reward = CritiqueReward(Critic(chat, SHAPES, max_tokens=2, reasks=1, expected=False))
    asked, count = counting(reward)
    assert count is not None
    images = [Image.new("RGB", (size, size), "white") for size in (32, 64)]
    unread = asked.score([CritiqueRequest("t2i", "a red circle", image) for image in images])
    assert all("cut off" in reason for reason in unread.reasons)
    # each was asked again once
    pictures = chat.processor.image_processor
    grids = torch.as_tensor(pictures(images=images)["image_grid_thw"])
    expected = [int(grid.prod()) // pictures.merge_size**2 for grid in grids]
    assert sorted(count.image_tokens) == sorted([*expected, *expected])
    # the judge itself is as it was
    assert reward.critic.chat is chat and asked.critic.chat.chat is chat
    assert (count.identity, count.fingerprint, count.weights) == (chat.identity, chat.fingerprint, chat.weights)
    assert count.weighs_cheaply == chat.weighs_cheaply and not count.in_lockstep
