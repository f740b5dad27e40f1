"""What training leaves behind for others to load."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rationalrewards.components.conversations import KINDS, Kind
from rationalrewards.components.generation import policies
from rationalrewards.components.parrot.card import FORMS, Form
from rationalrewards.components.parrot.export import export
from rationalrewards.components.records import Rationale, read_jsonl
from torch import Tensor

from .ema import validated_weights
from .writers import RationaleWriter, writable_folder


class CriticExport(Callback):
    """Writes the distilled critic: a folder that transformers loads unchanged.

    Without ``monitor``, the last weights at the end of ``fit``. With it, the best: after each validation that is better than all before,
    the weights that were validated (the average's, with :class:`~rationalrewards.callbacks.WeightEMA`). Its files are replaced only
    when all new ones are complete. If nothing was ever monitored, the last weights are written at the end with a warning.

    Args:
        output_dir: Where to.
        monitor: A validation metric, e.g. ``"val/pair_accuracy"``.
        mode: ``"max"`` if more is better, ``"min"`` if less is.

    Raises:
        ValueError: If ``mode`` is another.
    """

    def __init__(self, output_dir: str, monitor: str | None = None, mode: Literal["max", "min"] = "max") -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode is 'max' or 'min', got {mode!r}")
        self.output_dir = output_dir
        self.monitor = monitor
        self.mode = mode
        self.best: float | None = None
        """Value of the monitored metric at the weights that were written."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out now, not after training, whether the folder can be written."""
        writable_folder(self.output_dir)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder, if this is the best so far."""
        value = trainer.callback_metrics.get(self.monitor or "")
        if trainer.sanity_checking or value is None or math.isnan(value):
            return
        sign = 1.0 if self.mode == "max" else -1.0
        if self.best is None or sign * float(value) > sign * self.best:
            self.best = float(value)
            with validated_weights(trainer):
                self._write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder, unless the best was written: every process takes part, since it may hold the weights of its share only."""
        if self.monitor is not None and self.best is None:
            rank_zero_warn(
                f"{self.monitor} was never validated, so that {self.output_dir} holds the last weights and not the best"
            )
        if self.best is None:
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(self.output_dir)
        new = folder.with_name(f".{folder.name}.new")
        if trainer.is_global_zero:
            shutil.rmtree(new, ignore_errors=True)
        trainer.strategy.barrier("room for the critic")
        pl_module.export(str(new))  # type: ignore[operator]
        if trainer.is_global_zero:
            for path in new.iterdir():
                path.replace(folder / path.name)
            new.rmdir()
        trainer.strategy.barrier("critic exported")

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; a folder that was written before is the one to beat."""
        self.best = state_dict["best"]


class RationaleExport(Callback):
    """Exports the rationales of all processes at the end of ``predict``, for others to train on, with their pictures.

    See :func:`rationalrewards.components.parrot.export.export`. It reads what a ``RationaleWriter`` of the same Trainer has written.

    Args:
        output_dir: Where to; another folder than the writer's.
        to: The forms: ``"jsonl"``, ``"sharegpt"`` and ``"datasets"``.
        kinds: The rows of conversations: ``"point"`` and ``"pair"``.

    Raises:
        ValueError: If there is no such form or kind.
    """

    def __init__(self, output_dir: str, to: Sequence[Form] = FORMS, kinds: Sequence[Kind] = KINDS) -> None:
        for name, given, known in (("to", to, FORMS), ("kinds", kinds, KINDS)):
            if not given or isinstance(given, str) or not set(given) <= set(known):
                raise ValueError(f"{name} must be a list of one or more of {', '.join(known)}, got {given!r}")
        self.output_dir = output_dir
        self.to = tuple(to)
        self.kinds = tuple(kinds)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out now, not after rationalizing, whether there will be something to export and where it can go.

        Raises:
            ValueError: If no ``RationaleWriter`` writes, or it writes to the same folder.
        """
        if self._written(trainer).parent.resolve() == Path(self.output_dir).resolve():
            raise ValueError(
                f"RationaleExport would replace what RationaleWriter leaves in {self.output_dir}; set another output_dir"
            )
        writable_folder(self.output_dir)

    def _written(self, trainer: Trainer) -> Path:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RationaleWriter):
                return Path(callback.output_dir) / "rationales.jsonl"
        raise ValueError("RationaleExport exports what a RationaleWriter writes; add one to the callbacks")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Export: by then the writer is done, wherever it stands among the callbacks. Not called after an error."""
        if stage != TrainerFn.PREDICTING or not trainer.is_global_zero:
            return
        path = self._written(trainer)
        rationales = read_jsonl(path, Rationale)
        if not rationales:
            rank_zero_warn(f"{path} holds no rationales, so that nothing is exported; see the ledger beside it for the reasons")
            return
        report = export(rationales, pl_module.format, self.output_dir, self.to, self.kinds)  # type: ignore[arg-type]
        rank_zero_info(f"{self.output_dir}: {report}")


class AdapterExport(Callback):
    """Writes the trained LoRA at the end of ``fit``: a folder that ``pipe.load_lora_weights`` loads.

    Args:
        output_dir: Where to.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out now, not after training, whether the folder can be written."""
        writable_folder(self.output_dir)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder."""
        if trainer.is_global_zero:
            pl_module.generator.save_adapter(self.output_dir)  # type: ignore[union-attr, operator]


class AdapterEMA(Callback):
    """An exponential moving average of the trained adapter: used in validation, and exported beside it.

    Lightning's own weight averaging copies the whole model; this holds clones of the adapter only. Updates follow
    ``global_step``, since some strategies call the optimizer hook more often.

    Args:
        decay: Largest decay; early on it is ``(1 + step) / (10 + step)``, as in the code of TIGER-AI-Lab/RationalRewards.
        output_dir: Where to write the averaged LoRA at the end; never under the same name as the raw one.
    """

    def __init__(self, decay: float = 0.9, output_dir: str | None = None) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.output_dir = output_dir
        self.average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}
        self._step = 0

    def _denoiser(self, pl_module: LightningModule) -> torch.nn.Module:
        return pl_module.denoiser  # type: ignore[return-value]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the policy, unless a checkpoint gave an average."""
        if self.output_dir is not None:
            writable_folder(self.output_dir)
        if not self.average:
            self.average = policies.adapter_state(self._denoiser(pl_module), policies.POLICY)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Follow the policy after every optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min((1 + self._step) / (10 + self._step), self.decay)
        for name, parameter in policies.parameters_of(self._denoiser(pl_module), policies.POLICY).items():
            self.average[name].lerp_(parameter.detach().cpu(), 1.0 - decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        if self.average:
            self._raw = policies.adapter_state(self._denoiser(pl_module), policies.POLICY)
            policies.load_adapter_state(self._denoiser(pl_module), policies.POLICY, self.average)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the policy back."""
        if self._raw:
            policies.load_adapter_state(self._denoiser(pl_module), policies.POLICY, self._raw)
            self._raw = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the averaged LoRA."""
        if self.output_dir is None or not trainer.is_global_zero:
            return
        denoiser = self._denoiser(pl_module)
        raw = policies.adapter_state(denoiser, policies.POLICY)
        policies.load_adapter_state(denoiser, policies.POLICY, self.average)
        pl_module.generator.save_adapter(self.output_dir)  # type: ignore[union-attr, operator]
        policies.load_adapter_state(denoiser, policies.POLICY, raw)

    def state_dict(self) -> dict[str, Any]:
        """The average and its step."""
        return {"average": self.average, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's average."""
        self.average, self._step = dict(state_dict["average"]), state_dict["step"]
