"""A painter that draws what it is asked for, sometimes with a flaw: pictures in no time, and no pipeline to load."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from PIL import Image
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.records import Unscored
from rationalrewards.components.refine import ImageSource, Sampled
from rationalrewards.components.shapes import judge
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.pairs import flawed
from rationalrewards.components.shapes.phrases import Asked


class Painter(ImageSource):
    """Draws requests of the shapes world.

    Args:
        flaws: Wrong places of each picture, drawn by its seed from these.
        fails: Share of the pictures that cannot be made, by their seeds.

    ``asked`` holds the request and the seed of every picture, in order.
    """

    def __init__(self, flaws: Sequence[int] = (0, 1, 2), fails: float = 0.0) -> None:
        self.flaws = flaws
        self.fails = fails
        self.asked: list[tuple[str, int]] = []

    @property
    def identity(self) -> str:
        return f"painter {self.flaws}"

    def sample(self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]) -> list[Sampled]:
        self.asked += zip(prompts, seeds, strict=True)
        source = judge.read(sources[:1])[0].scene if sources else None
        return [self._one(Asked(prompt, source), random.Random(seed)) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _one(self, asked: Asked, rng: random.Random) -> Sampled:
        if rng.random() < self.fails:
            return Unscored("no paint left")
        return draw(flawed(asked.scene, rng, rng.choice(self.flaws)))


@pytest.fixture
def painter() -> type[Painter]:
    return Painter


@pytest.fixture
def critic(seeing: type) -> Critic:
    """A critic that sees."""
    return Critic(seeing(), CritiqueFormat("shapes"), reasks=0)
