"""Canaries and diagnostics of the judge on two processes: the same figures as on one, and the same on both."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny
import torch
from support import run_python


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    folder = Path(__file__).parent
    train, canaries = tiny.requests(tmp_path / "train", 4), tiny.requests(tmp_path / "canaries", 3, edit_share=0.5, seed=6)
    for processes in (1, 2):
        done = run_python(
            [folder / "fit_judged.py", train, canaries, tmp_path / "out", str(processes)],
            timeout=400,
            env={"PYTHONPATH": str(folder.parent)},
        )
        assert done.returncode == 0, done.stderr[-4000:]
    one, first, second = (torch.load(tmp_path / "out" / f"found{name}.pt") for name in ("1_0", "2_0", "2_1"))
    assert first == second
    # three requests on two processes: one of them draws a request again, which counts once
    assert [len(check[1]) for check in first["canary"]["checks"]] == [6, 6]
    assert first["canary"]["ids"] == one["canary"]["ids"]
    start, alone = first["canary"]["checks"][0], one["canary"]["checks"][0]
    # nothing is trained yet: the same noise, drawn in calls of the same pictures
    assert start[:3] == alone[:3]
    assert start[3] == 0.0 == alone[3]
    assert first["metrics"].keys() == one["metrics"].keys() and "judge/noise/total" in first["metrics"]
    for name, value in one["metrics"].items():
        assert math.isclose(first["metrics"][name], value, rel_tol=1e-5), name  # float32 means of equal numbers
    assert sorted(path.name for path in (tmp_path / "out" / "canaries").glob("*")) == [
        "canaries.jsonl",
        "canaries_00000.png",
        "canaries_00001.png",
    ]
