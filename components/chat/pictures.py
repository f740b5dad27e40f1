"""Pictures as servers take them."""

from __future__ import annotations

import base64
import io
import math
import threading

from PIL import Image

_loading = threading.Lock()


def within(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """A picture brought down to at most ``max_pixels``; itself if it is no larger.

    Both sides are scaled by the same factor and rounded down, never below 1: the aspect is kept to less than a pixel, unless it is
    a strip that would be thinner than one.
    """
    width, height = image.size
    if max_pixels is None or width * height <= max_pixels:
        return image
    factor = math.sqrt(max_pixels / (width * height))
    narrow = max(1, min(math.floor(width * factor), max_pixels))
    low = max(1, min(math.floor(height * factor), max_pixels // narrow))
    _load(image)
    # RGB: a picture with a palette cannot be interpolated
    return image.convert("RGB").resize((narrow, low), Image.Resampling.BICUBIC)


def data_url(image: Image.Image) -> str:
    """A picture as a PNG in a URL, pixel for pixel."""
    _load(image)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _load(image: Image.Image) -> None:
    """Read a picture's file, if that is still to be done: one thread at a time, as a picture may stand in several requests."""
    with _loading:
        image.load()
