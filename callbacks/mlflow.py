"""MLflow: the resolved config, artefacts, system metrics, and one parent over the runs of all stages.

Every callback here does nothing, but for a line in the debug log, where the Trainer has no ``MLFlowLogger``
(``fast_dev_run`` takes the loggers away), and writes from the first process only.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.trainer.states import TrainerFn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

log = logging.getLogger(__name__)

PARENT_RUN_VARIABLE = "RATIONALREWARDS_PARENT_RUN"
"""Environment variable with the id of the run that every stage's run becomes a child of."""

_PARENT_TAG = "mlflow.parentRunId"
_ROLE_TAG = "rationalrewards.role"


def mlflow_run(trainer: Trainer, wanted_by: object) -> tuple[MlflowClient, str] | None:
    """The client and the run id of the Trainer's ``MLFlowLogger``.

    Args:
        trainer: The Trainer.
        wanted_by: Who asks, for the debug log.

    Returns:
        None on every process but the first, and where there is no such logger.
    """
    if not trainer.is_global_zero:
        return None
    for logger in trainer.loggers:
        if isinstance(logger, MLFlowLogger) and logger.run_id is not None:
            return logger.experiment, logger.run_id
    log.debug("%s: no MLFlowLogger, nothing to do", type(wanted_by).__name__)
    return None


class MLflowSaveConfig(SaveConfigCallback):
    """Keeps the resolved config of a run: artefact ``config/<stage>.yaml``, or that file below ``default_root_dir``.

    For ``LightningCLI(save_config_callback=MLflowSaveConfig)``. Lightning's own asks for a log folder, which an
    ``MLFlowLogger`` on a database or a server does not have (Lightning #19441).
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        config_filename: str = "config.yaml",
        overwrite: bool = False,
        multifile: bool = False,
        save_to_log_dir: bool = False,
    ) -> None:
        super().__init__(parser, config, config_filename, overwrite, multifile, save_to_log_dir)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the config; called once, on the first process."""
        text = self.parser.dump(self.config, skip_none=False)
        # `stage` is an enum member, which a format string would write as `TrainerFn.FITTING`
        name = f"config/{TrainerFn(stage).value}.yaml"
        run = mlflow_run(trainer, self)
        if run is not None:
            client, run_id = run
            client.log_text(run_id, text, name)
            return
        path = Path(trainer.default_root_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


class MLflowArtifacts(Callback):
    """Uploads files and folders that exist when a fit, a test or a prediction has ended, e.g. a critic or a gallery.

    The logger's own ``log_model`` leaves out checkpoints that are folders (DeepSpeed, FSDP2) without a word. Callbacks
    that write in ``teardown`` must stand before this one.

    Args:
        paths: Files and folders, relative ones from the working directory. A folder arrives under its own name.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        if isinstance(paths, str):
            raise ValueError(f"paths must be a list, got the text {paths!r}")
        names = [Path(path).name for path in paths]
        twice = sorted({name for name in names if names.count(name) > 1 or not name})
        if twice:
            raise ValueError(f"paths must end in different names, but {twice[0]!r} is there twice or empty: {list(paths)}")
        self.paths = [Path(path) for path in paths]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Upload what is there; not called after an error."""
        run = mlflow_run(trainer, self)
        if run is None:
            return
        client, run_id = run
        for path in self.paths:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), path.name)
            elif path.is_file():
                client.log_artifact(run_id, str(path))
            else:
                log.info("%s does not exist after %s and is not uploaded", path, TrainerFn(stage).value)


class MLflowSystemMetrics(Callback):
    """Logs memory, processor, disk, network and GPU use of the first process's machine as ``system/...``.

    MLflow's ``enable_system_metrics_logging`` has no effect on runs that a client made, as Lightning's logger does.
    Nothing is logged before the first interval has passed.

    Args:
        interval: Seconds between two measurements.
    """

    def __init__(self, interval: float = 10.0) -> None:
        if interval <= 0:
            raise ValueError(f"interval must be positive, got {interval}")
        if importlib.util.find_spec("psutil") is None:
            raise ModuleNotFoundError("MLflowSystemMetrics measures with psutil, which is missing: pip install psutil")
        self.interval = interval
        self._monitor: SystemMetricsMonitor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start measuring."""
        run = mlflow_run(trainer, self)
        if run is None or self._monitor is not None:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        client, run_id = run
        # the monitor leaves by itself when the run is not running, and a resumed run is still marked as finished
        client.update_run(run_id, status="RUNNING")
        self._monitor = SystemMetricsMonitor(run_id, self.interval, resume_logging=True, tracking_uri=client.tracking_uri)
        self._monitor.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop measuring."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop measuring: ``teardown`` is not called after an error."""
        self._stop()

    def _stop(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


class MLflowParent(Callback):
    """Makes the run of this stage a child of another run, so that the stages of one job stand together.

    The parent is ``parent_run_id``, else the run called ``name`` in the logger's experiment (created if need be), else
    the run that the environment variable ``RATIONALREWARDS_PARENT_RUN`` names; without any of them nothing happens. The
    parent has the status of its latest stage.

    Args:
        parent_run_id: Id of the parent; see :func:`parent_run`.
        name: Name of the parent.
    """

    def __init__(self, parent_run_id: str | None = None, name: str | None = None) -> None:
        if parent_run_id and name:
            raise ValueError("give parent_run_id or name, not both")
        self.parent_run_id = parent_run_id
        self.name = name
        self._parent: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tag the run."""
        run = mlflow_run(trainer, self)
        if run is None:
            return
        from mlflow.exceptions import MlflowException

        client, run_id = run
        parent = self.parent_run_id
        if parent is None and self.name is not None:
            experiment = client.get_run(run_id).info.experiment_id
            parent = _find_or_create(client, experiment, self.name)
        parent = parent or os.environ.get(PARENT_RUN_VARIABLE)
        if not parent:
            log.debug("MLflowParent: no parent named, nothing to do")
            return
        try:
            client.get_run(parent)
        except MlflowException as error:
            where = f"{PARENT_RUN_VARIABLE}=" if self.parent_run_id is None else "parent_run_id="
            raise ValueError(
                f"{where}{parent} is not a run in {client.tracking_uri}; rationalrewards.callbacks.parent_run makes one"
            ) from error
        client.set_tag(run_id, _PARENT_TAG, parent)
        self._parent = parent
        self._mark(trainer, "RUNNING")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Mark the parent as finished."""
        self._mark(trainer, "FINISHED")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Mark the parent as failed."""
        self._mark(trainer, "KILLED" if isinstance(exception, KeyboardInterrupt) else "FAILED")

    def _mark(self, trainer: Trainer, status: str) -> None:
        run = mlflow_run(trainer, self)
        if run is not None and self._parent is not None:
            run[0].update_run(self._parent, status=status)


def parent_run(tracking_uri: str, experiment: str, name: str, artifact_location: str | None = None) -> str:
    """The run that the runs of a job's stages become children of (tag ``mlflow.parentRunId``).

    Args:
        tracking_uri: MLflow store, e.g. ``sqlite:///mlflow.db`` or ``http://localhost:5000``.
        experiment: Name of the experiment, created if need be. MLflow shows children below a parent of their own
            experiment.
        name: Name of the run; one that exists is used again, so that a job that goes on stays together.
        artifact_location: URI where a new experiment keeps its artefacts; the store's default if omitted.

    Returns:
        The run's id, for :class:`MLflowParent` or the environment variable ``RATIONALREWARDS_PARENT_RUN``.

    Raises:
        ValueError: If the experiment has been deleted.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is not None and found.lifecycle_stage == "deleted":
        raise ValueError(
            f"the MLflow experiment {experiment!r} in {tracking_uri} is deleted; choose another name or restore it: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    identity = client.create_experiment(experiment, artifact_location) if found is None else found.experiment_id
    return _find_or_create(client, identity, name)


def _find_or_create(client: MlflowClient, experiment_id: str, name: str) -> str:
    token: str | None = None
    while True:
        # the name is compared here: in a filter string a quote in it would need escaping
        runs: Any = client.search_runs([experiment_id], f"tags.`{_ROLE_TAG}` = 'parent'", page_token=token)
        for run in runs:
            if run.info.run_name == name:
                return str(run.info.run_id)
        token = runs.token
        if not token:
            break
    created = client.create_run(experiment_id, run_name=name, tags={_ROLE_TAG: "parent"})
    return str(created.info.run_id)
