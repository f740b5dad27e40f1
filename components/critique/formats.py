"""The registry of critique formats: what a critic is asked, how it answers, how the answer is read.

SFT export, reward, evaluation and refinement all use the same :class:`CritiqueFormat`, so that they cannot drift apart. Its
fingerprint is stored with a trained critic; :func:`check_fingerprint` refuses another format at load.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..answer_form import AnswerForm
from ..records import TASKS, AspectComparison, Critique, PairCritique, Score, Task, Unscored
from .grammar import REFINEMENT_HEADING, pairwise_form, pointwise_form
from .parsing import parse, parse_pair
from .rubric import Rubric, load_rubric

Message = dict[str, Any]
FINGERPRINT_FILE = "critique_format.json"


def quote_request(prompt: str) -> str:
    """A request as inert data: it can close no tag and hold no chat-control token (``<|im_end|>``, ``<image>``, ``[IMG]``)."""
    inert = re.sub(r"<(?=[|/!\uff5cA-Za-z])|\[(?=/?[A-Z_]{3,}\])", lambda mark: mark[0] + " ", prompt)
    return f"<request>{inert.strip()}</request>"


def text_part(text: str) -> Message:
    """A piece of text in a message."""
    return {"type": "text", "text": text}


def image_part(image: Image.Image) -> Message:
    """A picture in a message."""
    return {"type": "image", "image": image}


@dataclass(frozen=True)
class CritiqueFormat:
    """How critiques under one rubric are asked for, written and read.

    Args:
        rubric: Name of a shipped rubric or path of a YAML file.
    """

    rubric: str = "default"

    @property
    def rules(self) -> Rubric:
        """The rubric itself."""
        return load_rubric(self.rubric)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits over everything that a critic sees and writes under this format."""
        blank = Image.new("RGB", (2, 2))
        probe = Critique.unscored("", self.rules.keys("edit"))
        asked = [
            self.pointwise_messages("edit", "probe", [blank], blank),
            self.pointwise_messages("t2i", "probe", [], blank),
            self.pairwise_messages("edit", "probe", [blank], (blank, blank)),
            self.pairwise_messages("t2i", "probe", [], (blank, blank)),
        ]
        judged = [[(a.key, a.title, a.optional) for a in self.rules.for_task(task)] for task in TASKS]
        described = json.dumps([asked, judged, self.render(probe, "edit")], default=lambda _: "image", sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:12]

    # -- asking --------------------------------------------------------------------------------------------------------

    def _instructions(self, template: str, task: Task, answer: str) -> Message:
        aspects = []
        for number, aspect in enumerate(self.rules.for_task(task), start=1):
            levels = "".join(f"\n   {4 - index}: {level}" for index, level in enumerate(aspect.levels))
            aspects.append(f"{number}. {aspect.title}{levels}")
        text = template.replace("{aspects}", "\n".join(aspects)).replace("{answer}", answer)
        return {"role": "system", "content": [text_part(text)]}

    def _sources(self, sources: Sequence[Image.Image]) -> list[Message]:
        parts = []
        for number, source in enumerate(sources, start=1):
            label = "source:" if len(sources) == 1 else f"source {number}:"
            parts += [text_part(label), image_part(source)]
        return parts

    def pointwise_messages(self, task: Task, prompt: str, sources: Sequence[Image.Image], image: Image.Image) -> list[Message]:
        """Ask for a critique of one picture. The rubric comes first, so that servers can reuse its prefix."""
        answer = []
        for number, aspect in enumerate(self.rules.for_task(task), start=1):
            answer.append(f"{number}. {aspect.title}:\n## Justification: ...\n## Score: ...")
        skeleton = "\n".join(
            [
                "# Detailed Judgement:",
                *answer,
                "# Summary: ...",
                REFINEMENT_HEADING,
                "## Refinement Comments: ...",
                "## Refined Request: ...",
            ]
        )
        parts = [*self._sources(sources), image_part(image), text_part(quote_request(prompt))]
        return [self._instructions(self.rules.pointwise, task, skeleton), {"role": "user", "content": parts}]

    def pairwise_messages(
        self, task: Task, prompt: str, sources: Sequence[Image.Image], images: tuple[Image.Image, Image.Image]
    ) -> list[Message]:
        """Ask for a comparison of two pictures, named Image A and Image B in the given order."""
        answer = []
        for number, aspect in enumerate(self.rules.for_task(task), start=1):
            answer.append(f"{number}. {aspect.title}:\n## Justification: ...\n## Score A: ...\n## Score B: ...\n## Winner: ...")
        skeleton = "\n".join(["# Detailed Judgement:", *answer, "# Summary: ..."])
        pictures = [text_part("Image A:"), image_part(images[0]), text_part("Image B:"), image_part(images[1])]
        parts = [*self._sources(sources), *pictures, text_part(quote_request(prompt))]
        return [self._instructions(self.rules.pairwise, task, skeleton), {"role": "user", "content": parts}]

    def pointwise_form(self, task: Task, prose_tokens: int | None = None, refinement: bool = True) -> AnswerForm:
        """Form of the answer to :meth:`pointwise_messages`; see :mod:`.grammar`."""
        return pointwise_form(self.rules, task, prose_tokens, refinement)

    def pairwise_form(self, task: Task, prose_tokens: int | None = None) -> AnswerForm:
        """Form of the answer to :meth:`pairwise_messages`."""
        return pairwise_form(self.rules, task, prose_tokens)

    # -- writing -------------------------------------------------------------------------------------------------------

    def render(self, critique: Critique, task: Task) -> str:
        """Write a critique as a critic should answer; :meth:`parse` reads it back."""
        lines = [f"# User Request Analysis: {critique.analysis}"] if critique.analysis else []
        lines.append("# Detailed Judgement:")
        for number, aspect in enumerate(self.rules.for_task(task), start=1):
            lines += [
                f"{number}. {aspect.title}:",
                f"## Justification: {critique.justification(aspect.key)}",
                f"## Score: {written_score(critique.score(aspect.key))}",
            ]
        lines.append(f"# Summary: {critique.summary}")
        if critique.refined_request:
            lines += [
                REFINEMENT_HEADING,
                f"## Refinement Comments: {critique.refinement_comments}",
                f"## Refined Request: {critique.refined_request}",
            ]
        return "\n".join(lines)

    def render_pair(self, critique: PairCritique, task: Task) -> str:
        """Write a comparison as a critic should answer; :meth:`parse_pair` reads it back."""
        lines = [f"# User Request Analysis: {critique.analysis}"] if critique.analysis else []
        lines.append("# Detailed Judgement:")
        for number, aspect in enumerate(self.rules.for_task(task), start=1):
            judged = critique.aspects[aspect.key]
            winner = {"A": "Image A", "B": "Image B", "tie": "It's a tie"}.get(str(judged.winner), "N/A")
            lines += [
                f"{number}. {aspect.title}:",
                f"## Justification: {judged.justification}",
                f"## Score A: {written_score(judged.score_a)}",
                f"## Score B: {written_score(judged.score_b)}",
                f"## Winner: {winner}",
            ]
        lines.append(f"# Summary: {critique.summary}")
        return "\n".join(lines)

    # -- reading -------------------------------------------------------------------------------------------------------

    def parse(self, text: str, task: Task) -> Critique:
        """Read a critique of one picture; see :func:`rationalrewards.components.critique.parse`."""
        return parse(text, task, self.rules)

    def parse_pair(self, text: str, task: Task) -> PairCritique:
        """Read a critique of two pictures."""
        return parse_pair(text, task, self.rules)


def swap_pair(critique: PairCritique) -> PairCritique:
    """The same comparison with the pictures in the other order, names in the prose included."""

    def names(text: str) -> str:
        return re.sub(r"\bImage ([AB])\b", lambda m: f"Image {'B' if m[1] == 'A' else 'A'}", text)

    flip = {"A": "B", "B": "A"}
    aspects = {
        key: AspectComparison(
            names(judged.justification),
            judged.score_b,
            judged.score_a,
            flip.get(judged.winner, judged.winner),  # type: ignore[arg-type]
        )
        for key, judged in critique.aspects.items()
    }
    return PairCritique(aspects, names(critique.summary), names(critique.analysis))


def written_score(score: Score) -> str:
    """A score as a critic writes it: one decimal, ``N/A`` where the aspect does not apply, ``unscored`` where it has none."""
    if isinstance(score, int | float):
        return f"{score:.1f}"
    return "unscored" if isinstance(score, Unscored) else "N/A"


def save_fingerprint(folder: str | Path, format: CritiqueFormat) -> None:
    """Store with a trained critic which format it writes."""
    content = {"rubric": format.rubric, "fingerprint": format.fingerprint}
    (Path(folder) / FINGERPRINT_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")


def check_fingerprint(folder: str | Path, format: CritiqueFormat) -> None:
    """Refuse to ask a trained critic under another format than the one it was trained on.

    A folder without a stored format (a model that nobody here trained) passes.

    Raises:
        ValueError: If the formats differ; the message names both.
    """
    path = Path(folder) / FINGERPRINT_FILE
    if not path.is_file():
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["fingerprint"] != format.fingerprint:
        raise ValueError(
            f"the critic in {folder} was trained on format {stored['rubric']!r} ({stored['fingerprint']}), but is asked in format "
            f"{format.rubric!r} ({format.fingerprint}); set `rubric` to the one it was trained on"
        )
