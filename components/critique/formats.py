"""The registry of critique formats: what a critic is asked, how it answers, how the answer is read.

SFT export, reward, evaluation and refinement all use the same :class:`CritiqueFormat`, so that they cannot drift apart. Its
fingerprint is stored with a trained critic; :func:`check_fingerprint` refuses another format at load.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..answer_form import AnswerForm
from ..records import TASKS, AspectComparison, Critique, PairCritique, Scale, Score, Task, Unscored, to_json
from .grammar import REFINEMENT_HEADING, pairwise_form, pointwise_form
from .naming import swap_names
from .parsing import parse, parse_pair
from .rubric import Rubric, load_rubric
from .templates import Section, Template, inert, load_template

Message = dict[str, Any]
FINGERPRINT_FILE = "critique_format.json"


def quote_request(prompt: str) -> str:
    """A request as inert data: it can close no tag and hold no chat-control token (``<|im_end|>``, ``<image>``, ``[IMG]``)."""
    return f"<request>{inert(prompt).strip()}</request>"


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
        template: Path of a YAML file with the wording of the requests, for a critic that was trained on another than the rubric's,
            e.g. a published checkpoint. Each of ``pointwise`` and ``pairwise`` is a list of turns, or one for each task; either
            section may be left out. A turn's text has slots, filled in one pass::

                source_label: "Before, {number}: "   # optional: text before each source picture
                pointwise:
                  - {role: system, text: "Judge the edit. {aspects} Answer in this form: {answer}"}
                  - {role: user, text: "{sources}After: {image} What was asked for: {request}"}
                pairwise:
                  t2i:
                    - {role: user, text: "First: {image_a} Second: {image_b} What was asked for: {request}"}

            ``{request}`` and the pictures, ``{image}`` or ``{image_a}`` and ``{image_b}``, have to stand in a turn of the user's, and
            so has ``{sources}`` (all source pictures) unless the turns are of ``t2i`` alone; ``{aspects}`` and ``{answer}`` (the
            rubric's aspects and the form of the answer) may be left out. ``{{word}}`` writes ``{word}``. The request is data: it can
            act as no slot, picture, turn or control token. Answers are read as ever, scores before or after the justification;
            ``constrained`` decoding forces the rubric's own form, so leave it off if the critic was trained on another order.

    Raises:
        ValueError: If the template cannot be used; the message names file, section and slot.
    """

    rubric: str = "default"
    template: str | None = None

    def __post_init__(self) -> None:
        _ = self.wording

    @property
    def wording(self) -> Template | None:
        """The template itself."""
        return None if self.template is None else load_template(self.template)

    @property
    def rules(self) -> Rubric:
        """The rubric itself."""
        return load_rubric(self.rubric)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits over everything that a critic sees and writes under this format."""
        blank, wording = Image.new("RGB", (2, 2)), self.wording
        probe = Critique.unscored("", self.rules.keys("edit"), scale=self.rules.scale)
        sections: tuple[Section, ...] = ("pointwise", "pairwise")
        asked = [
            self._messages(section, task, "probe", [blank] * (task == "edit"), [blank] * (1 + (section == "pairwise")))
            for section in sections
            for task in ("edit", "t2i")
            if wording is None or (section, task) in wording.turns
        ]
        judged = [[(a.key, a.title, a.optional) for a in self.rules.for_task(task)] for task in TASKS]
        # critics that were trained before there were scales and templates keep their fingerprint
        further: list[Any] = [to_json(self.rules.scale)] if self.rules.scale != Scale() else []
        further += [] if wording is None else [wording.content()]
        described = json.dumps([asked, judged, self.render(probe, "edit"), *further], default=lambda _: "image", sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:12]

    # -- asking --------------------------------------------------------------------------------------------------------

    def pointwise_messages(self, task: Task, prompt: str, sources: Sequence[Image.Image], image: Image.Image) -> list[Message]:
        """Ask for a critique of one picture. The rubric comes first, so that servers can reuse its prefix.

        Raises:
            ValueError: If the template has no wording for it.
        """
        return self._messages("pointwise", task, prompt, sources, (image,))

    def pairwise_messages(
        self, task: Task, prompt: str, sources: Sequence[Image.Image], images: tuple[Image.Image, Image.Image]
    ) -> list[Message]:
        """Ask for a comparison of two pictures, named Image A and Image B in the given order; raises as the other."""
        return self._messages("pairwise", task, prompt, sources, images)

    def _messages(
        self, section: Section, task: Task, prompt: str, sources: Sequence[Image.Image], images: Sequence[Image.Image]
    ) -> list[Message]:
        texts = {"aspects": self._aspects(task), "answer": self._answer(section, task)}
        if self.wording is not None:
            slots = dict(zip(("image",) if section == "pointwise" else ("image_a", "image_b"), images, strict=True))
            return self.wording.messages(section, task, prompt, sources, slots, texts)
        text = self.rules.pointwise if section == "pointwise" else self.rules.pairwise
        for name, value in texts.items():
            text = text.replace(f"{{{name}}}", value)
        parts = []
        for number, source in enumerate(sources, start=1):
            parts += [text_part("source:" if len(sources) == 1 else f"source {number}:"), image_part(source)]
        labels = [] if section == "pointwise" else ["Image A:", "Image B:"]
        for index, image in enumerate(images):
            parts += [*(text_part(label) for label in labels[index : index + 1]), image_part(image)]
        parts.append(text_part(quote_request(prompt)))
        return [{"role": "system", "content": [text_part(text)]}, {"role": "user", "content": parts}]

    def _aspects(self, task: Task) -> str:
        aspects = []
        for number, aspect in enumerate(self.rules.for_task(task), start=1):
            levels = "".join(f"\n   {score:g}: {level}" for score, level in aspect.levels)
            aspects.append(f"{number}. {aspect.title}{levels}")
        return "\n".join(aspects)

    def _answer(self, section: Section, task: Task) -> str:
        judged = "## Score: ..." if section == "pointwise" else "## Score A: ...\n## Score B: ...\n## Winner: ..."
        lines = ["# Detailed Judgement:"]
        for number, aspect in enumerate(self.rules.for_task(task), start=1):
            lines.append(f"{number}. {aspect.title}:\n## Justification: ...\n{judged}")
        lines.append("# Summary: ...")
        if section == "pointwise":
            lines += [REFINEMENT_HEADING, "## Refinement Comments: ...", "## Refined Request: ..."]
        return "\n".join(lines)

    def pointwise_form(self, task: Task, prose_tokens: int | None = None, refinement: bool = True) -> AnswerForm:
        """Form of the answer to :meth:`pointwise_messages`; see :mod:`.grammar`."""
        return pointwise_form(self.rules, task, prose_tokens, refinement)

    def pairwise_form(self, task: Task, prose_tokens: int | None = None) -> AnswerForm:
        """Form of the answer to :meth:`pairwise_messages`."""
        return pairwise_form(self.rules, task, prose_tokens)

    # -- writing -------------------------------------------------------------------------------------------------------

    def render(self, critique: Critique, task: Task) -> str:
        """Write a critique as a critic should answer; :meth:`parse` reads it back.

        Raises:
            ValueError: If its scores are on another scale than the rubric's.
        """
        self._check_scale(critique.scale)
        lines = [f"# User Request Analysis: {critique.analysis}"] if critique.analysis else []
        lines.append("# Detailed Judgement:")
        for number, aspect in enumerate(self.rules.for_task(task), start=1):
            lines += [
                f"{number}. {aspect.title}:",
                f"## Justification: {critique.justification(aspect.key)}",
                f"## Score: {written_score(critique.score(aspect.key), critique.scale)}",
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
        """Write a comparison as a critic should answer; :meth:`parse_pair` reads it back. Raises as :meth:`render`."""
        self._check_scale(critique.scale)
        lines = [f"# User Request Analysis: {critique.analysis}"] if critique.analysis else []
        lines.append("# Detailed Judgement:")
        for number, aspect in enumerate(self.rules.for_task(task), start=1):
            judged = critique.aspects[aspect.key]
            winner = {"A": "Image A", "B": "Image B", "tie": "It's a tie"}.get(str(judged.winner), "N/A")
            lines += [
                f"{number}. {aspect.title}:",
                f"## Justification: {judged.justification}",
                f"## Score A: {written_score(judged.score_a, critique.scale)}",
                f"## Score B: {written_score(judged.score_b, critique.scale)}",
                f"## Winner: {winner}",
            ]
        lines.append(f"# Summary: {critique.summary}")
        return "\n".join(lines)

    def _check_scale(self, scale: Scale) -> None:
        if scale != self.rules.scale:
            raise ValueError(
                f"a critique with scores from {scale} cannot be written under rubric {self.rubric!r}, {self.rules.scale}"
            )

    # -- reading -------------------------------------------------------------------------------------------------------

    def parse(self, text: str, task: Task) -> Critique:
        """Read a critique of one picture; see :func:`rationalrewards.components.critique.parse`."""
        return parse(text, task, self.rules)

    def parse_pair(self, text: str, task: Task) -> PairCritique:
        """Read a critique of two pictures."""
        return parse_pair(text, task, self.rules)


def swap_pair(critique: PairCritique) -> PairCritique:
    """The same comparison with the pictures in the other order, names in the prose included (:func:`~.naming.swap_names`)."""
    flip = {"A": "B", "B": "A"}
    aspects = {
        key: AspectComparison(
            swap_names(judged.justification),
            judged.score_b,
            judged.score_a,
            flip.get(judged.winner, judged.winner),  # type: ignore[arg-type]
        )
        for key, judged in critique.aspects.items()
    }
    return PairCritique(aspects, swap_names(critique.summary), swap_names(critique.analysis), scale=critique.scale)


def written_score(score: Score, scale: Scale | None = None) -> str:
    """A score as a critic writes it, ``N/A`` where the aspect does not apply, ``unscored`` where it has none."""
    if isinstance(score, int | float):
        return (scale or Scale()).written(score)
    return "unscored" if isinstance(score, Unscored) else "N/A"


def save_fingerprint(folder: str | Path, format: CritiqueFormat) -> None:
    """Store with a trained critic which format it writes."""
    content = {"rubric": format.rubric, "fingerprint": format.fingerprint}
    if format.template is not None:
        content["template"] = format.template
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
        trained = _named(stored["rubric"], stored.get("template"), stored["fingerprint"])
        raise ValueError(
            f"the critic in {folder} was trained on format {trained}, but is asked in format "
            f"{_named(format.rubric, format.template, format.fingerprint)}; set `rubric` and `template` to those it was trained on"
        )


def _named(rubric: str, template: str | None, fingerprint: str) -> str:
    return f"{rubric!r}{'' if template is None else f' with template {template!r}'} ({fingerprint})"
