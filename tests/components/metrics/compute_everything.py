"""Every metric of the package on random rows: ``compute_everything.py OUT``, alone or in two processes that share the rows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rationalrewards.components.metrics import (
    DuplicateNoise,
    GroundingGain,
    KendallTauB,
    OrderConsistency,
    PairAccuracy,
    PreferenceCalibration,
    RationaleSufficiency,
    TieAccuracy,
    WithinGroupResolution,
)
from rationalrewards.components.metrics.rows import RowMetric
from torch import Tensor

ROWS = 240


def columns() -> dict[str, Tensor]:
    """Random rows, the same in every process: labels, verdicts, differences and rewards with gaps, groups with large ids."""
    generator = torch.Generator().manual_seed(5)

    def chosen(values: list[float], unscored: float) -> Tensor:
        found = torch.tensor(values)[torch.randint(len(values), (ROWS,), generator=generator)]
        found[torch.rand(ROWS, generator=generator) < unscored] = float("nan")
        return found

    thirds = torch.randn(ROWS, generator=generator, dtype=torch.float64) / 3  # sums that depend on the order, if any do
    thirds[::11] = float("nan")
    group = torch.randint(0, 40, (ROWS,), generator=generator) + 2**60
    return {
        "label": chosen([0.0, 0.3, 0.5, 1.0], 0.0),
        **{name: chosen([0.0, 0.5, 1.0], 0.15) for name in ("forward", "swapped", "text", "images", "both")},
        "difference": thirds,
        "reward": thirds.flip(0),
        "target": chosen([1.0, 2.0, 3.0], 0.05),
        "picture": group * 3 + torch.randint(0, 3, (ROWS,), generator=generator),
        "group": group,
    }


METRICS: dict[str, tuple[Callable[[], RowMetric], list[str]]] = {
    "accuracy": (PairAccuracy, ["label", "forward", "swapped", "group"]),
    "ties": (lambda: TieAccuracy(0.1), ["difference", "label", "group"]),
    "tau": (KendallTauB, ["reward", "target", "group"]),
    "order": (OrderConsistency, ["label", "forward", "swapped", "group"]),
    "calibration": (lambda: PreferenceCalibration(0.3, 0.1), ["difference", "label", "group"]),
    "resolution": (lambda: WithinGroupResolution(-1.0, 1.0), ["reward", "group"]),
    "noise": (DuplicateNoise, ["reward", "picture", "group"]),
    "sufficiency": (RationaleSufficiency, ["label", "text", "group"]),
    "grounding": (GroundingGain, ["label", "images", "both", "group"]),
}


def shares(rank: int) -> dict[str, list[Tensor]]:
    """What a process of two sees, in updates: unequal shares in a shuffled order, all on one process, nothing at all."""
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(9))
    return {
        "uneven": list((order[:170] if rank == 0 else order[170:]).split(50)),
        "second has none": [torch.arange(ROWS)] if rank == 0 else [],
        "first has none": [] if rank == 0 else [torch.arange(ROWS)],
        "neither": [],
    }


def figures(updates: list[Tensor], rows: dict[str, Tensor]) -> dict[str, dict[str, str]]:
    """All figures, every bit of them, after these updates; asked for twice, which must not count any row twice."""
    found = {}
    for name, (build, inputs) in METRICS.items():
        metric = build()
        for index in updates:
            metric.update(*(rows[column][index] for column in inputs))
        first = metric.compute()
        metric.update(*(rows[column][:0] for column in inputs))  # so that it is worked out again; what was gathered does not stay
        again = metric.compute()
        assert all(torch.equal(first[key], again[key]) or bool(first[key].isnan()) for key in first)
        found[name] = {key: float(value).hex() for key, value in first.items()}
    return found


def main(out: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank, rows = torch.distributed.get_rank(), columns()
    found = {case: figures(updates, rows) for case, updates in shares(rank).items()}
    (out / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"] == "2"
    main(Path(sys.argv[1]))
