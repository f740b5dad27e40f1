"""Rewriting a request from a critique, apart from writing the critique.

A critic writes critique and rewritten request in one answer, so that what it reads in its own critique cannot be exchanged there. Here its
answer is begun for it: the same question as ever, then a critique (its own, another picture's, or bare scores) as the beginning of its
answer, which it goes on from the refinement's heading. So rewrites from different critiques differ in nothing but the critique, in a form
that the critic was trained on; and its own critique, continued without chance, leads to what it wrote itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from ..answer_form import AnswerForm, Prose
from ..chat import ChatRequest
from ..critic import Critic
from ..critique import CritiqueFormat
from ..critique.grammar import REFINEMENT_HEADING
from ..records import AspectCritique, Critique, Task

Feedback = Literal["own", "scores", "another's"]

_FORM = (
    "## Refinement Comments: ",
    Prose("refinement_comments"),
    "\n## Refined Request: ",
    Prose("refined_request"),
)


@dataclass(frozen=True)
class RewriteRequest:
    """A request to rewrite.

    Args:
        task: Its task.
        prompt: The original request.
        image: What the rewriter is shown as the picture: the real one, or a blank one.
        sources: Source pictures.
        told: The critique that it goes on from; see :func:`told`.
        number: Which of several rewrites; 0 is written without chance.
    """

    task: Task
    prompt: str
    image: Image.Image
    sources: tuple[Image.Image, ...]
    told: str
    number: int = 0


def told(critique: Critique, format: CritiqueFormat, task: Task, words: bool = True) -> str:
    """A critique as the beginning of an answer, up to the refinement's heading; empty if nothing is scored in it.

    Args:
        critique: The critique.
        format: The format that it is written in.
        task: Decides the aspects.
        words: Whether to leave its words in; without, only aspects and scores are said.
    """
    if critique.failure:
        return ""
    if words and critique.text:
        text = critique.text.split(REFINEMENT_HEADING)[0].rstrip()
    else:
        kept = {key: judged if words else AspectCritique("", judged.score) for key, judged in critique.aspects.items()}
        text = format.render(Critique(kept, critique.summary if words else "", scale=critique.scale), task)
    return f"{text}\n{REFINEMENT_HEADING}\n"


def rewrite(critic: Critic, requests: Sequence[RewriteRequest], temperature: float) -> list[tuple[str, int]]:
    """Rewrite requests, each from what it was told.

    Needs a chat model that goes on from a given beginning: TransformersChat and VLLMChat do, and OpenAIChat with a server that knows
    ``continue_final_message`` (vLLM, SGLang). An answer that begins anew instead is no rewrite.

    Args:
        critic: The critic.
        requests: What to rewrite.
        temperature: Sampling temperature of all but the first rewrite.

    Returns:
        The rewritten request, empty if there is none, and the tokens that were read and written.
    """
    form = AnswerForm(_FORM, critic.prose_tokens) if critic.constrained else None
    asks = [
        ChatRequest(
            [
                *critic.format.pointwise_messages(r.task, r.prompt, r.sources, r.image),
                {"role": "assistant", "content": [{"type": "text", "text": r.told}]},
            ],
            critic.max_tokens,
            temperature if r.number else 0.0,
            r.number,
            form=form,
        )
        for r in requests
    ]
    found = []
    for r, reply in zip(requests, critic.chat.complete(asks) if asks else (), strict=True):
        text = ""
        if not reply.failure and REFINEMENT_HEADING not in reply.text:
            text = critic.format.parse(r.told + reply.text, r.task).refined_request
        found.append((text, reply.prompt_tokens + reply.completion_tokens))
    return found
