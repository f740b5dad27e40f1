"""What a reward did in each round of RL: numbers per aspect, pictures with their critiques, and a history on disk."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from rationalrewards.components.pages import Row, Scored, contact_sheet, critiques_page, histogram
from rationalrewards.components.records import Scale
from rationalrewards.components.rewards import Advantages, Rewards
from torch import Tensor

from .mlflow import mlflow_run
from .writers import writable_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

HISTORY = "history.jsonl"
"""File with one JSON object per epoch: ``epoch``, ``step`` and every scalar that was logged in the epoch."""

_TABLES_TAG = "mlflow.loggedArtifacts"
_TABLES = 50


class Rollout(Protocol):
    """What an RL module holds as ``last_rollout`` after it has generated and scored a round: n of everything."""

    epoch: int
    prompts: list[str]
    groups: list[str]
    images: list[Image.Image]
    rewards: Rewards
    witness: Rewards | None
    advantages: Advantages


@dataclass
class _Numbers:
    """The scalars of a rollout, of one process or of all: scores by aspect and totals of scored pictures only."""

    aspects: dict[str, list[float]] = field(default_factory=dict)
    totals: list[float] = field(default_factory=list)
    pictures: int = 0
    starved: int = 0
    groups: int = 0

    @classmethod
    def of(cls, rollout: Rollout) -> _Numbers:
        rewards, advantages = rollout.rewards, rollout.advantages
        valid = rewards.valid
        aspects = {}
        for column, aspect in enumerate(rewards.aspects):
            scores = rewards.values[valid, column]
            aspects[aspect] = scores[~torch.isnan(scores)].double().tolist()
        totals = rewards.total[valid].double().tolist()
        return cls(aspects, totals, len(rewards.total), advantages.starved, advantages.groups)

    def __add__(self, other: _Numbers) -> _Numbers:
        names = [*self.aspects, *(name for name in other.aspects if name not in self.aspects)]
        return _Numbers(
            {name: self.aspects.get(name, []) + other.aspects.get(name, []) for name in names},
            self.totals + other.totals,
            self.pictures + other.pictures,
            self.starved + other.starved,
            self.groups + other.groups,
        )


class RewardLogging(Callback):
    """Logs what the reward said about each round's pictures.

    Logged for every rollout: ``train/aspect/<name>`` and ``train/aspect_std/<name>`` (mean and population standard
    deviation of an aspect, over the scored pictures of all processes that it applies to) and ``train/starved_groups``
    (share of groups with too few scored members). The module itself logs the total reward, its spread, and the shares
    of unscored pictures and flat groups.

    With an ``MLFlowLogger`` also, below ``rollouts/``, after the number of the round: the first process's pictures with their
    rewards (``pictures.png``), the same with aspect scores and critiques where the reward writes any (``critiques.html``, which
    needs no other file), a table of all its prompts, rewards, critiques and reasons (``table.json``, shown by MLflow as a table),
    and histograms over all processes, of the rewards (``rewards.png``) and of each aspect (``aspect_<name>.png``).

    Args:
        output_dir: Folder of ``history.jsonl``; None writes none. A run that is resumed goes on with the file, less the
            epochs that it repeats; a fresh run starts it anew. Let checkpoints be written at the end of epochs
            (``ModelCheckpoint(save_on_train_epoch_end=True)``): from one written earlier, after validation, Lightning
            resumes without what the epoch had logged.
        every_n_epochs: How often what is below ``rollouts/`` is logged.
        max_groups: Most groups that are shown as pictures.
        max_copies: Most pictures of a group that are shown, best first.

    Raises:
        ValueError: If a count is below 1.
    """

    def __init__(self, output_dir: str | None = None, every_n_epochs: int = 1, max_groups: int = 8, max_copies: int = 8) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("max_groups", max_groups), ("max_copies", max_copies)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.history = Path(output_dir) / HISTORY if output_dir is not None else None
        self.every_n_epochs = every_n_epochs
        self.max_groups = max_groups
        self.max_copies = max_copies
        self._logged: int | None = None
        self._lines: list[dict[str, Any]] = []
        self._open = False
        self._closed: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the history can be written, before anything is computed."""
        if self.history is not None:
            writable_folder(self.history.parent)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the history where the checkpoint left it."""
        self._logged, self._open, self._closed = None, False, {}
        if self._writes(trainer):
            assert self.history is not None
            epoch, step = trainer.current_epoch, trainer.global_step
            # checkpoints written after validation, and all where only `max_steps` is given, resume at the end of an
            # epoch, whose line may be there and still holds
            self._lines = [
                line
                for line in (read_history(self.history) if step else ())
                if line["epoch"] < epoch or (line["epoch"], line["step"]) == (epoch, step)
            ]
            self._write()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the last epoch's line with what was logged after our turn."""
        self._close(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rollout, then write the epoch down before a checkpoint of it can exist."""
        rollout: Rollout | None = getattr(pl_module, "last_rollout", None)
        if rollout is None:
            log.debug("RewardLogging: the module holds no last_rollout, nothing to log")
        elif rollout.epoch != self._logged:
            self._logged = rollout.epoch
            numbers = _of_all_processes(_Numbers.of(rollout), trainer.world_size)
            pl_module.log_dict(_scalars(numbers), sync_dist=trainer.world_size > 1)
            run = mlflow_run(trainer, self) if rollout.epoch % self.every_n_epochs == 0 else None
            if run is not None:
                self._show(*run, rollout, numbers)
        if self._writes(trainer):
            line = {"epoch": trainer.current_epoch, "step": trainer.global_step}
            if self._lines and self._lines[-1]["epoch"] == line["epoch"]:
                # the end of an epoch that the last run had ended too: what was logged before lives in its line only
                line = self._lines.pop() | line
            self._lines.append(line | self._fresh(trainer))
            self._open = True
            self._write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the last line."""
        self._close(trainer)

    def _writes(self, trainer: Trainer) -> bool:
        return self.history is not None and trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]

    def _fresh(self, trainer: Trainer) -> dict[str, float | None]:
        """The scalars logged since the last line was closed; NaN and infinity, which JSON lacks, as None."""
        values: dict[str, float | None] = {}
        for name, tensor in trainer.callback_metrics.items():
            # Lightning keeps what was not logged again, e.g. by a validation some epochs ago, as the very same tensor
            if self._closed.get(name) is not tensor and tensor.numel() == 1 and name not in ("epoch", "step"):
                value = float(tensor)
                values[name] = value if math.isfinite(value) else None
        return values

    def _close(self, trainer: Trainer) -> None:
        if not self._open:
            return
        line = self._lines[-1] | self._fresh(trainer)
        self._open, self._closed = False, dict(trainer.callback_metrics)
        if line != self._lines[-1]:
            self._lines[-1] = line
            self._write()

    def _write(self) -> None:
        assert self.history is not None
        part = self.history.with_suffix(".part")
        part.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in self._lines), encoding="utf-8")
        part.replace(self.history)

    def _show(self, client: MlflowClient, run_id: str, rollout: Rollout, numbers: _Numbers) -> None:
        stem = f"rollouts/{rollout.epoch:05d}"
        shown = self._shown(rollout)
        client.log_image(run_id, _sheet(rollout, shown), f"{stem}_pictures.png")
        if rollout.rewards.critiques is not None:
            client.log_text(run_id, _critiques(rollout, shown), f"{stem}_critiques.html")
        unscored = numbers.pictures - len(numbers.totals)
        title = f"Round {rollout.epoch}: rewards of {numbers.pictures} pictures, {unscored} unscored"
        _log_histogram(client, run_id, numbers.totals, title, (0.0, 1.0), f"{stem}_rewards.png")
        critiques = rollout.rewards.critiques
        scale = critiques[0].scale if critiques else Scale()
        for aspect, scores in numbers.aspects.items():
            title = f"Round {rollout.epoch}: {aspect} of {len(scores)} of {numbers.pictures} pictures"
            path = f"{stem}_aspect_{re.sub(r'[^A-Za-z0-9_.-]', '_', aspect)}.png"
            _log_histogram(client, run_id, scores, title, (scale.low, scale.high), path)
        _log_table(client, run_id, _table(rollout), f"{stem}_table.json")

    def _shown(self, rollout: Rollout) -> list[list[int]]:
        """The pictures to show: the first groups, the best pictures of each first."""
        members: dict[str, list[int]] = {}
        for index, group in enumerate(rollout.groups):
            members.setdefault(group, []).append(index)
        rewards = _numbers(rollout.rewards.total)

        def order(index: int) -> float:
            reward = rewards[index]
            return math.inf if reward is None else -reward

        return [sorted(indices, key=order)[: self.max_copies] for indices in list(members.values())[: self.max_groups]]


def _sheet(rollout: Rollout, shown: list[list[int]]) -> Image.Image:
    rewards, witness = _numbers(rollout.rewards.total), _witness(rollout)

    def caption(index: int) -> str:
        reward, truth = rewards[index], witness[index]
        text = "unscored" if reward is None else f"{reward:.2f}"
        return text if truth is None else f"{text}, witness {truth:.2f}"

    rows = [Row(rollout.prompts[group[0]], [rollout.images[i] for i in group], [caption(i) for i in group]) for group in shown]
    return contact_sheet(rows, side=112)


def _critiques(rollout: Rollout, shown: list[list[int]]) -> str:
    rewards, witness = rollout.rewards, _witness(rollout)
    totals, values = _numbers(rewards.total), [_numbers(row) for row in rewards.values]
    assert rewards.critiques is not None
    critiques = rewards.critiques

    def scored(index: int) -> Scored:
        truth = witness[index]
        return Scored(
            rollout.images[index],
            totals[index],
            rewards.reasons[index],
            dict(zip(rewards.aspects, values[index], strict=True)),
            critiques[index].text,
            "" if truth is None else f"witness {truth:.3f}",
            critiques[index].scale,
        )

    groups = [(rollout.prompts[group[0]], [scored(index) for index in group]) for group in shown]
    return critiques_page(groups, f"Round {rollout.epoch}: pictures and critiques")


def _log_histogram(
    client: MlflowClient, run_id: str, values: list[float], title: str, usual: tuple[float, float], path: str
) -> None:
    """A histogram over the usual range, so that rounds compare, or over that of the values where they leave it."""
    low, high = usual
    bounds = usual if all(low <= value <= high for value in values) else None
    client.log_image(run_id, histogram(values, title, bounds), path)


def _of_all_processes(numbers: _Numbers, world_size: int) -> _Numbers:
    """The scores of all processes together; a mean of means would weigh a process with few scored pictures too much."""
    if world_size == 1:
        return numbers
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, numbers)
    return sum(gathered, _Numbers())


def _scalars(numbers: _Numbers) -> dict[str, float]:
    values: dict[str, float] = {}
    for aspect, scores in numbers.aspects.items():
        # an aspect without a score has no mean; 0 or NaN would be drawn as one
        if scores:
            tensor = torch.tensor(scores, dtype=torch.float64)
            values[f"train/aspect/{aspect}"] = float(tensor.mean())
            values[f"train/aspect_std/{aspect}"] = float(tensor.std(correction=0))
    if numbers.groups:
        values["train/starved_groups"] = numbers.starved / numbers.groups
    return values


def _numbers(values: Tensor) -> list[float | None]:
    """A tensor as a list, NaN as None."""
    return [None if math.isnan(value) else value for value in values.double().tolist()]


def _witness(rollout: Rollout) -> list[float | None]:
    return [None] * len(rollout.prompts) if rollout.witness is None else _numbers(rollout.witness.total)


def _table(rollout: Rollout) -> dict[str, Sequence[Any]]:
    rewards, advantages = rollout.rewards, rollout.advantages
    critiques = rewards.critiques
    aspects = {f"aspect/{name}": _numbers(rewards.values[:, column]) for column, name in enumerate(rewards.aspects)}
    return {
        "epoch": [rollout.epoch] * len(rollout.prompts),
        "group": rollout.groups,
        "prompt": rollout.prompts,
        "reward": _numbers(rewards.total),
        "unscored": rewards.reasons,
        "witness": _witness(rollout),
        "advantage": _numbers(advantages.values),
        "trained_on": advantages.weights.tolist(),
        **aspects,
        "critique": [""] * len(rollout.prompts) if critiques is None else [critique.text for critique in critiques],
    }


def _log_table(client: MlflowClient, run_id: str, columns: dict[str, Sequence[Any]], path: str) -> None:
    """What ``client.log_table`` writes, but writing again replaces the rows, and the run's tag stays short.

    ``log_table`` appends to a table that exists, so that a resumed epoch would be there twice, and names every table
    in one tag of limited length, so that a long run would end in an error. Here the oldest leave the tag; files stay.
    """
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    client.log_text(run_id, json.dumps({"columns": list(columns), "data": rows}, ensure_ascii=False), path)
    known = json.loads(client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
    entry = {"path": path, "type": "table"}
    tables = [other for other in known if other != entry][1 - _TABLES :]
    client.set_tag(run_id, _TABLES_TAG, json.dumps([*tables, entry]))


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Read a ``history.jsonl``; a file that does not exist is an empty history.

    Returns:
        One mapping per epoch, with ``epoch``, ``step`` and what was logged; None where it was not a finite number.

    Raises:
        ValueError: If a row is not such a mapping; the message names file and row.
    """
    path = Path(path)
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: not JSON ({error}); remove the row or the file") from error
        if not isinstance(line, dict) or not isinstance(line.get("epoch"), int):
            raise ValueError(f"{path}, row {number}: not an object with a whole 'epoch'; remove the row or the file")
        lines.append(line)
    return lines
