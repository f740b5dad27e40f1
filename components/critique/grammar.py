"""The critique format as a grammar, for backends that can force an answer into a form.

Headings and scores are forced, prose is one free paragraph each: a constrained answer that came to its end can always be read. To
see that it comes to its end, prose can be given a longest length. The syntax is the Lark dialect of llguidance.
"""

from __future__ import annotations

from ..records import Task
from .rubric import Rubric

# One paragraph: after a line break only a heading can follow, so the lexer never has to look back.
_PROSE = "PROSE: /[^\\n]+/"
_SCORE = "SCORE: /[1-3](\\.[0-9])?|4(\\.0)?/"
_ANALYSIS = '("# User Request Analysis: " prose "\\n")?'


def pointwise_grammar(rubric: Rubric, task: Task, prose_tokens: int | None = None) -> str:
    """Grammar of a critique of one picture, the refinement optional.

    Args:
        rubric: The rubric.
        task: Decides the aspects.
        prose_tokens: Most tokens of each piece of prose; ``None`` leaves them free.
    """
    refinement = '("\\n# User Request Refinement:\\n## Refinement Comments: " prose "\\n## Refined Request: " prose)?'
    return _grammar(rubric, task, ("Score",), refinement, prose_tokens)


def pairwise_grammar(rubric: Rubric, task: Task, prose_tokens: int | None = None) -> str:
    """Grammar of a comparison of two pictures; see :func:`pointwise_grammar`."""
    return _grammar(rubric, task, ("Score A", "Score B"), "", prose_tokens)


def _grammar(rubric: Rubric, task: Task, scores: tuple[str, ...], refinement: str, prose_tokens: int | None) -> str:
    aspects = rubric.for_task(task)
    rules = []
    for number, aspect in enumerate(aspects, start=1):
        score = '(SCORE | "N/A")' if aspect.optional else "SCORE"
        fields = [f'"\\n## {name}: " {score}' for name in scores]
        if len(scores) > 1:
            fields.append('"\\n## Winner: " WINNER')
        title = f"{number}. {aspect.title}:\\n## Justification: ".replace('"', '\\"')
        rules.append(f'aspect_{number}: "{title}" prose {" ".join(fields)} "\\n"')
    names = " ".join(f"aspect_{number}" for number in range(1, len(aspects) + 1))
    return "\n".join(
        [
            f'start: {_ANALYSIS} "# Detailed Judgement:\\n" {names} "# Summary: " prose {refinement}',
            *rules,
            f"prose{'' if prose_tokens is None else f'[max_tokens={prose_tokens}]'}: PROSE",
            _PROSE,
            _SCORE,
            *(['WINNER: "Image A" | "Image B" | "It\'s a tie" | "N/A"'] if len(scores) > 1 else []),
        ]
    )
