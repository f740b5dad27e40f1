"""One run at a time in a folder, on however many processes and machines; and one process at a time in a file."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

LOCK_FILE = "ledgers.lock"


class FileInUseError(RuntimeError):
    """Another process has the file."""


class FolderInUseError(RuntimeError):
    """Another run has the folder."""


class FileLock:
    """A file that one process has for itself (``flock``). The system lets go of it when the process dies, however it dies.

    Args:
        path: The file; made if missing, with its folder.

    Raises:
        FileInUseError: If another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._file = _opened(path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise FileInUseError(f"{path} is locked by another process") from None

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class RunLock:
    """A folder that one run has for itself: all processes that give the same ``run``.

    While any process has a shared lock (``flock``) on the file ``ledgers.lock``, its text says whose folder it is, and nobody can change
    that: it is only written under an exclusive lock, which is to be had when no process is left. The system lets go of what a dead
    process held, however it died, so that no lock is ever left behind.

    Args:
        folder: The folder; made if missing. On a network disk, which must lock files across machines, as NFS does.
        run: What the processes of one run have in common (:func:`new_run`); a run of its own if omitted.

    Raises:
        FolderInUseError: If another run has it; the message says which process, where and since when.
    """

    def __init__(self, folder: str | Path, run: str | None = None) -> None:
        self.folder = Path(folder)
        self.run = run or new_run()
        self._file = _opened(self.folder / LOCK_FILE)
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # processes of this run have it, or those of another
        else:
            about = {"run": self.run, "process": os.getpid(), "machine": socket.gethostname(), "since": time.time()}
            self._file.truncate(0)
            self._file.write(json.dumps(about) + "\n")
            self._file.flush()
        # On the way from one lock to the other another run may come between: the text tells. This waits while somebody has an exclusive
        # lock, which is as long as it takes to write a line.
        fcntl.flock(self._file, fcntl.LOCK_SH)
        holder = self._holder()
        if holder.get("run") != self.run:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("since", 0)))
            raise FolderInUseError(
                f"{self.folder} is in use by another run (process {holder.get('process')} on {holder.get('machine')}, since {since}); two "
                "at once would ask the same questions twice. Wait until it is over, end it, or choose another folder"
            )

    def _holder(self) -> dict[str, Any]:
        self._file.seek(0)
        try:
            found = json.loads(self._file.read())
        except ValueError:  # the disk was full when it was written
            return {}
        return found if isinstance(found, dict) else {}

    def close(self) -> None:
        """Let go of the folder."""
        self._file.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def new_run() -> str:
    """A name that no other run has."""
    return uuid4().hex


_opened_files: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _opened(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")  # not "w": the text is somebody's until we have the lock
    _opened_files.add(file)
    return file


def _drop_in_child() -> None:
    """Close the copies of the files that a forked child has, e.g. a worker that reads pictures.

    It may outlive a parent that is killed, and would keep the folder from the next run. The parent's own files keep the locks.
    """
    for file in list(_opened_files):
        file.close()


os.register_at_fork(after_in_child=_drop_in_child)
