"""VLLMChat: what holds without vLLM, and a real engine against transformers with the same weights where vLLM runs on a CPU."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rationalrewards.components.answer_form import AnswerForm, Choice, Maybe, Prose
from rationalrewards.components.chat import ChatRequest, Place, TransformersChat, VLLMChat
from rationalrewards.components.chat.option_weights import option_weights
from rationalrewards.components.chat.vllm_chat import _lora_rank
from rationalrewards.components.checkpoints import EMBEDDED
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_scene
from support import needs

CRITIC = "embedded:shapes-critic"
# eager: nothing is compiled for a model of this size; small blocks: the cache keeps whole ones, and a CPU's are longer than our prompts
SMALL: dict[str, Any] = {"enforce_eager": True, "max_num_seqs": 8, "block_size": 32}
# what vLLM and its dependencies warn of is not ours to mend
quiet = pytest.mark.filterwarnings("ignore")


def _ask(text: str, *images: Image.Image, **settings: Any) -> ChatRequest:
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    return ChatRequest([{"role": "user", "content": content}], **{"max_tokens": 48, **settings})


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = random.Random(3)
    return [draw(random_scene(rng)) for _ in range(6)]


@pytest.fixture(scope="module")
def requests(pictures: list[Image.Image]) -> list[ChatRequest]:
    asks = ["describe the picture", "list the things in the picture", "what is at the top left", "how sharp is the picture"]
    single = [_ask(asks[index % 4], picture) for index, picture in enumerate(pictures[:4])]
    return [*single, _ask("describe both pictures", *pictures[4:], max_tokens=96), _ask("describe nothing")]


@pytest.fixture(scope="module")
def transformers_chat() -> TransformersChat:
    chat = TransformersChat(CRITIC)
    chat.load()
    return chat


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[None]:
    """An environment in which a small engine runs on a CPU; skips where vLLM has no build for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            pytest.skip(f"tests run without GPUs, and this vLLM is built for one ({type(current_platform).__name__})")
        yield


@pytest.fixture(scope="module")
def chat(on_cpu: None) -> Iterator[VLLMChat]:
    chat = VLLMChat(CRITIC, max_model_len=512, chunk_size=5, engine=SMALL)
    chat.load()
    yield chat
    chat.close()


# -- without an engine -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_says_how_to_install_it() -> None:
    chat = VLLMChat(CRITIC)
    with pytest.raises(ImportError, match=r"pip install 'rationalrewards\[vllm\]'"):
        chat.complete([_ask("describe the picture")])


def test_the_fingerprint_follows_weights_and_settings(tmp_path: Path) -> None:
    folder = tmp_path / "critic"
    shutil.copytree(EMBEDDED[CRITIC], folder)
    chat = VLLMChat(str(folder))
    before = chat.fingerprint
    assert VLLMChat(str(folder), tensor_parallel_size=2, chunk_size=3, gpu_memory_utilization=0.5).fingerprint == before
    others = [
        VLLMChat(str(folder), dtype="bfloat16").fingerprint,
        VLLMChat(str(folder), max_pixels=400).fingerprint,
        VLLMChat(str(folder), engine={"quantization": "fp8"}).fingerprint,
        # rounding differs between engines, so their answers are kept apart
        TransformersChat(str(folder)).fingerprint,
    ]
    file = folder / "model.safetensors"
    values = bytearray(file.read_bytes())
    values[len(values) // 2 : len(values) // 2 + 10_000] = bytes(10_000)  # other weights of the same size
    file.write_bytes(values)
    assert len({before, *others, chat.fingerprint}) == 6


def test_an_adapters_rank_is_read_from_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    for config, most in [({"r": 4}, 8), ({"r": 16, "rank_pattern": {}}, 16), ({"r": 8, "rank_pattern": {"q_proj": 33}}, 64)]:
        file.write_text(json.dumps(config))
        assert _lora_rank(str(tmp_path)) == most
    for config in [{"r": 1024}, {"peft_type": "IA3"}]:
        file.write_text(json.dumps(config))
        with pytest.raises(ValueError, match="no LoRA adapter that vLLM takes"):
            _lora_rank(str(tmp_path))


# -- with one ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs("vllm")
@quiet
def test_answers_are_those_of_transformers(
    chat: VLLMChat, transformers_chat: TransformersChat, requests: list[ChatRequest]
) -> None:
    # float32 on both sides; the greedy choices of a trained model are further apart than rounding
    expected = transformers_chat.complete(requests)
    assert len({reply.text for reply in expected}) == len(expected)  # a mixed-up order would show
    replies = chat.complete(requests)
    assert [replace(reply, reused_tokens=0) for reply in replies] == [replace(reply, reused_tokens=0) for reply in expected]
    assert [reply.image_tokens for reply in replies] == [16] * 4 + [32, 0]


@pytest.mark.slow
@needs("vllm")
@quiet
def test_forms_are_kept(chat: VLLMChat, transformers_chat: TransformersChat, requests: list[ChatRequest]) -> None:
    colours = Choice("colour", ("red", "green", "blue"))
    form = AnswerForm(("Colour: ", colours, Maybe((" or ", Choice("other", ("red", "none")))), ".\nWhy? ", Prose("why")), 4)
    forced = [replace(request, form=form) for request in requests]
    replies = chat.complete([*forced, requests[0]])
    assert all(re.fullmatch(form.regex(), reply.text) and not reply.failure for reply in replies[:-1])
    # Not compared: tokens of the fixed text are the engine's choice (" " and "red", or " red"), and this model was never taught such
    # a form, so that they sway its choices. The free one beside them is untouched.
    assert replies[-1].text == transformers_chat.complete(requests[:1])[0].text


@pytest.mark.slow
@needs("vllm")
@quiet
def test_settings_are_each_requests_own(chat: VLLMChat, requests: list[ChatRequest]) -> None:
    whole = chat.complete(requests[:1])[0]
    request = requests[0]
    warm = [replace(request, temperature=2.0, seed=seed) for seed in (1, 2, 1)]
    stopped, cut, exact, *drawn = chat.complete(
        [
            replace(request, stop=(whole.text[9:16],)),
            replace(request, max_tokens=5),
            replace(request, max_tokens=whole.completion_tokens + 1),
            *warm,
        ]
    )
    assert stopped.text == whole.text[: whole.text.find(whole.text[9:16])].rstrip() and not stopped.failure
    assert stopped.completion_tokens < whole.completion_tokens
    assert cut.failure == "the answer was cut off after 5 tokens" and cut.completion_tokens == 5
    assert cut.text and whole.text.startswith(cut.text)
    assert exact.text == whole.text and not exact.failure
    assert drawn[0].text == drawn[2].text != drawn[1].text


@pytest.mark.slow
@needs("vllm")
@quiet
def test_a_bad_request_fails_alone(chat: VLLMChat, requests: list[ChatRequest], pictures: list[Image.Image]) -> None:
    good = [chat.complete([request])[0] for request in requests[:2]]
    bad = [
        _ask("describe the picture", *pictures[:5]),
        _ask("describe the picture", Image.new("RGB", (4000, 4))),
        _ask("describe the picture " * 200),
    ]
    replies = chat.complete([requests[0], bad[0], bad[1], requests[1], bad[2]])
    assert [(replies[0].text, replies[3].text)] == [(good[0].text, good[1].text)]
    assert "4 image" in replies[1].failure
    assert "aspect ratio" in replies[2].failure
    assert "512 tokens" in replies[4].failure
    # an answer that fills the context before its own limit is cut off as well
    (long,) = chat.complete([replace(requests[0], max_tokens=5000, temperature=2.0, stop=())])
    assert not long.failure or "max_model_len" in long.failure


@pytest.mark.slow
@needs("vllm")
@quiet
def test_a_beginning_is_computed_once(chat: VLLMChat, pictures: list[Image.Image]) -> None:
    text = "describe the picture, please, " * 6
    first, again = (chat.complete([_ask(text, pictures[0])])[0] for _ in range(2))
    assert first.reused_tokens == 0 and again.text == first.text
    # whole blocks of 32 tokens, and never the last token
    assert again.reused_tokens == (again.prompt_tokens - 1) // 32 * 32 >= 64
    # the same text with another picture is another beginning
    (other,) = chat.complete([_ask(text, pictures[1])])
    assert other.reused_tokens == 0


@pytest.mark.slow
@needs("vllm")
@quiet
def test_options_weigh_what_transformers_gives_them(
    chat: VLLMChat, transformers_chat: TransformersChat, requests: list[ChatRequest]
) -> None:
    answers = [reply.text for reply in transformers_chat.complete(requests[:2])]
    options = ("nothing", "red", "green", "purple circle", "purple")
    places = [[Place(0, ("top", "bottom", "sharp")), Place(answers[0].index("left") + 5, options)], [Place(0, ("top", "a"))]]
    weighed = chat.weigh([*requests[:2], _ask("x " * 600)], [*answers, "y"], [*places, [Place(0, ("y",))]])
    assert "512 tokens" in weighed[2][0].failure
    for request, answer, spots, found in zip(requests[:2], answers, places, weighed[:2], strict=True):
        for spot, weights in zip(spots, found, strict=True):
            expected = asyncio.run(_reference(transformers_chat, request, answer, spot))
            assert weights.failure == "" and sum(weights.options.values()) > 0.01
            # the sums of float32 in another order; probabilities are at most 1
            assert weights.options == pytest.approx(expected, abs=1e-4)
            # each step reads all that stands before it, and writes a token
            (alone,) = transformers_chat.complete([replace(request, max_tokens=1)])
            assert weights.completion_tokens >= 1
            assert weights.prompt_tokens >= weights.completion_tokens * alone.prompt_tokens


async def _reference(chat: TransformersChat, request: ChatRequest, answer: str, spot: Place) -> dict[str, float]:
    inputs = dict(chat.encode([request]))
    tokenizer = chat.processor.tokenizer

    async def next_tokens(text: str) -> Mapping[str, float]:
        added = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], dtype=torch.long)
        longer = {
            name: torch.cat([value, 0 * added + fill], 1)
            for name, fill in FILL.items()
            if (value := inputs.get(name)) is not None
        }
        longer["input_ids"] = torch.cat([inputs["input_ids"], added], 1)
        with torch.no_grad():
            logits = chat.model(**{**inputs, **longer}).logits[0, -1]
        return {tokenizer.decode([index]): float(share) for index, share in enumerate(logits.softmax(-1))}

    return await option_weights(next_tokens, answer[: spot.start], spot.options)


FILL = {"attention_mask": 1, "mm_token_type_ids": 0}


@pytest.mark.slow
@needs("vllm", "peft")
@quiet
def test_an_adapter_and_small_pictures(
    on_cpu: None, tmp_path: Path, requests: list[ChatRequest], transformers_chat: TransformersChat
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(EMBEDDED[CRITIC])
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)"))
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    settings: dict[str, Any] = {"adapter": str(tmp_path / "adapter"), "max_pixels": 400}
    expected = TransformersChat(CRITIC, **settings).complete(requests)
    plain = transformers_chat.complete(requests)
    assert [reply.text for reply in expected] != [reply.text for reply in plain]  # or the adapter would say nothing

    chat = VLLMChat(CRITIC, max_model_len=512, engine=SMALL, **settings)
    replies = chat.complete(requests)
    assert [reply.text for reply in replies] == [reply.text for reply in expected]
    assert [reply.image_tokens for reply in replies] == [reply.image_tokens for reply in expected]
    assert replies[0].image_tokens < plain[0].image_tokens
    chat.close()
