"""The language of the shapes world: scenes, requests for scenes, and edits of scenes.

A scene is a 2 x 2 board. Each place holds nothing, one coloured shape or one letter. Requests come in two styles: *terse*
ones, as people type them, and *detailed* ones; the embedded generator's training captions were noisier for the terse style
(``checkpoints/generator/README.md``), so that a better prompt can unlock what the generator already knows.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 200, 20),
    "purple": (140, 50, 170),
}
LETTERS = ("A", "H", "L", "T")
PLACES = ("top left", "top right", "bottom left", "bottom right")

Style = Literal["terse", "detailed"]


@dataclass(frozen=True)
class Shape:
    """A coloured shape, e.g. ``Shape("red", "circle")``."""

    colour: str
    kind: str

    def __str__(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Letter:
    """A black capital letter."""

    char: str

    def __str__(self) -> str:
        return f"letter {self.char}"


Thing = Shape | Letter | None
"""What one place of the board holds; ``None`` is an empty place."""


def describe(thing: Thing) -> str:
    """One place in words: ``"red circle"``, ``"letter A"`` or ``"nothing"``."""
    return "nothing" if thing is None else str(thing)


QUALITY = ("all damaged", "badly damaged", "damaged", "partly damaged", "slightly damaged", "mostly sharp", "sharp")
"""How clean a picture is, in words, from a quality of 1 to one of 4 in halves."""


def describe_quality(quality: float) -> str:
    """A quality (1 to 4) in words, rounded to a half: ``"sharp"`` from 3.75 on, ``"all damaged"`` below 1.25."""
    return QUALITY[round((quality - 1.0) * 2)]


@dataclass(frozen=True)
class Scene:
    """What stands where; ``things[i]`` is at ``PLACES[i]``."""

    things: tuple[Thing, Thing, Thing, Thing]

    def at(self, place: str) -> Thing:
        """The thing at a place named as in ``PLACES``."""
        return self.things[PLACES.index(place)]

    def put(self, place: str, thing: Thing) -> Scene:
        """A copy of the scene with one place changed."""
        index = PLACES.index(place)
        return Scene((*self.things[:index], thing, *self.things[index + 1 :]))  # type: ignore[arg-type]

    def occupied(self) -> list[tuple[str, Thing]]:
        """``(place, thing)`` for every place that is not empty, in board order."""
        return [(place, thing) for place, thing in zip(PLACES, self.things, strict=True) if thing is not None]

    def request(self, style: Style = "terse") -> str:
        """The scene as a text-to-image request."""
        if style == "terse":
            return ", ".join(f"{thing} {place}" for place, thing in self.occupied())
        return "a sharp picture: " + "; ".join(f"{thing} at the {place}" for place, thing in self.occupied())


def describe_scene(scene: Scene) -> str:
    """All four places in words, empty ones too: ``"top left red circle ; top right nothing ; ..."``."""
    return " ; ".join(f"{place} {describe(thing)}" for place, thing in zip(PLACES, scene.things, strict=True))


_SAME = {True: "same", False: "different"}


def compare(place: str, first: Thing, second: Thing) -> list[str]:
    """What stands at a place in two scenes, side by side, and whether it is the same; of two shapes apart for colour and kind.

    ``["top left colour red blue different", "top left shape circle circle same"]``, ``["top left letters A L different"]`` or
    ``["top left thing red circle nothing different"]``. The place is named each time: it is what the words are looked up by.
    """
    if isinstance(first, Shape) and isinstance(second, Shape):
        parts = [("colour", first.colour, second.colour), ("shape", first.kind, second.kind)]
    elif isinstance(first, Letter) and isinstance(second, Letter):
        parts = [("letters", first.char, second.char)]
    else:
        parts = [("thing", describe(first), describe(second))]
    return [f"{place} {what} {one} {other} {_SAME[one == other]}" for what, one, other in parts]


def random_shape(rng: random.Random) -> Shape:
    """A shape of uniformly random colour and kind."""
    return Shape(rng.choice(tuple(COLOURS)), rng.choice(SHAPES))


def random_scene(rng: random.Random, letter_rate: float = 0.3) -> Scene:
    """Two to four things at random places (2: half of the scenes, 3: a third, 4: a sixth), at most one of them a letter."""
    count = rng.choice((2, 2, 2, 3, 3, 4))
    places = rng.sample(range(4), count)
    things: list[Thing] = [None] * 4
    for place in places:
        things[place] = random_shape(rng)
    if rng.random() < letter_rate:
        things[rng.choice(places)] = Letter(rng.choice(LETTERS))
    return Scene(tuple(things))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Edit:
    """A change of one place of a source scene."""

    kind: Literal["recolour", "reshape", "remove", "add", "write"]
    place: str
    before: Thing
    after: Thing

    def apply(self, source: Scene) -> Scene:
        """The scene that a perfect edit shows."""
        return source.put(self.place, self.after)

    def request(self, style: Style = "terse") -> str:
        """The edit as an instruction."""
        before, after = self.before, self.after
        if self.kind == "recolour":
            assert isinstance(before, Shape) and isinstance(after, Shape)
            text = f"turn the {before.kind} at the {self.place} {after.colour}"
        elif self.kind == "reshape":
            assert isinstance(before, Shape) and isinstance(after, Shape)
            text = f"turn the {before.kind} at the {self.place} into a {after.kind}"
        elif self.kind == "remove":
            name = before.kind if isinstance(before, Shape) else before
            text = f"remove the {name} at the {self.place}"
        elif self.kind == "add":
            text = f"add a {after} at the {self.place}"
        else:
            text = f"write the {after} at the {self.place}"
        return text if style == "terse" else f"{text}; keep the rest, sharp picture"


def random_edit(source: Scene, rng: random.Random) -> Edit:
    """A random edit that is possible on ``source``."""
    options: list[Edit] = []
    for place, thing in zip(PLACES, source.things, strict=True):
        if isinstance(thing, Shape):
            colour = rng.choice([c for c in COLOURS if c != thing.colour])
            kind = rng.choice([s for s in SHAPES if s != thing.kind])
            options.append(Edit("recolour", place, thing, Shape(colour, thing.kind)))
            options.append(Edit("reshape", place, thing, Shape(thing.colour, kind)))
        if thing is not None and len(source.occupied()) > 1:
            options.append(Edit("remove", place, thing, None))
        if thing is None:
            options.append(Edit("add", place, None, random_shape(rng)))
            if not any(isinstance(other, Letter) for other in source.things):
                options.append(Edit("write", place, None, Letter(rng.choice(LETTERS))))
    return rng.choice(options)


_PLACE = "|".join(PLACES)
_THING = rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})|letter [{''.join(LETTERS)}]"


def parse_thing(text: str) -> Thing:
    """Read back what :func:`describe` says of one place."""
    if text == "nothing":
        return None
    first, second = text.split()
    return Letter(second) if first == "letter" else Shape(first, second)


def parse_request(text: str) -> Scene | None:
    """Read a text-to-image request of either style back into its scene.

    Extra words around the known phrases are allowed, so that rewritten requests can be read too.

    Returns:
        The scene, or ``None`` if no thing with a place is named.
    """
    found = re.findall(rf"({_THING})(?: at the)? ({_PLACE})", text)
    if not found:
        return None
    scene = Scene((None, None, None, None))
    for thing, place in found:
        scene = scene.put(place, parse_thing(thing))
    return scene


def parse_edit(text: str, source: Scene) -> Edit | None:
    """Read an edit instruction of either style, given the scene that it changes; ``None`` if it is not one."""
    match = re.search(rf"(turn|remove|add|write) (?:the |a )?(.+?) at the ({_PLACE})(?: (into a )?(\w+))?", text)
    if match is None:
        return None
    verb, named, place, into, word = match.groups()
    before = source.at(place)
    if verb == "turn" and isinstance(before, Shape):
        if into and word in SHAPES:
            return Edit("reshape", place, before, Shape(before.colour, word))
        if not into and word in COLOURS:
            return Edit("recolour", place, before, Shape(word, before.kind))
    elif verb == "remove" and before is not None:
        return Edit("remove", place, before, None)
    elif verb in ("add", "write") and re.fullmatch(_THING, named):
        return Edit("add" if verb == "add" else "write", place, None, parse_thing(named))
    return None
