"""Stopping a run whose reward has stopped meaning anything."""

from __future__ import annotations

import logging
import math
from collections import deque

from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)


class ResolutionGuard(Callback):
    """Stops RL when the reward goes on rising while it no longer tells good pictures from bad ones.

    Watches ``train/within_group_corr`` (reward against the witness) over a window of rounds, and ``train/truth``: the run stops
    when the mean correlation of the last window is below ``min_correlation`` and the witness has fallen against the window before.

    Args:
        min_correlation: Smallest mean correlation of a window.
        window: Rounds in a window.
    """

    def __init__(self, min_correlation: float = 0.05, window: int = 5) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.min_correlation = min_correlation
        self.window = window
        self.rounds: deque[tuple[float, float, float]] = deque(maxlen=2 * window)
        self.stopped = ""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last rounds."""
        names = ("train/reward", "train/truth", "train/within_group_corr")
        values = tuple(float(trainer.callback_metrics.get(name, math.nan)) for name in names)
        if any(math.isnan(value) for value in values):
            return  # nothing to watch in this round
        self.rounds.append(values)  # type: ignore[arg-type]
        if len(self.rounds) < 2 * self.window:
            return
        before, last = list(self.rounds)[: self.window], list(self.rounds)[self.window :]

        def mean(rows: list[tuple[float, float, float]], column: int) -> float:
            return sum(row[column] for row in rows) / len(rows)

        rising, falling = mean(last, 0) > mean(before, 0), mean(last, 1) < mean(before, 1)
        if rising and falling and mean(last, 2) < self.min_correlation:
            self.stopped = (
                f"stopped at round {pl_module.current_epoch}: the reward rose to {mean(last, 0):.3f} while the witness fell to "
                f"{mean(last, 1):.3f} and their within-group correlation is {mean(last, 2):.2f}"
            )
            log.warning(self.stopped)
            trainer.should_stop = True

    def state_dict(self) -> dict[str, object]:
        """The rounds seen."""
        return {"rounds": list(self.rounds)}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on from a checkpoint."""
        self.rounds.extend(state_dict["rounds"])  # type: ignore[arg-type]
