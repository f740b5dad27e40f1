"""PARROT as actors of a local Ray: what comes out is what one process makes, whatever dies on the way, and nothing is asked twice."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import yaml
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.parrot import (
    FolderInUseError,
    Ledger,
    ParrotOptions,
    RunLock,
    ScreenOptions,
    merged,
    rationalize,
    read_ledgers,
    write_rationales,
)
from rationalrewards.components.parrot.audit import summarise
from rationalrewards.components.records import Preference, Rationale, read_jsonl
from rationalrewards.components.shapes.teacher import ShapesTeacher
from support import ROOT, needs, run_python

PAIRS = 24
RATES = {"hallucination": 0.1, "vagueness": 0.1, "label_echo": 0.1}
# a clean drawing may be of one colour
OPTIONS = {"control_share": 0.3, "audit_share": 0.3, "seed": 4, "screen": {"min_contrast": 0.0}}

TEACHER = f'''
"""The simulated teacher, in two processes of which one does not last."""

import os
import signal
import time
from pathlib import Path

from rationalrewards.components.shapes.teacher import ShapesTeacher


class Mortal(ShapesTeacher):
    def __init__(self, register: str) -> None:
        super().__init__(**{RATES})
        self.register = Path(register)
        self.calls = 0

    def complete(self, requests):
        self.calls += 1
        (self.register / str(os.getpid())).touch()
        deadline = time.monotonic() + 300
        # both are to have a share, however long one takes to start; and somebody else wants to try the door
        while len(list(self.register.iterdir())) < 2 or not (self.register.parent / "go").exists():
            assert time.monotonic() < deadline, "there is no second actor, or nobody lets them go"
            time.sleep(0.05)
        if self.calls == 4:  # the first batch is past its first stages
            try:
                (self.register / "dead").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().complete(requests)
'''


class Interrupted(ShapesTeacher):
    """The simulated teacher, until somebody presses Ctrl-C."""

    calls = 0

    def complete(self, requests: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return super().complete(requests)


def options() -> ParrotOptions:
    return ParrotOptions(**{**OPTIONS, "screen": ScreenOptions(**OPTIONS["screen"])})  # type: ignore[arg-type, dict-item]


def results(folder: Path) -> dict[str, tuple[str, tuple[str, str]]]:
    return {made.pair.id: (made.pair_text, made.point_texts) for made in read_jsonl(folder / "rationales.jsonl", Rationale)}


def answered(folder: Path, pairs: list[Preference]) -> Counter[tuple[Any, ...]]:
    """How often each question was answered, over all ledgers of a folder."""
    with read_ledgers(folder) as ledgers:
        rows = [row for pair in pairs for row in ledgers.calls(pair.id) if not row["failure"]]
    return Counter((row["pair"], row["stage"], row["sample"], row["request"]) for row in rows)


def rounded(value: Any) -> Any:
    """Floats to 9 places: sums over pairs are the same only up to their order."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 9) if isinstance(value, float) else value


def still_running(folder: str) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if folder in command:
            found.append(command[:200])
    return found


@pytest.mark.slow
@needs("ray")
def test_two_actors_one_of_which_dies_after_a_run_that_was_broken_off(tmp_path: Path) -> None:
    file = tiny.pairs(tmp_path / "data", PAIRS)
    pairs, alone, out = read_jsonl(file, Preference), tmp_path / "alone", tmp_path / "out"
    with Ledger(alone / "ledger.db") as ledger:
        rationalize(pairs, ShapesTeacher(**RATES), CritiqueFormat("shapes"), options(), ledger)
    with read_ledgers(alone) as ledger:
        write_rationales(ledger, alone / "rationales.jsonl")
        summary = json.loads(json.dumps(summarise(merged(ledger))))
    assert 0 < len(results(alone)) < PAIRS

    # an earlier run, whose ledger no actor of this one writes to
    with pytest.raises(KeyboardInterrupt), Ledger(out / "ledger.ray7.db") as ledger:
        rationalize(pairs[:8], Interrupted(**RATES), CritiqueFormat("shapes"), options(), ledger)
    before = answered(out, pairs)
    assert before

    (tmp_path / "register").mkdir()
    (tmp_path / "mortal_teacher.py").write_text(TEACHER)
    teacher = {"class_path": "mortal_teacher.Mortal", "init_args": {"register": str(tmp_path / "register")}}
    module = {"format": {"rubric": "shapes"}, "teacher": teacher, "options": OPTIONS}
    recipe = {
        "model": {"class_path": "rationalrewards.lightning_modules.RationalizeModule", "init_args": module},
        "data": {
            "class_path": "rationalrewards.datamodules.PreferenceDataModule",
            "init_args": {"paths": os.path.relpath(file), "batch_size": 4},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # Ray's sockets lie in its folder, and the path of a socket has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_folder:
        environment = {
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
            "RAY_TMPDIR": ray_folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            # where Ray puts its token
            "HOME": str(tmp_path),
        }
        arguments = ["-c", "recipe.yaml", "--out", out, "--actors", "2"]
        # two actors run on a machine with one core as well
        program = [ROOT / "examples" / "ray_parrot.py", *arguments, "--cpus-per-actor", "0.4"]
        with ThreadPoolExecutor(1) as aside:
            running = aside.submit(run_python, program, timeout=540, env=environment)  # a guard against hanging
            while not list((tmp_path / "register").iterdir()) and not running.done():
                time.sleep(0.1)
            # the actors are at work: nobody else gets in, whichever way and whatever ledgers are free
            with pytest.raises(FolderInUseError, match="out is in use by another run"):
                RunLock(out)
            second = run_python(program, timeout=300, env=environment)
            assert second.returncode != 0 and "out is in use by another run" in second.stderr
            (tmp_path / "go").touch()
            done = running.result()
        assert done.returncode == 0, done.stderr[-6000:]
        # said before anything was asked: what is planned, and at which rate, since the broken-off run has left some calls
        planned, expected, *_ = done.stdout.splitlines()
        assert planned.startswith(f"{PAIRS} pairs: at most ") and "pairs measured, " in expected and " tokens, " in expected
        assert f"At their rate {PAIRS} pairs take about" in expected and " on 2 processes" in expected
        RunLock(out).close()
        deadline = time.monotonic() + 30
        while left := still_running(ray_folder):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)

    assert (tmp_path / "register" / "dead").exists()
    assert results(out) == results(alone)
    assert rounded(json.loads((out / "summary.json").read_text())) == rounded(summary)
    # all that one process asks was asked, and was answered once: before, by the actor that died, or after
    assert answered(out, pairs) == answered(alone, pairs)
    assert set(answered(out, pairs).values()) == {1}
    assert sorted(path.name for path in out.glob("*.db")) == ["ledger.ray0.db", "ledger.ray1.db", "ledger.ray7.db"]


@pytest.mark.slow
@needs("ray")
def test_an_empty_folder_is_measured_on_a_few_pairs_before_the_others_start(tmp_path: Path) -> None:
    file = tiny.pairs(tmp_path / "data", PAIRS)
    init_args = {
        "format": {"rubric": "shapes"},
        "teacher": {"class_path": "rationalrewards.components.shapes.teacher.ShapesTeacher", "init_args": RATES},
        "options": OPTIONS,
    }
    recipe = {
        "model": {"class_path": "rationalrewards.lightning_modules.RationalizeModule", "init_args": init_args},
        "data": {
            "class_path": "rationalrewards.datamodules.PreferenceDataModule",
            "init_args": {"paths": str(file), "batch_size": 4},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_folder:
        environment = {"RAY_TMPDIR": ray_folder, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)}
        out = tmp_path / "out"
        program = [ROOT / "examples" / "ray_parrot.py", "-c", tmp_path / "recipe.yaml", "--out", out, "--actors", "2"]
        done = run_python([*program, "--cpus-per-actor", "0.4", "--trial", "3"], timeout=540, env=environment)
    assert done.returncode == 0, done.stderr[-6000:]
    planned, expected, first, *_ = done.stdout.splitlines()
    assert (
        planned.startswith(f"{PAIRS} pairs: at most ") and expected.startswith("3 pairs measured, ") and " tokens, " in expected
    )
    assert first.startswith(f"4 of {PAIRS} pairs, ")
    assert set(answered(out, read_jsonl(file, Preference)).values()) == {1}  # what was measured is not asked again
