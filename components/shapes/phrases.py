"""Critiques of the shapes world in words: written from what was seen, and read back into it.

A critique first says what the picture should show (its analysis of the request), then what it shows, then compares the two place by
place, counting the half points that are lost, and only then scores: a critic that only names what it sees gives rewards without
resolution (measured; see ``docs/architecture.md``), and one that has to read, look and compare in one breath takes the request for
the picture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..records import AspectComparison, AspectCritique, Critique, NotApplicable, PairCritique, Score
from . import judge
from .judge import Reading
from .scenes import (
    COLOURS,
    LETTERS,
    PLACES,
    QUALITY,
    SHAPES,
    Edit,
    Letter,
    Scene,
    Shape,
    Thing,
    compare,
    describe_quality,
    describe_scene,
    parse_edit,
    parse_request,
    parse_thing,
)

BETWEEN = " | "


class Asked:
    """What a request asks for, in the shapes world.

    Args:
        prompt: The request.
        source: What the source picture shows, for an edit.

    Raises:
        ValueError: If the request is not in the language of the shapes world.
    """

    def __init__(self, prompt: str, source: Scene | None = None) -> None:
        self.source = source
        self.edit: Edit | None = parse_edit(prompt, source) if source is not None else None
        scene = self.edit.apply(source) if source is not None and self.edit is not None else parse_request(prompt)
        if scene is None or (source is not None and self.edit is None):
            raise ValueError(f"{prompt!r} is no request of the shapes world")
        self.scene = scene

    def scores(self, seen: Reading) -> dict[str, float | None]:
        """The ground truth's aspect scores for what is seen."""
        if self.edit is not None and self.source is not None:
            return judge.score_edit(self.edit, self.source, seen)
        return judge.score_scene(self.scene, seen)

    def reward(self, seen: Reading) -> float:
        """The ground truth's reward in [0, 1]."""
        return judge.reward(self.scores(seen))

    def exact(self, seen: Reading) -> bool:
        """Whether every place shows what was asked for."""
        return seen.scene == self.scene

    def refined(self) -> str:
        """The request, rewritten in detail."""
        return self.edit.request("detailed") if self.edit is not None else self.scene.request("detailed")


def _tallied(places: Sequence[tuple[str, Thing, Thing, float]], things: int) -> str:
    """Places as asked and as seen, each with the half points that are lost so far, and at the end of how many things."""
    lost, parts = 0, []
    for place, asked, seen, halves in places:
        lost += round(halves)
        parts.append(f"{' ; '.join(compare(place, asked, seen))} {lost}")
    return f"{' ; '.join(parts)} of {things}"


def justifications(asked: Asked, seen: Reading) -> dict[str, str]:
    """What to say about each aspect of a picture."""
    wanted, shown = asked.scene, seen.scene
    letters = [place for place, thing in wanted.occupied() if isinstance(thing, Letter)]
    said: dict[str, str] = {}
    if asked.edit is not None and asked.source is not None:
        edit, source = asked.edit, asked.source
        letters = [edit.place] if isinstance(edit.after, Letter) else []
        faith = judge.score_edit(edit, source, seen)["text_faithfulness"]
        assert faith is not None  # it applies to every edit
        compared = _tallied([(edit.place, edit.after, shown.at(edit.place), (4 - faith) / 1.5)], 1)
        others = [(place, source.at(place), shown.at(place)) for place in PLACES if place != edit.place]
        said["image_faithfulness"] = _tallied(
            [(place, before, now, 2 - 2 * judge.match(before, now)) for place, before, now in others], len(others)
        )
    else:
        places = []
        for place in PLACES:
            thing, now = wanted.at(place), shown.at(place)
            if not isinstance(thing, Letter):  # that is text rendering
                places.append((place, thing, now, 2 - 2 * judge.match(thing, now) if thing else float(now is not None)))
        compared = _tallied(places, len(wanted.occupied()) - len(letters))
    said["text_faithfulness"] = f"{describe_scene(shown)} ; {describe_quality(seen.quality)} . {compared}"
    said["physical_quality"] = describe_quality(seen.quality)
    lettering = [part for place in letters for part in compare(place, wanted.at(place), shown.at(place))]
    said["text_rendering"] = " ; ".join(lettering) or "no letter asked"
    return said


_THING = rf"nothing|(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})|letter [{''.join(LETTERS)}]"
_CLAIM = re.compile(rf"({'|'.join(PLACES)}) ({_THING})")
_COMPARED = re.compile(rf"({'|'.join(PLACES)}) (thing|letters|colour|shape) ({_THING}|\w+) (?:{_THING}|\w+) (?:same|different)")
_QUALITY_CLAIM = re.compile(r"(?<![a-z] )(" + "|".join(sorted(QUALITY, key=len, reverse=True)) + r")(?=$|\s)", re.MULTILINE)


def read_claims(text: str) -> Reading | None:
    """What a justification claims to see; ``None`` if it makes no claim (vague text)."""
    found = _CLAIM.findall(text)
    if not found:
        return None
    scene = Scene((None, None, None, None))
    for place, words in found:
        scene = scene.put(place, parse_thing(words))
    quality = _QUALITY_CLAIM.search(text)
    step = QUALITY.index(quality[1]) if quality else len(QUALITY) - 1
    rmse = judge.CLEAN_RMSE + (6 - step) / 6 * (judge.SEVERE_RMSE - judge.CLEAN_RMSE)
    return Reading(scene, rmse)


def read_comparison(text: str) -> tuple[Reading, Reading] | None:
    """What a comparison claims to see in each picture; ``None`` if it makes no claim about one of them."""
    sides: dict[str, list[str]] = {"A": [], "B": []}
    for line in text.splitlines():
        for side, said in re.findall(r"Image ([AB]) (.*?)(?= \| |$)", line):
            sides[side].append(said)
    first, second = (read_claims("\n".join(sides[side])) for side in "AB")
    return (first, second) if first is not None and second is not None else None


def read_score(key: str, text: str) -> float | None:
    """The score (1 to 4) that a justification says, to whoever takes it at its word; ``None`` if it says that none applies."""
    if key == "physical_quality":
        return 1.0 + QUALITY.index(text) / 2 if text in QUALITY else None
    if key == "text_rendering":
        letters = re.findall(r"(letters|thing) .*?(same|different)", text)
        return min((4.0 if same == "same" else (2.0 if what == "letters" else 1.0) for what, same in letters), default=None)
    lost = re.search(r"(\d+) of (\d+)$", text)
    return 4.0 - 3.0 * min(1.0, int(lost[1]) / 2 / max(1, int(lost[2]))) if lost else None


def read_asked(text: str) -> Scene | None:
    """What the comparisons of a justification name as asked for; ``None`` if there are none."""
    found = _COMPARED.findall(text)
    scene = Scene((None, None, None, None))
    colours = {place: words for place, what, words in found if what == "colour"}
    for place, what, words in found:
        if what == "shape":
            scene = scene.put(place, Shape(colours.get(place, "red"), words))
        elif what != "colour":
            scene = scene.put(place, Letter(words) if what == "letters" else parse_thing(words))
    return scene if found else None


def _score(key: str, value: float | None) -> Score:
    if value is None:
        return NotApplicable()
    return round(value * 2) / 2 if key == "physical_quality" else round(value, 1)


def summarise(reward: float) -> str:
    """A closing word for a reward in [0, 1]."""
    return "all right" if reward > 0.95 else ("mostly right" if reward > 0.7 else "partly wrong" if reward > 0.4 else "wrong")


def critique(asked: Asked, seen: Reading) -> Critique:
    """The critique of one picture, refinement included."""
    scores, said = asked.scores(seen), justifications(asked, seen)
    aspects = {key: AspectCritique(said[key], _score(key, value)) for key, value in scores.items()}
    wrong = [place for place in PLACES if asked.scene.at(place) != seen.scene.at(place)]
    comments = "fix " + " and ".join(wrong) if wrong else "keep all"
    return Critique(aspects, summarise(asked.reward(seen)), comments, asked.refined(), analysis=describe_scene(asked.scene))


def pair_critique(asked: Asked, first: Reading, second: Reading) -> PairCritique:
    """The comparison of two pictures."""
    scores_a, scores_b = asked.scores(first), asked.scores(second)
    said_a, said_b = justifications(asked, first), justifications(asked, second)
    aspects = {}
    for key in scores_a:
        a, b = _score(key, scores_a[key]), _score(key, scores_b[key])
        winner: str | NotApplicable = NotApplicable()
        if isinstance(a, float) and isinstance(b, float):
            winner = "tie" if a == b else ("A" if a > b else "B")
        text = said_a[key] if isinstance(winner, NotApplicable) else f"Image A {said_a[key]}{BETWEEN}Image B {said_b[key]}"
        aspects[key] = AspectComparison(text, a, b, winner)  # type: ignore[arg-type]
    difference = asked.reward(first) - asked.reward(second)
    better = "both equal" if abs(difference) < 0.02 else f"Image {'A' if difference > 0 else 'B'} is better"
    return PairCritique(aspects, better, analysis=describe_scene(asked.scene))
