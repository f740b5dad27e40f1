"""Every test runs in its own folder, offline, seeded, on one thread, and leaves no process or variable behind."""

# ruff: noqa: E402 (the environment is set before the libraries that read it are imported)
from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# Read by the libraries when they are imported, and inherited by every process that a test starts.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # one thread a process: xdist workers and ranks share few cores, and the order of float sums stays the same
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # nothing of a developer's machine decides a test
        "CUDA_VISIBLE_DEVICES": "",
    }
)
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
    os.environ.pop(name, None)

import numpy as np
import psutil
import pytest
import torch
from support import ROOT

torch.set_num_threads(1)

SET_BY_LIBRARIES = {
    # seed_everything, and the process group of a Trainer
    *("PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
    *("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "RANK"),
    # mlflow.set_tracking_uri and the active run of its fluent API
    *("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"),
    # the accelerator that DeepSpeed settled on, and pytest's own
    *("DS_ACCELERATOR", "PYTEST_CURRENT_TEST"),
    # threadpoolctl, when `datasets` loads a set
    "KMP_DUPLICATE_LIB_OK",
    # torch, when its compiler is first imported
    "TORCHINDUCTOR_CACHE_DIR",
    # Lightning, when it looks for GPUs
    "PYTORCH_NVML_BASED_CUDA_CHECK",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under ``--dist loadgroup`` slow tests share one worker, so that they run one after the other."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("slow"))


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An own working directory and MLflow store, fixed seeds; afterwards nothing may be left over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    # pytest's own arguments are none of the command lines under test: LightningCLI warns of them
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    variables = dict(os.environ)
    children = set(psutil.Process().children(recursive=True))

    yield

    leaked = []
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        leaked.append("a process group (run distributed code in a process of its own: support.run_python)")
    for process in set(psutil.Process().children(recursive=True)) - children:
        try:
            command = " ".join(process.cmdline())
            # helpers of `multiprocessing` and of torch's compiler end with this process
            helper = "resource_tracker" in command or "torch/_inductor/compile_worker" in command
            if process.status() != psutil.STATUS_ZOMBIE and not helper:
                process.kill()
                leaked.append(f"a process: {command}")
        except psutil.NoSuchProcess:
            pass
    changed = {key for key in variables.keys() | os.environ.keys() if variables.get(key) != os.environ.get(key)}
    leaked += [f"the environment variable {key}" for key in sorted(changed - SET_BY_LIBRARIES)]
    os.environ.clear()
    os.environ.update(variables)
    if mlflow := sys.modules.get("mlflow"):
        while mlflow.active_run():
            mlflow.end_run()
    assert not leaked, "the test left behind " + ", ".join(leaked)


@pytest.fixture(scope="session")
def _empty_mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_uri(_empty_mlflow_store: Path, tmp_path: Path) -> str:
    """The URI of an empty sqlite store in the test's folder: a copy, since creating the tables takes five seconds."""
    shutil.copy(_empty_mlflow_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real images and prompts. Skips without it, or fails where ``RATIONALREWARDS_REQUIRE_REAL=1``."""
    folder = Path(os.environ.get("RATIONALREWARDS_REAL") or ROOT.parent / "shared" / "real")
    if (folder / "edits.jsonl").is_file():
        return folder
    reason = f"no real images at {folder}: put them there or name their folder in RATIONALREWARDS_REAL"
    if os.environ.get("RATIONALREWARDS_REQUIRE_REAL") == "1":
        pytest.fail(f"{reason} (RATIONALREWARDS_REQUIRE_REAL=1 forbids skipping)")
    pytest.skip(reason)
