"""Pairs that no teacher should see."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from rationalrewards.components.parrot import ScreenOptions
from rationalrewards.components.parrot.screen import Pictures, read_pair, unusable
from rationalrewards.components.records import Preference


def _picture(width: int = 40, height: int = 40, at: int = 5) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).rectangle((at, 1, at + 3, height - 2), fill="red")
    return image


@pytest.mark.parametrize(
    ("sources", "candidates", "reason"),
    [
        ([], [_picture(), _picture(at=9)], ""),
        ([_picture(at=20)], [_picture(), _picture(at=9)], ""),
        ([], [_picture(), _picture(width=15)], "picture too small: B has 15 x 40 pixels"),
        ([_picture(height=10)], [_picture(), _picture(at=9)], "picture too small: source has 40 x 10 pixels"),
        ([], [_picture(width=400), _picture(at=9)], "picture too long: A has 400 x 40 pixels"),
        ([], [_picture(), Image.new("RGB", (40, 40), "blue")], "picture is blank: B"),
        ([], [_picture(), _picture()], "same picture twice"),
    ],
)
def test_what_a_picture_must_be(sources: list[Image.Image], candidates: list[Image.Image], reason: str) -> None:
    pictures = Pictures(tuple(sources), (candidates[0], candidates[1]))
    assert unusable(pictures, ScreenOptions()) == reason


def test_limits_are_options() -> None:
    pictures = Pictures((), (_picture(), Image.new("RGB", (8, 80), "blue")))
    assert unusable(pictures, ScreenOptions(min_side=8, max_aspect=10, min_contrast=0.0)) == ""
    assert unusable(pictures, ScreenOptions(min_side=9, max_aspect=10, min_contrast=0.0)).startswith("picture too small: B")


def test_the_identity_of_a_pair_is_its_request_and_pixels(tmp_path: Path) -> None:
    first, second, source = _picture(), _picture(at=9), _picture(at=20)
    digest = Pictures((), (first, second)).digest("a bar")
    assert Pictures((), (second, first)).digest("a bar") == digest
    others = [
        Pictures((), (first, second)).digest("two bars"),
        Pictures((), (first, source)).digest("a bar"),
        Pictures((source,), (first, second)).digest("a bar"),
        Pictures((first,), (second, source)).digest("a bar"),
    ]
    assert len({digest, *others}) == 5
    first.save(tmp_path / "a.png")
    first.save(tmp_path / "copy.webp", lossless=True)
    second.save(tmp_path / "b.png")
    for name in ("a.png", "copy.webp"):
        pair = Preference("x", "t2i", "a bar", (str(tmp_path / name), str(tmp_path / "b.png")), 1.0)
        assert read_pair(pair).digest("a bar") == digest
