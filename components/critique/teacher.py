"""What a teacher is asked in the stages of PARROT (arXiv 2604.11626, section 2.1 and appendix C), in our own wording.

A teacher sees the preference label in the anchored request only; nothing asked of the student ever carries it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from ..records import Critique, PairCritique, Task, Verdict
from .formats import CritiqueFormat, Message, image_part, quote_request, text_part, written_score
from .parsing import parse

HINT = "Known preference:"
COMMENT_TAG = "comment"

# in other words than the student's answer has for a winner ("Image A"), so that the teacher cannot copy it
_PREFERRED = {
    "A": "people preferred the first of the two pictures",
    "B": "people preferred the second of the two pictures",
    "tie": "people saw no difference between the two pictures",
}
VERDICTS: dict[str, Verdict] = {"A is preferred": "A", "B is preferred": "B", "Tie": "tie"}
"""What the consistency check is answered with."""


def anchor_messages(
    format: CritiqueFormat,
    task: Task,
    prompt: str,
    sources: Sequence[Image.Image],
    images: tuple[Image.Image, Image.Image],
    label: Verdict | None,
) -> list[Message]:
    """Anchored generation: the student's pairwise request plus one line with the label (appendix C.1), or without it."""
    *before, user = format.pairwise_messages(task, prompt, sources, images)
    if label is None:
        return [*before, user]
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
        + f"? Answer with exactly one of: {', '.join(VERDICTS)}."
    )
    return [{"role": "user", "content": [*parts, text_part(question)]}]


def read_verdict(text: str) -> Verdict | None:
    """The answer to :func:`check_messages`; ``None`` if it is not one of the three."""
    said = text.strip().strip(".*\"'").lower()
    return next((verdict for answer, verdict in VERDICTS.items() if answer.lower() == said), None)


def project_messages(
    format: CritiqueFormat,
    task: Task,
    prompt: str,
    sources: Sequence[Image.Image],
    image: Image.Image,
    comment: str | None,
    which: str,
) -> list[Message]:
    """Pointwise projection: judge one picture alone, with the validated comparison as a reference (appendix C.3) or without."""
    *before, user = format.pointwise_messages(task, prompt, sources, image)
    if comment is None:
        return [*before, user]
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


def mask_comment(format: CritiqueFormat, critique: PairCritique, task: Task, show: str) -> str:
    """A pairwise critique with part of it hidden, for the consistency check; the paper's shows all of it (appendix C.2).

    Args:
        format: The critique's format.
        critique: The critique.
        task: Its task.
        show: ``"justifications"``, ``"scores"`` (justifications and scores) or ``"all"`` (winners and summary too).
    """
    if show == "all":
        return format.render_pair(critique, task)
    if show not in ("justifications", "scores"):
        raise ValueError(f"show must be justifications, scores or all, got {show!r}")
    lines = []
    for aspect in format.rules.for_task(task):
        judged = critique.aspects[aspect.key]
        lines.append(f"{aspect.title}: {judged.justification}")
        if show == "scores":
            both = (written_score(score, critique.scale) for score in (judged.score_a, judged.score_b))
            lines.append("Score A: {} Score B: {}".format(*both))
    return "\n".join(lines)


READ_QUESTION = "Which score does each text support?"


def read_messages(format: CritiqueFormat, critique: Critique, task: Task) -> list[Message]:
    """Ask a blind reader for the scores that the justifications of a critique support: no pictures, no request, no scores."""
    texts = [f"{a.title}: {critique.justification(a.key)}" for a in format.rules.for_task(task)]
    question = (
        f"<{COMMENT_TAG}>\n"
        + "\n".join(texts)
        + f"\n</{COMMENT_TAG}>\n{READ_QUESTION} Scores run from {critique.scale}; answer with one "
        "line for each, of the form\nTitle: score\nand N/A where the text says that it does not apply."
    )
    return [{"role": "user", "content": [text_part(question)]}]


def read_scores(format: CritiqueFormat, answer: str, task: Task) -> dict[str, float]:
    """The answer to :func:`read_messages`: aspect key to score, as far as there are scores on the scale."""
    found = {}
    for aspect in format.rules.for_task(task):
        match = re.search(rf"^\W*{re.escape(aspect.title)}\W*:\W*(\d+(?:\.\d+)?)\b", answer, re.MULTILINE | re.IGNORECASE)
        if match and format.rules.scale.contains(float(match[1])):
            found[aspect.key] = float(match[1])
    return found


def merge_refinement(critique: Critique, answer: str) -> Critique:
    """Add a teacher's refinement answer to a pointwise critique; unchanged if the answer has no refined request."""
    refined = parse(answer, "t2i")
    if not refined.refined_request:
        return critique
    return replace(critique, refinement_comments=refined.refinement_comments, refined_request=refined.refined_request, text="")
