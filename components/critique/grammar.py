"""The critique format as a form that an answer can be forced into: headings and scores are fixed, prose is free.

A constrained answer that came to its end can always be read.
"""

from __future__ import annotations

from ..answer_form import AnswerForm, Choice, Maybe, Part, Prose
from ..records import Task
from .rubric import Rubric

REFINEMENT_HEADING = "# User Request Refinement:"
_WINNERS = ("Image A", "Image B", "It's a tie", "N/A")
_ANALYSIS = Maybe(("# User Request Analysis: ", Prose("analysis"), "\n"))


def pointwise_form(rubric: Rubric, task: Task, prose_tokens: int | None = None, refinement: bool = True) -> AnswerForm:
    """Form of a critique of one picture.

    Args:
        rubric: The rubric.
        task: Decides the aspects.
        prose_tokens: Most tokens of each piece of prose; ``None`` leaves them free.
        refinement: Whether the critic may go on to a refined request; else the answer may end with the refinement's heading, as a
            critic that was trained to write one would otherwise go on with its summary.
    """
    refined: tuple[str | Prose | Choice, ...] = (f"\n{REFINEMENT_HEADING}",)
    if refinement:
        refined = (
            f"\n{REFINEMENT_HEADING}\n## Refinement Comments: ",
            Prose("refinement_comments"),
            "\n## Refined Request: ",
            Prose("refined_request"),
        )
    return _form(rubric, task, {"score": "Score"}, prose_tokens, Maybe(refined))


def pairwise_form(rubric: Rubric, task: Task, prose_tokens: int | None = None) -> AnswerForm:
    """Form of a comparison of two pictures; see :func:`pointwise_form`."""
    return _form(rubric, task, {"score_a": "Score A", "score_b": "Score B"}, prose_tokens)


def _form(rubric: Rubric, task: Task, scores: dict[str, str], prose_tokens: int | None, *end: Part) -> AnswerForm:
    parts: list[Part] = [_ANALYSIS, "# Detailed Judgement:"]
    for number, aspect in enumerate(rubric.for_task(task), start=1):
        parts += [f"\n{number}. {aspect.title}:\n## Justification: ", Prose(f"{aspect.key}_justification")]
        options = rubric.scale.options() + (("N/A",) if aspect.optional else ())
        for name, heading in scores.items():
            parts += [f"\n## {heading}: ", Choice(f"{aspect.key}_{name}", options)]
        if len(scores) > 1:
            parts += ["\n## Winner: ", Choice(f"{aspect.key}_winner", _WINNERS)]
    parts += ["\n# Summary: ", Prose("summary"), *end]
    return AnswerForm(tuple(_joined(parts)), prose_tokens)


def _joined(parts: list[Part]) -> list[Part]:
    """The same parts with neighbouring texts as one."""
    joined: list[Part] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined
