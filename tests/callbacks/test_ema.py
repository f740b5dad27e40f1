"""The average of the weights that train: its values, when it is used, and that it survives a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rationalrewards.callbacks import WeightEMA
from torch import Tensor, nn
from torch.utils.data import DataLoader

pytestmark = [
    *tiny.QUIET,
    # these numbers are the same whatever the batches
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


class Counting(LightningModule):
    """One weight that grows by 1 in every step, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.validated: list[float] = []
        self.exported: dict[str, float] = {}

    def training_step(self, batch: Any, index: int) -> Tensor:
        return -self.weight.sum()

    def validation_step(self, batch: Any, index: int) -> None:
        self.validated.append(self.weight[0].item())
        self.log("val/weight", self.weight[0].detach())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1.0)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(range(8))  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(range(1))  # type: ignore[arg-type]

    def export(self, folder: str) -> None:
        self.exported[Path(folder).name] = self.weight[0].item()


def averages(decay: float, steps: int) -> list[float]:
    """What the average should be after each step: the weight is the number of the step."""
    found, average = [], 0.0
    for step in range(1, steps + 1):
        rate = min((1 + step) / (10 + step), decay)
        average = rate * average + (1 - rate) * step
        found.append(average)
    return found


class Held(Callback):
    """The weight that the module holds after each batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.values.append(pl_module.weight[0].item())


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_average_follows_steps_and_is_what_is_validated_and_exported(
    validate: bool, micro_batches: int, tmp_path: Path
) -> None:
    module, held = Counting(), Held()
    average = WeightEMA(0.3, validate, str(tmp_path / "average"))
    trainer = tiny.trainer(
        max_steps=4, accumulate_grad_batches=micro_batches, val_check_interval=micro_batches, callbacks=[average, held]
    )
    trainer.fit(module)
    # 0.3 is reached at the third step
    expected = averages(0.3, 4)
    assert module.validated == pytest.approx(expected if validate else [1.0, 2.0, 3.0, 4.0])
    assert module.exported == {"average": pytest.approx(expected[-1])}
    # it is only lent
    assert held.values[-1] == module.weight[0].item() == 4.0
    assert list(average.average) == ["weight"]


def test_a_checkpoint_holds_the_weights_and_the_average(tmp_path: Path) -> None:
    def fit(steps: int, resume: Path | None = None) -> tuple[Counting, WeightEMA]:
        module, average = Counting(), WeightEMA(0.3)
        every = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, monitor="val/weight")
        trainer = tiny.trainer(
            max_steps=steps,
            accumulate_grad_batches=2,
            val_check_interval=2,  # at 1, ModelCheckpoint takes it for once an epoch
            enable_checkpointing=True,
            callbacks=[average, every],
        )
        trainer.fit(module, ckpt_path=resume)
        return module, average

    fit(3)
    stored = torch.load(tmp_path / "step=2.ckpt")
    assert stored["state_dict"]["weight"].tolist() == [2.0, 2.0]  # saved right after validation, and not the average
    module, resumed = fit(5, tmp_path / "step=2.ckpt")
    assert resumed.average["weight"].tolist() == pytest.approx([averages(0.3, 5)[-1]] * 2)
    assert module.validated == pytest.approx(averages(0.3, 5)[2:])

    stored["callbacks"]["WeightEMA"]["average"] = {"other": torch.zeros(2)}
    torch.save(stored, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="the checkpoint's average is of other weights: 'other'"):
        fit(5, tmp_path / "other.ckpt")


def test_a_run_that_breaks_off_in_validation_has_its_weights_back() -> None:
    class Breaks(Counting):
        def validation_step(self, batch: Any, index: int) -> None:
            raise KeyError("broken")

    module = Breaks()
    with pytest.raises(KeyError, match="broken"):
        tiny.trainer(max_steps=2, val_check_interval=2, callbacks=[WeightEMA(0.3)]).fit(module)
    assert module.weight[0].item() == 2.0


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        WeightEMA(decay)
