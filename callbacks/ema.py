"""An average of the weights that train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rationalrewards.components.split_weights import held, hold, part_of, whole_of
from torch import Tensor, nn

from .writers import writable_folder


class WeightEMA(Callback):
    """An exponential moving average of the weights that train, under every strategy: validated, and exported beside the last weights.

    Of split weights each process averages its own part; a checkpoint holds the average whole, so that a run can go on with another number
    of processes. The module is made to hold the average only while it is validated or exported. Updates follow ``global_step``, since
    DeepSpeed calls hooks for every micro-batch.

    Args:
        decay: Largest decay; early on it is ``(1 + step) / (10 + step)``, as in the code of TIGER-AI-Lab/RationalRewards.
        validate: Whether validation, and with it what is monitored, is of the average.
        output_dir: Where the module's ``export`` writes the average at the end of ``fit``.
    """

    def __init__(self, decay: float = 0.999, validate: bool = True, output_dir: str | None = None) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.validate = validate
        self.output_dir = output_dir
        self.average: dict[str, Tensor] = {}
        """This process's part of the average, at least float32."""
        self._weights: dict[str, nn.Parameter] = {}
        self._raw: dict[str, Tensor] = {}
        self._loaded: dict[str, Tensor] = {}
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out now, not after training, whether the folder can be written."""
        if self.output_dir is not None:
            writable_folder(self.output_dir)

    def _begin(self, pl_module: LightningModule) -> None:
        """Start from the weights, unless a checkpoint gave an average.

        Raises:
            ValueError: If the checkpoint's average is of other weights.
        """
        self._weights = {name: weight for name, weight in pl_module.named_parameters() if weight.requires_grad}
        if self._loaded and self._loaded.keys() != self._weights.keys():
            missing = sorted(self._weights.keys() ^ self._loaded.keys())
            raise ValueError(f"the checkpoint's average is of other weights: {missing[0]!r} is in one of them only")
        for name, weight in self._weights.items():
            part = part_of(weight, self._loaded[name]) if self._loaded else held(weight)
            self.average[name] = part.to(held(weight).device, torch.promote_types(part.dtype, torch.float32), copy=True)
        self._loaded = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin: by now the strategy has split and loaded the weights."""
        self._begin(pl_module)
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Follow the weights after every optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min((1 + self._step) / (10 + self._step), self.decay)
        for name, weight in self._weights.items():
            average = self.average[name]
            average.lerp_(held(weight).to(average.dtype), 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the module's weights are the average."""
        mine = bool(self.average) and not self._raw
        if mine:
            self._apply()
        try:
            yield
        finally:
            if mine:
                self._restore()

    def _apply(self) -> None:
        self._raw = {name: held(weight).clone() for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            hold(weight, self.average[name])

    def _restore(self) -> None:
        for name, raw in self._raw.items():
            hold(self._weights[name], raw)
        self._raw = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        if self.validate and self.average and not self._raw:
            self._apply()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back; before any checkpoint is written, for Lightning calls those callbacks last."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights back, in case somebody saves them."""
        self._restore()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the average; every process takes part."""
        if self.output_dir is None:
            return
        with self.applied():
            pl_module.export(self.output_dir)  # type: ignore[operator]
        trainer.strategy.barrier("average exported")

    def state_dict(self) -> dict[str, Any]:
        """The average, whole, and its step; every process takes part."""
        whole = {name: whole_of(weight, self.average[name]).cpu() for name, weight in self._weights.items()}
        return {"average": whole, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's average."""
        self._loaded, self._step = dict(state_dict["average"]), state_dict["step"]


@contextmanager
def validated_weights(trainer: Trainer) -> Iterator[None]:
    """Within, the module's weights are those that validation is of: the average's, if a :class:`WeightEMA` says so."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightEMA)]  # type: ignore[attr-defined]
    if averages and averages[0].validate:
        with averages[0].applied():
            yield
    else:
        yield
