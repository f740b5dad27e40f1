"""Answers that are kept: the same request to the same weights is not computed twice."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .base import ChatModel, ChatReply, ChatRequest


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

    def load(self, device: Any = None) -> None:
        self.chat.load(device)

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        if self._key is None:
            self._key = self.fingerprint
        paths = [self._path(request) for request in requests]
        replies = [_read(path) for path in paths]
        missing = [index for index, reply in enumerate(replies) if reply is None]
        self.hits += len(requests) - len(missing)
        self.misses += len(missing)
        if missing:
            for index, reply in zip(missing, self.chat.complete([requests[i] for i in missing]), strict=True):
                replies[index] = reply
                if not reply.failure:
                    _write(paths[index], reply)
        return [reply for reply in replies if reply is not None]

    def _path(self, request: ChatRequest) -> Path:
        digest = hashlib.sha256()
        settings = [self._key, request.max_tokens, request.temperature, request.seed, list(request.stop), repr(request.form)]
        digest.update(json.dumps(settings).encode())
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


def _read(path: Path) -> ChatReply | None:
    """A kept answer; ``None`` if there is none that can be read (half a file on a full disk is as good as none)."""
    try:
        return ChatReply(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # damaged bytes and damaged JSON are both ValueErrors
        return None


def _write(path: Path, reply: ChatReply) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(asdict(reply), file)
    os.replace(scratch, path)
