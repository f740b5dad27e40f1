"""What a run takes, said before it and counted after it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rationalrewards.components.cost_card import CostCard, UnitCosts, Work, unit_costs
from rationalrewards.components.records import open_pictures
from rationalrewards.lightning_modules.everywhere import gather

from .mlflow import mlflow_run
from .writers import writable_folder

if TYPE_CHECKING:
    from rationalrewards.lightning_modules import RewardRLModule


class CostLogging(Callback):
    """Says before ``fit`` what a run of :class:`~rationalrewards.lightning_modules.RewardRLModule` takes, and after it what it took.

    Counts of pictures, critiques and forwards are exact if every picture is scored and every group has a signal; fewer are computed
    where not. FLOPs are measured on one picture (sampled twice, trained on once without a step), and contain neither the critic nor
    guidance in validation. Encoders are taken to answer once per request and round.

    Args:
        tflops: TFLOP/s that a device achieves, for the hours. The default is 40 % of an H100's 989 in bfloat16.
        output_dir: Folder of ``cost_card.json``, with ``planned`` and ``used``; with an ``MLFlowLogger`` also an artefact of the run.

    Raises:
        ValueError: If ``tflops`` is not above 0.
    """

    def __init__(self, tflops: float = 400.0, output_dir: str | None = None) -> None:
        if not tflops > 0:
            raise ValueError(f"tflops must be above 0, got {tflops:g}")
        self.tflops = tflops
        self.output_dir = output_dir
        self.planned: CostCard | None = None
        self.used: CostCard | None = None
        self._costs: UnitCosts | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and say."""
        module: RewardRLModule = pl_module  # type: ignore[assignment]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data is None or not hasattr(data, "groups_per_epoch"):
            raise ValueError("CostLogging plans from the data module: give RewardRLModule's Trainer a PromptDataModule")
        module.generator.load(module.device)
        first = data.prompts[0]
        self._costs = unit_costs(module.generator, first.prompt, open_pictures(first, first.sources))
        self.planned = self._card(trainer, module, planned_work(trainer, module, data))
        rank_zero_info(f"this run takes at most {self.planned}")
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count."""
        module: RewardRLModule = pl_module  # type: ignore[assignment]
        total = sum(gather([module.work]), Work())
        self.used = self._card(trainer, module, total)
        rank_zero_info(f"this run took {self.used}")
        self._write(trainer)

    def _card(self, trainer: Trainer, module: RewardRLModule, work: Work) -> CostCard:
        assert self._costs is not None
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        through_all = module.savers.one_forward == "all"
        at_once = data.batch_size * data.visits_at_once
        return CostCard(work, self._costs, self.tflops, trainer.world_size, at_once, through_all)

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        cards = {name: card.as_dict() for name, card in (("planned", self.planned), ("used", self.used)) if card is not None}
        assert self._costs is not None
        content = {**cards, "one_picture": asdict(self._costs)}
        if self.output_dir is not None:
            path = writable_folder(Path(self.output_dir)) / "cost_card.json"
            path.write_text(json.dumps(content, indent=2), encoding="utf-8")
        if (run := mlflow_run(trainer, self)) is not None:
            run[0].log_dict(run[1], content, "cost_card.json")


def planned_work(trainer: Trainer, module: RewardRLModule, data: Any) -> Work:
    """Counts of the rounds that are left, from the settings alone."""
    rounds = max(0, (trainer.max_epochs or 0) - trainer.current_epoch)
    if trainer.max_steps > 0:
        per_round = data.groups_per_epoch // trainer.world_size * data.group_size // data.batch_size * data.visits
        steps = per_round // data.visits_at_once // trainer.accumulate_grad_batches
        rounds = min(rounds or 10**9, -(-max(0, trainer.max_steps - trainer.global_step) // steps))
    pictures = rounds * data.groups_per_epoch * data.group_size
    trained = pictures if not module.objective.uses_pairs else 2 * rounds * data.groups_per_epoch
    policy = trained * data.visits
    objective, savers = module.objective, module.savers
    frozen = 0
    if objective.uses_old:
        frozen += policy - (known_old(trainer, module, data, rounds) if savers.skip_equal_old else 0)
    if objective.uses_reference:
        frozen += policy
    elif objective.kl_weight > 0:
        frozen += policy // savers.reference_every
    validations = (
        rounds // (trainer.check_val_every_n_epoch or 1) if data.val_path is not None and trainer.limit_val_batches else 0
    )
    held_out = validations * sum(len(batch) for batch in data.val_dataloader())
    steps, held_out_steps = module.generator.steps, module.generator.eval_steps or module.generator.steps
    repeats = rounds * min(module.noise_groups * trainer.world_size, data.groups_per_epoch) * data.group_size
    checks = 0
    if module.min_resolution is not None and trainer.current_epoch == 0 and module.witness is None:
        checks = 2 * data.groups_per_epoch * data.group_size
    return Work(
        pictures,
        held_out,
        rounds * data.groups_per_epoch,
        pictures + held_out + repeats + checks,
        pictures * steps + held_out * held_out_steps,
        policy,
        frozen,
    )


def known_old(trainer: Trainer, module: RewardRLModule, data: Any, rounds: int) -> int:
    """Forwards that need no old policy because it is the policy: up to the first optimizer step after a synchronisation in full."""
    always = module.objective.old_decay_max == 0 or module.objective.old_decay_rate == 0
    equal = rounds if always else int(trainer.current_epoch == 0 and rounds > 0)
    before_a_step = trainer.accumulate_grad_batches * data.batch_size * data.visits_at_once * trainer.world_size
    return equal * before_a_step
