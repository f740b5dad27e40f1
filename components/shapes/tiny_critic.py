"""The embedded base VLM: a tiny, real ``Qwen3VLForConditionalGeneration`` folder, and the captions it is pretrained on.

The base knows how to *see* the shapes world, and nothing else: its training rows are captions of freshly drawn pictures
(whole pictures, single places, picture k of several, how clean they are). No request is ever compared with a picture
here, so distillation has to teach judging, as it must with Qwen3-VL-8B-Instruct (``house.md``).

Captions follow the ground-truth judge's reading of the pixels, not the scene that was drawn: a picture damaged beyond
recognition is captioned as what it now looks like, and so is a generator's half-finished one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rationalrewards.components.shapes.drawing import (
    CELL,
    DAMAGES,
    SIZE,
    damage,
    draw,
    draw_cell,
    random_shifts,
    to_image,
)
from rationalrewards.components.shapes.judge import Reading, read
from rationalrewards.components.shapes.scenes import (
    COLOURS,
    LETTERS,
    PLACES,
    SHAPES,
    Letter,
    Scene,
    Shape,
    Style,
    Thing,
    describe,
    random_edit,
    random_scene,
    random_shape,
)
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
"""Headings of the critique format (``paper.md`` 1.8), one token each; the base never sees them."""

_WORDS = """
asked seen right wrong half missing extra nothing kept changed done not letter no yes picture first second third
source edited result A B tie better worse clean sharp slightly badly noisy blurred faded smeared damaged edges
colour shape place score judge judgement request instruction aspect each against written absent redraw must be show
keep exactly fix all well as mostly partly is are at to from of in on it and or with more less both equal winner
verdict overall summary preferred Image describe what does how the a rest turn remove add write into top bottom left
right list things pictures last
"""
# Words that open a turn or follow a new line, and so need a token without the leading space too.
_OPENERS = """
user assistant system top bottom left right red green blue yellow purple letter nothing picture describe what how list
asked seen wrong sharp slightly partly mostly badly yes no turn remove add write a the source edited tie
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
        yield caption(Reading(scene, 0.0), "noisy")


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


# ---------------------------------------------------------------------------------- captions

ADJECTIVES = {"noise": "noisy", "blur": "blurred", "fade": "faded", "smear": "smeared"}
_GRADES = ((3.7, ""), (3.1, "slightly"), (2.4, "partly"), (1.7, "mostly"), (-1.0, "badly"))


def grade(reading: Reading, adjective: str = "damaged") -> str:
    """How clean a picture is, in words: ``"sharp"``, or slightly / partly / mostly / badly ``adjective``.

    The steps are at 3.7, 3.1, 2.4 and 1.7 of the judge's quality (1 to 4).
    """
    adverb = next(word for bound, word in _GRADES if reading.quality >= bound)
    return f"{adverb} {adjective}" if adverb else "sharp"


def caption(reading: Reading, adjective: str = "damaged") -> str:
    """A whole picture in words, e.g. ``"top left red circle ; top right nothing ; ... ; sharp"``."""
    things = [f"{place} {describe(thing)}" for place, thing in zip(PLACES, reading.scene.things, strict=True)]
    return " ; ".join([*things, grade(reading, adjective)])


def parse_caption(text: str) -> tuple[dict[str, str], str]:
    """Read a caption back.

    Returns:
        What is said of each place that is named (as ``describe`` words it), and the words about quality ("" if none).
    """
    seen, quality = {}, ""
    for part in text.split(";"):
        part = part.strip()
        place = next((name for name in PLACES if part.startswith(name + " ")), None)
        if place is not None:
            seen[place] = part[len(place) + 1 :]
        elif part:
            quality = part
    return seen, quality


@dataclass(frozen=True)
class Shot:
    """A picture, the judge's reading of it, and the adjective for its flaws."""

    image: Image.Image
    reading: Reading
    adjective: str


@dataclass(frozen=True)
class CaptionRow:
    """One training row: pictures (each with the words before it, or "") and then turns of (instruction, caption)."""

    images: tuple[Image.Image, ...]
    labels: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]

    def messages(self) -> list[dict[str, Any]]:
        """The row as chat messages, the way any user of the processor writes them."""
        content: list[dict[str, Any]] = []
        for image, label in zip(self.images, self.labels, strict=True):
            content += [{"type": "text", "text": label}] if label else []
            content.append({"type": "image", "image": image})
        messages: list[dict[str, Any]] = []
        for instruction, answer in self.turns:
            content.append({"type": "text", "text": instruction})
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            content = []
        return messages


def _any_thing(rng: random.Random) -> Thing:
    roll = rng.random()
    return None if roll < 0.2 else Letter(rng.choice(LETTERS)) if roll < 0.4 else random_shape(rng)


def any_scene(rng: random.Random) -> Scene:
    """A scene for captions: mostly as requests have them, at times any thing at any place."""
    if rng.random() < 0.6:
        return random_scene(rng)
    return Scene(tuple(_any_thing(rng) for _ in range(4)))  # type: ignore[arg-type]


def _blob(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise ``[32, 32, 3]`` of unit variance before smoothing: what a half-trained generator leaves behind."""
    coarse = rng.normal(size=(3, cells, cells)).astype(np.float32)
    planes = [np.asarray(Image.fromarray(plane).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for plane in coarse]
    return np.stack(planes, axis=-1)


def in_between(scene: Scene, rng: random.Random) -> Image.Image:
    """A picture between clean drawings, like a generator's: things blended, cut, off in colour, soft or blotchy."""
    noise = np.random.default_rng(rng.getrandbits(32))
    board = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    shifts = random_shifts(rng)
    for index, thing in enumerate(scene.things):
        cell = draw_cell(thing, shifts[index])
        roll = rng.random()
        if roll < 0.5:
            if isinstance(thing, Shape) and rng.random() < 0.7:  # a wrong colour or a wrong kind, seldom both
                change = rng.random()
                other: Thing = Shape(
                    thing.colour if change < 0.45 else rng.choice(tuple(COLOURS)),
                    thing.kind if change >= 0.55 else rng.choice(SHAPES),
                )
            else:
                other = _any_thing(rng)
            rival = draw_cell(other, random_shifts(rng)[0])
            share: float | np.ndarray = rng.betavariate(0.7, 1.6)
            if rng.random() < 0.3:  # one part from each
                share = np.zeros((CELL, CELL, 1), dtype=np.float32)
                cut = rng.randint(3, 13)
                if rng.random() < 0.5:
                    share[:cut] = 1.0
                else:
                    share[:, :cut] = 1.0
            cell = (1 - share) * cell + share * rival
        if rng.random() < 0.4:  # ink that is lighter, darker or tinted
            tint = noise.normal(0, 0.12, size=3).astype(np.float32)
            inked = np.abs(cell - draw_cell(None)).max(axis=-1, keepdims=True)
            cell = cell + np.clip(3 * inked, 0, 1) * tint
        row, column = divmod(index, 2)
        board[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = cell
    if rng.random() < 0.6:
        board += rng.uniform(0.0, 0.12) * _blob(noise, rng.choice((4, 8, 16)))
    if rng.random() < 0.3:
        board += rng.uniform(0.0, 0.08) * noise.normal(size=board.shape).astype(np.float32)
    image = to_image(board)
    if rng.random() < 0.5:
        image = damage(image, "blur", rng.uniform(0.2, 1.0), rng)
    return image


def photograph(scene: Scene, rng: random.Random) -> tuple[Image.Image, str]:
    """Show a scene: clean (35 %), damaged in a known way (30 %) or in-between (35 %).

    Returns:
        The picture, and the adjective for its flaws.
    """
    roll = rng.random()
    if roll < 0.65:
        image = draw(scene, random_shifts(rng))
        if roll < 0.35:
            return image, "damaged"
        kind = rng.choice(DAMAGES)
        return damage(image, kind, rng.random(), rng), ADJECTIVES[kind]
    return in_between(scene, rng), "damaged"


_ORDINALS = ("first", "second", "third")


def _names(index: int, count: int) -> list[str]:
    """All names of picture ``index`` among ``count``."""
    names = [f"picture {index + 1}", f"the picture {index + 1}", f"the {_ORDINALS[index]} picture"]
    if count == 1:
        names += ["the picture"] * 6
    elif index == 0:
        names += ["the source picture"]
    if count == 2:
        names += [("picture A", "picture B")[index]] + (["the edited picture"] if index == 1 else [])
    if count == 3 and index > 0:
        names += [("picture A", "picture B")[index - 1]]
    return names


def _labels(count: int, rng: random.Random) -> tuple[str, ...]:
    roll = rng.random()
    if roll < 0.6:
        return ("",) * count
    if roll < 0.8 or count == 1:
        return tuple(f"picture {index + 1} : " for index in range(count))
    if count == 3:
        return ("source : ", "picture A : ", "picture B : ")
    return ("source : ", "edited : ") if roll < 0.9 else ("picture A : ", "picture B : ")


def _turn(shots: Sequence[Shot], rng: random.Random, quality: float) -> tuple[str, str]:
    """A random instruction about one of the pictures (or all), and its answer."""
    count = len(shots)
    index = rng.randrange(count)
    if quality > 0 and rng.random() < quality:
        ask = rng.choice(("how clean is", "how sharp is")) + " " + rng.choice(_names(index, count))
        return ask, grade(shots[index].reading, shots[index].adjective)
    shot, name, roll = shots[index], rng.choice(_names(index, count)), rng.random()
    if count == 2 and roll < 0.12:
        answers = [f"picture {k + 1} : {caption(one.reading, one.adjective)}" for k, one in enumerate(shots)]
        all_asks = ("describe all pictures", "describe both pictures", "what is in each picture")
        return rng.choice(all_asks), "\n".join(answers)
    if roll < 0.55:
        asks: tuple[str, ...] = (f"describe {name}", f"what is in {name}", f"what does {name} show")
        return rng.choice(asks), caption(shot.reading, shot.adjective)
    if roll < 0.82:
        place = rng.choice(PLACES)
        asks = (
            f"describe the {place} of {name}",
            f"what is at the {place} of {name}",
            f"{place} of {name}",
            f"what is at the {place} in {name}",
        )
        ask = rng.choice(asks if count > 1 else (*asks, f"what is at the {place}", f"describe the {place}"))
        return ask, f"{place} {describe(shot.reading.scene.at(place))}"
    if roll < 0.92:
        asks3 = (f"list the things in {name}", f"list {name}")
        style = rng.choice(("terse", "detailed"))
        if style == "terse":
            answer = shot.reading.scene.request("terse")
        else:
            asks3 = (f"list the things in {name} with all places", f"list {name} well")
            answer = "; ".join(f"{thing} at the {place}" for place, thing in shot.reading.scene.occupied())
        return rng.choice(asks3), answer or "nothing"
    return rng.choice((f"how clean is {name}", f"how sharp is {name}")), grade(shot.reading, shot.adjective)


def _reading_turn(rng: random.Random) -> tuple[str, str]:
    """An instruction to say a request in other words; what the picture shows plays no part in the answer.

    A large model can read. This one has to be taught that words in its context can be told again, or distillation would
    spend its steps on that (measured: after 600 steps every second critique named another request than the one it was
    given).
    """
    scene = random_scene(rng, letter_rate=0.5)
    request = f"<request>{scene.request(rng.choice(('terse', 'detailed')))}</request>"
    roll = rng.random()
    if roll < 0.4:
        words = " ; ".join(f"{place} {thing}" for place, thing in scene.occupied())
        return f"{request} say the request place by place", words
    if roll < 0.55:
        letters = [f"{place} {thing}" for place, thing in scene.occupied() if isinstance(thing, Letter)]
        return f"{request} which letter is in the request", " ; ".join(letters) or "no letter"
    if roll < 0.7:
        place = rng.choice(PLACES)
        return f"{request} what does the request say of the {place}", f"{place} {describe(scene.at(place))}"
    if roll < 0.85:
        edit = random_edit(scene, rng)
        words = f"{edit.place} {describe(edit.before)} ; {edit.place} {describe(edit.after)}"
        shown = " ; ".join(f"{place} {thing}" for place, thing in scene.occupied())
        return f"{shown} <request>{edit.request(rng.choice(('terse', 'detailed')))}</request> say the change", words
    style: Style = rng.choice(("terse", "detailed"))
    return f"{request} say the request {style}", scene.request(style)


def caption_rows(
    count: int,
    rng: random.Random,
    pictures: Sequence[int] = (1, 1, 1, 2, 3),
    quality: float = 0.0,
    reading: float = 0.0,
) -> list[CaptionRow]:
    """Freshly drawn training rows.

    Args:
        count: How many rows.
        rng: Source of all randomness.
        pictures: Numbers of pictures per row to draw from.
        quality: Share of turns that only ask how clean a picture is, beyond the 8 % of them that do so anyway.
        reading: Share of turns that only ask to say a request in other words.
    """
    drawn: list[list[tuple[Image.Image, str]]] = []
    for _ in range(count):
        scenes = [any_scene(rng)]
        for _ in range(rng.choice(pictures) - 1):
            # often nearly the same scene, so that the right picture has to be read
            similar = rng.random() < 0.5
            scenes.append(random_edit(scenes[0], rng).apply(scenes[0]) if similar else any_scene(rng))
        drawn.append([photograph(scene, rng) for scene in scenes])
    readings = iter(read([image for row in drawn for image, _ in row]))
    rows = []
    for pairs in drawn:
        shots = [Shot(image, next(readings), adjective) for image, adjective in pairs]
        turns = [
            _reading_turn(rng) if reading > 0 and rng.random() < reading else _turn(shots, rng, quality)
            for _ in range(2 if rng.random() < 0.6 / len(shots) else 1)
        ]
        rows.append(CaptionRow(tuple(image for image, _ in pairs), _labels(len(shots), rng), tuple(turns)))
    return rows


# ---------------------------------------------------------------------------------- batches


def pixel_values(images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the image processor makes of 32 x 32 pictures, in one go: ``[64 n, 96]`` patches and grids ``[n, 3]``."""
    pixels = np.stack([np.asarray(image) for image in images])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    batch = (batch - 127.5) / 127.5
    side = SIZE // 8
    patches = batch.reshape(-1, 3, side, 2, 4, side, 2, 4).permute(0, 2, 5, 3, 6, 1, 4, 7)
    flat = patches.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(len(images) * 64, 96)
    return flat, torch.tensor([[1, 8, 8]] * len(images))


@lru_cache(maxsize=65536)
def _ids(tokenizer: Qwen2Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def caption_batch(rows: Sequence[CaptionRow], tokenizer: Qwen2Tokenizer) -> dict[str, torch.Tensor]:
    """Rows of 32 x 32 pictures as model inputs with ``labels``, padded on the right.

    Equal, token by token, to what the processor makes of ``row.messages()``, but without its per-call overhead. Only
    the assistant's words and the end of its turn carry a label.
    """
    picture = VISION_START + IMAGE_PAD * (SIZE // 8) ** 2 + VISION_END
    sequences: list[list[int]] = []
    targets: list[list[int]] = []
    for row in rows:
        ids: list[int] = []
        goal: list[int] = []
        opening = "".join(label + picture for label in row.labels)
        for instruction, answer in row.turns:
            # cut where the tokenizer cuts anyway: at special tokens and after a line break
            asked = _ids(tokenizer, f"{TURN_START}user\n{opening}")
            asked += _ids(tokenizer, f"{instruction}{TURN_END}\n{TURN_START}assistant\n")
            told = _ids(tokenizer, f"{answer}{TURN_END}")
            close = _ids(tokenizer, "\n")
            ids += [*asked, *told, *close]
            goal += [*(-100 for _ in asked), *told, *(-100 for _ in close)]
            opening = ""
        sequences.append(ids)
        targets.append(goal)
    width = max(map(len, sequences))
    pad = tokenizer.pad_token_id
    input_ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids in sequences])
    labels = torch.tensor([goal + [-100] * (width - len(goal)) for goal in targets])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences])
    pixels, grids = pixel_values([image for row in rows for image in row.images])
    image_token = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "mm_token_type_ids": (input_ids == image_token).long(),
        "pixel_values": pixels,
        "image_grid_thw": grids,
        "labels": labels,
    }
