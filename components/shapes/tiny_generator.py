"""The embedded base generator of the shapes world: a tiny, real ``diffusers.Flux2KleinPipeline``.

One pipeline draws from a request (text-to-image) and changes a source picture (editing). Every part is of the class
that the full-size model uses, only small: ``AutoencoderKLFlux2``, ``Qwen3ForCausalLM`` with a byte-level
``Qwen2Tokenizer``, ``Flux2Transformer2DModel`` and ``FlowMatchEulerDiscreteScheduler``. ``pretrain_generator`` trains
it on the samples that this module draws; the result ships as ``GENERATOR_FOLDER``.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from .drawing import DAMAGES, SIZE, damage, draw, random_shifts
from .scenes import COLOURS, LETTERS, PLACES, SHAPES, Letter, Scene, Shape, Style, Thing, random_edit, random_scene

GENERATOR_FOLDER = Path(__file__).parent / "checkpoints" / "generator"
"""The shipped checkpoint, in diffusers layout."""

SOURCE_SIZE = 64
"""Side in pixels of a source picture for editing: ``Flux2KleinPipeline`` refuses anything smaller."""

PIPELINE_KWARGS: dict[str, Any] = {
    "height": SIZE,
    "width": SIZE,
    "guidance_scale": 1.0,
    "max_sequence_length": 40,
    "text_encoder_out_layers": (1, 2, 3),
}
"""Arguments for every call of the pipeline; the model was trained with exactly these (guidance 1 is no guidance)."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
# Qwen's own pre-tokenisation: words with their leading space, single digits, runs of punctuation.
_PRETOKENIZE = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}).backend_tokenizer.pre_tokenizer

LATENT_CHANNELS = 12
_WIDTH = 96
_TEXT_WIDTH = 48


def upscale_source(image: Image.Image) -> Image.Image:
    """A picture of the shapes world as the pipeline takes it for editing: 64 x 64, nearest neighbour."""
    return image.convert("RGB").resize((SOURCE_SIZE, SOURCE_SIZE), Image.Resampling.NEAREST)


def build_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer of the Qwen2 kind: 256 bytes, merges of the requests' words, three special tokens.

    Every text can be encoded (unknown words fall back to bytes); the words of requests and edits are one token each.
    """
    rng = random.Random(0)
    texts: list[str] = []
    for _ in range(3000):
        scene = random_scene(rng)
        edit = random_edit(scene, rng)
        texts += [scene.request("terse"), scene.request("detailed"), edit.request("terse"), edit.request("detailed")]
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = _PRETOKENIZE
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=2,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    vocab = learner.get_vocab()
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def build_vae() -> AutoencoderKLFlux2:
    """A VAE of three levels without attention: 4 x 4 pixels a latent, 2 x 2 latents a token of the pipeline."""
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 24, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def build_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3ForCausalLM:
    """A text encoder of three Qwen3 layers."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=2 * _TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def build_transformer() -> Flux2Transformer2DModel:
    """The denoiser: two double-stream and three single-stream blocks, about a million parameters."""
    return Flux2Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=24,
        num_attention_heads=_WIDTH // 24,
        joint_attention_dim=len(PIPELINE_KWARGS["text_encoder_out_layers"]) * _TEXT_WIDTH,
        timestep_guidance_channels=64,
        mlp_ratio=2.75,
        axes_dims_rope=(4, 8, 8, 4),
        # positions run to 8 here, not to 128: a smaller base keeps every rotary frequency in use
        rope_theta=100,
        guidance_embeds=False,
    )


def build_scheduler(shift: float = 2.0) -> FlowMatchEulerDiscreteScheduler:
    """Euler steps of flow matching at a fixed shift.

    The pipeline's own, resolution-dependent shift is fitted to pictures of 256 tokens and more; at 16 tokens and 8
    steps it would jump from a noise level of 0.49 straight to the picture.
    """
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift, use_dynamic_shifting=False)


def build_generator(seed: int = 0) -> Flux2KleinPipeline:
    """The untrained pipeline; its weights are a function of ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        pipeline = Flux2KleinPipeline(
            scheduler=build_scheduler(),
            vae=build_vae(),
            text_encoder=build_text_encoder(tokenizer),
            tokenizer=tokenizer,
            transformer=build_transformer(),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_generator(folder: str | Path = GENERATOR_FOLDER) -> Flux2KleinPipeline:
    """The pretrained pipeline, in float32 on the CPU, with its progress bar off."""
    pipeline = Flux2KleinPipeline.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class Sample:
    """One pretraining sample.

    Attributes:
        request: The caption or instruction.
        style: How it is worded.
        target: The 32 x 32 picture to learn.
        source: The 64 x 64 picture that an edit starts from; ``None`` for text-to-image.
        asked: The scene that the words describe (for an edit: its perfect result). ``target`` may show another one.
    """

    request: str
    style: Style
    target: Image.Image
    source: Image.Image | None
    asked: Scene


WRONG_CAPTION = {"terse": 0.8, "detailed": 0.4}
"""How often the picture of a text-to-image sample differs from its caption in one attribute."""
WRONG_EDIT = {"terse": 0.5, "detailed": 0.2}
"""How often the target of an edit differs from its instruction in one attribute."""
DAMAGED = {"terse": 0.25, "detailed": 0.03}
"""How often the target is damaged, with strength 0.2 to 0.6."""


def disturb(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one attribute of one thing wrong: its colour, kind or letter, or the thing moved or missing."""
    place, thing = rng.choice(scene.occupied())
    free = [empty for empty in PLACES if scene.at(empty) is None]
    ways = ["colour", "kind"] if isinstance(thing, Shape) else ["letter", "letter"]
    ways += ["missing"] if len(scene.occupied()) > 1 else []
    ways += ["moved"] if free else []
    way = rng.choice(ways)
    if way == "missing":
        return scene.put(place, None)
    if way == "moved":
        return scene.put(place, None).put(rng.choice(free), thing)
    changed: Thing
    if isinstance(thing, Letter):
        changed = Letter(rng.choice([char for char in LETTERS if char != thing.char]))
    else:
        assert isinstance(thing, Shape)
        if way == "colour":
            changed = replace(thing, colour=rng.choice([c for c in COLOURS if c != thing.colour]))
        else:
            changed = replace(thing, kind=rng.choice([s for s in SHAPES if s != thing.kind]))
    return scene.put(place, changed)


def draw_sample(rng: random.Random, edit: bool) -> Sample:
    """A fresh pretraining sample; half of the requests are terse."""
    style: Style = "terse" if rng.random() < 0.5 else "detailed"
    scene, shifts, source = random_scene(rng), random_shifts(rng), None
    if edit:
        source = draw(scene, shifts)
        if rng.random() < 0.1:  # refinement edits what the generator drew, which is not always clean
            source = damage(source, rng.choice(DAMAGES), rng.uniform(0.0, 0.3), rng)
        change = random_edit(scene, rng)
        request, asked = change.request(style), change.apply(scene)
        wrong = WRONG_EDIT[style]
    else:
        request, asked = scene.request(style), scene
        wrong = WRONG_CAPTION[style]
    shown = disturb(asked, rng) if rng.random() < wrong else asked
    target = draw(shown, shifts)
    if rng.random() < DAMAGED[style]:
        target = damage(target, rng.choice(DAMAGES), rng.uniform(0.2, 0.6), rng)
    return Sample(request, style, target, None if source is None else upscale_source(source), asked)
