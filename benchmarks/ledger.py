"""How long a ledger takes to open, to find answers in, and to file new ones, when it holds many calls.

    python benchmarks/ledger.py --calls 300000 --folder FOLDER

Writes ``FOLDER/ledger.db`` with answers of 4,000 characters (about the length of a comparison) if it is not there, and measures each
step in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest
from rationalrewards.components.parrot import Job, Ledger, ParrotOptions

PER_PAIR = (("anchor", 1), ("check", 1), ("project", 2), ("refine", 2))


class Wordy(ChatModel):
    """Answers every question with 4,000 characters of nothing in particular."""

    @property
    def identity(self) -> str:
        return "wordy"

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        return [ChatReply(os.urandom(2000).hex(), prompt_tokens=900, completion_tokens=1000) for _ in requests]


def jobs(pair: int) -> list[Job]:
    """The questions about a pair."""
    request = ChatRequest([{"role": "user", "content": [{"type": "text", "text": f"about pair {pair}"}]}])
    return [Job(f"pair-{pair}", stage, sample, request) for stage, count in PER_PAIR for sample in range(count)]


def fill(path: Path, calls: int) -> None:
    """File so many calls, in batches of 64 pairs."""
    teacher = Wordy()
    with Ledger(path) as ledger:
        ledger.begin(teacher, "format", ParrotOptions())
        for start in range(0, calls // 6, 64):
            ledger.ask(teacher.stream, [job for pair in range(start, min(start + 64, calls // 6)) for job in jobs(pair)])
            names = [f"pair-{pair}" for pair in range(start, min(start + 64, calls // 6))]
            ledger.close_pairs({"pair": name, "kept": True, "texts": {"pair": "x" * 4000}} for name in names)


def use(path: Path, calls: int) -> None:
    """Open, find, file, and say how long it took."""
    begun = time.perf_counter()
    ledger = Ledger(path)
    opened = time.perf_counter() - begun
    teacher = Wordy()
    ledger.begin(teacher, "format", ParrotOptions())
    pairs = random.Random(0).sample(range(calls // 6), 500)
    begun = time.perf_counter()
    ledger.ask(teacher.stream, [job for pair in pairs for job in jobs(pair)])
    found = (time.perf_counter() - begun) / 3000
    assert ledger.asked == 0
    begun = time.perf_counter()
    for pair in range(20):
        ledger.ask(teacher.stream, jobs(-1 - pair - random.randrange(10**9)))
    filed = (time.perf_counter() - begun) / 20
    begun = time.perf_counter()
    count = sum(1 for _ in ledger.outcomes())
    read = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{path.stat().st_size / 1e9:.2f} GB; open {opened:.3f} s; an answer found in {found * 1e6:.0f} us; six answers filed in "
        f"{filed * 1e3:.1f} ms; {count} outcomes read in {read:.1f} s; peak memory {peak:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--use", action="store_true", help="measure on a ledger that is there")
    arguments = parser.parse_args()
    path = arguments.folder / "ledger.db"
    if arguments.use:
        use(path, arguments.calls)
        return
    if not path.is_file():
        fill(path, arguments.calls)
    for _ in range(3):
        command = [sys.executable, __file__, "--use", "--calls", str(arguments.calls), "--folder", str(arguments.folder)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
