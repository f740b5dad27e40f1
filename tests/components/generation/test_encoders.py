"""Encoders are asked once, and nothing else changes: pictures with and without memory are the same, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rationalrewards.components.generation import EncoderSavings, FlowGenerator
from rationalrewards.components.generation.encoders import EncoderMemory
from rationalrewards.components.shapes.tiny_generator import build_text_encoder, build_tokenizer
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

PROMPTS = ["red circle top left", "blue square", "red circle top left"]
SOURCES = [Image.effect_mandelbrot((64, 64), (-2, -1.5, x, 1.5), 30).convert("RGB") for x in (1.0, 0.5)]
SMALL = {"height": 16, "width": 16, "max_sequence_length": 32}
KLEIN = {
    **SMALL,
    "height": 32,
    "width": 32,
    "guidance_scale": 1.0,
    "max_sequence_length": 40,
    "text_encoder_out_layers": (1, 2, 3),
}
# pipeline, arguments, sources, text encoders
KINDS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "sd3": ("sd3", {**SMALL, "guidance_scale": 1.0}, 0, 3),
    "sd3 guided": ("sd3", {**SMALL, "guidance_scale": 4.0}, 0, 3),
    "kontext": ("kontext", {**SMALL, "guidance_scale": 2.5, "max_area": 256, "_auto_resize": False}, 1, 2),
    "klein": ("klein", KLEIN, 0, 1),
    "klein edit": ("klein", KLEIN, 2, 1),
    "qwen": ("qwen", {"height": 16, "width": 16, "true_cfg_scale": 1.0}, 0, 1),
    "hidream": ("hidream", {**SMALL, "guidance_scale": 1.0, "max_sequence_length": 24}, 0, 4),
}


@pytest.fixture(scope="module")
def recipe(build: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FlowGenerator]:
    folders: dict[str, Path] = {}

    def make(kind: str, **options: Any) -> FlowGenerator:
        name, arguments, _, _ = KINDS[kind]
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name) / "pipeline"
            build(name).save_pretrained(folders[name])
        generator = FlowGenerator(str(folders[name]), steps=2, pipeline_kwargs=arguments, **options)
        generator.load()
        generator.pipe.default_sample_size = 8
        return generator

    return make


def _count(generator: FlowGenerator) -> dict[str, int]:
    """Runs of the encoders themselves: calls of a layer inside each."""
    counts = {"text": 0, "image": 0}

    def counting(kind: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            counts[kind] += 1

        return count

    assert generator.encoders is not None
    for encoder in generator.encoders.encoders.values():
        [part for part in encoder.modules() if isinstance(part, nn.Linear)][-1].register_forward_hook(counting("text"))
    generator.pipe.vae.encoder.register_forward_hook(counting("image"))
    return counts


def _bytes(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("kind", KINDS)
def test_every_prompt_and_picture_is_encoded_once(recipe: Callable[..., FlowGenerator], kind: str) -> None:
    _, _, sources, encoders = KINDS[kind]
    request = (PROMPTS, SOURCES[:sources], [1, 2, 3])
    generator, forgetful = recipe(kind), recipe(kind, encoder_cache_gib=0)
    runs, forgetful_runs = _count(generator), _count(forgetful)
    first = generator.sample(*request)
    # each different prompt, with guidance the empty one too; and all together once, to see that they may be taken apart
    prompts = 3 if kind == "sd3 guided" else 2
    assert runs == {"text": (prompts + 1) * encoders, "image": sources}
    before = dict(runs)
    savings = generator.savings
    assert (savings.text_runs, savings.image_runs) == (runs["text"], runs["image"]) and savings.kept_bytes > 0
    again = generator.sample(*request)
    mixed = generator.sample(PROMPTS[1:], SOURCES[:sources], [2, 3])  # other batches, nothing new
    assert runs == before
    assert generator.savings.text_reused >= 5 * encoders
    # bit for bit: the same call without memory, and whatever was asked before
    assert _bytes(first) == _bytes(again) == _bytes(forgetful.sample(*request))
    assert _bytes(mixed) == _bytes(forgetful.sample(PROMPTS[1:], SOURCES[:sources], [2, 3]))
    assert forgetful_runs == {"text": (2 * prompts + 1) * encoders, "image": 2 * sources}
    assert forgetful.savings.kept_bytes == 0
    # the pipeline by itself: bit for bit where it encodes one prompt, as in a batch up to float sums and rounding to bytes
    single = ([PROMPTS[0]], SOURCES[:sources], [1])
    assert _bytes(generator.sample(*single)) == _bytes(generator.pipe(**generator._arguments(2, *single)).images)
    plain = generator.pipe(**generator._arguments(2, *request)).images
    for ours, theirs in zip(first, plain, strict=True):
        assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def test_recordings_are_the_same_and_training_keeps_its_conditioning(recipe: Callable[..., FlowGenerator]) -> None:
    generator, forgetful = recipe("klein edit"), recipe("klein edit", encoder_cache_gib=0)
    request = (PROMPTS, SOURCES, [1, 2, 3])
    for each in (generator, forgetful):
        each.prepare_training(0)
        each.record(*request)
    one, two = generator.record(*request, keep_steps=True), forgetful.record(*request, keep_steps=True)
    assert torch.equal(one.x0, two.x0) and one.prove() == two.prove() == 0.0
    with torch.no_grad():
        assert torch.equal(one.velocity(one.x0, 0.5), two.velocity(one.x0, 0.5))


def test_a_call_leaves_the_pipeline_as_it_was(recipe: Callable[..., FlowGenerator]) -> None:
    generator = recipe("kontext")
    assert generator.encoders is not None

    def untouched() -> bool:
        parts = generator.encoders.parts if generator.encoders else []
        return not any("forward" in vars(part) or "encode" in vars(part) for part in parts)

    generator.sample(PROMPTS, SOURCES[:1], [1, 2, 3])
    assert untouched()
    with pytest.raises(KeyboardInterrupt), generator.encoders.active():
        assert not untouched()
        raise KeyboardInterrupt
    assert untouched()


def test_memory_is_bounded_and_what_was_forgotten_is_made_again(recipe: Callable[..., FlowGenerator]) -> None:
    generator = recipe("klein")
    assert generator.encoders is not None
    first = _bytes(generator.sample(PROMPTS, [], [1, 2, 3]))
    one_prompt = generator.savings.kept_bytes // 2
    generator.encoders.max_bytes = one_prompt
    runs = _count(generator)
    assert _bytes(generator.sample(PROMPTS, [], [1, 2, 3])) == first and runs["text"] == 0
    assert generator.savings.kept_bytes == one_prompt
    assert _bytes(generator.sample(PROMPTS, [], [1, 2, 3])) == first and runs["text"] == 1
    generator.encoders.forget()
    assert generator.savings.kept_bytes == 0
    assert _bytes(generator.sample(PROMPTS, [], [1, 2, 3])) == first and runs["text"] == 3


def test_parked_encoders_make_the_same_pictures(recipe: Callable[..., FlowGenerator]) -> None:
    """On a CPU parked and not are the same place; that weights leave a GPU is accelerate's own hook, whose use is seen here."""
    usual, parked = recipe("kontext"), recipe("kontext", park_encoders=True)
    assert parked.savings == EncoderSavings()
    for _ in range(2):  # every epoch
        parked.load("cpu")
        assert parked.encoders is not None
        assert all(hasattr(part, "_hf_hook") for part in parked.encoders.parts)
        assert not hasattr(parked.denoiser, "_hf_hook")
        request = (PROMPTS, SOURCES[:1], [1, 2, 3])
        assert _bytes(parked.sample(*request)) == _bytes(usual.sample(*request))
    parts = [parked.pipe.vae, parked.pipe.text_encoder, parked.pipe.text_encoder_2]
    assert parked.savings.parked_bytes == sum(t.nbytes for part in parts for t in [*part.parameters(), *part.buffers()])
    runs = _count(parked)
    parked.sample(PROMPTS, SOURCES[:1], [4, 5, 6])
    assert runs == {"text": 0, "image": 0}
    parked.encoders.unpark()
    assert not any(hasattr(part, "_hf_hook") for part in parts) and parked.savings.parked_bytes == 0


# -- what an encoder may do --------------------------------------------------------------------------------------------


def _memory(encoder: nn.Module) -> EncoderMemory:
    return EncoderMemory(SimpleNamespace(components={"text_encoder": encoder.eval()}), max_bytes=2**30)


@pytest.fixture(scope="module")
def language_model() -> Qwen3ForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_text_encoder(build_tokenizer()).eval()


IDS = torch.tensor([[5, 6, 7, 8], [9, 9, 7, 8]])


@torch.no_grad()
def test_only_what_is_read_is_kept_and_the_rest_is_made_when_asked_for(language_model: Qwen3ForCausalLM) -> None:
    memory = _memory(language_model)
    expected = language_model(input_ids=IDS, output_hidden_states=True)
    with memory.active():
        answer = language_model(input_ids=IDS, output_hidden_states=True)
        assert len(answer.hidden_states) == len(expected.hidden_states) == 4
        assert torch.allclose(answer.hidden_states[-2], expected.hidden_states[2], atol=1e-5)  # one row at a time
    assert memory.savings.kept_bytes == expected.hidden_states[2].nbytes
    runs = memory.savings.text_runs
    with memory.active():
        answer = language_model(input_ids=IDS, output_hidden_states=True)
        again = answer.hidden_states[2]
        assert memory.savings.text_runs == runs
        assert torch.allclose(answer["logits"], expected.logits, atol=1e-5) and torch.equal(answer[0], answer.logits)
        assert memory.savings.text_runs == runs + 2  # for the logits, which nobody had read
        layers = answer.hidden_states[1:]
        assert isinstance(layers, tuple) and torch.equal(layers[1], again)
        assert answer.attentions is None
        with pytest.raises(TypeError, match="no tensor and was not remembered; set encoder_cache_gib: 0"):
            _ = answer.past_key_values


@torch.no_grad()
def test_other_arguments_are_another_question(language_model: Qwen3ForCausalLM) -> None:
    memory = _memory(language_model)
    mask = torch.tensor([[1, 1, 1, 0]])
    with memory.active():
        plain = language_model(IDS[:1]).logits
        masked = language_model(IDS[:1], attention_mask=mask).logits
        by_name = language_model(input_ids=IDS[:1]).logits
        longer = language_model(torch.cat([IDS[:1], IDS[:1]], dim=1)).logits
    assert torch.equal(plain, by_name) and memory.savings.text_reused == 1 and memory.savings.text_runs == 3
    assert longer.shape[1] == 8
    assert torch.equal(masked, language_model(IDS[:1], attention_mask=mask).logits)


def test_writing_text_training_and_gradients_are_left_alone(language_model: Qwen3ForCausalLM) -> None:
    memory = _memory(language_model)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = language_model.generate(IDS, **options)
    with memory.active():
        assert torch.equal(language_model.generate(IDS, **options), expected)
        assert language_model(IDS).logits.requires_grad
        with torch.no_grad():
            language_model.train()
            language_model(IDS)
            language_model.eval()
    assert memory.savings == EncoderSavings()


class Crowd(nn.Module):
    """An encoder that looks at its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        seen = self.embedding(ids)
        return seen + len(ids) * seen.mean(dim=0, keepdim=True)


@torch.no_grad()
def test_an_encoder_that_looks_at_its_neighbours_is_remembered_batch_by_batch() -> None:
    encoder = Crowd()
    memory = _memory(encoder)
    expected, other = encoder(IDS), encoder(IDS.flip(0))
    with memory.active():
        assert torch.equal(encoder(IDS), expected) and torch.equal(encoder(IDS), expected)
        assert torch.equal(encoder(IDS.flip(0)), other)
    assert memory.savings.text_reused == 1


@torch.no_grad()
def test_copies_of_one_prompt_are_no_proof_for_other_batches() -> None:
    class Shy(Crowd):
        """Looks at neighbours that differ."""

        def forward(self, ids: Tensor) -> Tensor:
            seen = self.embedding(ids)
            return seen + (seen - seen.mean(dim=0, keepdim=True))

    encoder = Shy()
    memory = _memory(encoder)
    copies = IDS[:1].repeat(3, 1)
    with memory.active():
        assert torch.allclose(encoder(copies), encoder.embedding(copies), atol=1e-6)
        assert memory.savings.text_runs == 4  # the copies, and before: a prompt and one that differs, together and alone
        kept = encoder(IDS)
    assert torch.equal(kept, encoder(IDS))


@torch.no_grad()
def test_what_a_pipeline_does_to_an_answer_does_not_change_the_memory(recipe: Callable[..., FlowGenerator]) -> None:
    generator = recipe("kontext")
    memory, ids, picture = generator.encoders, torch.tensor([[0, 5, 6, 1]]), torch.zeros(1, 3, 16, 16)
    assert memory is not None
    with memory.active():
        text, image = generator.pipe.text_encoder(ids).last_hidden_state, generator.pipe.vae.encode(picture).latent_dist.mean
        before = text.clone(), image.clone()
        text.zero_(), image.zero_()
        again = generator.pipe.text_encoder(ids).last_hidden_state, generator.pipe.vae.encode(picture).latent_dist.mean
    assert memory.savings.text_reused == memory.savings.image_reused == 1
    assert torch.equal(again[0], before[0]) and torch.equal(again[1], before[1])
