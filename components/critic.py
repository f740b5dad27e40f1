"""A critic: a vision-language model asked in one format, its answers read, failures asked again and then left unscored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from PIL import Image

from .chat import ChatModel, ChatReply, ChatRequest
from .critique.formats import REFINEMENT_HEADING, CritiqueFormat, check_fingerprint
from .records import Critique, PairCritique, Task, Unscored


@dataclass(frozen=True)
class CritiqueRequest:
    """One picture to judge: the request it was made for, its source pictures and itself."""

    task: Task
    prompt: str
    image: Image.Image
    sources: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class ComparisonRequest:
    """Two pictures to compare."""

    task: Task
    prompt: str
    images: tuple[Image.Image, Image.Image]
    sources: tuple[Image.Image, ...] = ()


Answer = TypeVar("Answer", Critique, PairCritique)


class Critic:
    """Asks a chat model for critiques.

    Args:
        chat: The model.
        format: How critiques are asked for and read; the default rubric if omitted.
        max_tokens: Most tokens of one critique.
        temperature: Sampling temperature of the first ask.
        reasks: How often an answer that cannot be read is asked for again, with another seed and at ``reask_temperature``.
        reask_temperature: Temperature of the further asks (at 0 the same answer would come back).
        constrained: Whether answers are forced into the form that can be read (TransformersChat only).
        prose_tokens: Most tokens of each piece of prose of a constrained answer; ``None`` leaves them free.
    """

    def __init__(
        self,
        chat: ChatModel,
        format: CritiqueFormat | None = None,
        max_tokens: int = 2048,
        temperature: float = 0.0,
        reasks: int = 1,
        reask_temperature: float = 0.7,
        constrained: bool = False,
        prose_tokens: int | None = None,
    ) -> None:
        self.chat = chat
        self.format = format or CritiqueFormat()
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.reasks = reasks
        self.reask_temperature = reask_temperature
        self.constrained = constrained
        self.prose_tokens = prose_tokens

    def load(self, device: Any = None) -> None:
        """Load the model, and refuse one that was trained on another format."""
        if self.chat.weights is not None:
            check_fingerprint(self.chat.weights, self.format)
        self.chat.load(device)

    def critique(
        self, requests: Sequence[CritiqueRequest], refinement: bool = True, seed: int = 0, temperature: float | None = None
    ) -> list[Critique]:
        """Judge pictures one by one.

        Args:
            requests: What to judge.
            refinement: Whether to let the critic go on to its refined request; without, generation stops before it.
            seed: Seed of the sampling.
            temperature: Sampling temperature of the first ask, instead of the critic's own.

        Returns:
            One critique per request, in order. A failed one has only unscored aspects, with the reason.
        """
        stop = () if refinement else (REFINEMENT_HEADING,)
        asks = [
            ChatRequest(
                self.format.pointwise_messages(r.task, r.prompt, r.sources, r.image),
                self.max_tokens,
                self.temperature if temperature is None else temperature,
                seed,
                stop,
                self.format.pointwise_form(r.task, self.prose_tokens, refinement) if self.constrained else None,
            )
            for r in requests
        ]

        def read(index: int, reply: ChatReply) -> Critique:
            task = requests[index].task
            if reply.failure:
                return Critique.unscored(reply.failure, self.format.rules.keys(task), reply.text)
            return self.format.parse(reply.text, task)

        return self._ask(asks, read, lambda critique: critique.failure)

    def compare(self, requests: Sequence[ComparisonRequest]) -> list[PairCritique]:
        """Compare pictures pair by pair, in the given order; see :meth:`critique`."""
        asks = [
            ChatRequest(
                self.format.pairwise_messages(r.task, r.prompt, r.sources, r.images),
                self.max_tokens,
                self.temperature,
                form=self.format.pairwise_form(r.task, self.prose_tokens) if self.constrained else None,
            )
            for r in requests
        ]

        def read(index: int, reply: ChatReply) -> PairCritique:
            task = requests[index].task
            if reply.failure:
                return PairCritique.unscored(reply.failure, self.format.rules.keys(task), reply.text)
            return self.format.parse_pair(reply.text, task)

        def failure(critique: PairCritique) -> str:
            verdict = critique.verdict()
            return verdict.reason if isinstance(verdict, Unscored) else ""

        return self._ask(asks, read, failure)

    def _ask(
        self,
        asks: Sequence[ChatRequest],
        read: Callable[[int, ChatReply], Answer],
        failure: Callable[[Answer], str],
    ) -> list[Answer]:
        answers = [read(index, reply) for index, reply in enumerate(self.chat.complete(asks))]
        for again in range(1, self.reasks + 1):
            failed = [index for index, answer in enumerate(answers) if failure(answer)]
            if not failed:
                break
            retries = [replace(asks[i], seed=asks[i].seed + again, temperature=self.reask_temperature) for i in failed]
            for index, reply in zip(failed, self.chat.complete(retries), strict=True):
                answers[index] = read(index, reply)
        return answers
