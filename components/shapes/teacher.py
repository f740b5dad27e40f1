"""A scripted, **simulated** teacher for the shapes world, behind the interface of a real one.

It reads pictures with the ground-truth judge and then makes mistakes at set rates, so that every filter of PARROT can be
measured against faults of known frequency. It shows that the machinery works; it says nothing about real teachers.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from ..chat import ChatModel, ChatReply, ChatRequest
from ..critique import CritiqueFormat
from ..critique.teacher import COMMENT_TAG, HINT, READ_QUESTION
from ..records import AspectComparison, NotApplicable, PairCritique, Task
from . import judge, phrases
from .judge import Reading
from .phrases import Asked
from .scenes import COLOURS, PLACES, SHAPES, Letter, Shape

_TIE = 0.02
"""Rewards (0...1) closer than this are a tie to the teacher."""

_MOST_MISREAD = 16
"""Misreadings of one picture, after which not even a teacher that hallucinates always goes on."""


class ShapesTeacher(ChatModel):
    """Answers the requests of every PARROT stage from the pixels, with faults.

    Args:
        hallucination: Probability that one thing of a picture is misread; with the same probability a further one is, and so on.
        obedience: Probability that the teacher bends its account when the label contradicts what it sees (it then invents a flaw
            of the picture that was not preferred); otherwise it ignores the label.
        vagueness: Probability of an anchored answer without any checkable claim.
        label_echo: Probability that the answer mentions that people preferred a picture.
        position_bias: Probability that a near-tie is decided for Image A.
        seed: Seed of the faults; an answer depends on the seed and the request only.
        rubric: Rubric of the answers.
    """

    def __init__(
        self,
        hallucination: float = 0.1,
        obedience: float = 0.7,
        vagueness: float = 0.05,
        label_echo: float = 0.03,
        position_bias: float = 0.05,
        seed: int = 0,
        rubric: str = "shapes",
    ) -> None:
        rates = {
            "hallucination": hallucination,
            "obedience": obedience,
            "vagueness": vagueness,
            "label_echo": label_echo,
            "position_bias": position_bias,
        }
        for name, rate in rates.items():
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"{name} is a probability, got {rate}")
        self.hallucination = hallucination
        self.obedience = obedience
        self.vagueness = vagueness
        self.label_echo = label_echo
        self.position_bias = position_bias
        self.seed = seed
        self.format = CritiqueFormat(rubric)

    @property
    def identity(self) -> str:
        return f"simulated shapes teacher (hallucination {self.hallucination:g}, seed {self.seed})"

    @property
    def fingerprint(self) -> str:
        rates = (self.obedience, self.vagueness, self.label_echo, self.position_bias)
        return f"{self.identity} {' '.join(f'{rate:g}' for rate in rates)} {self.format.fingerprint}"

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: ChatRequest) -> ChatReply:
        text, images = request.text(), request.images()
        if READ_QUESTION in text:
            return _said(text, self._read(text))
        found = re.search(r"<request>(.*?)</request>", text, re.DOTALL)
        if not found:
            return ChatReply("", failure="the simulated teacher found no <request> in the message")
        rng = self._rng(text, images, request.seed)
        comment = re.search(rf"<{COMMENT_TAG}>\n(.*)\n</{COMMENT_TAG}>", text, re.DOTALL)
        hint = re.search(rf"{HINT} people (?:preferred the (first|second)|saw no difference)", text)
        answer: Any
        try:
            # of two pictures, one may be the source of an edit, which is announced as such
            if comment is None and (len(images) == 1 or (len(images) == 2 and re.search(r"\bsource\b", text))):
                answer = self._project(found[1], images, "", text, rng)
            elif comment is None:
                answer = self._compare(found[1], images, {"first": "A", "second": "B"}.get(hint[1], "tie") if hint else None, rng)
            elif "## Refined Request" in text:
                *sources, image = images
                asked = Asked(found[1], self._source(sources))
                refined = phrases.critique(asked, judge.read([image])[0])
                answer = f"## Refinement Comments: {refined.refinement_comments}\n## Refined Request: {refined.refined_request}"
            elif "This picture is Image" in text:
                answer = self._project(found[1], images, comment[1], text, rng)
            else:
                answer = self._check(found[1], images, comment[1], rng)
        except ValueError as error:
            return ChatReply("", failure=f"the simulated teacher cannot answer: {error}")
        return _said(text, answer)

    def _read(self, text: str) -> str:
        """What the justifications alone say about each score: the half points that they count as lost, and their words of quality."""
        lines = []
        for aspect in self.format.rules.aspects:
            said = re.search(rf"^{aspect.title}: (.*)$", text, re.MULTILINE)
            score = phrases.read_score(aspect.key, said[1]) if said else None
            if said:
                lines.append(f"{aspect.title}: {'N/A' if score is None else f'{score:.1f}'}")
        return "\n".join(lines)

    def _rng(self, text: str, images: Sequence[Image.Image], seed: int) -> random.Random:
        digest = hashlib.sha256(f"{self.seed} {seed} {text}".encode())
        for image in images:
            digest.update(image.tobytes())
        return random.Random(digest.digest())

    def _source(self, sources: Sequence[Image.Image]) -> Any:
        return judge.read(sources[:1])[0].scene if sources else None

    def _perceive(self, image: Image.Image, rng: random.Random) -> Reading:
        seen = judge.read([image])[0]
        for _ in range(_MOST_MISREAD):
            if rng.random() >= self.hallucination:
                break
            seen = self._misread(seen, rng)
        return seen

    def _misread(self, seen: Reading, rng: random.Random) -> Reading:
        place, thing = rng.choice(seen.scene.occupied() or [("top left", None)])
        wrong: Any
        if isinstance(thing, Shape) and rng.random() < 0.5:
            wrong = Shape(rng.choice([c for c in COLOURS if c != thing.colour]), thing.kind)
        elif isinstance(thing, Shape):
            wrong = Shape(thing.colour, rng.choice([s for s in SHAPES if s != thing.kind]))
        else:
            wrong = None
        return Reading(seen.scene.put(place, wrong), seen.rmse)

    def _compare(self, prompt: str, images: Sequence[Image.Image], label: str | None, rng: random.Random) -> str:
        *sources, first, second = images
        asked = Asked(prompt, self._source(sources))
        seen = {"A": self._perceive(first, rng), "B": self._perceive(second, rng)}
        if label is not None and rng.random() < self.vagueness:
            return self.format.render_pair(self._vague(asked), "edit" if sources else "t2i")
        if label in ("A", "B") and self._verdict(asked, seen["A"], seen["B"], rng) != label and rng.random() < self.obedience:
            other = "B" if label == "A" else "A"
            for _ in range(4):
                seen[other] = self._misread(seen[other], rng)
                if asked.reward(seen[label]) > asked.reward(seen[other]) + _TIE:
                    break
            else:
                seen[label] = Reading(asked.scene, min(seen[label].rmse, seen[other].rmse))
        critique = phrases.pair_critique(asked, seen["A"], seen["B"])
        if label is not None and rng.random() < self.label_echo:
            critique = replace(critique, summary=critique.summary + " as people preferred")
        return self.format.render_pair(critique, "edit" if sources else "t2i")

    def _vague(self, asked: Asked) -> PairCritique:
        keys = ["text_faithfulness", "physical_quality", "text_rendering"]
        if asked.edit is not None:
            keys.insert(1, "image_faithfulness")
        same = AspectComparison("both well", 3.0, 3.0, "tie")
        aspects = {key: same for key in keys}
        if not re.search("letter", asked.refined()):
            aspects["text_rendering"] = AspectComparison("no letter asked", NotApplicable(), NotApplicable(), NotApplicable())
        return PairCritique(aspects, "both equal")

    def _verdict(self, asked: Asked, first: Reading, second: Reading, rng: random.Random) -> str:
        difference = asked.reward(first) - asked.reward(second)
        if abs(difference) < _TIE:
            return "A" if rng.random() < self.position_bias else "tie"
        return "A" if difference > 0 else "B"

    def _check(self, prompt: str, images: Sequence[Image.Image], comment: str, rng: random.Random) -> str:
        """Without pictures the comment's claims decide; with them, the claims that the pictures do not bear out are replaced."""
        sources = images[:-2]
        claims = phrases.read_comparison(comment)
        asked = Asked(prompt, self._source(sources) if images else self._source_from(comment, prompt))
        if claims is None:
            return "Tie"
        first, second = claims
        if images:
            seen = [self._perceive(image, rng) for image in images[-2:]]
            first, second = seen[0], seen[1]
        verdict = self._verdict(asked, first, second, rng)
        return "Tie" if verdict == "tie" else f"{verdict} is preferred"

    def _source_from(self, comment: str, prompt: str) -> Any:
        """The source scene as the comment tells it, for a check without pictures: what was asked to be there, less the edit."""
        scene = phrases.read_asked(comment) if "Image Faithfulness" in comment else None  # else it is no edit
        edited = re.search(rf"^(?:turn|remove) the (?:({'|'.join(SHAPES)})|letter ([A-Z])) at the ({'|'.join(PLACES)})", prompt)
        if scene is not None and edited:
            asked = scene.at(edited[3])
            colour = asked.colour if isinstance(asked, Shape) else "red"  # of what was removed words do not tell it
            scene = scene.put(edited[3], Shape(colour, edited[1]) if edited[1] else Letter(edited[2]))
        return scene

    def _project(self, prompt: str, images: Sequence[Image.Image], comment: str, text: str, rng: random.Random) -> str:
        *sources, image = images
        asked = Asked(prompt, self._source(sources))
        which = re.search(r"This picture is Image ([AB])", text)
        claims = phrases.read_comparison(comment)
        seen = self._perceive(image, rng)
        if claims is not None and which is not None:
            seen = claims[0] if which[1] == "A" else claims[1]
        critique = phrases.critique(asked, seen)
        task: Task = "edit" if sources else "t2i"
        critique = replace(critique, refinement_comments="", refined_request="")  # refinement is a stage of its own
        return self.format.render(critique, task)


def _said(text: str, answer: str) -> ChatReply:
    return ChatReply(answer, prompt_tokens=len(text.split()), completion_tokens=len(answer.split()))
