"""How a vision-language model is asked: requests in, replies out, one for one and in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class ChatRequest:
    """One conversation to complete.

    Args:
        messages: Turns of the form ``{"role": ..., "content": [{"type": "text", "text": ...} | {"type": "image", "image": PIL}]}``.
        max_tokens: Most tokens to generate; an answer that is cut off there is a failure.
        temperature: 0 is greedy.
        seed: Seed of the sampling, where the backend has one.
        stop: The answer ends before the first of these strings.
        grammar: The answer is forced into this grammar (llguidance's Lark dialect); "" leaves it free.
    """

    messages: Sequence[dict[str, Any]]
    max_tokens: int = 2048
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: str = ""

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
        attempts: How often the request was sent.
    """

    text: str
    failure: str = ""
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1


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

    @abstractmethod
    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """Answer requests, in order. A request that fails gives a reply with ``failure``; it does not raise."""

    def load(self, device: Any = None) -> None:  # noqa: B027 - optional hook
        """Load weights or connect. Called before the first request; safe to call again."""
