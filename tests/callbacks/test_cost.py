"""The bill of a run: counts to the one, FLOPs to a few per cent, before and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from lightning.pytorch import Callback, LightningModule, Trainer
from rationalrewards.callbacks import CostLogging
from rationalrewards.components.generation import Savers
from rationalrewards.components.measuring import flop_counter
from rationalrewards.components.objectives import DPO, NFT, FlowGRPO, Objective
from rationalrewards.components.rewards import AdvantageOptions

pytestmark = tiny.QUIET


class Counts(Callback):
    """All FLOPs from the start of training to its end."""

    flops = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.counter = flop_counter()
        self.counter.__enter__()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.counter.__exit__(None, None, None)
        self.flops = float(self.counter.get_total_flops())


@pytest.mark.parametrize(
    ("objective", "savers"),
    [
        (lambda: NFT(old_decay_rate=0.1), {}),
        (lambda: NFT(old_decay_max=0.0), {"one_forward": "all"}),
        (lambda: NFT(old_decay_rate=0.1), {"reference_every": 2}),
        (lambda: DPO(100.0), {}),
        (lambda: FlowGRPO(1e-3, window_size=2, kl_weight=1e-3), {}),
    ],
    ids=["nft", "all in one", "every second", "dpo", "grpo"],
)
def test_what_was_planned_is_what_was_used(tmp_path: Path, objective: Callable[[], Objective], savers: dict[str, Any]) -> None:
    train, val = tiny.requests(tmp_path / "train", 6), tiny.requests(tmp_path / "val", 3, seed=6)
    # every picture is computed, of flat groups as well
    module = tiny.rl_module(
        objective=objective(),
        savers=Savers(drop_unused=False, share_prefix=False, **savers),
        advantages=AdvantageOptions(train_flat_groups=True),
        noise_groups=1,
        min_resolution=None,
        generator=tiny.generator(steps=4, eval_steps=6),
    )
    cost, counts = CostLogging(tflops=1e-3, output_dir=str(tmp_path / "out")), Counts()
    trainer = tiny.trainer(max_epochs=2, accumulate_grad_batches=2, callbacks=[cost, counts])
    trainer.fit(module, tiny.rl_data(train, val=str(val)))
    planned, used = cost.planned, cost.used
    assert planned is not None and used is not None
    assert planned.work == used.work
    # two rounds of two groups of four at two levels; three requests validated after each
    assert used.work.pictures == 16 and used.work.held_out == 6 and used.work.critiques == 16 + 6 + 8
    assert used.work.sampling == 16 * 4 + 6 * 6
    assert used.work.policy == (2 * 2 * 2 * 2 if isinstance(module.objective, DPO) else 16 * 2)
    # in validation requests of another length, padded together; the rest is the same arithmetic
    assert planned.flops == pytest.approx(counts.flops, rel=0.1)
    assert planned.gpu_hours == pytest.approx(planned.flops / 1e9 / 3600)
    written = json.loads((tmp_path / "out" / "cost_card.json").read_text())
    assert written["planned"]["policy"] == written["used"]["policy"] == used.work.policy
    assert "16 pictures and 6 held-out ones, 30 critiques" in str(planned) and " on 1; " in str(planned)


def test_what_has_no_signal_is_planned_and_not_used(tmp_path: Path) -> None:
    """The plan is an upper bound: pictures of groups that cannot be told apart are not computed."""
    module = tiny.rl_module(min_resolution=None, advantages=AdvantageOptions(min_std=10.0))
    cost = CostLogging()
    trainer = tiny.trainer(max_epochs=1, accumulate_grad_batches=4, callbacks=[cost])
    trainer.fit(module, tiny.rl_data(tiny.requests(tmp_path, 2)))
    assert cost.planned is not None and cost.used is not None
    assert cost.used.work.policy == 0 < cost.planned.work.policy == 16
    assert cost.used.work.pictures == cost.planned.work.pictures == 8
    assert cost.used.flops < cost.planned.flops


def test_measuring_changes_nothing(tmp_path: Path) -> None:
    train = tiny.requests(tmp_path, 2)
    trained = []
    for callbacks in ([], [CostLogging()]):
        module = tiny.rl_module(min_resolution=None)
        tiny.trainer(max_epochs=1, accumulate_grad_batches=4, callbacks=callbacks).fit(module, tiny.rl_data(train))
        trained.append(tiny.adapters(module))
    assert all(bool((trained[0][name] == value).all()) for name, value in trained[1].items())


def test_rounds_are_planned_from_the_data_module(tmp_path: Path) -> None:
    data = tiny.rl_data(tiny.requests(tmp_path, 2))
    data.setup("fit")
    trainer = tiny.trainer(max_epochs=1, accumulate_grad_batches=4, callbacks=[CostLogging()])
    with pytest.raises(ValueError, match="give RewardRLModule's Trainer a PromptDataModule"):
        trainer.fit(tiny.rl_module(min_resolution=None), data.train_dataloader(), [])
    with pytest.raises(ValueError, match="tflops must be above 0"):
        CostLogging(tflops=0.0)
