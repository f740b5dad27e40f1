"""A critic whose weights lie on two processes answers as a whole one does, however unequal the work of the two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import run_python

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("ask_critic.py")


def test_two_processes_with_five_requests_and_one(tmp_path: Path) -> None:
    answers = {}
    for name, launcher in (("alone", []), ("shared", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])):
        (tmp_path / name).mkdir()
        done = run_python([*launcher, PROGRAM, tmp_path / name], timeout=300)  # a guard against hanging
        assert done.returncode == 0, done.stderr[-4000:]
        answers[name] = [json.loads((tmp_path / name / f"{rank}.json").read_text()) for rank in range(2)]
    assert [len(of_rank) for of_rank in answers["alone"]] == [5, 1]
    assert answers["shared"] == answers["alone"]
    assert len({text for of_rank in answers["alone"] for text in of_rank}) == 6
