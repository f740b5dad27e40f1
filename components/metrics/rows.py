"""What the metrics of this package share: rows that are kept, gathered from all processes, and put into one order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric


class RowMetric(Metric):
    """A metric that keeps its rows until ``compute``: intervals, ranks and fits need them all.

    Processes' rows are gathered with their own type, also from a process that has seen none, and sorted before anything is summed:
    the result is the same to the last bit however rows were dealt out to processes and batches. A row that two processes saw (a
    ``DistributedSampler`` fills up with repeats) counts twice: hand each row over once.

    Args:
        columns: Name and type of each column; states of these names are made.
        kwargs: Of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, columns: dict[str, torch.dtype], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._columns = columns
        for name in columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _add(self, **columns: Tensor) -> None:
        """Keep rows, all columns ``[n]``."""
        if len({values.shape for values in columns.values()}) != 1 or any(values.ndim != 1 for values in columns.values()):
            shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in columns.items())
            raise ValueError(f"{type(self).__name__}: one value a row wanted, [n] for all, got {shapes}")
        for name, values in columns.items():
            if self._columns[name] == torch.int64 and values.is_floating_point() and len(values):
                raise ValueError(
                    f"{type(self).__name__}: {name} are ids, and {values.dtype} would merge some; give int64 (group_ids)"
                )
        for name, values in columns.items():  # all or none
            getattr(self, name).append(values.detach().to(self._columns[name]))

    def _rows(self) -> list[Tensor]:
        """All columns in one order, on the CPU; empty ones before the first update."""
        columns = []
        for name, dtype in self._columns.items():
            state = getattr(self, name)  # a list of tensors, or one tensor once gathered
            parts = [state] if isinstance(state, Tensor) else state
            columns.append(torch.cat([torch.empty(0, dtype=dtype), *(part.cpu() for part in parts)]))
        order = torch.from_numpy(np.lexsort([values.numpy() for values in reversed(columns)]))
        return [values[order] for values in columns]

    def _figures(self, **figures: float) -> dict[str, Tensor]:
        """Figures as ``compute`` returns them: ``float32`` scalars on the metric's device."""
        return {name: torch.tensor(value, dtype=torch.float32, device=self.device) for name, value in figures.items()}

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all processes; see :meth:`torchmetrics.Metric.sync`."""
        for name, dtype in self._columns.items():
            if isinstance(state := getattr(self, name), list) and not state:
                # torchmetrics (#2463) would send an empty float32, and take float64 from the others for as many bytes of it
                state.append(torch.empty(0, dtype=dtype, device=self.device))
        super().sync(*args, **kwargs)


def check_range(name: str, values: Tensor, low: float, high: float, *, unscored: bool, advice: str) -> None:
    """Refuse values that cannot be.

    Args:
        name: What they are called.
        values: ``[n]``.
        low: The lowest that may be.
        high: The highest that may be.
        unscored: Whether NaN may be.
        advice: What to do.

    Raises:
        ValueError: With the first row that is wrong.
    """
    wrong = ~((values >= low) & (values <= high))
    if unscored:
        wrong &= ~values.isnan()
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name}: row {row} is {float(values[row]):g}, not in [{low:g}, {high:g}]; {advice}")


def check_label(label: Tensor) -> None:
    """Refuse labels that are no probability that A is preferred."""
    check_range("label", label, 0.0, 1.0, unscored=False, advice="give the probability that A is preferred, 0.5 for a tie")


def check_verdict(name: str, verdict: Tensor) -> None:
    """Refuse verdicts that are neither a probability that A is better nor NaN."""
    advice = "give 1 where A is better, 0 where B is, 0.5 for a tie, NaN for unscored"
    check_range(name, verdict, 0.0, 1.0, unscored=True, advice=advice)


def check_finite(name: str, values: Tensor) -> None:
    """Refuse infinite values; NaN is unscored."""
    largest = torch.finfo(torch.float64).max
    check_range(name, values.double(), -largest, largest, unscored=True, advice="NaN marks what could not be scored")


def mean(values: Tensor) -> float:
    """The mean of ``[n]``; NaN of nothing."""
    return float(values.double().mean()) if len(values) else float("nan")


def right(verdict: Tensor, label: Tensor) -> Tensor:
    """Whether verdicts pick the side that people picked, ``bool [n]``; a tie on either side and NaN are not right."""
    return ((verdict > 0.5) & (label > 0.5)) | ((verdict < 0.5) & (label < 0.5))
