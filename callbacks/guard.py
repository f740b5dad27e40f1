"""Stopping a run whose reward has stopped meaning anything."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .mlflow import mlflow_run

log = logging.getLogger(__name__)

STOPPED_TAG = "rationalrewards.stopped"
"""Tag of an MLflow run that says why the run was stopped early."""


class ResolutionGuard(Callback):
    """Stops RL when the reward no longer tells the pictures of one request apart.

    With a witness, over windows of rounds: when the mean ``train/reward`` of the last window is above that of the window before while
    the mean ``train/within_group_corr`` (reward against the witness) of the last window is below ``min_correlation``: the reward
    rises on noise. Where there is no correlation (no witness, or nothing varied): when the mean ``train/flat_groups`` of a window of
    consecutive such rounds is above ``max_flat``, for groups whose pictures all score alike leave nothing to learn from. Rounds in
    which nothing was scored are skipped.

    The reason stands in ``stopped`` (empty while the run goes on), in the log and, with an ``MLFlowLogger``, in the run's tag
    ``rationalrewards.stopped``.

    Args:
        min_correlation: Smallest mean correlation of a window, -1 to 1.
        window: Rounds in a window, at least 1.
        max_flat: Largest mean share of flat groups of a window, 0 to 1; 1 never stops for them.

    Raises:
        ValueError: If ``window`` or ``max_flat`` is out of range.
    """

    def __init__(self, min_correlation: float = 0.05, window: int = 5, max_flat: float = 0.9) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if not 0.0 <= max_flat <= 1.0:
            raise ValueError(f"max_flat is a share between 0 and 1, got {max_flat}")
        self.min_correlation = min_correlation
        self.window = window
        self.max_flat = max_flat
        self.rounds: deque[tuple[float, float, float]] = deque(maxlen=2 * window)
        self.flat: deque[float] = deque(maxlen=window)
        self.stopped = ""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last rounds."""
        names = ("train/reward", "train/truth", "train/within_group_corr", "train/flat_groups")
        reward, witness, correlation, flat = (float(trainer.callback_metrics.get(name, math.nan)) for name in names)
        if math.isnan(reward):
            return
        if not math.isnan(correlation):
            self.rounds.append((reward, witness, correlation))
            self.flat.clear()
            reason = self._noise()
        elif not math.isnan(flat):
            self.flat.append(flat)
            reason = self._flatness()
        else:
            return
        if reason:
            self.stopped = f"stopped at round {pl_module.current_epoch}: {reason}"
            log.warning(self.stopped)
            trainer.should_stop = True
            run = mlflow_run(trainer, self)
            if run is not None:
                run[0].set_tag(run[1], STOPPED_TAG, self.stopped)

    def _noise(self) -> str:
        """Why the rounds with a witness are reason to stop; empty if they are none."""
        if len(self.rounds) < 2 * self.window:
            return ""
        rows = list(self.rounds)
        (reward, witness, _), (last_reward, last_witness, last_correlation) = (
            [_mean(column) for column in zip(*part, strict=True)] for part in (rows[: self.window], rows[self.window :])
        )
        if not (last_reward > reward and last_correlation < self.min_correlation):
            return ""
        return (
            f"the reward rose from {reward:.3f} to {last_reward:.3f}, but its within-group correlation with the witness is "
            f"{last_correlation:.2f}, below {self.min_correlation:g} (the witness went from {witness:.3f} to {last_witness:.3f})"
        )

    def _flatness(self) -> str:
        """Why the rounds without a correlation are reason to stop; empty if they are none."""
        if len(self.flat) < self.window or not _mean(self.flat) > self.max_flat:
            return ""
        return (
            f"in {100 * _mean(self.flat):.0f} % of the groups of the last {self.window} rounds all pictures got the same reward: "
            "nothing is left to learn from"
        )

    def state_dict(self) -> dict[str, Any]:
        """The rounds seen, and why the run was stopped."""
        return {"rounds": list(self.rounds), "flat": list(self.flat), "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rounds = deque(state_dict["rounds"], maxlen=2 * self.window)
        self.flat = deque(state_dict["flat"], maxlen=self.window)
        self.stopped = state_dict["stopped"]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
