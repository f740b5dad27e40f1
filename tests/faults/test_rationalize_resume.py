"""A rationalize run that is killed at random instants and started again, until it is finished."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny
from rationalrewards.components.records import Rationale, read_jsonl
from support import ROOT, run_python

PAIRS = 48

TEACHER = '''
"""The simulated teacher, slowed down so that there is something to interrupt."""

import os
import time

from rationalrewards.components.shapes.teacher import ShapesTeacher


class Slow(ShapesTeacher):
    def complete(self, requests):
        time.sleep(float(os.environ.get("SLOW_TEACHER", "0")))
        return super().complete(requests)
'''


def command(pairs: Path, out: Path) -> list[str]:
    """``rationalrewards predict`` in batches of three, as many questions to the ledger as possible."""
    return [
        *("-m", "rationalrewards", "predict", "--config", str(ROOT / "configs" / "rationalize" / "shapes.yaml")),
        *("--model.init_args.teacher", "slow_teacher.Slow", "--model.init_args.teacher.init_args.label_echo=0.1"),
        *(f"--data.init_args.paths={pairs}", "--data.init_args.batch_size=3"),
        *("--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        f"--trainer.callbacks={json.dumps([writer(out)])}",
    ]


def writer(out: Path) -> dict[str, Any]:
    return {"class_path": "rationalrewards.callbacks.RationaleWriter", "init_args": {"output_dir": str(out)}}


def calls(folder: Path) -> list[tuple[Any, ...]]:
    """Pair, stage, sample, request and attempt of every call on file, by a reader beside the run."""
    if not (folder / "ledger.db").is_file():
        return []
    with closing(sqlite3.connect(folder / "ledger.db", timeout=60)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'calls'").fetchone():
            return []
        return database.execute("SELECT pair, stage, sample, request, attempt FROM calls").fetchall()


@pytest.mark.slow
def test_killed_at_random_and_started_again(tmp_path: Path) -> None:
    (tmp_path / "slow_teacher.py").write_text(TEACHER)
    pairs = tiny.pairs(tmp_path / "pairs", PAIRS)
    environment = {"PYTHONPATH": str(tmp_path), "SHAPES_OUT": str(tmp_path)}
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    done = run_python(command(pairs, undisturbed), timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]

    rng = random.Random(7)
    kills, seen = 0, 0
    while kills < 3:
        # 16 batches of about six calls each, 0.05 s a call: five seconds of work in all, a second and a half between kills
        process = subprocess.Popen(
            [sys.executable, *command(pairs, out)],
            env={**os.environ, **environment, "SLOW_TEACHER": "0.05"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            # the instant counts from the first new answer on: starting takes long, and nothing happens in it
            deadline = time.monotonic() + 240
            while len(calls(out)) <= seen and process.poll() is None:
                assert time.monotonic() < deadline, "no new answer"
                time.sleep(0.02)
            time.sleep(rng.uniform(0.0, 1.5))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL, "it finished before it was killed"
        kills += 1
        seen = len(calls(out))
    assert not (out / "summary.json").exists()
    done = run_python(command(pairs, out), timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]

    def records(folder: Path) -> list[tuple[str, str, tuple[str, str]]]:
        return [(r.pair.id, r.pair_text, r.point_texts) for r in read_jsonl(folder / "rationales.jsonl", Rationale)]

    assert 0 < len(records(undisturbed)) < PAIRS
    # the same records in the same order, none twice
    assert records(out) == records(undisturbed)
    assert json.loads((out / "summary.json").read_text()) == json.loads((undisturbed / "summary.json").read_text())

    # every question that the undisturbed run asked is on file once, at the same attempt, and none has two answers
    asked = Counter(calls(out))
    assert asked == Counter(calls(undisturbed))
    assert set(asked.values()) == {1}
