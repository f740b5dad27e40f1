"""Weights of options against brute force: every option written out, read from the first token, its tokens' probabilities multiplied."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from rationalrewards.components.chat import ChatRequest, Place, TransformersChat
from rationalrewards.components.records import Scale
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_scene

ANSWER = "# Detailed Judgement:\n1. Text Faithfulness:\n## Justification: red circle\n## Score: 3.5\n2. Other:\n## Score: 2.0\n# Summary: x"


@pytest.fixture(scope="module")
def chat() -> TransformersChat:
    model = TransformersChat("embedded:shapes-critic", batch_size=3)
    model.load()
    return model


def _requests(count: int) -> list[ChatRequest]:
    rng = random.Random(5)
    asks = []
    for index in range(count):
        pictures = [{"type": "image", "image": draw(random_scene(rng))} for _ in range(1 + index % 2)]
        asks.append(ChatRequest([{"role": "user", "content": [*pictures, {"type": "text", "text": "describe " * (1 + index)}]}]))
    return asks


@torch.no_grad()
def _brute(chat: TransformersChat, request: ChatRequest, answer: str, place: Place) -> dict[str, float]:
    """Joint probability of each option's tokens, one unpadded forward per option; less what longer options take of it."""
    tokenizer = chat.processor.tokenizer
    inputs = chat.encode([request])
    prompt = inputs["input_ids"].shape[1]
    before = tokenizer(answer[: place.start], add_special_tokens=False)["input_ids"]
    joint = {}
    for option in place.options:
        ids = tokenizer(answer[: place.start] + option, add_special_tokens=False)["input_ids"]
        assert ids[: len(before)] == before
        new = torch.tensor([ids])
        whole = {
            **inputs,
            "input_ids": torch.cat([inputs["input_ids"], new], 1),
            "attention_mask": torch.ones(1, prompt + len(ids), dtype=torch.long),
            "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], 1),
        }
        logs = chat.model(**whole).logits[0].double().log_softmax(-1)
        joint[option] = float(torch.stack([logs[prompt + i - 1, ids[i]] for i in range(len(before), len(ids))]).sum().exp())
    for option in [option for option in joint if "." not in option]:
        if any(longer.startswith(f"{option}.") for longer in joint):
            ids = tokenizer(answer[: place.start] + f"{option}.", add_special_tokens=False)["input_ids"]
            assert len(ids) == len(before) + 2
            joint[option] -= _brute(chat, request, answer, Place(place.start, (f"{option}.",)))[f"{option}."]
    return joint


def _places(answer: str, options: Sequence[str]) -> list[Place]:
    starts = [index for index in range(len(answer)) if answer.startswith("## Score: ", index)]
    return [Place(start + len("## Score: "), tuple(options)) for start in starts]


def test_weights_are_the_joint_probabilities(chat: TransformersChat) -> None:
    requests, options = _requests(4), ("1", "3", "3.5", "3.6", "2.0", "4.0", "N/A")
    answers = [ANSWER, ANSWER.replace("red circle", "blue"), ANSWER.replace("3.5", "1"), ANSWER]
    places = [_places(answer, options) for answer in answers]
    found = chat.weigh(requests, answers, places)
    for request, answer, of_row, weights in zip(requests, answers, places, found, strict=True):
        assert len(weights) == 2
        for place, one in zip(of_row, weights, strict=True):
            expected = _brute(chat, request, answer, place)
            assert not one.failure and list(one.options) == list(options)
            for option in options:
                # float32 rounding in another order of sums: a few thousand roundings of 6e-8
                assert one.options[option] == pytest.approx(expected[option], rel=2e-4, abs=1e-12), option


def test_one_reading_of_an_answer_is_counted_once_and_batches_come_one_by_one(chat: TransformersChat) -> None:
    requests = _requests(4)
    places = [_places(ANSWER, ("1", "3.5"))] * 4
    parts = list(chat.stream_weights(requests, [ANSWER] * 4, places))
    # batches of three; those without a place are there at once
    assert [len(part) for part in parts] == [0, 3, 1]
    read = len(chat.processor.tokenizer(ANSWER[: places[0][-1].start], add_special_tokens=False)["input_ids"])
    for index, (first, second) in (row for part in parts for row in part):
        prompt = chat.encode([requests[index]])["input_ids"].shape[1]
        # what comes before the last place, up to the token that the option begins in
        assert prompt + read - 1 <= first.prompt_tokens <= prompt + read
        assert (second.prompt_tokens, first.completion_tokens, first.requests) == (0, 0, 0)


def test_all_scores_together_are_the_chance_of_a_score(chat: TransformersChat) -> None:
    (request,) = _requests(1)
    place = _places(ANSWER, Scale().options())[:1]
    ((weights,),) = chat.weigh([request], [ANSWER], [place])
    ((digits,),) = chat.weigh([request], [ANSWER], [[Place(place[0].start, tuple("1234"))]])
    # a point that no digit of an option follows belongs to none of the scores, so they hold a little less than the digits do
    assert 0 < sum(weights.options.values()) <= sum(digits.options.values())


def test_answers_without_places_and_places_within_a_token(chat: TransformersChat) -> None:
    requests = _requests(3)
    inside = Place(ANSWER.index("Faithfulness"), ("x", "y"))
    found = chat.weigh(requests, [ANSWER] * 3, [[], [inside, *_places(ANSWER, "12")], []])
    assert found[0] == [] and found[2] == []
    assert "do not part" in found[1][0].failure and not found[1][1].failure
    assert chat.weigh([], [], []) == []


def test_an_attention_without_masks_is_refused(chat: TransformersChat) -> None:
    attention = chat.model.config._attn_implementation
    chat.model.config._attn_implementation = "flash_attention_2"
    try:
        with pytest.raises(ValueError, match="sdpa or eager, not flash_attention_2"):
            chat.weigh(_requests(1), [ANSWER], [_places(ANSWER, "12")])
    finally:
        chat.model.config._attn_implementation = attention
