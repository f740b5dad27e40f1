"""The ledger: a run that is killed anywhere goes on where it was, nothing is ever taken back, and two runs cannot write one file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rationalrewards.components.parrot.ledger as ledger_module
from PIL import Image
from rationalrewards.components.answer_form import AnswerForm
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest
from rationalrewards.components.parrot import Job, Ledger, ParrotOptions, Price, merged, read_ledgers


class Teacher(ChatModel):
    """Answers every question differently, but those about the words in ``failing``; remembers what it was asked."""

    def __init__(self, failing: Sequence[str] = (), name: str = "a teacher") -> None:
        self.failing = failing
        self.name = name
        self.asked: list[str] = []

    @property
    def identity(self) -> str:
        return self.name

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
REPLIES = ["Über one 日本\u2028🙂", "Über two 日本\u2028🙂", "Über three 日本\u2028🙂"]


def ask(ledger: Ledger, teacher: Teacher, jobs: Sequence[Job] = JOBS, **options: Any) -> list[ChatReply]:
    ledger.begin(teacher, "a format", ParrotOptions(**options))
    return ledger.ask(teacher.stream, jobs)


def table(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def test_an_answered_question_is_never_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ledger.db"
    teacher = Teacher()
    with Ledger(path) as ledger:
        first = ask(ledger, teacher, JOBS[:2])
        assert ask(ledger, teacher)[:2] == first  # within a run
        assert (teacher.asked, ledger.asked) == (["one", "two", "three"], 3)
    with Ledger(path) as ledger:
        again = Teacher()
        replies = ask(ledger, again, JOBS[::-1])
        assert (again.asked, ledger.asked) == ([], 0)  # across runs, in any order
    assert [reply.text for reply in replies[::-1]] == REPLIES
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
        replace(JOBS[0], request=replace(request, form=AnswerForm(["yes"]))),
        replace(JOBS[0], request=replace(request, messages=[{"role": "user", "content": shown}])),
    ]
    with Ledger(tmp_path / "ledger.db") as ledger:
        ask(ledger, Teacher(), JOBS[:1])
        for job in others:
            before = ledger.asked
            ask(ledger, Teacher(), [job])
            assert ledger.asked == before + 1
        # other weights are another teacher; other options alone are not, where the request is the same
        ask(ledger, Teacher(), JOBS[:1], control_share=0.5)
        assert ledger.asked == before + 1
        ask(ledger, Teacher(name="another"), JOBS[:1])
        assert ledger.asked == before + 2
    assert len({job.digest() for job in others[3:]}) == 6


def test_a_failure_is_asked_again_and_stays_on_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        assert ask(ledger, Teacher(failing=["two"]))[1].failure == "cut off"
        assert ask(ledger, Teacher(failing=["two"]))[1].failure == "cut off"
    with Ledger(path) as ledger:
        teacher = Teacher()
        assert ask(ledger, teacher)[1].failure == ""
        assert teacher.asked == ["two"]
    with Ledger(path) as ledger:
        assert ask(ledger, Teacher())[1].text == REPLIES[1]
        assert ledger.asked == 0
        calls = ledger.calls("two")
    assert [(call["attempt"], call["failure"], call["answer"]) for call in calls] == [
        (1, "cut off", "half"),  # for the record
        (2, "cut off", "half"),
        (3, "", REPLIES[1]),
    ]
    assert {(call["teacher"], call["format"]) for call in calls} == {("a teacher", "a format")}
    assert [len(table(path, f"SELECT * FROM calls WHERE pair = '{name}'")) for name in ("one", "two", "three")] == [1, 3, 1]


def test_every_call_is_filed_with_its_provenance_and_its_cost(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        teacher = Teacher(failing=["two"])
        told = ledger.begin(teacher, "f1", ParrotOptions(seed=3), Price(2.0, 10.0, "EUR", "today"))
        job = _job("one", "check", 2, max_tokens=7, temperature=0.5, seed=11)
        ledger.ask(teacher.stream, [job, *JOBS[1:]])
        (call,) = ledger.calls("one")
        kept = ("stage", "sample", "max_tokens", "temperature", "seed", "images", "prompt_tokens", "completion_tokens", "sent")
        assert tuple(call[name] for name in kept) == ("check", 2, 7, 0.5, 11, 1, 3, 5, 1)
        assert call["cost"] == pytest.approx((3 * 2.0 + 5 * 10.0) / 1e6)  # prices are for a million tokens
        assert call["seconds"] >= 0.0
        assert told["options"]["seed"] == 3 and told == ledger.provenance(told["plan"])
        with pytest.raises(ValueError, match="knows no plan 'x'"):
            ledger.provenance("x")
        usage = ledger.usage()
        assert {stage: (found["calls"], found["failures"], found["images"]) for stage, found in usage.items()} == {
            "check": (1, 0, 1),
            "anchor": (2, 1, 2),
        }
        assert usage["anchor"]["completion_tokens"] == 7 and usage["check"]["cost"] == call["cost"]
        another = ledger.begin(teacher, "f2", ParrotOptions(seed=3))
        assert another["plan"] != told["plan"] and ledger.begin(teacher, "f1", ParrotOptions(seed=3))["plan"] == told["plan"]


def test_what_was_asked_under_one_plan_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        first = ledger.begin(Teacher(), "f1", ParrotOptions(), Price(2.0, 10.0))["plan"]
        assert ledger.latest(first) == []
        ledger.ask(Teacher().stream, JOBS)
        second = ledger.begin(Teacher(name="another"), "f1", ParrotOptions())["plan"]
        ledger.ask(Teacher().stream, JOBS[:1])
    with Ledger(tmp_path / "ledger.rank1.db", [path]) as ledger:
        ledger.begin(Teacher(name="another"), "f1", ParrotOptions())
        ledger.ask(Teacher().stream, [_job("four")])
        counts = {plan: [ledger.usage(plan)["anchor"]["calls"], len(ledger.latest(plan or ""))] for plan in (first, second)}
        assert counts == {first: [3, 3], second: [2, 2]} and ledger.usage()["anchor"]["calls"] == 5
        assert [len(ledger.calls("one", plan)) for plan in (first, second, None)] == [1, 1, 2]
        assert (
            ledger.usage(second)["anchor"]["cost"] is None
            and ledger.usage(first)["anchor"]["cost"] == ledger.usage()["anchor"]["cost"]
        )
        # the last ones, of each file
        assert [call["pair"] for call in ledger.latest(first, most=2)] == ["three", "two"]
        assert {call["pair"] for call in ledger.latest(second, most=1)} == {"one", "four"}


def test_a_ledger_only_grows(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ask(ledger, Teacher())
        ledger.claim("d", "one")
        ledger.close_pairs([{"pair": "one", "kept": True}])
    for name, column in (("runs", "teacher"), ("calls", "answer"), ("outcomes", "content"), ("digests", "pair")):
        for change in (f"DELETE FROM {name}", f"UPDATE {name} SET {column} = 'x'"):
            with pytest.raises(sqlite3.DatabaseError, match="a ledger only grows"):
                table(tmp_path / "ledger.db", change)


def test_answers_are_on_file_as_they_come(tmp_path: Path) -> None:
    """A teacher that dies in the middle of a batch costs nothing that it had answered by then."""

    class Dying(Teacher):
        def stream(self, requests: Sequence[ChatRequest]) -> Any:
            yield [(1, self.complete(requests[1:2])[0])]
            raise KeyboardInterrupt

    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger, pytest.raises(KeyboardInterrupt):
        ask(ledger, Dying())
    with Ledger(path) as ledger:
        teacher = Teacher()
        assert [reply.text for reply in ask(ledger, teacher)] == REPLIES
        assert teacher.asked == ["one", "three"]


def test_answers_of_other_processes_are_used_and_not_copied(tmp_path: Path) -> None:
    paths = [tmp_path / f"ledger.rank{rank}.db" for rank in range(2)]
    for path, jobs in zip(paths, (JOBS[:2], JOBS[2:]), strict=True):
        with Ledger(path) as ledger:
            ask(ledger, Teacher(), jobs)
            ledger.close_pairs([{"pair": jobs[0].pair, "kept": True}])
    before = paths[1].read_bytes()
    with Ledger(tmp_path / "ledger.new.db", others=[*paths, tmp_path / "never written.db"]) as ledger:
        assert [reply.text for reply in ask(ledger, Teacher())] == REPLIES
        assert ledger.asked == 0
        assert [outcome["pair"] for outcome in ledger.outcomes()] == ["one", "three"]
    assert table(tmp_path / "ledger.new.db", "SELECT count(*) FROM calls") == [(0,)] and paths[1].read_bytes() == before


def test_an_outcome_is_written_when_it_changes_and_the_latest_counts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    for outcome in ({"kept": False, "reason": "x"}, {"kept": False, "reason": "x"}, {"kept": True, "reason": ""}):
        with Ledger(path) as ledger:
            ledger.close_pairs([{"pair": "one", **outcome}])
    assert table(path, "SELECT count(*) FROM outcomes") == [(2,)]
    with Ledger(tmp_path / "ledger.rank1.db", others=[path]) as ledger:
        ledger.close_pairs([{"pair": "two", "kept": False}, {"pair": "one", "kept": False, "reason": "later"}])
        assert ledger.outcome("one") == {"pair": "one", "kept": False, "reason": "later"}
        assert ledger.outcome("none") is None
    with read_ledgers(tmp_path) as ledger:
        assert {outcome["pair"]: outcome["kept"] for outcome in ledger.outcomes()} == {"one": False, "two": False}
        assert len(list(ledger.outcomes())) == 2  # each once, though both files have the first


def test_pictures_are_found_when_the_tree_was_moved(tmp_path: Path) -> None:
    pictures = [str(tmp_path / "tree" / "data" / name) for name in ("a.png", "images.zip/b.png")]
    with Ledger(tmp_path / "tree" / "run" / "ledger.db") as ledger:
        ledger.close_pairs([{"pair": "one", "candidates": pictures, "sources": []}])
    (tmp_path / "tree").rename(tmp_path / "moved")
    with read_ledgers(tmp_path / "moved" / "run") as ledger:
        (outcome,) = ledger.outcomes()
    assert outcome["candidates"] == [picture.replace("tree", "moved") for picture in pictures] and outcome["sources"] == []


def test_the_first_with_a_digest_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        assert [ledger.claim("d", name) for name in ("one", "two", "one")] == ["one", "one", "one"]
        assert ledger.claim("e", "two") == "two"
    with Ledger(path) as ledger:
        assert ledger.claim("d", "three") == "one"


def test_a_ledger_in_memory_writes_nothing(tmp_path: Path) -> None:
    with Ledger() as ledger:
        ask(ledger, Teacher())
        ask(ledger, Teacher())
        assert ledger.asked == 3
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database, however long this text may be" * 100)
    with pytest.raises(ValueError, match=r"ledger\.db is no ledger"):
        Ledger(tmp_path / "ledger.db")
    with pytest.raises(ValueError, match=r"empty holds no ledger\*\.db; give the output_dir of a rationalize run"):
        read_ledgers(tmp_path / "empty")


PROGRAM = """
import sys, time
sys.path.insert(0, {here!r})
from test_ledger import JOBS, Teacher, ask
from rationalrewards.components.parrot import Ledger
ledger = Ledger({path!r})
ask(ledger, Teacher(failing=["two"]))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_killed_one_leaves_its_answers(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    program = PROGRAM.format(here=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with pytest.raises(RuntimeError, match="is in use by another run .process [0-9]+ on .*, since 20.*Wait until it is over"):
            Ledger(path)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    teacher = Teacher()
    with Ledger(path) as ledger:  # the lock went with the process
        assert all(not reply.failure for reply in ask(ledger, teacher))
    assert teacher.asked == ["two"]
    with Ledger(path), pytest.raises(RuntimeError, match="in use"):
        Ledger(path)


def test_a_file_that_another_process_is_only_beginning_is_passed_over(tmp_path: Path) -> None:
    # SQLite makes an empty file first
    (tmp_path / "ledger.rank1.db").touch()
    with Ledger(tmp_path / "ledger.db", [tmp_path / "ledger.rank1.db"]) as ledger:
        assert [reply.text for reply in ask(ledger, Teacher())] == REPLIES


def test_a_file_has_all_its_tables_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as a reader finds it that comes between two statements: the last of them fails here
    monkeypatch.setattr(ledger_module, "_SCHEMA", ledger_module._SCHEMA + "CREATE TABLE outcomes (id);\n")
    with pytest.raises(ValueError, match="is no ledger"):
        Ledger(tmp_path / "ledger.db")
    assert table(tmp_path / "ledger.db", "SELECT name FROM sqlite_master") == []


def test_twins_of_two_processes_count_once_even_if_both_were_dropped(tmp_path: Path) -> None:
    rows = {"digest": "ab", "texts": None, "candidates": [], "sources": []}
    dropped = {**rows, "kept": False, "last_stage": "check", "reason": "does not predict the label"}
    unanswered = {**rows, "digest": "cd", "kept": False, "last_stage": "anchor", "reason": "no answer: HTTP 503"}
    kept = {**rows, "kept": True, "last_stage": "refine", "reason": ""}
    for name, outcomes in {"ledger.db": [dropped, unanswered], "ledger.rank1.db": [kept, {**kept, "digest": "cd"}]}.items():
        with Ledger(tmp_path / name) as ledger:
            ledger.close_pairs({**outcome, "pair": f"{name} {number}"} for number, outcome in enumerate(outcomes))
    with read_ledgers(tmp_path) as ledgers:
        told = {outcome["pair"]: outcome["reason"].split(":")[0] for outcome in merged(ledgers)}
    assert told == {
        "ledger.db 0": "does not predict the label",
        "ledger.db 1": "no answer",
        "ledger.rank1.db 0": "duplicate",  # as on one process
        "ledger.rank1.db 1": "",  # nothing is known of its twin
    }
