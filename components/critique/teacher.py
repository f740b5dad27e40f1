"""What a teacher is asked in the stages of PARROT (arXiv 2604.11626, section 2.1 and appendix C), in our own wording.

A teacher sees the preference label in the anchored request only; nothing asked of the student ever carries it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from ..records import Critique, Task, Verdict
from .formats import CritiqueFormat, Message, image_part, quote_request, text_part, written_score
from .parsing import parse

HINT = "Known preference:"
COMMENT_TAG = "comment"

_PREFERRED = {"A": "people preferred Image A", "B": "people preferred Image B", "tie": "people saw no difference"}
_VERDICTS: dict[str, Verdict] = {"a is preferred": "A", "b is preferred": "B", "tie": "tie"}


def anchor_messages(
    format: CritiqueFormat,
    task: Task,
    prompt: str,
    sources: Sequence[Image.Image],
    images: tuple[Image.Image, Image.Image],
    label: Verdict,
) -> list[Message]:
    """Anchored generation: the student's pairwise request plus one line with the label (appendix C.1)."""
    *before, user = format.pairwise_messages(task, prompt, sources, images)
    hint = f"{HINT} {_PREFERRED[label]}. Explain what in the pictures leads to it; do not mention that you were told."
    return [*before, {"role": "user", "content": [*user["content"], text_part(hint)]}]


def check_messages(
    task: Task,
    prompt: str,
    sources: Sequence[Image.Image],
    images: tuple[Image.Image, Image.Image] | None,
    comment: str,
) -> list[Message]:
    """Consistency check: which picture does this comment prefer? Without the label; pictures are shown if given."""
    parts: list[Message] = []
    if images is not None:
        for number, source in enumerate(sources, start=1):
            parts += [text_part(f"source {number}:"), image_part(source)]
        parts += [text_part("Image A:"), image_part(images[0]), text_part("Image B:"), image_part(images[1])]
    question = (
        f"{quote_request(prompt)}\n<{COMMENT_TAG}>\n{comment}\n</{COMMENT_TAG}>\n"
        "Which picture is better for the request, going by the comment"
        + (" as far as the pictures bear it out" if images is not None else "")
        + "? Answer with exactly one of: A is preferred, B is preferred, Tie."
    )
    return [{"role": "user", "content": [*parts, text_part(question)]}]


def read_verdict(text: str) -> Verdict | None:
    """The answer to :func:`check_messages`; ``None`` if it is not one of the three."""
    return _VERDICTS.get(text.strip().strip(".*\"'").lower())


def project_messages(
    format: CritiqueFormat,
    task: Task,
    prompt: str,
    sources: Sequence[Image.Image],
    image: Image.Image,
    comment: str,
    which: str,
) -> list[Message]:
    """Pointwise projection: judge one picture alone, with the validated comparison as a reference (appendix C.3)."""
    *before, user = format.pointwise_messages(task, prompt, sources, image)
    reference = (
        f"<{COMMENT_TAG}>\n{comment}\n</{COMMENT_TAG}>\nThis picture is Image {which} in the reference comment above. Judge it as if "
        "you had seen it alone; never mention the comment or the other picture."
    )
    return [*before, {"role": "user", "content": [*user["content"], text_part(reference)]}]


def refine_messages(task: Task, prompt: str, sources: Sequence[Image.Image], image: Image.Image, critique: str) -> list[Message]:
    """Refinement: rewrite the request from a critique of its picture (the paper shows no prompt for it)."""
    parts = [image_part(picture) for picture in (*sources, image)]
    question = (
        f"{quote_request(prompt)}\n<{COMMENT_TAG}>\n{critique}\n</{COMMENT_TAG}>\n"
        "Say what a better request should change, then rewrite the request; keep everything it asks for. Answer in this form:\n"
        "## Refinement Comments: ...\n## Refined Request: ..."
    )
    return [{"role": "user", "content": [*parts, text_part(question)]}]


def mask_comment(format: CritiqueFormat, text: str, task: Task, show: str) -> str:
    """A pairwise critique with part of it hidden, for the consistency check; the paper's shows all of it (appendix C.2).

    Args:
        format: The critique's format.
        text: The critique.
        task: Its task.
        show: ``"justifications"``, ``"scores"`` (justifications and scores) or ``"all"`` (winners and summary too).
    """
    if show == "all":
        return text
    if show not in ("justifications", "scores"):
        raise ValueError(f"show must be justifications, scores or all, got {show!r}")
    critique = format.parse_pair(text, task)
    lines = []
    for aspect in format.rules.for_task(task):
        judged = critique.aspects[aspect.key]
        lines.append(f"{aspect.title}: {judged.justification}")
        if show == "scores":
            both = (written_score(score, critique.scale) for score in (judged.score_a, judged.score_b))
            lines.append("Score A: {} Score B: {}".format(*both))
    return "\n".join(lines)


_ECHOES = re.compile(
    r"\b(human (preference|label|annotator|choice)|(people|humans?|users?|annotators?) prefer|known preference|as (i was )?told|"
    r"given (the )?(preference|label)|ground[- ]truth|reference comment)",
    re.IGNORECASE,
)
_OTHER = re.compile(r"\bthe other (image|picture)|\bImage [AB]\b", re.IGNORECASE)


def label_echo(text: str, single: bool = False) -> str:
    """The first phrase that gives away that the writer knew the label or saw a reference; empty if there is none.

    Args:
        text: What the teacher wrote.
        single: Whether it is meant to speak of one picture only; naming another one then gives the reference away.
    """
    match = _ECHOES.search(text) or (_OTHER.search(text) if single else None)
    return match[0] if match else ""


def merge_refinement(critique: Critique, answer: str) -> Critique:
    """Add a teacher's refinement answer to a pointwise critique; unchanged if the answer has no refined request."""
    refined = parse(answer, "t2i")
    if not refined.refined_request:
        return critique
    return replace(critique, refinement_comments=refined.refinement_comments, refined_request=refined.refined_request, text="")
