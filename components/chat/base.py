"""How a vision-language model is asked: requests in, replies out, one for one and in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from ..answer_form import AnswerForm

T = TypeVar("T")


@dataclass(frozen=True)
class ChatRequest:
    """One conversation to complete.

    Args:
        messages: Turns of the form ``{"role": ..., "content": [{"type": "text", "text": ...} | {"type": "image", "image": PIL}]}``.
            A last turn of the assistant's is the beginning of the answer: the reply, and the form if any, is what comes after it.
        max_tokens: Most tokens to generate; an answer that is cut off there is a failure.
        temperature: 0 is greedy.
        seed: Seed of the sampling, where the backend has one.
        stop: The answer ends before the first of these strings.
        form: The answer is forced into this form; ``None`` leaves it free.
    """

    messages: Sequence[dict[str, Any]]
    max_tokens: int = 2048
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    form: AnswerForm | None = None

    @property
    def continues(self) -> bool:
        """Whether the answer has begun already: the last turn is the assistant's."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def images(self) -> list[Image.Image]:
        """All pictures of the conversation, in order."""
        return [part["image"] for turn in self.messages for part in turn["content"] if part["type"] == "image"]

    def text(self) -> str:
        """All text of the conversation, pictures left out."""
        return "\n".join(part["text"] for turn in self.messages for part in turn["content"] if part["type"] == "text")


@dataclass(frozen=True)
class ChatReply:
    """What came back for one request.

    Args:
        text: The answer; empty if there is none.
        failure: Why there is no usable answer; empty if there is one.
        prompt_tokens: Tokens of the request, pictures included.
        image_tokens: Tokens of its pictures, 0 where the backend does not tell.
        completion_tokens: Tokens of the answer.
        reused_tokens: Tokens of the request whose keys and values were not computed again, 0 where the backend does not tell.
        attempts: How often the request was sent.
    """

    text: str
    failure: str = ""
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    reused_tokens: int = 0
    attempts: int = 1


@dataclass(frozen=True)
class Place:
    """A place in an answer where one of several strings stands.

    Args:
        start: Characters of the answer before it.
        options: The strings that might stand there, e.g. all scores.
    """

    start: int
    options: tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """How probable each option of a :class:`Place` is, given all that stands before it.

    Args:
        options: Option to probability. Their sum is the model's probability that any of them stands there; an option that others
            continue ("3" and "3.5") has what is left when none of the others does.
        failure: Why there are no probabilities; empty if there are.
        prompt_tokens: Tokens that the model read for it, pictures and the answer included; 0 where the backend does not tell. What
            several places of an answer took together counts with the first of them.
        completion_tokens: Likewise those that it wrote.
        requests: Likewise how many requests were sent; 0 for a model in this process.
    """

    options: Mapping[str, float]
    failure: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0


class ChatModel(ABC):
    """A vision-language model behind one method. Built as a recipe: weights and connections come with :meth:`load`."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Name of the model for provenance: weights or URL and model name; never a secret."""

    @property
    def fingerprint(self) -> str:
        """All that an answer depends on besides the request, as far as this process can know it; by default the identity."""
        return self.identity

    @property
    def weights(self) -> str | None:
        """The folder or hub id that the weights were loaded from; ``None`` if they are elsewhere."""
        return None

    @property
    def weighs_cheaply(self) -> bool:
        """Whether :meth:`weigh` costs little beside :meth:`complete`: critics then take expected scores unless told not to."""
        return False

    @property
    def in_lockstep(self) -> bool:
        """Whether other processes hold parts of the weights: all must then call :meth:`complete` equally often, if with no requests."""
        return False

    @abstractmethod
    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """Answer requests, in order. A request that fails gives a reply with ``failure``; it does not raise."""

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[list[tuple[int, ChatReply]]]:
        """:meth:`complete` in parts: each time all replies that are there by then, with the numbers of their requests.

        For callers who keep every answer as it comes, so that a kill loses none that was paid for. By default all come at once.
        """
        yield list(enumerate(self.complete(requests)))

    def weigh(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> list[list[Weights]]:
        """How probable the options at some places of given answers are.

        Args:
            requests: What was asked.
            answers: One answer per request, of this model or of another.
            places: The places of each answer.

        Returns:
            For each answer the weights at its places, in order. A place that cannot be weighed has a ``failure``.

        Raises:
            ValueError: If this kind of model never shows its probabilities.
        """
        raise ValueError(f"{type(self).__name__} does not show its probabilities; leave out expected scores")

    def stream_weights(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> Iterator[list[tuple[int, list[Weights]]]]:
        """:meth:`weigh` in parts, as :meth:`stream` is :meth:`complete` in parts. By default all come at once."""
        yield list(enumerate(self.weigh(requests, answers, places)))

    def load(self, device: Any = None) -> None:  # noqa: B027 - optional hook
        """Load weights or connect. Called before the first request; safe to call again."""


def in_order(parts: Iterable[Iterable[tuple[int, T]]]) -> list[T]:
    """All that :meth:`ChatModel.stream` yields, in the order of the requests."""
    return [item for _, item in sorted((numbered for part in parts for numbered in part), key=lambda numbered: numbered[0])]
