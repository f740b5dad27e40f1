"""Drawing scenes of the shapes world, and damaging the drawings in known ways."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .scenes import COLOURS, Letter, Scene, Shape, Thing

SIZE = 32
"""Side of a picture in pixels."""
CELL = SIZE // 2
"""Side of one place of the board in pixels."""
BACKGROUND = (236, 236, 230)
INK = (20, 20, 20)
_SCALE = 8

# Strokes of the letters in a 10 x 12 box, as polylines: drawn by us, so that no font has to be installed.
_STROKES: dict[str, tuple[tuple[tuple[int, int], ...], ...]] = {
    "A": (((0, 12), (5, 0), (10, 12)), ((2, 8), (8, 8))),
    "H": (((0, 0), (0, 12)), ((10, 0), (10, 12)), ((0, 6), (10, 6))),
    "L": (((0, 0), (0, 12), (10, 12)),),
    "T": (((0, 0), (10, 0)), ((5, 0), (5, 12))),
}

Shift = tuple[int, int]


@lru_cache(maxsize=4096)
def _cell(thing: Thing, shift: Shift) -> np.ndarray:
    """One drawn place, ``float32 [CELL, CELL, 3]`` in 0...1, anti-aliased by supersampling."""
    canvas = Image.new("RGB", (CELL * _SCALE, CELL * _SCALE), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    cx, cy = CELL / 2 + shift[0], CELL / 2 + shift[1]

    def points(offsets: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [((cx + dx) * _SCALE, (cy + dy) * _SCALE) for dx, dy in offsets]

    if isinstance(thing, Shape):
        colour = COLOURS[thing.colour]
        if thing.kind == "circle":
            draw.ellipse([*points([(-5.5, -5.5)])[0], *points([(5.5, 5.5)])[0]], fill=colour)
        elif thing.kind == "square":
            draw.rectangle([*points([(-5, -5)])[0], *points([(5, 5)])[0]], fill=colour)
        elif thing.kind == "triangle":
            draw.polygon(points([(0, -6), (6, 5), (-6, 5)]), fill=colour)
        else:
            draw.rectangle([*points([(-6, -2)])[0], *points([(6, 2)])[0]], fill=colour)
            draw.rectangle([*points([(-2, -6)])[0], *points([(2, 6)])[0]], fill=colour)
    elif isinstance(thing, Letter):
        for line in _STROKES[thing.char]:
            draw.line(points([(x - 5, y - 6) for x, y in line]), fill=INK, width=2 * _SCALE, joint="curve")
    small = canvas.resize((CELL, CELL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255.0


def draw_cell(thing: Thing, shift: Shift = (0, 0)) -> np.ndarray:
    """One place of the board, ``float32 [16, 16, 3]`` in 0...1, moved by ``shift`` pixels (x, y)."""
    return _cell(thing, shift).copy()


def random_shifts(rng: random.Random) -> tuple[Shift, ...]:
    """A shift of at most one pixel in x and y for every place."""
    return tuple((rng.randint(-1, 1), rng.randint(-1, 1)) for _ in range(4))


def draw(scene: Scene, shifts: Sequence[Shift] | None = None) -> Image.Image:
    """Draw a scene as a 32 x 32 RGB picture; ``shifts`` moves the things by whole pixels."""
    shifts = shifts or ((0, 0),) * 4
    board = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    for index, (thing, shift) in enumerate(zip(scene.things, shifts, strict=True)):
        row, column = divmod(index, 2)
        board[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = _cell(thing, shift)
    return to_image(board)


def to_image(pixels: np.ndarray) -> Image.Image:
    """``float [H, W, 3]`` in 0...1 to an RGB picture (values outside are clipped)."""
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))


def to_pixels(image: Image.Image) -> np.ndarray:
    """An RGB picture to ``float32 [H, W, 3]`` in 0...1."""
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0


DAMAGES = ("noise", "blur", "fade", "smear")


def damage(image: Image.Image, kind: str, strength: float, rng: random.Random) -> Image.Image:
    """Damage a picture.

    Args:
        image: Any RGB picture.
        kind: One of ``DAMAGES``: pixel noise, Gaussian blur, lost contrast, rows moved sideways.
        strength: 0 (nothing) to 1 (severe).
        rng: Source of randomness.
    """
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(1.3 * strength))
    pixels = to_pixels(image)
    if kind == "noise":
        noise = np.random.default_rng(rng.getrandbits(32)).normal(size=pixels.shape).astype(np.float32)
        pixels = pixels + 0.3 * strength * noise
    elif kind == "fade":
        pixels = pixels + 0.6 * strength * (pixels.mean(axis=(0, 1), keepdims=True) - pixels)
    elif kind == "smear":
        top = rng.randrange(SIZE // 2)
        rows = slice(top, top + SIZE // 2)
        pixels[rows] = np.roll(pixels[rows], round(4 * strength) * rng.choice((-1, 1)), axis=1)
    else:
        raise ValueError(f"unknown damage {kind!r}; known: {', '.join(DAMAGES)}")
    return to_image(pixels)
