"""What a refinement made and was told, kept as it comes, so that a killed run goes on without making a picture twice."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image


def digest_of(*parts: object) -> str:
    """24 hexadecimal digits over what something depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


class Shelf:
    """Pictures and answers by the digest of all that they depend on.

    In a folder each is a file of its own, written whole and never changed, so any number of processes can share it, and what was begun on
    four can be finished on one. What failed is not kept: the next run tries again.

    Args:
        folder: Where to: pictures in ``pictures/``, answers in ``answers/``; ``None`` keeps everything in memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._pictures: dict[str, Image.Image] = {}
        self._answers: dict[str, Any] = {}
        if self.folder is not None:
            (self.folder / "pictures").mkdir(parents=True, exist_ok=True)

    def picture(self, name: str) -> Image.Image | Path | None:
        """A kept picture, in a folder its path; ``None`` if there is none."""
        if self.folder is None:
            return self._pictures.get(name)
        path = self._picture_path(name)
        return path if path.is_file() else None

    def keep_picture(self, name: str, image: Image.Image) -> Image.Image | Path:
        """Keep a picture; gives back what :meth:`picture` will give."""
        if self.folder is None:
            return self._pictures.setdefault(name, image)
        path = self._picture_path(name)
        handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            image.save(file, format="PNG")
        os.replace(scratch, path)
        return path

    def answer(self, digest: str) -> Any:
        """A kept answer: plain JSON data; ``None`` if there is none, or only half a file on a full disk."""
        if self.folder is None:
            return self._answers.get(digest)
        try:
            return json.loads(self._answer_path(digest).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # damaged bytes and damaged JSON are both ValueErrors
            return None

    def keep_answer(self, digest: str, answer: Any) -> None:
        """Keep an answer: plain JSON data."""
        if self.folder is None:
            self._answers[digest] = answer
            return
        path = self._answer_path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(answer, file)
        os.replace(scratch, path)

    def _picture_path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / "pictures" / f"{name}.png"

    def _answer_path(self, digest: str) -> Path:
        assert self.folder is not None
        return self.folder / "answers" / digest[:2] / f"{digest[2:]}.json"
