"""What the embedded base VLM is pretrained on: captions of freshly drawn pictures, and requests said in other words.

The base knows how to *see* the shapes world and how to read its requests, and nothing else (whole pictures, single places,
picture k of several, how clean they are, what differs between two pictures). No request is ever compared with
a picture here and nothing is ever scored, so distillation has to teach judging, as it must with Qwen3-VL-8B-Instruct
(``docs/architecture.md``, the shapes world).

Captions follow the ground-truth judge's reading of the pixels, not the scene that was drawn: a picture damaged beyond
recognition is captioned as what it now looks like, and so is a generator's half-finished one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from rationalrewards.components.shapes.drawing import CELL, DAMAGES, SIZE, damage, draw, draw_cell, random_shifts, to_image
from rationalrewards.components.shapes.judge import Reading, quality, read
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
    compare,
    describe,
    describe_quality,
    describe_scene,
    random_edit,
    random_scene,
    random_shape,
)
from rationalrewards.components.shapes.tiny_critic import IMAGE_PAD, TURN_END, TURN_START, VISION_END, VISION_START
from transformers import Qwen2Tokenizer


def caption(reading: Reading) -> str:
    """A whole picture in words, e.g. ``"top left red circle ; top right nothing ; ... ; sharp"``."""
    return f"{describe_scene(reading.scene)} ; {describe_quality(reading.quality)}"


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


def picture(scene: Scene, rng: random.Random) -> Image.Image:
    """Show a scene: clean (25 %), damaged in a known way (25 %) or in-between (50 %)."""
    roll = rng.random()
    if roll >= 0.5:
        return in_between(scene, rng)
    image = draw(scene, random_shifts(rng))
    return image if roll < 0.25 else damage(image, rng.choice(DAMAGES), rng.random(), rng)


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


def _turn(seen: Sequence[Reading], rng: random.Random) -> tuple[str, str]:
    """A random instruction about one of the pictures (or all), and its answer."""
    count = len(seen)
    index = rng.randrange(count)
    reading, name, roll = seen[index], rng.choice(_names(index, count)), rng.random()
    if roll < 0.12:
        return rng.choice((f"how clean is {name}", f"how sharp is {name}")), describe_quality(reading.quality)
    if roll < 0.32:  # four words about quality for the price of one picture
        words = [f"{place} {describe_quality(quality(rmse))}" for place, rmse in zip(PLACES, reading.rmse_at, strict=True)]
        return f"how clean is each place of {name}", " ; ".join([*words, describe_quality(reading.quality)])
    if count > 1 and roll < 0.72:
        return _comparison_turn(seen, rng)
    if count == 2 and roll < 0.77:
        answers = [f"picture {k + 1} : {caption(one)}" for k, one in enumerate(seen)]
        return rng.choice(("describe all pictures", "describe both pictures")), "\n".join(answers)
    if roll < (0.82 if count == 1 else 0.9):
        asks: tuple[str, ...] = (f"describe {name}", f"what is in {name}", f"what does {name} show")
        return rng.choice(asks), caption(reading)
    place = rng.choice(PLACES)
    asks = (f"describe the {place} of {name}", f"what is at the {place} of {name}", f"{place} of {name}")
    ask = rng.choice(asks if count > 1 else (*asks, f"what is at the {place}", f"describe the {place}"))
    return ask, f"{place} {describe(reading.scene.at(place))}"


def compared(first: Scene, second: Scene) -> str:
    """Two pictures place by place, e.g. ``"top left colour red red same ; top left shape circle square different ; ..."``."""
    return " ; ".join(part for place in PLACES for part in compare(place, first.at(place), second.at(place)))


def _comparison_turn(seen: Sequence[Reading], rng: random.Random) -> tuple[str, str]:
    """What differs between two pictures: each is described, and then both side by side."""
    first, second = rng.sample(range(len(seen)), 2)
    names = [rng.choice(_names(k, len(seen))) for k in (first, second)]
    told = [f"picture {k + 1} : {describe_scene(seen[k].scene)}" for k in (first, second)]
    return f"compare {names[0]} and {names[1]}", "\n".join([*told, compared(seen[first].scene, seen[second].scene)])


def _reading_turn(seen: Sequence[Reading], rng: random.Random) -> tuple[str, str]:
    """An instruction to say a request in other words; a picture plays a part only as what an edit starts from.

    A large model can read. This one has to be taught that words in its context can be told again, or distillation would
    spend its steps on that (measured: after 600 steps every second critique named another request than the one it was
    given). Whether a picture follows a request is never asked.
    """
    roll = rng.random()
    style: Style = rng.choice(("terse", "detailed"))
    if roll < 0.3:
        index = rng.randrange(len(seen))
        edit = random_edit(seen[index].scene, rng)
        request, name = _quoted(edit.request(style)), rng.choice(_names(index, len(seen)))
        if roll < 0.15:
            return (
                f"{request} say the change of {name}",
                f"{edit.place} {describe(edit.before)} ; {edit.place} {describe(edit.after)}",
            )
        return f"{request} say all places of {name} after the change", describe_scene(edit.apply(seen[index].scene))
    scene = random_scene(rng, letter_rate=0.5)
    request = _quoted(scene.request(style))
    if roll < 0.65:
        return f"{request} say the request place by place", describe_scene(scene)
    if roll < 0.75:
        place = rng.choice(PLACES)
        return f"{request} what does the request say of the {place}", f"{place} {describe(scene.at(place))}"
    other: Style = rng.choice(("terse", "detailed", "detailed"))
    return f"{request} say the request {other}", scene.request(other)


def _quoted(request: str) -> str:
    return f"<request>{request}</request>"


def caption_rows(
    count: int, rng: random.Random, pictures: Sequence[int] = (1, 1, 1, 2, 2, 3), reading: float = 0.3
) -> list[CaptionRow]:
    """Freshly drawn training rows.

    Args:
        count: How many rows.
        rng: Source of all randomness.
        pictures: Numbers of pictures per row to draw from.
        reading: Share of turns that ask to say a request in other words.
    """
    drawn: list[list[Image.Image]] = []
    for _ in range(count):
        scenes = [any_scene(rng)]
        for _ in range(rng.choice(pictures) - 1):
            # often nearly the same scene, so that the right picture has to be read
            similar = rng.random() < 0.5
            scenes.append(random_edit(scenes[0], rng).apply(scenes[0]) if similar else any_scene(rng))
        drawn.append([picture(scene, rng) for scene in scenes])
    readings = iter(read([image for row in drawn for image in row]))
    rows = []
    for images in drawn:
        seen = [next(readings) for _ in images]
        turns = [
            _reading_turn(seen, rng) if rng.random() < reading else _turn(seen, rng)
            for _ in range(2 if rng.random() < 0.6 / len(seen) else 1)
        ]
        rows.append(CaptionRow(tuple(images), _labels(len(images), rng), tuple(turns)))
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
