"""What several test files share: where things lie, conditions, and running a program in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
"""The root of the repository."""

OWN_WORDING = str(ROOT / "tests" / "components" / "critique" / "own_wording.yaml")
"""A template for the judging requests, as a user might write one."""


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip unless the modules can be imported, e.g. ``@needs("deepspeed")``; an extra may be left out of an install."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None,
    reason="DeepSpeed compiles its CPU operators on first use: needs a C++ compiler (apt install g++ python3-dev)",
)


def run_python(
    arguments: Sequence[str | Path], *, timeout: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter on ``arguments``, in a process group that is gone when the call returns.

    Args:
        arguments: A script and its arguments, or ``-c`` and a program, or ``-m`` and a module.
        timeout: Seconds until the whole group is killed: a guard against hanging, not a measurement.
        cwd: Working directory; the current one (the test's own folder) when omitted.
        env: Additions to the environment.

    Returns:
        The finished process, with exit status and both outputs. The status is not checked.

    Raises:
        TimeoutError: When time is up, with what the program had written by then.
    """
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    expired = False
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        expired = True
    finally:
        # the group outlives its leader when a rank or a server was left behind
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if expired:
        stdout, stderr = process.communicate()
        raise TimeoutError(f"not finished after {timeout} s: {arguments}\n{stdout[-2000:]}\n{stderr[-4000:]}")
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
