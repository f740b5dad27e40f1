"""What was asked of a teacher and what came back: append-only, so that a killed run goes on where it was."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..chat import ChatModel, ChatReply, ChatRequest


@dataclass(frozen=True)
class Job:
    """One question to a teacher: which pair, which stage, which of several samples, and the request itself."""

    pair: str
    stage: str
    sample: int
    request: ChatRequest

    @property
    def digest(self) -> str:
        """16 hexadecimal digits over the request: text, pictures and sampling."""
        digest = hashlib.sha256(self.request.text().encode())
        for image in self.request.images():
            digest.update(f"{image.size}{image.mode}".encode() + image.tobytes())
        settings = (self.request.max_tokens, self.request.temperature, self.request.seed, self.request.stop)
        return hashlib.sha256(digest.digest() + repr(settings).encode()).hexdigest()[:16]


class Ledger:
    """A file with one line per question asked, kept open and locked by one process.

    An answered question is never asked again; a failed one is asked again by the next run, and its failure stays on file.

    Args:
        path: The file; ``None`` keeps everything in memory only.
        others: Further ledgers to read answers from (those of other ranks, or of a run on another number of processes).

    Raises:
        RuntimeError: If another process has the file open.
    """

    def __init__(self, path: str | Path | None = None, others: Sequence[str | Path] = ()) -> None:
        self.path = Path(path) if path is not None else None
        self._file: IO[str] | None = None
        self._answers: dict[tuple[str, str, int, str], dict[str, Any]] = {}
        self._failures: dict[tuple[str, str, int, str], int] = {}
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.asked = 0
        for other in others:
            self._read(Path(other))
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._file.close()
                raise RuntimeError(f"{self.path} is in use by another process; wait for it or choose another folder") from None
            self._read(self.path)
            self._mend()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _mend(self) -> None:
        """End a line that a kill cut off, so that the next one starts fresh."""
        assert self.path is not None and self._file is not None
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._file.write("\n")
            self._file.flush()

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that a kill cut off: its question counts as not asked
            if entry["stage"] == "outcome":
                self.outcomes[entry["pair"]] = entry
                continue
            key = (entry["pair"], entry["stage"], entry["sample"], entry["request"])
            if entry["failure"]:
                self._failures[key] = self._failures.get(key, 0) + 1
            else:
                self._answers[key] = entry

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def ask(self, teacher: ChatModel, jobs: Sequence[Job]) -> list[ChatReply]:
        """Answer jobs, from the file where they are answered there, from the teacher otherwise."""
        keys = [(job.pair, job.stage, job.sample, job.digest) for job in jobs]
        missing = [index for index, key in enumerate(keys) if key not in self._answers]
        replies: dict[int, ChatReply] = {}
        if missing:
            fresh = teacher.complete([jobs[index].request for index in missing])
            self.asked += len(missing)
            for index, reply in zip(missing, fresh, strict=True):
                pair, stage, sample, digest = keys[index]
                entry: dict[str, Any] = {
                    "pair": pair,
                    "stage": stage,
                    "sample": sample,
                    "request": digest,
                    "attempt": self._failures.get(keys[index], 0) + 1,
                    "failure": reply.failure,
                    "answer": reply.text,
                    "prompt_tokens": reply.prompt_tokens,
                    "completion_tokens": reply.completion_tokens,
                    "teacher": teacher.identity,
                    "temperature": jobs[index].request.temperature,
                    "seed": jobs[index].request.seed,
                }
                self._append(entry)
                if reply.failure:
                    self._failures[keys[index]] = entry["attempt"]
                else:
                    self._answers[keys[index]] = entry
                replies[index] = reply
            if self._file is not None:
                self._file.flush()
        for index, key in enumerate(keys):
            if index not in replies:
                known = self._answers[key]
                replies[index] = ChatReply(
                    known["answer"], prompt_tokens=known["prompt_tokens"], completion_tokens=known["completion_tokens"]
                )
        return [replies[index] for index in range(len(jobs))]

    def close_pair(self, pair: str, outcome: Mapping[str, Any]) -> None:
        """Write what became of a pair, unless that is on file already."""
        entry = {"pair": pair, "stage": "outcome", **outcome}
        if self.outcomes.get(pair) != entry:
            self.outcomes[pair] = entry
            self._append(entry)
            if self._file is not None:
                self._file.flush()
