"""What was asked of a teacher and what came back: append-only, so that a killed run goes on where it was.

A ledger is one SQLite file. Its tables only grow (triggers refuse changes): ``runs`` says who asked whom how, ``calls`` has every
question with its answer or its failure, ``outcomes`` what became of every pair, ``digests`` which pair came first with its pictures.
Every process writes a file of its own and reads those of the others. A folder of ledgers is one run's at a time (:class:`.RunLock`).
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rationalrewards import __version__

from ..chat import ChatModel, ChatReply, ChatRequest
from .locks import FileInUseError, FileLock, RunLock
from .options import ParrotOptions, Price

Answering = Callable[[Sequence[ChatRequest]], Iterable[list[tuple[int, ChatReply]]]]
"""How requests are answered: :meth:`.ChatModel.stream`, or something with its form."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY, started REAL NOT NULL, plan TEXT NOT NULL, teacher TEXT NOT NULL, fingerprint TEXT NOT NULL,
    format TEXT NOT NULL, options TEXT NOT NULL, price TEXT, version TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs, pair TEXT NOT NULL, stage TEXT NOT NULL, sample INTEGER NOT NULL,
    request TEXT NOT NULL, attempt INTEGER NOT NULL, failure TEXT NOT NULL, answer TEXT NOT NULL,
    max_tokens INTEGER NOT NULL, temperature REAL NOT NULL, seed INTEGER NOT NULL, images INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, sent INTEGER NOT NULL, seconds REAL NOT NULL, cost REAL);
CREATE INDEX IF NOT EXISTS calls_by_question ON calls (pair, stage, sample, request);
CREATE TABLE IF NOT EXISTS outcomes (id INTEGER PRIMARY KEY, run INTEGER, at REAL NOT NULL, pair TEXT NOT NULL, content TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS outcomes_by_pair ON outcomes (pair);
CREATE TABLE IF NOT EXISTS digests (digest TEXT PRIMARY KEY, pair TEXT NOT NULL) WITHOUT ROWID;
""" + "".join(
    f"CREATE TRIGGER IF NOT EXISTS {table}_{verb} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, 'a ledger only grows'); END;\n"
    for table in ("runs", "calls", "outcomes", "digests")
    for verb in ("UPDATE", "DELETE")
)


@dataclass(frozen=True)
class Job:
    """One question to a teacher: which pair, which stage, which of several samples, and the request itself."""

    pair: str
    stage: str
    sample: int
    request: ChatRequest

    def digest(self, teacher: str = "") -> str:
        """24 hexadecimal digits over all that the answer depends on: text, pictures, sampling, form, and the teacher's weights."""
        request = self.request
        digest = hashlib.sha256(request.text().encode())
        for image in request.images():
            digest.update(f"{image.size}{image.mode}".encode() + image.tobytes())
        settings = (teacher, request.max_tokens, request.temperature, request.seed, request.stop, repr(request.form))
        return hashlib.sha256(digest.digest() + repr(settings).encode()).hexdigest()[:24]


class Ledger:
    """A file of questions and answers, kept open by one process, whose run has the folder for itself.

    An answered question is never asked again; a failed one is asked again by the next run, and its failure stays on file. Every answer
    is on file as soon as the teacher gave it.

    Args:
        path: The file; ``None`` keeps everything in memory only.
        others: Further ledgers to read from (those of other processes, or of a run on another number of processes).
        run: What the processes of one run have in common (:func:`.new_run`), each of which has a file of its own in the folder; a run of
            its own if omitted.

    Raises:
        FolderInUseError: If another run has the folder.
        FileInUseError: If another process of this run has the file.
        ValueError: If a file is no ledger.
    """

    def __init__(self, path: str | Path | None = None, others: Sequence[str | Path] = (), run: str | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self.asked = 0
        """Questions that this object asked a teacher."""
        self._locks: list[RunLock | FileLock] = []
        self._databases: list[sqlite3.Connection] = []
        self._run: int | None = None
        self._begun: tuple[Any, ...] = ()
        self._price: Price | None = None
        self._fingerprint = self._plan = ""
        if self.path is not None:
            self._locks.append(RunLock(self.path.parent, run))
            try:
                self._locks.append(FileLock(self.path.with_suffix(".lock")))
            except FileInUseError:
                self.close()
                raise FileInUseError(
                    f"{self.path} is in use by another process of this run, and each needs a file of its own"
                ) from None
        # an empty one is another process' that is only beginning it
        files = [path for path in map(Path, others) if path.is_file() and path.stat().st_size]
        try:
            self._databases.append(_connect(self.path))
            self._databases += [_connect(path, write=False) for path in files]
        except BaseException:
            self.close()
            raise
        self._own = self._databases[0]
        self._folder = next((path.parent for path in (self.path, *files) if path is not None), Path()).absolute()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the files."""
        for database in self._databases:
            database.close()
        for lock in self._locks:
            lock.close()
        self._locks = []

    # -- asking ------------------------------------------------------------------------------------------------------------

    def begin(self, teacher: ChatModel, format: str, options: ParrotOptions, price: Price | None = None) -> dict[str, Any]:
        """Say who is asked, for which format and how; what is asked from here on is filed under it.

        Returns:
            What :meth:`provenance` gives for it later.
        """
        begun = (teacher, format, options, price)
        if self._run is None or self._begun != begun:
            self._begun, self._price, self._fingerprint = begun, price, teacher.fingerprint
            settings = json.dumps(asdict(options), sort_keys=True)
            priced = json.dumps(asdict(price)) if price else None
            self._plan = hashlib.sha256(repr((self._fingerprint, format, settings)).encode()).hexdigest()[:12]
            row = (time.time(), self._plan, teacher.identity, self._fingerprint, format, settings, priced, __version__)
            with _transaction(self._own):
                self._run = self._own.execute(
                    "INSERT INTO runs (started, plan, teacher, fingerprint, format, options, price, version) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                ).lastrowid
        return self.provenance(self._plan)

    def ask(self, answering: Answering, jobs: Sequence[Job]) -> list[ChatReply]:
        """Answer jobs, from the file where they are answered there, from the teacher otherwise.

        Args:
            answering: The teacher's :meth:`~.ChatModel.stream`.
            jobs: The questions.
        """
        requests = [job.digest(self._fingerprint) for job in jobs]
        found = {index: self._answer(job, request) for index, (job, request) in enumerate(zip(jobs, requests, strict=True))}
        missing = [index for index, reply in found.items() if reply is None]
        self.asked += len(missing)
        replies = {index: reply for index, reply in found.items() if reply is not None}
        before = time.monotonic()
        for part in answering([jobs[index].request for index in missing]) if missing else ():
            if not part:
                continue
            seconds = (time.monotonic() - before) / len(part)
            with _transaction(self._own):
                for position, reply in part:
                    index = missing[position]
                    self._file(jobs[index], requests[index], reply, seconds)
                    replies[index] = reply
            before = time.monotonic()
        return [replies[index] for index in range(len(jobs))]

    def _answer(self, job: Job, request: str) -> ChatReply | None:
        for database in self._databases:
            row = database.execute(
                "SELECT answer, prompt_tokens, completion_tokens FROM calls "
                "WHERE pair = ? AND stage = ? AND sample = ? AND request = ? AND failure = '' LIMIT 1",
                (job.pair, job.stage, job.sample, request),
            ).fetchone()
            if row is not None:
                return ChatReply(row[0], prompt_tokens=row[1], completion_tokens=row[2])
        return None

    def _file(self, job: Job, request: str, reply: ChatReply, seconds: float) -> None:
        question = (job.pair, job.stage, job.sample)
        counting = "SELECT count(*) FROM calls WHERE pair = ? AND stage = ? AND sample = ?"
        attempt = 1 + sum(database.execute(counting, question).fetchone()[0] for database in self._databases)
        cost = self._price.of(reply.prompt_tokens, reply.completion_tokens) if self._price else None
        asked = job.request
        self._own.execute(
            "INSERT INTO calls (run, pair, stage, sample, request, attempt, failure, answer, max_tokens, temperature, seed, images, "
            "prompt_tokens, completion_tokens, sent, seconds, cost) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(self._run or 0, *question, request, attempt, reply.failure, reply.text),
                *(asked.max_tokens, asked.temperature, asked.seed, len(asked.images())),
                *(reply.prompt_tokens, reply.completion_tokens, reply.attempts, seconds, cost),
            ),
        )

    def unanswered(self, pair: str, plan: str) -> bool:
        """Whether a question about a pair, asked under a plan, is still without an answer: one of several votes counts too.

        Where an answer was cut off and asked for again with another seed, the last attempt counts.
        """
        # SQLite takes the other columns from the row with the greatest id
        asked = "FROM calls WHERE pair = ? AND run IN (SELECT id FROM runs WHERE plan = ?)"
        last = f"SELECT stage, sample, failure, max(id) {asked} GROUP BY stage, sample"
        answered = f"SELECT 1 {asked} AND stage = ? AND sample = ? AND failure = '' LIMIT 1"
        for database in self._databases:
            others = [other for other in self._databases if other is not database]
            for stage, sample, failure, _ in database.execute(last, (pair, plan)).fetchall():
                if failure and not any(other.execute(answered, (pair, plan, stage, sample)).fetchone() for other in others):
                    return True
        return False

    # -- pairs -------------------------------------------------------------------------------------------------------------

    def claim(self, digest: str, pair: str) -> str:
        """The pair that came first with a digest: this one, unless another did."""
        for database in self._databases:
            row = database.execute("SELECT pair FROM digests WHERE digest = ?", (digest,)).fetchone()
            if row is not None:
                return str(row[0])
        with _transaction(self._own):
            self._own.execute("INSERT INTO digests (digest, pair) VALUES (?, ?)", (digest, pair))
        return pair

    def close_pairs(self, outcomes: Iterable[Mapping[str, Any]]) -> None:
        """Write what became of pairs (each an object with its ``pair``), where that is not on file already."""
        with _transaction(self._own):
            for outcome in outcomes:
                content = json.dumps(_paths(outcome, lambda path: os.path.relpath(path, self._folder)), ensure_ascii=False)
                if self._latest(outcome["pair"]) != content:
                    self._own.execute(
                        "INSERT INTO outcomes (run, at, pair, content) VALUES (?, ?, ?, ?)",
                        (self._run, time.time(), outcome["pair"], content),
                    )

    def outcome(self, pair: str) -> dict[str, Any] | None:
        """The latest that is known of a pair; ``None`` if nothing is."""
        content = self._latest(pair)
        return self._read(content) if content is not None else None

    def _latest(self, pair: str) -> str | None:
        query = "SELECT at, content FROM outcomes WHERE pair = ? ORDER BY id DESC LIMIT 1"
        rows = [row for database in self._databases if (row := database.execute(query, (pair,)).fetchone())]
        return str(max(rows)[1]) if rows else None

    def _read(self, content: str) -> dict[str, Any]:
        return _paths(json.loads(content), lambda path: os.path.normpath(os.path.join(self._folder, path)))

    def outcomes(self) -> Iterator[dict[str, Any]]:
        """The latest of every pair, in the order in which they were first closed, file by file."""
        for number, database in enumerate(self._databases):
            latest = "SELECT pair, max(id), min(id) FROM outcomes GROUP BY pair ORDER BY min(id)"
            for pair, last, _ in database.execute(latest).fetchall():
                at, content = database.execute("SELECT at, content FROM outcomes WHERE id = ?", (last,)).fetchone()
                newest = "SELECT max(at) FROM outcomes WHERE pair = ?"
                elsewhere = [
                    (found, other)
                    for other, known in enumerate(self._databases)
                    if other != number and (found := known.execute(newest, (pair,)).fetchone()[0]) is not None
                ]
                if all((at, -number) > (found, -other) for found, other in elsewhere):
                    yield self._read(content)

    def provenance(self, plan: str) -> dict[str, Any]:
        """Who was asked under a plan and how.

        Returns:
            ``teacher``, ``format`` (fingerprint), ``options``, ``version`` and the ``plan`` itself: 12 hexadecimal digits over all that
            an outcome depends on besides its pair.
        """
        for database in self._databases:
            row = database.execute(
                "SELECT teacher, format, options, version FROM runs WHERE plan = ? LIMIT 1", (plan,)
            ).fetchone()
            if row is not None:
                return {"plan": plan, "teacher": row[0], "format": row[1], "options": json.loads(row[2]), "version": row[3]}
        raise ValueError(f"the ledger knows no plan {plan!r}")

    # -- looking back ------------------------------------------------------------------------------------------------------

    def calls(self, pair: str, plan: str | None = None) -> list[dict[str, Any]]:
        """All that was asked about a pair, in order: stage, sample, attempt, failure, answer and provenance.

        Args:
            pair: The pair.
            plan: Only what was asked under this plan. What it took over from another one's answers is not in it.
        """
        found = []
        for database in self._databases:
            cursor = database.execute(
                "SELECT calls.*, runs.teacher, runs.format, runs.version FROM calls LEFT JOIN runs ON runs.id = calls.run "
                "WHERE pair = ? AND (? IS NULL OR runs.plan = ?) ORDER BY calls.id",
                (pair, plan, plan),
            )
            names = [column[0] for column in cursor.description]
            found += [dict(zip(names, row, strict=True)) for row in cursor]
        return found

    def latest(self, plan: str, most: int = 2000) -> list[dict[str, Any]]:
        """The last calls that were made under a plan, without their answers, as :func:`.usage_of` takes them; ``most`` of each file."""
        names = ("pair", "stage", "failure", "images", "prompt_tokens", "completion_tokens", "seconds", "cost")
        found = []
        for database in self._databases:
            # a plan that is new here has no runs but this object's: nothing to look for in what may be a gigabyte
            runs = [run for (run,) in database.execute("SELECT id FROM runs WHERE plan = ?", (plan,))]
            if runs == [self._run] and database is self._own and not self.asked:
                continue
            rows = database.execute(
                f"SELECT {', '.join(names)} FROM calls WHERE run IN ({', '.join('?' * len(runs))}) ORDER BY id DESC LIMIT ?",
                (*runs, most),
            )
            found += [dict(zip(names, row, strict=True)) for row in (rows if runs else ())]
        return found

    def usage(self, plan: str | None = None) -> dict[str, dict[str, float | None]]:
        """What every stage took.

        Args:
            plan: Count only what was asked under this plan.

        Returns:
            Stage to ``calls``, ``failures``, ``images``, ``prompt_tokens``, ``completion_tokens``, ``seconds`` of waiting for the
            teacher (summed over processes), and ``cost`` (``None`` where no price was known).
        """
        total: dict[str, dict[str, float | None]] = {}
        names = ("calls", "failures", "images", "prompt_tokens", "completion_tokens", "seconds", "cost")
        for database in self._databases:
            for stage, *values in database.execute(
                "SELECT stage, count(*), sum(failure != ''), sum(images), sum(prompt_tokens), sum(completion_tokens), sum(seconds), "
                "sum(cost) FROM calls WHERE ? IS NULL OR run IN (SELECT id FROM runs WHERE plan = ?) GROUP BY stage",
                (plan, plan),
            ):
                kept = total.setdefault(stage, dict.fromkeys(names))
                for name, value in zip(names, values, strict=True):
                    if value is not None:
                        kept[name] = (kept[name] or 0) + value
        return total


def read_ledgers(folder: str | Path) -> Ledger:
    """All ledgers of a folder, for reading.

    Raises:
        ValueError: If there are none.
    """
    paths = sorted(Path(folder).glob("ledger*.db"))
    if not paths:
        raise ValueError(f"{folder} holds no ledger*.db; give the output_dir of a rationalize run")
    return Ledger(None, paths)


def _paths(outcome: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """An outcome with its picture paths changed: on file they start at the ledger's folder, so that the tree can be moved."""
    return {**outcome, **{key: [change(path) for path in outcome[key]] for key in ("candidates", "sources") if key in outcome}}


def _connect(path: Path | None, write: bool = True) -> sqlite3.Connection:
    # isolation_level None: transactions are ours. A reader may have to roll back what a killed writer left, so it is no read-only one.
    database = sqlite3.connect(path if path is not None else ":memory:", timeout=60.0, isolation_level=None)
    try:
        if write:
            # a rollback journal works on network disks too, where WAL does not; NORMAL: a crash of the machine cannot harm the file
            database.execute("PRAGMA journal_mode = TRUNCATE")
            database.execute("PRAGMA synchronous = NORMAL")
            # at once: another process may be about to read it
            database.executescript(f"BEGIN IMMEDIATE;\n{_SCHEMA}COMMIT;")
        else:
            database.execute("SELECT count(*) FROM runs")
            database.execute("PRAGMA query_only = ON")
    except sqlite3.DatabaseError as error:
        database.close()
        raise ValueError(f"{path} is no ledger ({error}); move it away or choose another folder") from error
    return database


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
