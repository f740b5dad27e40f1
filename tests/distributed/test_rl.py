"""Reward RL in one process and in two: the same advantages, the same adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.generation import policies
from rationalrewards.components.objectives import DPO, FlowGRPO
from rationalrewards.components.records import PromptRecord, read_jsonl
from rationalrewards.components.rewards import RewardModel, Rewards
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.lightning_modules import RewardRLModule
from support import run_python

pytestmark = tiny.QUIET

PROGRAM = Path(__file__).with_name("fit_rl.py")


class LosesSome(RewardModel):
    """The ground truth, which cannot score the last picture of every other request: the processes lose unequal numbers.

    Args:
        prompts: The requests.
    """

    def __init__(self, prompts: Path) -> None:
        self.spoilt = {record.prompt for record in read_jsonl(prompts, PromptRecord)[::2]}

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        rewards = ShapesTruth().score(requests)
        last = {request.prompt: index for index, request in enumerate(requests)}
        for prompt, index in last.items():
            if prompt in self.spoilt:
                rewards.total[index] = float("nan")
                rewards.reasons[index] = "spoilt"
        return rewards


class Advantages(Callback):
    """The advantage of every picture of every round."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, str, int], tuple[float, bool]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        rollout = pl_module.last_rollout
        assert rollout is not None
        advantages = rollout.advantages
        values = zip(rollout.records, rollout.copies, advantages.values.tolist(), advantages.weights.tolist(), strict=True)  # type: ignore[union-attr]
        self.rows |= {(rollout.epoch, record.id, copy): (value, enters) for record, copy, value, enters in values}  # type: ignore[union-attr]


class LosesHalf(RewardModel):
    """The ground truth, which can score no picture of every other request: one of two processes has nothing to train on.

    Args:
        prompts: The requests.
    """

    def __init__(self, prompts: Path) -> None:
        self.lost = {record.prompt for record in read_jsonl(prompts, PromptRecord)[::2]}

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        rewards = ShapesTruth().score(requests)
        for index, request in enumerate(requests):
            if request.prompt in self.lost:
                rewards.total[index] = float("nan")
                rewards.reasons[index] = "lost"
        return rewards


class Frozen(Callback):
    """Nothing but the policy moves while a round is trained on, and nothing but the policy can."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.before = self._rest(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        trained = {name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
        policy = policies.parameters_of(pl_module.denoiser, policies.POLICY)  # type: ignore[arg-type]
        assert trained == {f"denoiser.{name}" for name in policy}
        after = self._rest(pl_module)
        assert all(torch.equal(after[name], value) for name, value in self.before.items())

    def _rest(self, pl_module: LightningModule) -> dict[str, torch.Tensor]:
        """Old policy and base."""
        return {name: p.detach().clone() for name, p in pl_module.named_parameters() if f".{policies.POLICY}." not in name}


def module(objective: str, prompts: Path) -> RewardRLModule:
    """NFT is watched by the ground truth; and refuses a reward that does not agree with it."""
    if objective == "nft":
        return tiny.rl_module(reward=LosesSome(prompts), witness=ShapesTruth(), min_resolution=0.9)
    chosen = DPO(dpo_beta=100.0) if objective == "dpo" else FlowGRPO(clip_range=1e-3, window_size=2, kl_weight=1e-3)
    return tiny.rl_module(reward=LosesHalf(prompts), objective=chosen, min_resolution=None, generator=tiny.generator(steps=4))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["nft", "dpo", "grpo"])
def test_one_process_and_two_agree(tmp_path: Path, objective: str) -> None:
    prompts = tiny.requests(tmp_path / "prompts", 4)
    done = run_python(
        [PROGRAM, prompts, tmp_path, objective], timeout=580, env={"PYTHONPATH": f"{PROGRAM.parent}:{PROGRAM.parents[1]}"}
    )
    assert done.returncode == 0, done.stderr[-6000:]
    ranks = [torch.load(tmp_path / f"advantages{rank}.pt") for rank in range(2)]
    two = torch.load(tmp_path / "trained.pt")

    said, trained = Advantages(), module(objective, prompts)
    trainer = tiny.trainer(max_epochs=2, accumulate_grad_batches=4, callbacks=[said, Frozen()])
    trainer.fit(trained, tiny.rl_data(prompts))
    assert trainer.global_step == 2

    # whole groups stay on one process: two rounds of one group of four each
    assert [len(rows) for rows in ranks] == [8, 8]
    assert not ranks[0].keys() & ranks[1].keys()
    both = {**ranks[0], **ranks[1]}
    assert both.keys() == said.rows.keys()
    lost = [sum(not enters for _, enters in rows.values()) for rows in ranks]
    assert sum(lost) == sum(not enters for _, enters in said.rows.values()) > 0
    for key, (value, enters) in said.rows.items():
        assert both[key][1] == enters
        # The first round's pictures come from the same weights and noise, so they are equal; the second round's from weights that
        # differ by the rounding of one float32 sum of gradients: a few of a picture's 3,072 values round to the next of 256 levels,
        # which moves the reward by some 1e-6 and, divided by its spread in the group, the advantage by some 1e-5.
        assert both[key][0] == pytest.approx(value, abs=0.0 if key[0] == 0 else 1e-4)
    # Gradients are summed in another order (a relative 1e-7), and AdamW with a rate of 1e-3 makes the largest step where they are
    # smallest: there rounding is a larger part of them.
    for name, value in tiny.adapters(trained).items():
        torch.testing.assert_close(two["adapters"][name], value, atol=1e-5, rtol=0)
    assert any(".lora_B.default." in name and value.abs().max() > 1e-4 for name, value in two["adapters"].items())

    if objective != "nft":
        return
    # what is logged is the same number, not a mean of the processes' means
    one = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for name in (
        "train/reward",
        "train/truth",
        "train/exact",
        "train/unscored_rate",
        "train/within_group_corr",
        "train/flat_groups",
    ):
        assert two["metrics"][name] == pytest.approx(one[name], abs=1e-5), name
