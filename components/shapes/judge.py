"""The ground truth of the shapes world: read a picture, and score it against what was asked for.

The judge sees pixels only, so it also reads generated pictures. Per place it finds the nearest clean drawing over all things
and all shifts of up to one pixel; attributes come from that drawing, quality from the distance to it
(how often a person disagrees: ``docs/architecture.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image

from .drawing import CELL, SIZE, draw_cell, to_pixels
from .scenes import COLOURS, LETTERS, PLACES, SHAPES, Edit, Letter, Scene, Shape, Thing

CLEAN_RMSE, SEVERE_RMSE = 0.03, 0.17
"""Root mean squared distance (pixel values 0...1) to the nearest clean drawing that scores 4, and the one that scores 1."""


@dataclass(frozen=True)
class Reading:
    """What a picture shows, and its distance to the nearest clean drawing (RMS over pixel values 0...1).

    ``rmse_at`` has the distance of every place on its own, if known.
    """

    scene: Scene
    rmse: float
    rmse_at: tuple[float, ...] = field(default=(), compare=False)

    @property
    def quality(self) -> float:
        """Physical and visual quality, 1 to 4."""
        return quality(self.rmse)


def quality(rmse: float) -> float:
    """The quality (1 to 4) that a distance to the nearest clean drawing stands for."""
    return 4.0 - 3.0 * min(1.0, max(0.0, (rmse - CLEAN_RMSE) / (SEVERE_RMSE - CLEAN_RMSE)))


@cache
def _templates() -> tuple[list[Thing], np.ndarray, np.ndarray]:
    things: list[Thing] = [None, *(Shape(c, s) for c in COLOURS for s in SHAPES), *map(Letter, LETTERS)]
    shifts = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    names = [thing for thing in things for _ in (shifts if thing else shifts[:1])]
    drawn = [draw_cell(thing, shift).ravel() for thing in things for shift in (shifts if thing else [(0, 0)])]
    matrix = np.stack(drawn)
    return names, matrix, (matrix**2).sum(axis=1)


def read(images: Sequence[Image.Image]) -> list[Reading]:
    """Read pictures of the shapes world (32 x 32; others are resized).

    Returns:
        One ``Reading`` per picture.
    """
    if not images:
        return []
    names, templates, norms = _templates()
    boards = np.stack([to_pixels(image if image.size == (SIZE, SIZE) else image.resize((SIZE, SIZE))) for image in images])
    cells = boards.reshape(-1, 2, CELL, 2, CELL, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(boards), 4, -1)
    distance = (cells**2).sum(axis=2, keepdims=True) - 2 * cells @ templates.T + norms
    nearest = distance.argmin(axis=2)
    squared = np.maximum(np.take_along_axis(distance, nearest[..., None], axis=2), 0.0).mean(axis=2) / (CELL * CELL * 3)
    return [
        Reading(Scene(tuple(names[index] for index in row)), float(np.sqrt(at.mean())), tuple(np.sqrt(at).tolist()))
        for row, at in zip(nearest, squared, strict=True)
    ]


def match(asked: Thing, seen: Thing) -> float:
    """How much of one place is right: 1, 0.5 (a shape with the colour or the kind wrong) or 0."""
    if isinstance(asked, Shape) and isinstance(seen, Shape):
        return 0.5 * (asked.colour == seen.colour) + 0.5 * (asked.kind == seen.kind)
    return float(asked == seen)


def _graded(share: float) -> float:
    return 1.0 + 3.0 * min(1.0, max(0.0, share))


def _lettering(asked: Letter, seen: Thing) -> float:
    if asked == seen:
        return 4.0
    return 2.0 if isinstance(seen, Letter) else 1.0


def score_scene(asked: Scene, seen: Reading) -> dict[str, float | None]:
    """Aspect scores (1 to 4) of a text-to-image result; ``None`` where an aspect does not apply.

    Text faithfulness is the share of asked shapes that are right (half a point each for colour and kind), less half a point
    for every thing that nobody asked for; an asked letter belongs to text rendering instead.
    """
    shapes = [(place, thing) for place, thing in asked.occupied() if isinstance(thing, Shape)]
    letters = [(place, thing) for place, thing in asked.occupied() if isinstance(thing, Letter)]
    extras = sum(1 for place, _ in seen.scene.occupied() if asked.at(place) is None)
    right = sum(match(thing, seen.scene.at(place)) for place, thing in shapes)
    rendering = [_lettering(thing, seen.scene.at(place)) for place, thing in letters]
    return {
        "text_faithfulness": _graded((right - 0.5 * extras) / max(1, len(shapes))),
        "physical_quality": seen.quality,
        "text_rendering": min(rendering) if rendering else None,
    }


def score_edit(edit: Edit, source: Scene, seen: Reading) -> dict[str, float | None]:
    """Aspect scores (1 to 4) of an edit; ``None`` where an aspect does not apply.

    Text faithfulness looks at the place that the edit names, image faithfulness at the other three.
    """
    others = [place for place in PLACES if place != edit.place]
    kept = sum(match(source.at(place), seen.scene.at(place)) for place in others) / len(others)
    at_place = seen.scene.at(edit.place)
    writes = isinstance(edit.after, Letter)
    done = float(isinstance(at_place, Letter)) if writes else match(edit.after, at_place)
    if edit.kind in ("recolour", "reshape"):  # the half that the source already had is not an achievement
        done = float(edit.after == at_place)
    return {
        "text_faithfulness": _graded(done),
        "image_faithfulness": _graded(kept),
        "physical_quality": seen.quality,
        "text_rendering": _lettering(edit.after, at_place) if isinstance(edit.after, Letter) else None,
    }


def reward(scores: dict[str, float | None]) -> float:
    """Mean over the applicable aspects, mapped from [1, 4] to [0, 1] (arXiv 2604.11626, Eq. 13)."""
    values = [score for score in scores.values() if score is not None]
    return (sum(values) / len(values) - 1.0) / 3.0
