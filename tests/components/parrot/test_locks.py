"""A folder is one run's at a time: all its processes get in, no other run does, and nothing is left behind when they are killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rationalrewards.components.parrot import FileInUseError, FolderInUseError, Ledger, RunLock, locks

# the module by itself: the package would import torch, in every one of these processes
ALONE = f"import os, sys, time\nsys.path.insert(0, {os.path.dirname(locks.__file__)!r})\nfrom locks import FolderInUseError, RunLock\n"
HOLDS = "lock = RunLock({folder!r}, {run!r})\nprint('in', flush=True)\ntime.sleep(600)\n"


class Processes:
    """Processes that have a folder until they are killed."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def start(self, program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", ALONE + program], stdout=subprocess.PIPE, text=True)
        self.running.append(process)
        return process

    def holding(self, folder: Path, run: str) -> subprocess.Popen[str]:
        process = self.start(HOLDS.format(folder=str(folder), run=run))
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    for process in made.running:
        made.kill(process)
        assert process.stdout is not None
        process.stdout.close()


def test_processes_of_one_run_share_a_folder_and_another_run_waits_for_the_last_of_them(
    tmp_path: Path, processes: Processes
) -> None:
    folder = tmp_path / "out"
    first, second = processes.holding(folder, "one"), processes.holding(folder, "one")
    # whoever is left keeps the folder, and new ones of the run get in
    processes.kill(first)
    third = processes.holding(folder, "one")
    processes.kill(second)
    said = rf"out is in use by another run \(process {first.pid} on .*, since 20\d\d-.*Wait until it is over, end it, or choose"
    with pytest.raises(FolderInUseError, match=said):
        RunLock(folder, "two")
    with pytest.raises(FolderInUseError):
        RunLock(folder)
    processes.kill(third)
    with RunLock(folder, "two") as lock:
        assert lock.run == "two"
        with RunLock(folder, "two"), pytest.raises(FolderInUseError, match=rf"process {os.getpid()} "):
            RunLock(folder, "one")
    RunLock(folder, "one").close()


def test_a_worker_that_outlives_a_killed_parent_keeps_nothing(tmp_path: Path, processes: Processes) -> None:
    fork = "if os.fork() == 0:\n    os.close(1)\n    print_to = os.open({orphan!r}, os.O_CREAT | os.O_WRONLY)\n"
    fork += "    os.write(print_to, str(os.getpid()).encode())\n    time.sleep(600)\n"
    program = "lock = RunLock({folder!r}, 'one')\n" + fork + "print('in', flush=True)\ntime.sleep(600)\n"
    orphan = tmp_path / "orphan"
    parent = processes.start(program.format(folder=str(tmp_path / "out"), orphan=str(orphan)))
    assert parent.stdout is not None and parent.stdout.readline() == "in\n"
    with pytest.raises(FolderInUseError):
        RunLock(tmp_path / "out", "two")
    deadline = time.monotonic() + 60
    while not orphan.exists() or not orphan.read_text():
        assert time.monotonic() < deadline, "no child"
        time.sleep(0.01)
    processes.kill(parent)
    pid = int(orphan.read_text())
    try:
        os.kill(pid, 0)  # it is alive
        RunLock(tmp_path / "out", "two").close()
    finally:
        os.kill(pid, signal.SIGKILL)


RACE = """
import fcntl
for round in range(60):
    try:
        lock = RunLock({folder!r}, {run!r})
    except FolderInUseError:
        continue
    # whoever is in writes its name; nobody else's may appear while it is in
    with open({witness!r}, "a+") as witness:
        fcntl.flock(witness, fcntl.LOCK_EX)
        witness.seek(0)
        inside = witness.read().split()
        assert set(inside) <= {{{run!r}}}, inside
        witness.write({run!r} + " ")
    time.sleep(0.001)
    with open({witness!r}, "r+") as witness:
        fcntl.flock(witness, fcntl.LOCK_EX)
        inside = witness.read().split()
        inside.remove({run!r})
        witness.seek(0)
        witness.truncate()
        witness.write(" ".join(inside) + " ")
    lock.close()
    print(round, flush=True)
"""


def test_two_runs_are_never_in_a_folder_together(tmp_path: Path, processes: Processes) -> None:
    """Six processes of three runs, that come and go all the time."""
    witness = str(tmp_path / "witness")
    racing = [
        processes.start(RACE.format(folder=str(tmp_path / "out"), run=f"run{number % 3}", witness=witness)) for number in range(6)
    ]
    said = [process.communicate(timeout=120)[0] for process in racing]
    assert [process.returncode for process in racing] == [0] * 6
    assert sum(len(lines.split()) for lines in said) > 6  # some got in, or nothing was tested


def test_ledgers_of_one_folder_are_of_one_run(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db", run="one"):
        with Ledger(tmp_path / "ledger.rank1.db", run="one"):
            pass
        # a second run on ledgers of its own is refused too, however many files it would find free
        with pytest.raises(FolderInUseError, match=re.escape(str(tmp_path))):
            Ledger(tmp_path / "ledger.ray0.db", run="two")
        with pytest.raises(FolderInUseError):
            Ledger(tmp_path / "ledger.ray0.db")
        with pytest.raises(
            FileInUseError, match=r"ledger\.db is in use by another process of this run, and each needs a file of its own"
        ):
            Ledger(tmp_path / "ledger.db", run="one")
        assert not (tmp_path / "ledger.ray0.db").exists()
    with closing(Ledger(tmp_path / "ledger.ray0.db", run="two")):
        pass


def test_a_lock_without_its_text_is_nobodys(tmp_path: Path) -> None:
    """A full disk may cut the text off: whoever has the lock is not us."""
    with RunLock(tmp_path, "one"):
        (tmp_path / locks.LOCK_FILE).write_text("")
        with pytest.raises(FolderInUseError, match="in use by another run"):
            RunLock(tmp_path, "one")
    with RunLock(tmp_path, "one"):
        pass
