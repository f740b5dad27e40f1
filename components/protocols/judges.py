"""Who judged: names for a result row, and the picture tokens that a judge really read."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chat import ChatModel, ChatReply, ChatRequest, Place, Weights
from ..checkpoints import fingerprint, resolve
from ..critic import Critic
from ..critique import CritiqueFormat
from ..rewards import RewardModel


@dataclass(frozen=True)
class Judge:
    """A judge in a result row.

    Args:
        name: Path, hub id or model name; of what has none, the class.
        weights: Fingerprint of weights, precision and picture limit, where the judge knows it.
        format: Fingerprint of the critique format; ``None`` of judges that write no critique.
        image_tokens: Smallest, mean and largest number of picture tokens of a request; ``None`` where unknown.
    """

    name: str
    weights: str | None = None
    format: str | None = None
    image_tokens: tuple[int, float, int] | None = None


def describe(judge: RewardModel | Critic) -> Judge:
    """What a judge says of itself: its critic's chat model and format, or else its ``identity`` or ``path``, weights and format."""
    critic = critic_of(judge)
    if critic is not None:
        return Judge(critic.chat.identity, _short(critic.chat.fingerprint), critic.format.fingerprint)
    path, revision, format = (getattr(judge, name, None) for name in ("path", "revision", "format"))
    name = getattr(judge, "identity", None) or (f"{path}@{revision}" if revision else path)
    function = getattr(judge, "function", None)
    if name is None and function is not None:
        name = getattr(function, "__qualname__", None) or type(function).__name__
    weights = getattr(judge, "fingerprint", None)
    if weights is None and isinstance(path, str) and Path(resolve(path)).is_dir():
        weights = fingerprint("", path)
    return Judge(
        f"{type(judge).__name__} {name}" if isinstance(name, str) else type(judge).__name__,
        _short(weights) if isinstance(weights, str) else None,
        format.fingerprint if isinstance(format, CritiqueFormat) else None,
    )


def _short(fingerprint: str) -> str:
    """A fingerprint of at most 16 characters: some are settings in full."""
    return fingerprint if len(fingerprint) <= 16 else hashlib.sha256(fingerprint.encode()).hexdigest()[:16]


def critic_of(judge: RewardModel | Critic | None) -> Critic | None:
    """The critic behind a judge; ``None`` if there is none."""
    found = judge if isinstance(judge, Critic) else getattr(judge, "critic", None)
    return found if isinstance(found, Critic) else None


class TokenCount(ChatModel):
    """Another chat model, and how many picture tokens its answered requests had.

    Args:
        chat: The model.
    """

    def __init__(self, chat: ChatModel) -> None:
        self.chat = chat
        self.image_tokens: list[int] = []

    @property
    def identity(self) -> str:
        return self.chat.identity

    @property
    def fingerprint(self) -> str:
        return self.chat.fingerprint

    @property
    def weights(self) -> str | None:
        return self.chat.weights

    @property
    def weighs_cheaply(self) -> bool:
        return self.chat.weighs_cheaply

    @property
    def in_lockstep(self) -> bool:
        return self.chat.in_lockstep

    def load(self, device: Any = None) -> None:
        self.chat.load(device)

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        replies = self.chat.complete(requests)
        self.image_tokens += [reply.image_tokens for reply in replies if reply.image_tokens]
        return replies

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[list[tuple[int, ChatReply]]]:
        for part in self.chat.stream(requests):
            self.image_tokens += [reply.image_tokens for _, reply in part if reply.image_tokens]
            yield part

    def weigh(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> list[list[Weights]]:
        return self.chat.weigh(requests, answers, places)


def counting(judge: Any) -> tuple[Any, TokenCount | None]:
    """A copy of a judge that counts picture tokens, sharing the model with the judge, and its count.

    Args:
        judge: A critic, or a reward model; one without a critic is given back as it is, with ``None``.
    """
    critic = critic_of(judge)
    if critic is None:
        return judge, None
    count = TokenCount(critic.chat)
    own = copy.copy(critic)
    own.chat = count
    if judge is critic:
        return own, count
    reward = copy.copy(judge)
    reward.critic = own
    return reward, count
