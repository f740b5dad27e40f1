"""The embedded base VLM: how the tiny, real ``Qwen3VLForConditionalGeneration`` folder is built. ``captions`` has what it learns."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rationalrewards.components.shapes.drawing import SIZE
from rationalrewards.components.shapes.scenes import COLOURS, LETTERS, SHAPES, random_edit, random_scene
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

CRITIC_FOLDER = Path(__file__).parent / "checkpoints" / "critic"
"""The committed base VLM: a transformers folder, written by ``pretrain_critic``."""

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)

HEADING_TOKENS = (
    "# User Request Analysis:",
    "# Detailed Judgement:",
    "Text Faithfulness:",
    "Image Faithfulness:",
    "Physical and Visual Quality:",
    "Text Rendering:",
    "## Justification:",
    "## Score:",
    "## Score A:",
    "## Score B:",
    "## Winner:",
    "# Summary:",
    "# User Request Refinement:",
    "## Refinement Comments:",
    "## Refined Request:",
    "N/A",
)
"""Headings of the critique format (``components/critique/formats.py``), one token each; the base never sees them."""

_WORDS = """
asked seen right wrong half missing extra nothing kept changed after change say done not letter no yes picture first second third
source edited result A B tie better worse clean sharp slightly badly damaged edges
colour shape place score judge judgement request instruction aspect each against written absent redraw must be show
keep exactly fix all well as mostly partly is are at to from of in on it and or with more less both equal winner
verdict overall summary preferred Image describe what does how the a rest turn remove add write into top bottom left
right list things pictures last thing letters compare same different
"""
# Words that open a turn or follow a new line, and so need a token without the leading space too.
_OPENERS = """
user assistant system top bottom left right red green blue yellow purple letter nothing picture describe what how list
asked seen wrong sharp slightly partly mostly badly yes no turn remove add write a the source edited tie compare thing letters
"""

# As Qwen2's, which Qwen3-VL shares: single digits, a word takes one leading space.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# The part of Qwen3-VL's template that chats with pictures need; tools are left out.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for item in message.content %}
            {%- if item.type == 'image' or 'image' in item or 'image_url' in item %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif item.type == 'video' or 'video' in item %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in item %}
                {{- item.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


# ---------------------------------------------------------------------------------- building


def _corpus() -> Iterable[str]:
    """Lines to learn the merges from: every word often enough to become one token, then the language as it is used."""
    rng = random.Random(0)
    names = [*COLOURS, *SHAPES, *LETTERS]
    for word in dict.fromkeys([*_WORDS.split(), *names]):
        yield from [f"; {word}"] * 400
    for word in _OPENERS.split():
        yield from [word] * 400
    for _ in range(300):
        scene = random_scene(rng)
        edit = random_edit(scene, rng)
        yield from (scene.request("terse"), scene.request("detailed"), edit.request("terse"), edit.request("detailed"))
        yield " ; ".join(f"{place} {thing}" for place, thing in scene.occupied())


def build_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer with Qwen3-VL's special tokens and splitting rule.

    All 256 bytes, merges for the words of the shapes world (with and, where they open a line, without a leading space),
    the seven chat and vision tokens, and ``HEADING_TOKENS`` as plain added tokens. Deterministic.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    state = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        unk_token=END_OF_TEXT,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS], special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in HEADING_TOKENS])
    return tokenizer


def build_processor(*, patch_size: int, min_pixels: int, max_pixels: int) -> Qwen3VLProcessor:
    """A real Qwen3-VL processor around ``build_tokenizer``.

    Args:
        patch_size: Side of a vision patch in pixels; 2 x 2 patches make one image token.
        min_pixels: Smaller pictures are enlarged to at least this many pixels.
        max_pixels: Larger pictures are brought down to at most this many pixels.
    """
    shared: dict[str, Any] = {
        "patch_size": patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size), **shared),
        tokenizer=build_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(size=dict(size), **shared),
        chat_template=CHAT_TEMPLATE,
    )


def build_tiny_vlm(
    out_folder: str | Path,
    *,
    patch_size: int = 4,
    min_pixels: int = SIZE * SIZE,
    max_pixels: int = 4 * SIZE * SIZE,
    text_hidden: int = 96,
    text_layers: int = 4,
    text_intermediate: int = 256,
    vision_hidden: int = 64,
    vision_layers: int = 3,
    deepstack: Sequence[int] = (1,),
    seed: int = 0,
) -> Path:
    """Write a randomly initialised tiny Qwen3-VL as a transformers folder.

    The defaults are the geometry of the shapes world: a 32 x 32 picture is 8 x 8 patches and 16 image tokens.
    ``patch_size=16, min_pixels=65536, max_pixels=16777216`` is the processor geometry of Qwen3-VL-8B-Instruct, for
    tests on real photographs (a 512 x 384 photograph is then 192 image tokens, as it is there).

    Args:
        out_folder: Made if missing; what is in it is overwritten.
        patch_size: Side of a vision patch in pixels.
        min_pixels: See ``build_processor``.
        max_pixels: See ``build_processor``.
        text_hidden: Width of the language model, a multiple of 32 (the head size).
        text_layers: Layers of the language model.
        text_intermediate: Width of its feed-forward blocks.
        vision_hidden: Width of the vision tower, a multiple of 16 (the head size).
        vision_layers: Layers of the vision tower.
        deepstack: Vision layers whose features enter the first language layers, as indexes from 0.
        seed: Seed of the weights; the global random state is left as it was.

    Returns:
        ``out_folder`` as a path.
    """
    head = 32
    if text_hidden % head or vision_hidden % 16 or any(index >= vision_layers for index in deepstack):
        raise ValueError(
            f"text_hidden must be a multiple of {head}, vision_hidden of 16, and deepstack below vision_layers; "
            f"got {text_hidden}, {vision_hidden}, {tuple(deepstack)}"
        )
    processor = build_processor(patch_size=patch_size, min_pixels=min_pixels, max_pixels=max_pixels)
    tokenizer = processor.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": text_hidden,
            "intermediate_size": text_intermediate,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_hidden // head,
            "num_key_value_heads": text_hidden // head,
            "head_dim": head,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "pad_token_id": ids[END_OF_TEXT],
            "eos_token_id": ids[TURN_END],
            "bos_token_id": ids[END_OF_TEXT],
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_hidden,
            "intermediate_size": 4 * vision_hidden,
            "num_heads": vision_hidden // 16,
            "patch_size": patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": text_hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(deepstack),
        },
        image_token_id=ids[IMAGE_PAD],
        video_token_id=ids[VIDEO_PAD],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids[TURN_END]
    model.generation_config.pad_token_id = ids[END_OF_TEXT]
    model.generation_config.bos_token_id = ids[END_OF_TEXT]
    out = Path(out_folder)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def load_critic(folder: str | Path = CRITIC_FOLDER) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    """Load a tiny critic folder: the model in evaluation mode (fp32) and its processor.

    Raises:
        FileNotFoundError: If the folder holds no model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no critic in {folder}: run `python -m rationalrewards.components.shapes.pretrain_critic --out {folder}`"
        )
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)
