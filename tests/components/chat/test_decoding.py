"""The decode loop against transformers' own: the same tokens in float32, with every saving switched on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from rationalrewards.components.answer_form import AnswerForm, Choice, Prose
from rationalrewards.components.chat import ChatRequest, Place, TransformersChat
from rationalrewards.components.chat import transformers_chat as backend
from rationalrewards.components.chat.constraint import Constraints
from rationalrewards.components.chat.decoding import (
    RoomyLayer,
    Row,
    StopStrings,
    choose,
    common_prefix,
    decode,
    roomy_cache,
    share_prefix,
    shareable,
)
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_scene
from rationalrewards.components.shapes.tiny_critic import CRITIC_FOLDER
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    DynamicCache,
    Gemma3Config,
    Gemma3TextConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    SiglipVisionConfig,
)

ASKS = ("describe the picture", "list the things in the picture", "what is at the top left", "how sharp is the picture")


@pytest.fixture(scope="module")
def chat() -> TransformersChat:
    model = TransformersChat("embedded:shapes-critic", batch_size=8)
    model.load()
    return model


def _requests(count: int, **settings: Any) -> list[ChatRequest]:
    """Requests with one long beginning, one or two pictures and answers of different lengths."""
    rng = random.Random(7)
    rules = {"role": "system", "content": [{"type": "text", "text": "look at the picture and say what is where ; " * 4}]}
    requests = []
    for index in range(count):
        pictures = [{"type": "image", "image": draw(random_scene(rng))} for _ in range(1 + index % 2)]
        question = {"role": "user", "content": [*pictures, {"type": "text", "text": ASKS[index % len(ASKS)]}]}
        requests.append(ChatRequest([rules, question], **{"max_tokens": 60, **settings}))
    return requests


@torch.no_grad()
def _plain(chat: TransformersChat, request: ChatRequest) -> list[int]:
    """The tokens of ``generate``, one request alone, nothing of ours."""
    inputs = chat.encode([request])
    output = chat.model.generate(**inputs, max_new_tokens=request.max_tokens, do_sample=False, pad_token_id=0)
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    end = chat.processor.tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids


def test_batches_with_a_shared_beginning_write_the_tokens_of_generate(
    chat: TransformersChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = _requests(8)
    replies = chat.complete(requests)
    expected = [chat.processor.tokenizer.decode(_plain(chat, request), skip_special_tokens=True) for request in requests]
    assert [reply.text for reply in replies] == expected
    assert len({reply.completion_tokens for reply in replies}) > 3  # rows left the batch at different times
    # system turn and the opening of the user's, up to the picture; the row that computed it reuses nothing
    assert [reply.reused_tokens for reply in replies].count(0) == 1
    assert max(reply.reused_tokens for reply in replies) > 32
    monkeypatch.setattr(backend, "_WORTH_SHARING", 10**6)
    assert [reply.text for reply in chat.complete(requests)] == expected  # else nothing was shared above


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0, None])
def test_forced_text_is_the_text_of_single_steps(
    chat: TransformersChat, monkeypatch: pytest.MonkeyPatch, share: float | None
) -> None:
    form = AnswerForm(
        ("the picture shows : ", Prose("seen"), "\nred things : ", Choice("count", ("0", "1", "2"))), prose_tokens=12
    )
    requests = [*_requests(3, form=form), *_requests(3), *_requests(2, form=form, temperature=1.0, seed=3)]
    forwards: list[int] = []
    chat.model.register_forward_hook(lambda *_: forwards.append(1))
    if share is None:  # as with layers that allow no gaps: forced text is fed token by token
        monkeypatch.setattr("rationalrewards.components.chat.decoding.shareable", lambda cache: False)
    else:
        monkeypatch.setattr("rationalrewards.components.chat.decoding._JUMP_SHARE", share)
    jumping = chat.complete(requests[:3])
    jumps = len(forwards)
    together = chat.complete(requests)

    def step_by_step(constraint: Any, token: int) -> list[int]:
        constraint._matcher.consume_token(token)
        return []

    monkeypatch.setattr("rationalrewards.components.chat.constraint.Constraint.take", step_by_step)
    forwards.clear()
    stepping = chat.complete(requests[:3])
    assert [reply.text for reply in jumping] == [reply.text for reply in stepping]
    assert jumps < len(forwards) - 3 if share is not None else jumps == len(forwards)  # or no forced text was appended
    chat.model._forward_hooks.clear()
    assert [reply.text for reply in together] == [chat.complete([request])[0].text for request in requests]


def test_a_room_holds_what_the_default_layer_holds() -> None:
    torch.manual_seed(0)
    roomy, plain = RoomyLayer(), DynamicCache().layer_class_to_replicate()
    for length in (5, 1, 1, 200, 1):
        keys, values = torch.randn(4, 2, length, 3), torch.randn(4, 2, length, 3)
        for mine, theirs in zip(roomy.update(keys, values), plain.update(keys, values), strict=True):
            assert torch.equal(mine, theirs)
    for layer in (roomy, plain):
        layer.batch_select_indices(torch.tensor([2, 0]))
    step = torch.randn(2, 2, 1, 3)
    for mine, theirs in zip(roomy.update(step, step), plain.update(step, step), strict=True):
        assert torch.equal(mine, theirs)
    assert roomy.get_seq_length() == plain.get_seq_length() == 209


def test_a_cache_keeps_layers_of_other_kinds(chat: TransformersChat) -> None:
    assert {type(layer) for layer in roomy_cache(chat.model.config).layers} == {RoomyLayer}
    config = type(chat.model.config.text_config)(num_hidden_layers=2)
    config.layer_types, config.sliding_window = ["full_attention", "sliding_attention"], 8
    kinds = [type(layer).__name__ for layer in roomy_cache(config).layers]
    assert kinds == ["RoomyLayer", "DynamicSlidingWindowLayer"]


@pytest.mark.parametrize(
    ("prompts", "length"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 3]], 1), ([[9, 1], [9, 1]], 0), ([[1, 9, 2], [1, 9, 2]], 1), ([[4], [4]], 0)],
)
def test_what_prompts_have_in_common_ends_before_pictures_and_ends(prompts: Sequence[Sequence[int]], length: int) -> None:
    assert common_prefix(prompts, before=9) == length


def test_stop_strings_are_seen_across_tokens(chat: TransformersChat) -> None:
    tokenizer = chat.processor.tokenizer
    tokens = tokenizer("top left red circle ; # Summary: good", add_special_tokens=False)["input_ids"]
    met = StopStrings(tokenizer, ("ft red", "unheard"))
    first = next(count for count in range(1, len(tokens)) if met(tokens[:count]))
    assert tokenizer.decode(tokens[:first]) == "top left red" and not met(tokens[first + 6 :])


def test_a_row_ends_at_its_limit_at_an_end_and_within_forced_text(chat: TransformersChat) -> None:
    tokenizer = chat.processor.tokenizer
    end = tokenizer.eos_token_id
    row = Row(limit=2, ends=frozenset({end}))
    row.take(5)
    assert not row.done and row.waiting == [5]
    row.take(6)
    assert row.done and not row.ended
    row = Row(limit=2, ends=frozenset({end}))
    row.take(end)
    assert row.done and row.ended and row.tokens == []
    constraints = Constraints(tokenizer, len(tokenizer), frozenset({end}))
    form = AnswerForm((Choice("which", ("red", "blue")), " circle top left red red circle"))
    red = tokenizer("red", add_special_tokens=False)["input_ids"]
    assert len(red) == 1
    row = Row(limit=3, ends=frozenset({end}), constraint=constraints.start(form))
    row.take(red[0])
    assert len(row.tokens) == 3 and not row.ended  # cut off within the forced text
    row = Row(limit=30, ends=frozenset({end}), constraint=constraints.start(form), stops=StopStrings(tokenizer, ("top",)))
    row.take(red[0])
    assert row.ended and tokenizer.decode(row.tokens) == "red circle top"


def test_greedy_rows_and_warm_rows_share_a_batch() -> None:
    logits = torch.tensor([[0.0, 9.0, 0.0], [0.0, 1.0, 0.5]])
    greedy, warm = Row(1, frozenset()), Row(1, frozenset(), temperature=1e-3)
    choose([greedy, warm], logits)
    assert greedy.tokens == warm.tokens == [1]  # at a temperature near zero the draw is the maximum


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers by the old name
def test_a_critic_with_an_adapter_writes_the_tokens_of_generate(chat: TransformersChat, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(CRITIC_FOLDER)
    config = LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj|down_proj)", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path)
    adapted = TransformersChat("embedded:shapes-critic", batch_size=4, adapter=str(tmp_path))
    requests = _requests(4, max_tokens=30)
    texts = [reply.text for reply in adapted.complete(requests)]
    assert texts == [adapted.processor.tokenizer.decode(_plain(adapted, r), skip_special_tokens=True) for r in requests]
    assert texts != [reply.text for reply in chat.complete(requests)]  # the adapter was there
    weights = adapted.weigh(requests[:1], ["red"], [[Place(0, ("red", "blue"))]])
    assert weights != chat.weigh(requests[:1], ["red"], [[Place(0, ("red", "blue"))]])


def test_half_precision_runs_all_of_it() -> None:
    half = TransformersChat("embedded:shapes-critic", dtype="bfloat16", batch_size=4)
    form = AnswerForm((Prose("seen"), "\nred things : ", Choice("count", ("0", "1", "2"))), prose_tokens=12)
    replies = half.complete([*_requests(2), *_requests(2, form=form)])
    assert half.model.dtype == torch.bfloat16 and all(reply.text and not reply.failure for reply in replies)
    ((weights,),) = half.weigh(_requests(1), ["red"], [[Place(0, ("red", "blue"))]])
    assert not weights.failure and 0 < sum(weights.options.values()) <= 1.01  # bfloat16 holds two to three digits


_TEXT = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_QWEN_VISION = {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2, "out_hidden_size": 64}
_QWEN_TOKENS = {"image_token_id": 199, "video_token_id": 198, "vision_start_token_id": 197}


def _architectures() -> dict[str, Any]:
    """Configurations of vision-language models with random weights, by their classes' names."""
    mrope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    sliding = {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    return {
        "LlavaForConditionalGeneration": LlavaConfig(
            vision_config=CLIPVisionConfig(**_VISION), text_config=LlamaConfig(**_TEXT), image_token_index=199
        ),
        "Gemma3ForConditionalGeneration": Gemma3Config(
            text_config=Gemma3TextConfig(**_TEXT, **sliding), vision_config=SiglipVisionConfig(**_VISION), mm_tokens_per_image=4
        ),
        "Qwen2_5_VLForConditionalGeneration": Qwen2_5_VLConfig(
            text_config={**_TEXT, "rope_parameters": mrope}, vision_config=_QWEN_VISION, **_QWEN_TOKENS
        ),
        "Idefics3ForConditionalGeneration": Idefics3Config(
            text_config=LlamaConfig(**_TEXT), vision_config=dict(_VISION), image_token_id=199
        ),
    }


@pytest.mark.parametrize("name", list(_architectures()))
def test_other_architectures_write_the_tokens_of_generate(name: str) -> None:
    torch.manual_seed(3)  # random weights that do not all repeat one token
    model = getattr(transformers, name)(_architectures()[name]).eval().double()  # no rounding decides between two tokens
    beginning = list(range(10, 40))
    prompts = [beginning + [50 + step for step in range(more)] for more in (3, 9, 5)]
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    expected = []
    for prompt in prompts:
        ids = model.generate(input_ids=torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
        expected.append(ids[: ids.index(2)] if 2 in ids else ids)
    longest = max(map(len, prompts))
    pads = [[0] * (longest - len(prompt)) for prompt in prompts]
    inputs = {
        "input_ids": torch.tensor([pad + prompt for pad, prompt in zip(pads, prompts, strict=True)]),
        "attention_mask": torch.tensor([pad + [1] * len(prompt) for pad, prompt in zip(pads, prompts, strict=True)]),
    }
    cache = roomy_cache(model.config)
    assert shareable(cache) == (name != "Gemma3ForConditionalGeneration")
    with torch.no_grad():
        if shareable(cache):
            inputs, cache = share_prefix(model, inputs, len(beginning))
    rows = [Row(24, frozenset({2})) for _ in prompts]
    model.generate(**inputs, past_key_values=cache, custom_generate=decode, rows=rows, lockstep=False, **settings)
    assert [row.tokens for row in rows] == expected
    assert len({token for of_row in expected for token in of_row}) > 3
