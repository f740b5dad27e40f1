"""Answers that are kept: the same request to the same weights is not computed twice."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from .base import ChatModel, ChatReply, ChatRequest, Place, Weights, in_order

Found = TypeVar("Found", ChatReply, list[Weights])


class CachedChat(ChatModel):
    """Another model with a folder of its answers.

    An answer is found again by all that it depends on: the model's :attr:`~ChatModel.fingerprint` (weights, precision, picture
    limit), every word and pixel of the request, and the sampling settings with their seed. Failures are never kept. One file per
    answer, written whole, so any number of processes and machines can share the folder; it may be deleted at any time.

    Args:
        chat: The model that answers what is not in the folder.
        folder: Where the answers lie; made if missing.
    """

    def __init__(self, chat: ChatModel, folder: str) -> None:
        self.chat = chat
        self.folder = Path(folder)
        self.hits = 0
        self.misses = 0
        self._key: str | None = None

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
        return in_order(self.stream(requests))

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[list[tuple[int, ChatReply]]]:
        def ask(missing: Sequence[int]) -> Iterator[list[tuple[int, ChatReply]]]:
            return self.chat.stream([requests[index] for index in missing])

        paths = [self._path(request) for request in requests]
        return self._kept_or_asked(paths, lambda kept: ChatReply(**kept), ask, lambda reply: bool(reply.failure))

    def weigh(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> list[list[Weights]]:
        return in_order(self.stream_weights(requests, answers, places))

    def stream_weights(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> Iterator[list[tuple[int, list[Weights]]]]:
        def ask(missing: Sequence[int]) -> Iterator[list[tuple[int, list[Weights]]]]:
            return self.chat.stream_weights(*([of[i] for i in missing] for of in (requests, answers, places)))  # type: ignore[arg-type]

        paths = [
            self._path(request, {"answer": answer, "places": [asdict(place) for place in of_row]})
            for request, answer, of_row in zip(requests, answers, places, strict=True)
        ]

        def failed(of_row: list[Weights]) -> bool:
            return any(weights.failure for weights in of_row)

        return self._kept_or_asked(paths, lambda kept: [Weights(**weights) for weights in kept], ask, failed)

    def _kept_or_asked(
        self,
        paths: Sequence[Path],
        load: Callable[[Any], Found],
        ask: Callable[[Sequence[int]], Iterator[list[tuple[int, Found]]]],
        failed: Callable[[Found], bool],
    ) -> Iterator[list[tuple[int, Found]]]:
        kept = [_read(path, load) for path in paths]
        missing = [index for index, one in enumerate(kept) if one is None]
        self.hits += len(paths) - len(missing)
        self.misses += len(missing)
        yield [(index, one) for index, one in enumerate(kept) if one is not None]
        if missing or self.in_lockstep:
            for part in ask(missing):
                for position, one in part:
                    if not failed(one):
                        _write(paths[missing[position]], one)
                yield [(missing[position], one) for position, one in part]

    def _path(self, request: ChatRequest, further: Any = None) -> Path:
        if self._key is None:
            self._key = self.fingerprint
        digest = hashlib.sha256()
        settings = [self._key, request.max_tokens, request.temperature, request.seed, list(request.stop), repr(request.form)]
        digest.update(json.dumps(settings if further is None else [*settings, further]).encode())
        for turn in request.messages:
            digest.update(json.dumps(turn["role"]).encode())
            for part in turn["content"]:
                if part["type"] == "image":
                    image = part["image"].convert("RGB")
                    digest.update(f"image {image.size}".encode() + image.tobytes())
                else:
                    digest.update(json.dumps(part).encode())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.json"


def _read(path: Path, load: Callable[[Any], Found]) -> Found | None:
    """A kept answer; ``None`` if there is none that can be read (half a file on a full disk is as good as none)."""
    try:
        return load(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # damaged bytes and damaged JSON are both ValueErrors
        return None


def _write(path: Path, found: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump([asdict(weights) for weights in found] if isinstance(found, list) else asdict(found), file)
    os.replace(scratch, path)
