"""What keeps a pair from being shown to a teacher at all: pictures that cannot be used, and pairs that came before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageStat

from ..pictures import pixel_digest
from ..records import Preference, open_pictures
from .options import ScreenOptions


@dataclass(frozen=True)
class Pictures:
    """The pictures of a pair, read."""

    sources: tuple[Image.Image, ...]
    candidates: tuple[Image.Image, Image.Image]

    def digest(self, prompt: str) -> str:
        """32 hexadecimal digits over request and pixels; the order of the two candidates does not matter."""
        sources, candidates = ([pixel_digest(picture) for picture in pictures] for pictures in (self.sources, self.candidates))
        return hashlib.sha256("\0".join([prompt, *sources, *sorted(candidates)]).encode()).hexdigest()[:32]


def read_pair(pair: Preference) -> Pictures:
    """Read a pair's pictures.

    Raises:
        ValueError: If one cannot be read.
    """
    first, second = open_pictures(pair, pair.candidates)
    return Pictures(open_pictures(pair, pair.sources), (first, second))


def unusable(pictures: Pictures, options: ScreenOptions) -> str:
    """Why a pair's pictures cannot be used; empty if they can."""
    named = [("source", picture) for picture in pictures.sources] + list(zip("AB", pictures.candidates, strict=True))
    for name, picture in named:
        short, long = sorted(picture.size)
        if short < options.min_side:
            return f"picture too small: {name} has {picture.width} x {picture.height} pixels"
        if long > options.max_aspect * short:
            return f"picture too long: {name} has {picture.width} x {picture.height} pixels"
        if ImageStat.Stat(picture.convert("L")).stddev[0] < options.min_contrast:
            return f"picture is blank: {name}"
    if _same(pictures.candidates):
        return "same picture twice"
    return ""


def _same(pictures: Sequence[Image.Image]) -> bool:
    first, second = pictures
    return first.size == second.size and first.tobytes() == second.tobytes()
