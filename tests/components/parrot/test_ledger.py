"""The ledger: a run that is killed anywhere goes on where it was, and two runs cannot write one file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest
from rationalrewards.components.parrot import Job, Ledger


class Teacher(ChatModel):
    """Answers every question differently, but those about the words in ``failing``; remembers what it was asked."""

    def __init__(self, failing: Sequence[str] = ()) -> None:
        self.failing = failing
        self.asked: list[str] = []

    @property
    def identity(self) -> str:
        return "a teacher"

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        self.asked += [request.text() for request in requests]
        return [
            ChatReply("half", failure="cut off", completion_tokens=2)
            if any(word in request.text() for word in self.failing)
            # characters of several bytes: a kill may fall inside one
            else ChatReply(f"Über {request.text()} 日本\u2028🙂", prompt_tokens=3, completion_tokens=5)
            for request in requests
        ]


def _job(name: str, stage: str = "anchor", sample: int = 0, **settings: object) -> Job:
    content = [{"type": "text", "text": name}, {"type": "image", "image": Image.new("RGB", (2, 2))}]
    return Job(name, stage, sample, ChatRequest([{"role": "user", "content": content}], **settings))  # type: ignore[arg-type]


JOBS = [_job(name) for name in ("one", "two", "three")]


def test_an_answered_question_is_never_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ledger.jsonl"
    teacher = Teacher()
    with Ledger(path) as ledger:
        first = ledger.ask(teacher, JOBS[:2])
        assert ledger.ask(teacher, JOBS)[:2] == first  # within a run
        assert (teacher.asked, ledger.asked) == (["one", "two", "three"], 3)
    with Ledger(path) as ledger:
        again = Teacher()
        replies = ledger.ask(again, JOBS[::-1])
        assert (again.asked, ledger.asked) == ([], 0)  # across runs, in any order
    assert [reply.text for reply in replies[::-1]] == [reply.text for reply in Teacher().complete([job.request for job in JOBS])]
    assert (replies[0].prompt_tokens, replies[0].completion_tokens) == (3, 5)


def test_another_question_is_another_question(tmp_path: Path) -> None:
    request = JOBS[0].request
    shown = [{"type": "text", "text": "one"}, {"type": "image", "image": Image.new("RGB", (2, 2), (1, 0, 0))}]
    others = [
        replace(JOBS[0], pair="other"),
        replace(JOBS[0], stage="check"),
        replace(JOBS[0], sample=1),
        replace(JOBS[0], request=replace(request, seed=1)),
        replace(JOBS[0], request=replace(request, temperature=0.5)),
        replace(JOBS[0], request=replace(request, max_tokens=9)),
        replace(JOBS[0], request=replace(request, stop=("x",))),
        replace(JOBS[0], request=replace(request, messages=[{"role": "user", "content": shown}])),
    ]
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.ask(Teacher(), JOBS[:1])
        for job in others:
            before = ledger.asked
            ledger.ask(Teacher(), [job])
            assert ledger.asked == before + 1
    assert len({job.digest for job in others[3:]}) == 5


def test_a_failure_is_asked_again_and_stays_on_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        assert ledger.ask(Teacher(failing=["two"]), JOBS)[1].failure == "cut off"
        assert ledger.ask(Teacher(failing=["two"]), JOBS)[1].failure == "cut off"
    with Ledger(path) as ledger:
        teacher = Teacher()
        assert ledger.ask(teacher, JOBS)[1].failure == ""
        assert teacher.asked == ["two"]
    with Ledger(path) as ledger:
        assert ledger.ask(Teacher(), JOBS)[1].text.startswith("Über two")
        assert ledger.asked == 0
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert [(line["pair"], line["attempt"], line["failure"]) for line in lines] == [
        ("one", 1, ""),
        ("two", 1, "cut off"),
        ("three", 1, ""),
        ("two", 2, "cut off"),
        ("two", 3, ""),
    ]
    assert {line["teacher"] for line in lines} == {"a teacher"}
    assert lines[1]["answer"] == "half"  # for the record


def test_a_line_that_a_kill_cut_off_costs_one_question(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        expected = ledger.ask(Teacher(), JOBS)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, len(whole) - 1) + 1  # of the last line
    assert b"\xf0\x9f\x99\x82" in whole[start:]  # the cuts below fall inside characters of several bytes too
    for cut in range(start, len(whole) + 1):
        path.write_bytes(whole[:cut])
        teacher = Teacher()
        with Ledger(path) as ledger:
            assert ledger.ask(teacher, JOBS) == expected
        # nothing is lost when only the line's end is missing, nor when the line had not begun
        assert teacher.asked == ([] if cut >= len(whole) - 1 else ["three"])
        with Ledger(path) as ledger:
            assert ledger.ask(Teacher(), JOBS) == expected and ledger.asked == 0


def test_answers_of_other_ranks_are_used_and_not_copied(tmp_path: Path) -> None:
    paths = [tmp_path / f"ledger-{rank}.jsonl" for rank in range(2)]
    for path, jobs in zip(paths, (JOBS[:2], JOBS[2:]), strict=True):
        with Ledger(path) as ledger:
            ledger.ask(Teacher(), jobs)
            ledger.close_pair(jobs[0].pair, {"kept": True})
    before = paths[1].read_bytes()
    with Ledger(tmp_path / "new.jsonl", others=[*paths, tmp_path / "never written.jsonl"]) as ledger:
        ledger.ask(Teacher(), JOBS)
        assert ledger.asked == 0
        assert set(ledger.outcomes) == {"one", "three"}
    assert (tmp_path / "new.jsonl").read_bytes() == b"" and paths[1].read_bytes() == before


def test_an_outcome_is_written_once_and_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for outcome in ({"kept": False, "reason": "x"}, {"kept": False, "reason": "x"}, {"kept": True, "reason": ""}):
        with Ledger(path) as ledger:
            ledger.close_pair("one", outcome)
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert [line["kept"] for line in lines] == [False, True]
    with Ledger(path) as ledger:
        assert ledger.outcomes["one"]["kept"] is True


def test_a_ledger_in_memory_writes_nothing(tmp_path: Path) -> None:
    with Ledger() as ledger:
        ledger.ask(Teacher(), JOBS)
        ledger.ask(Teacher(), JOBS)
        assert ledger.asked == 3
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
import sys, time
sys.path.insert(0, {here!r})
from test_ledger import JOBS, Teacher
from rationalrewards.components.parrot import Ledger
ledger = Ledger({path!r})
ledger.ask(Teacher(failing=["two"]), JOBS)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_killed_one_leaves_its_answers(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    program = PROGRAM.format(here=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with pytest.raises(RuntimeError, match=r"ledger\.jsonl is in use by another process; wait for it"):
            Ledger(path)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    teacher = Teacher()
    with Ledger(path) as ledger:  # the lock went with the process
        assert all(not reply.failure for reply in ledger.ask(teacher, JOBS))
    assert teacher.asked == ["two"]
    with Ledger(path), pytest.raises(RuntimeError, match="in use"):
        Ledger(path)
