"""Pictures for a log, drawn with Pillow: contact sheets and histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_GROUND, _INK, _QUIET, _LINE, _BAR = (255, 255, 255), (27, 31, 36), (87, 96, 106), (221, 225, 230), (11, 98, 196)
_GAP = 8


@dataclass
class Row:
    """One row of a contact sheet: a heading, and pictures with a caption each."""

    title: str
    images: Sequence[Image.Image]
    captions: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.captions):
            raise ValueError(f"{len(self.images)} pictures but {len(self.captions)} captions in row {self.title!r}")


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[: -max(1, len(text) // 20)]
    return text + "…"


def contact_sheet(rows: Sequence[Row], side: int = 96) -> Image.Image:
    """Rows of pictures under their headings.

    Args:
        rows: What to draw; texts that do not fit are cut with an ellipsis.
        side: Side of a tile in pixels. Small pictures are enlarged by whole factors, large ones reduced.
    """
    title, small = ImageFont.load_default(13), ImageFont.load_default(11)
    columns = max((len(row.images) for row in rows), default=1)
    width = max(360, columns * (side + _GAP) + _GAP)
    height = 24 + side + 20
    sheet = Image.new("RGB", (width, max(1, len(rows)) * height + _GAP), _GROUND)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * height + _GAP
        draw.text((_GAP, top), _shortened(row.title, title, width - 2 * _GAP), fill=_INK, font=title)
        for column, (image, caption) in enumerate(zip(row.images, row.captions, strict=True)):
            left = _GAP + column * (side + _GAP)
            factor = side / max(image.size)
            # a whole factor keeps every pixel of a small picture the same size
            factor = math.floor(factor) if factor >= 1 else factor
            size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
            tile = image.convert("RGB").resize(size, how)
            sheet.paste(tile, (left + (side - size[0]) // 2, top + 20 + (side - size[1]) // 2))
            text = _shortened(caption, small, side)
            draw.text((left + (side - small.getlength(text)) / 2, top + 20 + side + 2), text, fill=_QUIET, font=small)
    return sheet


def histogram(values: Sequence[float], title: str, bounds: tuple[float, float] | None = None, bins: int = 20) -> Image.Image:
    """How often which values occur.

    Args:
        values: Finite numbers; others are left out, so say in the title how many there were.
        title: Heading.
        bounds: Range of the x axis; it grows to hold every value. Without it, the range of the values.
        bins: Number of bars.
    """
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    kept = [float(value) for value in values if math.isfinite(value)]
    low, high = min([*kept, *(bounds or ())], default=0.0), max([*kept, *(bounds or ())], default=1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = [0] * bins
    for value in kept:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    most = max(1, *counts)
    width, height, left, top, bottom = 480, 260, 44, 40, 220
    image = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(image)
    draw.text((_GAP, _GAP), _shortened(title, font, width - 2 * _GAP), fill=_INK, font=font)
    each = (width - left - 16) / bins
    for share in (0.5, 1.0):
        y = bottom - share * (bottom - top)
        draw.line((left, y, width - 16, y), fill=_LINE)
        draw.text((left - 6, y), f"{share * most:g}", fill=_QUIET, font=small, anchor="rm")
    for index, count in enumerate(counts):
        if count:
            x = left + index * each
            draw.rectangle((x + 1, bottom - count / most * (bottom - top), x + each - 1, bottom), fill=_BAR)
    draw.line((left, bottom, width - 16, bottom), fill=_QUIET)
    for share in (0.0, 0.5, 1.0):
        text = f"{low + share * (high - low):.3g}"
        draw.text((left + share * (width - 16 - left), bottom + 6), text, fill=_QUIET, font=small, anchor="mt")
    return image
