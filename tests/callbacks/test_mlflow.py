"""What a Trainer run leaves in MLflow, read back through its client."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import pytest
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger
from rationalrewards.callbacks import (
    MLflowArtifacts,
    MLflowParent,
    MLflowSaveConfig,
    MLflowSystemMetrics,
    parent_run,
)

QUIET = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "accelerator": "cpu",
}

pytestmark = [
    # a BoringModel on two batches: neither the number of workers nor of steps between logs is of interest
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def logger_on(uri: str, tmp_path: Path, **options: object) -> MLFlowLogger:
    return MLFlowLogger("tests", tracking_uri=uri, artifact_location=(tmp_path / "artifacts").as_uri(), **options)  # type: ignore[arg-type]


def fit(logger: object, *callbacks: Callback, **options: object) -> Trainer:
    trainer = Trainer(max_steps=1, limit_val_batches=0, logger=logger, callbacks=list(callbacks), **QUIET, **options)  # type: ignore[arg-type]
    trainer.fit(BoringModel(), BoringDataModule())
    return trainer


def files(client: mlflow.MlflowClient, run_id: str, folder: str | None = None) -> list[str]:
    found = []
    for entry in client.list_artifacts(run_id, folder):
        found += files(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


def text_of(client: mlflow.MlflowClient, run_id: str, path: str) -> str:
    return Path(client.download_artifacts(run_id, path)).read_text(encoding="utf-8")


def cli(*arguments: str) -> LightningCLI:
    return LightningCLI(
        BoringModel,
        BoringDataModule,
        save_config_callback=MLflowSaveConfig,
        seed_everything_default=1,
        args=[*arguments],
    )


# what the CLI below needs, for every subcommand
SMALL = ["--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]


def test_the_resolved_config_of_every_stage_is_kept(mlflow_uri: str, tmp_path: Path) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.MLFlowLogger", "init_args": {"tracking_uri": mlflow_uri}}
    config = tmp_path / "base.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"logger": logger, "max_steps": 1, "limit_test_batches": 1}}))
    for stage in ("fit", "test"):
        run_id = cli(stage, f"--config={config}", "--trainer.limit_val_batches=0", *SMALL).trainer.logger.run_id  # type: ignore[union-attr]
        client = mlflow.MlflowClient(mlflow_uri)
        # named after the stage, not after the member of an enum
        assert files(client, run_id) == [f"config/{stage}.yaml"]
        kept = yaml.safe_load(text_of(client, run_id, f"config/{stage}.yaml"))
        # from the file, from the command line, and from the defaults
        assert kept["trainer"]["max_steps"] == 1
        assert kept["trainer"]["limit_val_batches"] == 0
        assert kept["trainer"]["gradient_clip_algorithm"] is None
        assert kept["trainer"]["logger"]["init_args"]["tracking_uri"] == mlflow_uri


def test_the_kept_config_runs_again(mlflow_uri: str, tmp_path: Path) -> None:
    arguments = ["fit", "--trainer.logger=false", "--trainer.max_steps=1", "--trainer.limit_val_batches=0", *SMALL]
    cli(*arguments, f"--trainer.default_root_dir={tmp_path / 'out'}")
    kept = tmp_path / "out" / "config" / "fit.yaml"
    again = cli("fit", f"--config={kept}", f"--trainer.default_root_dir={tmp_path / 'again'}")
    assert again.trainer.global_step == 1
    assert yaml.safe_load(kept.read_text())["trainer"]["max_steps"] == 1


def test_artefacts_that_exist_are_uploaded(mlflow_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Export(Callback):
        def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            (tmp_path / "critic" / "deep").mkdir(parents=True)
            (tmp_path / "critic" / "deep" / "config.json").write_text("{}")
            (tmp_path / "gallery.html").write_text("<p>hello")

    wanted = [str(tmp_path / name) for name in ("critic", "gallery.html", "never_written")]
    logger = logger_on(mlflow_uri, tmp_path)
    with caplog.at_level(logging.INFO, "rationalrewards.callbacks.mlflow"):
        # given first: what other callbacks write when the fit ends must be found all the same
        fit(logger, MLflowArtifacts(wanted), Export())
    client = mlflow.MlflowClient(mlflow_uri)
    assert files(client, logger.run_id or "") == ["critic/deep/config.json", "gallery.html"]
    assert text_of(client, logger.run_id or "", "gallery.html") == "<p>hello"
    assert "never_written does not exist after fit" in caplog.text


def test_artefacts_are_not_uploaded_after_an_error(mlflow_uri: str, tmp_path: Path) -> None:
    class Fail(Callback):
        def on_train_batch_start(self, *args: object) -> None:
            raise RuntimeError("no")

    (tmp_path / "half.txt").write_text("half")
    logger = logger_on(mlflow_uri, tmp_path)
    with pytest.raises(RuntimeError, match="no"):
        fit(logger, MLflowArtifacts([str(tmp_path / "half.txt")]), Fail())
    client = mlflow.MlflowClient(mlflow_uri)
    assert files(client, logger.run_id or "") == []
    assert client.get_run(logger.run_id or "").info.status == "FAILED"


@pytest.mark.parametrize(("paths", "message"), [(["a/x", "b/x"], "'x' is there twice"), ("critic", "must be a list")])
def test_artefact_paths_are_checked(paths: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLflowArtifacts(paths)


def test_system_metrics_are_logged_and_stop(mlflow_uri: str, tmp_path: Path) -> None:
    class Wait(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            # until the monitor's thread has written: a condition to wait for, with a limit only against hanging
            limit = time.monotonic() + 60
            client = mlflow.MlflowClient(mlflow_uri)
            while not any(key.startswith("system/") for key in client.get_run(logger.run_id or "").data.metrics):
                assert time.monotonic() < limit, "no system metric within a minute"
                time.sleep(0.1)

    logger = logger_on(mlflow_uri, tmp_path)
    callback = MLflowSystemMetrics(interval=0.2)
    fit(logger, callback, Wait())
    client = mlflow.MlflowClient(mlflow_uri)
    run = client.get_run(logger.run_id or "")
    assert 0 < run.data.metrics["system/system_memory_usage_percentage"] <= 100
    assert run.info.status == "FINISHED"
    assert not [thread for thread in threads() if "SystemMetrics" in thread]


def threads() -> list[str]:
    import threading

    return [thread.name for thread in threading.enumerate()]


def test_system_metrics_stop_after_an_error(mlflow_uri: str, tmp_path: Path) -> None:
    class Fail(Callback):
        def on_train_batch_start(self, *args: object) -> None:
            assert [name for name in threads() if "SystemMetrics" in name]
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fit(logger_on(mlflow_uri, tmp_path), MLflowSystemMetrics(), Fail())
    assert not [name for name in threads() if "SystemMetrics" in name]


def test_system_metrics_need_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    # put back before the test ends: the fixture that looks for leftovers uses psutil itself
    with monkeypatch.context() as changed, pytest.raises(ModuleNotFoundError, match="pip install psutil"):
        changed.setitem(sys.modules, "psutil", None)
        MLflowSystemMetrics()


def test_stages_become_children_of_one_parent(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = 'quick\'start "42"'
    parent = parent_run(mlflow_uri, "tests", name)
    # a job that goes on finds its parent again; another job gets another
    assert parent_run(mlflow_uri, "tests", name) == parent
    assert parent_run(mlflow_uri, "tests", "other") != parent
    loggers = [logger_on(mlflow_uri, tmp_path) for _ in range(3)]
    fit(loggers[0], MLflowParent(parent_run_id=parent))
    fit(loggers[1], MLflowParent(name=name))
    with monkeypatch.context() as changed:
        changed.setenv("RATIONALREWARDS_PARENT_RUN", parent)
        fit(loggers[2], MLflowParent())
    client = mlflow.MlflowClient(mlflow_uri)
    children = client.search_runs([loggers[0].experiment_id or ""], f"tags.mlflow.parentRunId = '{parent}'")
    assert {run.info.run_id for run in children} == {logger.run_id for logger in loggers}
    run = client.get_run(parent)
    assert (run.info.run_name, run.info.status) == (name, "FINISHED")


def test_the_parent_of_a_failed_stage_has_failed(mlflow_uri: str, tmp_path: Path) -> None:
    class Fail(Callback):
        def on_train_batch_start(self, *args: object) -> None:
            assert mlflow.MlflowClient(mlflow_uri).get_run(parent).info.status == "RUNNING"
            raise RuntimeError("no")

    parent = parent_run(mlflow_uri, "tests", "job")
    with pytest.raises(RuntimeError, match="no"):
        fit(logger_on(mlflow_uri, tmp_path), MLflowParent(parent), Fail())
    assert mlflow.MlflowClient(mlflow_uri).get_run(parent).info.status == "FAILED"


def test_a_parent_that_does_not_exist_is_named(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        monkeypatch.context() as changed,
        pytest.raises(ValueError, match=r"RATIONALREWARDS_PARENT_RUN=0+ is not a run in sqlite"),
    ):
        changed.setenv("RATIONALREWARDS_PARENT_RUN", "0" * 32)
        fit(logger_on(mlflow_uri, tmp_path), MLflowParent())
    with pytest.raises(ValueError, match="not both"):
        MLflowParent("0", "name")


def test_a_deleted_experiment_is_named(mlflow_uri: str) -> None:
    client = mlflow.MlflowClient(mlflow_uri)
    identity = client.create_experiment("gone")
    client.delete_experiment(identity)
    with pytest.raises(ValueError, match=f"'gone' .* is deleted; .* --experiment-id {identity}"):
        parent_run(mlflow_uri, "gone", "job")


@pytest.mark.parametrize("logger", ["none", "csv", "fast_dev_run"])
def test_without_mlflow_nothing_happens(logger: str, mlflow_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callbacks = [MLflowArtifacts(["critic"]), MLflowSystemMetrics(), MLflowParent("0" * 32), MLflowParent(name="job")]
    made = {"none": False, "csv": CSVLogger(tmp_path), "fast_dev_run": logger_on(mlflow_uri, tmp_path)}[logger]
    with caplog.at_level(logging.DEBUG, "rationalrewards.callbacks.mlflow"):
        fit(made, *callbacks, fast_dev_run=logger == "fast_dev_run")
    ours = [record for record in caplog.records if record.name == "rationalrewards.callbacks.mlflow"]
    assert {record.levelno for record in ours} == {logging.DEBUG}
    assert "MLflowParent: no MLFlowLogger, nothing to do" in caplog.text
    client = mlflow.MlflowClient(mlflow_uri)
    assert not client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


@contextmanager
def server(folder: Path, store: str) -> Iterator[str]:
    """A tracking server on this machine that keeps artefacts below ``folder``; gone, with its workers, in the end."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no port can be opened here: {error}")
    artifacts = ("--artifacts-destination", (folder / "server").as_uri())
    listen = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    with (folder / "server.log").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, *artifacts, *listen],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        # a condition to wait for, with a limit only against hanging
        limit = time.monotonic() + 240
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
                if answer.status == 200:
                    break
            assert process.poll() is None and time.monotonic() < limit, (folder / "server.log").read_text()[-4000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_run_on_a_server(mlflow_uri: str, tmp_path: Path) -> None:
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic" / "config.json").write_text("{}")
    with server(tmp_path, mlflow_uri) as uri:
        parent = parent_run(uri, "tests", "job")
        settings = {"tracking_uri": uri, "experiment_name": "tests"}
        callbacks = [
            {"class_path": "rationalrewards.callbacks.MLflowParent", "init_args": {"parent_run_id": parent}},
            {"class_path": "rationalrewards.callbacks.MLflowArtifacts", "init_args": {"paths": [str(tmp_path / "critic")]}},
        ]
        trainer = {
            "logger": {"class_path": "lightning.pytorch.loggers.MLFlowLogger", "init_args": settings},
            "callbacks": callbacks,
            "max_steps": 1,
        }
        config = tmp_path / "base.yaml"
        config.write_text(yaml.safe_dump({"trainer": trainer}))
        made = cli("fit", f"--config={config}", "--trainer.limit_val_batches=0", *SMALL)
        run_id = made.trainer.logger.run_id  # type: ignore[union-attr]
        client = mlflow.MlflowClient(uri)
        assert files(client, run_id) == ["config/fit.yaml", "critic/config.json"]
        kept = yaml.safe_load(text_of(client, run_id, "config/fit.yaml"))
        assert kept["trainer"]["logger"]["init_args"]["tracking_uri"] == uri
        assert text_of(client, run_id, "critic/config.json") == "{}"
        run = client.get_run(run_id)
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert {run.info.status, client.get_run(parent).info.status} == {"FINISHED"}
    # they went through the server, into its folder
    assert list((tmp_path / "server").rglob("fit.yaml")) and not (tmp_path / "mlruns").exists()
