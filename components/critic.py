"""A critic: a vision-language model asked in one format, its answers read, failures asked again and then left unscored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from PIL import Image

from .chat import ChatModel, ChatReply, ChatRequest, Place, Weights
from .critique.formats import CritiqueFormat, check_fingerprint
from .critique.grammar import REFINEMENT_HEADING
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


def _expecting(critique: Critique, weights: Mapping[str, Weights]) -> Critique:
    """A critique with its expected scores: all, or none if one of them is not known, so that no mean mixes the two kinds."""
    expected = {}
    for key, found in weights.items():
        mass = sum(found.options.values())
        if found.failure or mass <= 0:
            return critique
        expected[key] = sum(float(option) * weight for option, weight in found.options.items()) / mass
    aspects = {
        key: replace(judged, expected=expected[key]) if key in expected else judged for key, judged in critique.aspects.items()
    }
    return replace(critique, aspects=aspects)


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
        constrained: Whether answers are forced into the form that can be read (TransformersChat, VLLMChat, and OpenAIChat where its
            ``structured`` names the server's way).
        prose_tokens: Most tokens of each piece of prose of a constrained answer; ``None`` leaves them free.
        expected: Whether to look behind each written score: its mean over all scores that the critic might have written there, exact
            for numbers of several tokens. ``None`` does where the backend does it cheaply, as TransformersChat: it costs one reading
            of each answer, leaves hardly a tie, and puts more pairs in order than the mean of eight sampled critiques does
            (``benchmarks/expected_scores.py``). Of critiques of one picture only. Where a server cannot tell, the written scores stay.
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
        expected: bool | None = None,
    ) -> None:
        self.chat = chat
        self.format = format or CritiqueFormat()
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.reasks = reasks
        self.reask_temperature = reask_temperature
        self.constrained = constrained
        self.prose_tokens = prose_tokens
        self.expected = expected

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

        spent = [0] * len(requests)

        def read(index: int, reply: ChatReply) -> Critique:
            spent[index] += reply.prompt_tokens + reply.completion_tokens
            task = requests[index].task
            if reply.failure:
                return Critique.unscored(reply.failure, self.format.rules.keys(task), reply.text, self.format.rules.scale)
            return self.format.parse(reply.text, task)

        found = self._ask(asks, read, lambda critique: critique.failure)
        critiques = [replace(critique, tokens=tokens) for critique, tokens in zip(found, spent, strict=True)]
        expected = self.chat.weighs_cheaply if self.expected is None else self.expected
        return self._with_expected(asks, critiques) if expected else critiques

    def _with_expected(self, asks: Sequence[ChatRequest], critiques: Sequence[Critique]) -> list[Critique]:
        scale = self.format.rules.scale
        found = []
        for critique in critiques:
            scored = (
                {} if critique.failure else {key: judged.at for key, judged in critique.aspects.items() if judged.at is not None}
            )
            found.append({key: Place(at, scale.options()) for key, at in scored.items()})
        weights = self.chat.weigh(asks, [critique.text for critique in critiques], [list(places.values()) for places in found])
        return [
            _expecting(critique, dict(zip(places, of_row, strict=True)))
            for critique, places, of_row in zip(critiques, found, weights, strict=True)
        ]

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
                return PairCritique.unscored(reply.failure, self.format.rules.keys(task), reply.text, self.format.rules.scale)
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
            if not failed and not self.chat.in_lockstep:
                break
            retries = [replace(asks[i], seed=asks[i].seed + again, temperature=self.reask_temperature) for i in failed]
            for index, reply in zip(failed, self.chat.complete(retries), strict=True):
                answers[index] = read(index, reply)
        return answers
