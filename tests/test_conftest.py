"""The fixtures that the other tests rely on, tried on tests that misbehave."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import pytest
from support import ROOT, run_python

pytestmark = pytest.mark.slow

NEEDS_REAL = "def test_real(real): assert real.is_dir()"

LEAKS = """
    import os
    import subprocess
    import sys

    def test_variable():
        os.environ["LEFT_BEHIND"] = "1"

    def test_variable_is_gone():
        assert "LEFT_BEHIND" not in os.environ

    def test_process():
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def test_process_group():
        import torch.distributed as dist
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def test_process_group_is_gone():
        import torch.distributed as dist
        assert not dist.is_initialized()
"""


def outcomes(code: str, folder: Path, **env: str) -> tuple[str, str]:
    """Run tests in a process of their own: the closing line and the whole output."""
    for name in ("conftest.py", "support.py"):
        shutil.copy(ROOT / "tests" / name, folder)
    (folder / "test_it.py").write_text(textwrap.dedent(code))
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    done = run_python(["-m", "pytest", "-p", "no:cacheprovider", "-rA"], cwd=folder, env=env, timeout=300)
    return done.stdout.strip().splitlines()[-1], done.stdout


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_missing_real_images_skip_or_fail(required: str, outcome: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    env = {"RATIONALREWARDS_REAL": str(missing), "RATIONALREWARDS_REQUIRE_REAL": required}
    closing, output = outcomes(NEEDS_REAL, tmp_path, **env)
    assert outcome in closing
    assert f"no real images at {missing}" in output


def test_real_images_are_found_where_the_variable_points(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "edits.jsonl").touch()
    closing, _ = outcomes(NEEDS_REAL, tmp_path, RATIONALREWARDS_REAL=str(tmp_path / "images"))
    assert "1 passed" in closing


def test_what_a_test_leaves_behind_is_named_and_removed(tmp_path: Path) -> None:
    closing, output = outcomes(LEAKS, tmp_path)
    # the tests themselves pass; leaving something behind is an error on top
    assert "5 passed" in closing and "3 errors" in closing
    assert "left behind the environment variable LEFT_BEHIND" in output
    assert "left behind a process: " in output and "time.sleep(60)" in output
    assert "left behind a process group" in output
