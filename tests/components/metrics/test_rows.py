"""What all metrics share: refusals, the order of rows, two real processes, and the examples of the documentation."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import pkgutil
import re
import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rationalrewards.components import metrics
from rationalrewards.components.metrics import PairAccuracy, TieAccuracy, WithinGroupResolution, group_ids
from support import ROOT, run_python
from torchmetrics import Metric

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
PROGRAM = Path(__file__).with_name("compute_everything.py")
NAN = float("nan")


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(PROGRAM))


def test_the_program_has_every_metric(program: dict[str, Any]) -> None:
    classes = {
        value for name in metrics.__all__ if isinstance(value := getattr(metrics, name), type) and issubclass(value, Metric)
    }
    assert {type(build()) for build, _ in program["METRICS"].values()} == classes


def test_the_order_of_rows_and_their_batches_change_nothing(program: dict[str, Any]) -> None:
    rows, count = program["columns"](), program["ROWS"]
    whole = program["figures"]([torch.arange(count)], rows)
    for seed in range(3):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        assert program["figures"](list(order.split(37)), rows) == whole
    # and they are figures: nothing but an interval is NaN on these rows
    known = [key for found in whole.values() for key, value in found.items() if value == "nan"]
    assert known == []


@pytest.mark.slow
def test_two_processes_are_one(program: dict[str, Any], tmp_path: Path) -> None:
    """All classes, to the last bit: unequal shares, a process without a row (torchmetrics #2463), two without."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run_python([*launcher, PROGRAM, tmp_path], timeout=300)  # a guard against hanging
    assert done.returncode == 0, done.stderr[-4000:]
    rows = program["columns"]()
    alone = program["figures"]([torch.arange(program["ROWS"])], rows)
    nothing = program["figures"]([torch.arange(0)], rows)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {"uneven": alone, "second has none": alone, "first has none": alone, "neither": nothing}


def test_before_the_first_update_there_is_nothing(program: dict[str, Any]) -> None:
    for build, _ in program["METRICS"].values():
        with pytest.warns(UserWarning, match="before the ``update``"):
            found = {name: float(value) for name, value in build().compute().items()}
        assert all(value == 0 if name.startswith("n_") else math.isnan(value) for name, value in found.items())


def test_reset_forgets_and_forward_tells_of_the_batch() -> None:
    metric = WithinGroupResolution()
    of_batch = metric(torch.tensor([0.0, 1.0]), torch.tensor([1, 1]))
    assert float(of_batch["within_group_std"]) == 0.5
    of_batch = metric(torch.tensor([0.3, 0.3]), torch.tensor([2, 2]))
    assert (float(of_batch["within_group_std"]), float(metric.compute()["within_group_std"])) == (0.0, 0.25)
    metric.reset()
    metric.update(torch.tensor([0.0, 0.5]), torch.tensor([1, 1]))
    assert float(metric.compute()["within_group_std"]) == 0.25


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_comes_in_and_full_precision_is_kept(dtype: torch.dtype) -> None:
    metric = TieAccuracy(0.25)
    metric.update(torch.tensor([0.25, 0.5, NAN]).to(dtype), torch.tensor([0.5, 1.0, 1.0]).to(dtype), torch.arange(3))
    assert float(metric.compute()["three_way_accuracy"]) == pytest.approx(2 / 3)


def test_what_cannot_be_is_refused_with_its_row() -> None:
    ones, ids = torch.ones(3), torch.arange(3)
    metric = PairAccuracy()
    with pytest.raises(ValueError, match=r"label: row 1 is 1\.5, not in \[0, 1\]; give the probability that A is preferred"):
        metric.update(torch.tensor([1.0, 1.5, 0.0]), ones, ones, ids)
    with pytest.raises(ValueError, match="label: row 2 is nan"):
        metric.update(torch.tensor([1.0, 0.5, NAN]), ones, ones, ids)
    with pytest.raises(ValueError, match="swapped_order: row 0 is -1, .* 0 where B is"):
        metric.update(ones, ones, torch.tensor([-1.0, 0.0, NAN]), ids)
    with pytest.raises(ValueError, match=r"PairAccuracy: one value a row wanted, .* forward_order \[2\]"):
        metric.update(ones, ones[:2], ones, ids)
    with pytest.raises(ValueError, match=r"one value a row wanted, .* label \[3, 1\]"):
        metric.update(*(values[:, None] for values in (ones, ones, ones, ids)))
    with pytest.raises(ValueError, match="group are ids, and torch.float32 would merge some; give int64"):
        metric.update(ones, ones, ones, ids.float())
    metric.update(*(torch.tensor([]) for _ in range(4)))  # of no rows no type is known
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert float(PairAccuracy().compute()["n_pairs"]) == 0
    assert float(metric.compute()["n_pairs"]) == 0  # nothing of the refused ones stayed


def test_ids_of_names() -> None:
    names = [f"prompt {index}" for index in range(10_000)]
    ids = group_ids(names)
    assert ids.dtype == torch.int64 and len(ids.unique()) == 10_000 and int(ids.min()) >= 0
    # half of 63-bit numbers are above 2^62; 10,000 of them, to five standard deviations
    assert abs(int((ids > 2**62).sum()) - 5000) < 250
    program = f"from rationalrewards.components.metrics import group_ids; print(group_ids({names[:3]!r}).tolist())"
    done = run_python(["-c", program], timeout=120, env={"PYTHONHASHSEED": "7"})
    assert json.loads(done.stdout) == ids[:3].tolist()


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(metrics.__path__)])
def test_documented_examples_are_true(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"rationalrewards.components.metrics.{name}"))
    assert found.failed == 0


def test_every_public_metric_has_an_example() -> None:
    for name in metrics.__all__:
        value = getattr(metrics, name)
        if isinstance(value, type) and issubclass(value, Metric):
            text = str(value.__doc__)
            assert all(part in text for part in (">>>", "Source:", "As input to ``update``", "``compute`` it returns")), name


def test_the_page_lists_every_name_and_the_figures_that_there_are(program: dict[str, Any]) -> None:
    assert [name for name in metrics.__all__ if f"`{name}" not in PAGE] == []
    figures = program["figures"]([torch.arange(program["ROWS"])], program["columns"]())
    for name, (build, _) in program["METRICS"].items():
        (row,) = re.findall(rf"^\| `{type(build()).__name__}\b.*$", PAGE, re.MULTILINE)
        named = re.findall(r"`(\w+)`", row.split("|")[3])
        assert named and set(named) <= figures[name].keys()
        plain = {key for key in figures[name] if not re.search(r"^n_|_low$|_high$|unscored|starved|_std$", key)}
        assert plain <= {*named, *re.findall(r"`(\w+)`", row)}


def test_the_code_of_the_page_runs() -> None:
    alone, in_lightning = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(alone, names)
    assert float(names["figures"]["three_way_accuracy"]) == 0.75 and float(names["figures"]["unscored_rate"]) == 0.25
    exec(in_lightning, names)
    rows = [
        {"score_a": a, "score_b": 0.5, "label": y, "group": i} for i, (a, y) in enumerate([(0.6, 0.5), (0.9, 1.0), (0.1, 1.0)])
    ]
    trainer = names["lightning"].Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")  # three rows need none
        (found,) = trainer.test(names["Evaluation"](0.25), loader, verbose=False)
    assert found["test/three_way_accuracy"] == pytest.approx(2 / 3)
