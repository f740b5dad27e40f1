"""Reward RL on the embedded generator: exact resume, what never enters, what is refused, and what comes out."""

from __future__ import annotations

import hashlib
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from rationalrewards.callbacks import AdapterEMA, AdapterExport
from rationalrewards.components.checkpoints import resolve
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.generation import policies
from rationalrewards.components.objectives import NFT
from rationalrewards.components.rewards import AdvantageOptions, PromptCurriculum, RewardModel, Rewards
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.datamodules.readers import read_prompts
from rationalrewards.lightning_modules import NoResolutionError, RewardRLModule
from support import run_python
from torch import Tensor

pytestmark = tiny.QUIET

ROUNDS = 4
TESTS = Path(__file__).parents[1]


@dataclass
class Recorder(Callback):
    """Copies of the adapters after every optimizer step and every round, and of what validation used."""

    steps: list[dict[str, Tensor]] = field(default_factory=list)
    rounds: list[dict[str, Tensor]] = field(default_factory=list)
    validated: list[dict[str, Tensor]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, RewardRLModule)
        if trainer.global_step > len(self.steps):
            self.steps.append(tiny.adapters(pl_module))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, RewardRLModule)
        self.validated.append(tiny.adapters(pl_module))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # the module's own hook comes after its callbacks'
        if trainer.current_epoch:
            self._close(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer, pl_module)

    def _close(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, RewardRLModule)
        self.rounds.append(tiny.adapters(pl_module))
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@dataclass
class Run:
    """A finished run, and what it left."""

    module: RewardRLModule
    checkpoint: Path
    recorder: Recorder
    average: AdapterEMA
    lora: Path

    @property
    def adapters(self) -> dict[str, Tensor]:
        return tiny.adapters(self.module)


def fit(folder: Path, train: Path, val: Path, rounds: int = ROUNDS, resume: Path | None = None) -> Run:
    """Two optimizer steps a round; checkpoints at the end of rounds."""
    recorder, average = Recorder(), AdapterEMA(0.5, str(folder / "ema"))
    checkpoints = ModelCheckpoint(folder, "last", enable_version_counter=False)
    export = AdapterExport(str(folder / "lora"))
    module = tiny.rl_module()
    trainer = tiny.trainer(
        max_epochs=rounds,
        accumulate_grad_batches=2,
        enable_checkpointing=True,
        callbacks=[average, recorder, export, checkpoints],
    )
    trainer.fit(module, tiny.rl_data(train, val=str(val)), ckpt_path=resume)
    return Run(module, folder / "last.ckpt", recorder, average, folder / "lora")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("prompts")
    # five requests in rounds of two: a sweep over them does not end with a round
    return tiny.requests(folder / "train", 5), tiny.requests(folder / "val", 2, seed=6)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, prompts: tuple[Path, Path]) -> Run:
    return fit(tmp_path_factory.mktemp("undisturbed"), *prompts)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def of(adapters: dict[str, Tensor], adapter: str) -> dict[str, Tensor]:
    return {name: value for name, value in adapters.items() if f".{adapter}." in name}


# -- resume -------------------------------------------------------------------------------------------------------------


def test_four_rounds_equal_two_and_two(undisturbed: Run, prompts: tuple[Path, Path], tmp_path: Path) -> None:
    half = fit(tmp_path, *prompts, rounds=2)
    whole = fit(tmp_path, *prompts, resume=half.checkpoint)
    assert not same(half.adapters, undisturbed.adapters)
    assert same(whole.adapters, undisturbed.adapters)
    assert same(whole.average.average, undisturbed.average.average)
    own, other = (
        {name: value for name, value in run.recorder.metrics[-1].items() if not name.startswith("train/encoder_")}  # of a process
        for run in (whole, undisturbed)
    )
    assert own == other and len(own) > 8
    # the resumed run went on with the file that it came from
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_the_old_policy_follows_the_policy(undisturbed: Run) -> None:
    recorder = undisturbed.recorder
    old = {name: value for name, value in of(recorder.rounds[0], policies.OLD).items()}
    for number in range(1, ROUNDS):
        # two steps a round, rate 0.1, at most 0.5: see tiny.rl_module
        decay = min(0.1 * 2 * (number + 1), 0.5)
        for name, value in of(recorder.rounds[number], policies.OLD).items():
            policy = recorder.rounds[number][name.replace(f".{policies.OLD}.", f".{policies.POLICY}.")]
            # float32 rounding of two products of numbers below 1
            torch.testing.assert_close(value, decay * old[name] + (1 - decay) * policy, atol=1e-6, rtol=0)
        old = of(recorder.rounds[number], policies.OLD)


KILLED = """
import os, signal, sys
from pathlib import Path
import tiny
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint


class Kill(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (2, 3):
            os.kill(os.getpid(), signal.SIGKILL)


folder, train = Path(sys.argv[1]), Path(sys.argv[2])
trainer = tiny.trainer(
    max_epochs=4, accumulate_grad_batches=2, enable_checkpointing=True,
    callbacks=[ModelCheckpoint(folder, "last", enable_version_counter=False), Kill()],
)
trainer.fit(tiny.rl_module(), tiny.rl_data(train))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_adapters(undisturbed: Run, prompts: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(KILLED)
    done = run_python(["run.py", tmp_path, prompts[0]], timeout=300, env={"PYTHONPATH": str(TESTS)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    # killed after the fifth optimizer step; the checkpoint is of the fourth
    assert torch.load(tmp_path / "last.ckpt")["global_step"] == 4
    module = tiny.rl_module()
    checkpoints = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    trainer = tiny.trainer(max_epochs=ROUNDS, accumulate_grad_batches=2, enable_checkpointing=True, callbacks=[checkpoints])
    # validation and the moving average of the undisturbed run leave no trace in it
    trainer.fit(module, tiny.rl_data(prompts[0]), ckpt_path=tmp_path / "last.ckpt")
    assert same(tiny.adapters(module), undisturbed.adapters)


def test_resuming_in_the_middle_of_a_round_samples_it_again(undisturbed: Run, prompts: tuple[Path, Path], tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    first = tiny.trainer(max_steps=3, accumulate_grad_batches=2, enable_checkpointing=True, callbacks=[every])
    first.fit(tiny.rl_module(), tiny.rl_data(prompts[0]))
    stored = torch.load(tmp_path / "step=3.ckpt")["state_dict"]
    assert same({name.removeprefix("denoiser."): value for name, value in stored.items()}, undisturbed.recorder.steps[2])
    module = tiny.rl_module()
    again = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    second = tiny.trainer(max_epochs=ROUNDS, accumulate_grad_batches=2, enable_checkpointing=True, callbacks=[again])
    second.fit(module, tiny.rl_data(prompts[0]), ckpt_path=tmp_path / "step=3.ckpt")
    assert same(tiny.adapters(module), undisturbed.adapters)


def test_what_is_learnt_of_noise_and_requests_goes_on_too(prompts: tuple[Path, Path], tmp_path: Path) -> None:
    def run(folder: Path, rounds: int, resume: Path | None = None, mid_round: int = -1) -> tuple[RewardRLModule, Any]:
        module = tiny.rl_module(
            reward=ShapesTruth(), advantages=AdvantageOptions("per_aspect", weights=WEIGHTS), noise_groups=1, min_resolution=None
        )
        curriculum = PromptCurriculum(start_below=None, retire_above=0.3, retire_std=1.0)
        data = tiny.rl_data(prompts[0], curriculum=curriculum)
        every = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        limit = {"max_steps": mid_round} if mid_round > 0 else {"max_epochs": rounds}
        trainer = tiny.trainer(**limit, accumulate_grad_batches=2, enable_checkpointing=True, callbacks=[every])
        trainer.fit(module, data, ckpt_path=resume)
        return module, curriculum

    whole, seen = run(tmp_path / "whole", 3)
    run(tmp_path / "half", 3, mid_round=3)
    resumed, again = run(tmp_path / "half", 3, resume=tmp_path / "half" / "step=3.ckpt")
    assert same(tiny.adapters(resumed), tiny.adapters(whole))
    assert resumed.noise.state_dict() == whole.noise.state_dict() and whole.noise.std()
    assert again.state_dict() == seen.state_dict() and set(seen.state_dict()["rounds"]) == {0, 1, 2}
    # five requests, of which the first two are solved after their round: the third round has the one that is left
    shares = seen.shares([record.group for record in read_prompts(prompts[0])], 3)
    assert shares["new"] == 0.0 and shares["solved"] > 0.0
    rollout = whole.last_rollout
    assert rollout is not None and rollout.advantages.aspects == tuple(name for name, weight in WEIGHTS.items() if weight)


WEIGHTS = {"text_faithfulness": 2.0, "image_faithfulness": 0.0, "physical_quality": 1.0, "text_rendering": 0.0, "exact": 0.0}


# -- checkpoints ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_adapters_only(undisturbed: Run) -> None:
    stored = torch.load(undisturbed.checkpoint)
    names = {f"denoiser.{name}" for name in undisturbed.adapters}
    assert set(stored["state_dict"]) == names
    # policy and old policy, two moments of AdamW for the policy, and the policy's average: five copies of one adapter
    policy = sum(4 * value.numel() for value in of(undisturbed.adapters, policies.POLICY).values())
    base = sum(path.stat().st_size for path in Path(resolve("embedded:shapes-generator")).rglob("*.safetensors"))
    # 64 kB: names and loop states
    assert undisturbed.checkpoint.stat().st_size < 5 * policy + 64_000 < base / 10


def test_another_base_is_refused(undisturbed: Run, prompts: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "generator"
    shutil.copytree(resolve("embedded:shapes-generator"), folder)
    pipe = DiffusionPipeline.from_pretrained(str(folder))
    with torch.no_grad():
        pipe.transformer.transformer_blocks[1].attn.to_v.weight.mul_(1.001)
    pipe.transformer.save_pretrained(str(folder / "transformer"))
    module = tiny.rl_module(generator=tiny.generator(path=str(folder)))
    with pytest.raises(ValueError, match=rf"trained on embedded:shapes-generator .* but {folder} has other weights"):
        tiny.trainer(max_epochs=ROUNDS).fit(module, tiny.rl_data(prompts[0]), ckpt_path=undisturbed.checkpoint)


def test_missing_adapter_weights_are_refused(undisturbed: Run, prompts: tuple[Path, Path], tmp_path: Path) -> None:
    stored = torch.load(undisturbed.checkpoint)
    name = next(name for name in stored["state_dict"] if f".{policies.OLD}." in name)
    del stored["state_dict"][name]
    torch.save(stored, tmp_path / "cut.ckpt")
    with pytest.raises(ValueError, match=f"lacks 1 adapter weights, first '{name}'"):
        tiny.trainer(max_epochs=ROUNDS).fit(tiny.rl_module(), tiny.rl_data(prompts[0]), ckpt_path=tmp_path / "cut.ckpt")


def test_a_checkpoint_of_another_module_is_refused(undisturbed: Run, prompts: tuple[Path, Path], tmp_path: Path) -> None:
    stored = torch.load(undisturbed.checkpoint)
    del stored["reward_rl"]
    torch.save(stored, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of RewardRLModule"):
        tiny.trainer(max_epochs=ROUNDS).fit(tiny.rl_module(), tiny.rl_data(prompts[0]), ckpt_path=tmp_path / "other.ckpt")


# -- what never enters ------------------------------------------------------------------------------------------------------


class Partly(RewardModel):
    """The ground truth, but some pictures cannot be scored.

    Args:
        lost: Positions in a group of ``group`` that are unscored; None loses none.
        lost_rounds: Rounds in which nothing is scored.
    """

    def __init__(self, group: int, lost: Sequence[int] = (), lost_rounds: Sequence[int] = ()) -> None:
        self.group, self.lost, self.lost_rounds = group, lost, lost_rounds
        self.calls = 0

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        rewards = ShapesTruth().score(requests)
        for index in range(len(requests)):
            if index % self.group in self.lost or self.calls in self.lost_rounds:
                rewards.total[index] = float("nan")
                rewards.values[index] = float("nan")
                rewards.reasons[index] = "lost"
        self.calls += 1
        return rewards


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """A step of minus the gradient."""
    return torch.optim.SGD(parameters, lr=1.0)


def one_update(train: Path, group_size: int, reward: RewardModel) -> RewardRLModule:
    module = tiny.rl_module(reward=reward, optimizer=sgd, min_resolution=None)
    data = tiny.rl_data(train, group_size=group_size, batch_size=2 * group_size)
    tiny.trainer(max_epochs=1, accumulate_grad_batches=2).fit(module, data)
    return module


def test_an_unscored_picture_counts_as_if_it_were_not_there(prompts: tuple[Path, Path]) -> None:
    start = tiny.rl_module()
    start.configure_model()
    before = of(tiny.adapters(start), policies.POLICY)
    # all noise is a function of request and copy: the first three of a group of four are a group of three
    with_losses = one_update(prompts[0], 4, Partly(4, lost=[3]))
    without = one_update(prompts[0], 3, Partly(3))
    rollout = with_losses.last_rollout
    assert rollout is not None
    assert rollout.advantages.weights.tolist() == [True, True, True, False] * 2
    assert rollout.advantages.values[~rollout.advantages.weights].tolist() == [0.0, 0.0]
    gradients = [
        torch.cat([(value - before[name]).flatten() for name, value in of(tiny.adapters(module), policies.POLICY).items()])
        for module in (with_losses, without)
    ]
    assert gradients[0].norm() > 0
    # the same float32 sums over batches of other shapes, through a network: a few rounding errors of 1e-7 on top of each other.
    # Dividing by the planned instead of the valid number would be off by a quarter.
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


def test_a_round_without_scores_is_skipped_and_counted(prompts: tuple[Path, Path]) -> None:
    recorder = Recorder()
    module = tiny.rl_module(reward=Partly(4, lost_rounds=[1]), min_resolution=None)
    trainer = tiny.trainer(max_epochs=3, accumulate_grad_batches=2, gradient_clip_val=1.0, callbacks=[recorder])
    trainer.fit(module, tiny.rl_data(prompts[0]))
    first, second, third = (of(adapters, policies.POLICY) for adapters in recorder.rounds)
    assert same(first, second)  # not even momentum or weight decay moved it
    assert not same(second, third)
    assert [metrics["train/skipped_steps"] for metrics in recorder.metrics] == [0.0, 2.0, 2.0]
    assert [metrics["train/unscored_rate"] for metrics in recorder.metrics] == [0.0, 1.0, 0.0]


def test_a_step_that_is_not_finite_is_skipped_and_counted(prompts: tuple[Path, Path]) -> None:
    recorder = Recorder()
    # at the start policy and base are equal: infinity times 0 is not a number
    module = tiny.rl_module(objective=NFT(kl_weight=float("inf")), min_resolution=None)
    trainer = tiny.trainer(max_epochs=1, accumulate_grad_batches=2, callbacks=[recorder])
    trainer.fit(module, tiny.rl_data(prompts[0]))
    assert recorder.metrics[0]["train/skipped_steps"] == 2.0
    assert all(torch.isfinite(value).all() for value in tiny.adapters(module).values())


# -- resolution -------------------------------------------------------------------------------------------------------------


class Constant(RewardModel):
    """The same for every picture."""

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        return Rewards(torch.full((len(requests),), 0.5), (), torch.zeros(len(requests), 0), [""] * len(requests))


class Noise(RewardModel):
    """A number for every picture that has nothing to do with its request."""

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        digests = [hashlib.sha256(request.image.tobytes()).digest() for request in requests]
        total = torch.tensor([int.from_bytes(digest[:4], "big") / 2**32 for digest in digests])
        return Rewards(total, (), torch.zeros(len(requests), 0), [""] * len(requests))


class ReadsOnly(RewardModel):
    """Knows whether a picture was made for its request, and ranks the pictures of one request by chance."""

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        truth, chance = ShapesTruth().score(requests).total, Noise().score(requests).total
        return Rewards(truth.round() + chance, (), torch.zeros(len(requests), 0), [""] * len(requests))


@pytest.fixture(scope="module")
def eight_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.requests(tmp_path_factory.mktemp("eight"), 8)


def start_round(train: Path, **options: Any) -> dict[str, float]:
    """One round of eight groups of four; 24 degrees of freedom within groups."""
    data = tiny.rl_data(train, groups_per_epoch=8, batch_size=32, visits=1)
    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(tiny.rl_module(**options), data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("reward", [Constant(), Noise()], ids=["constant", "noise"])
def test_a_reward_without_resolution_is_refused(reward: RewardModel, eight_prompts: Path) -> None:
    # independent numbers correlate with a standard deviation of 0.2 here, so 0.8 is four of them
    with pytest.raises(NoResolutionError, match=r"within-group correlation with the witness is .*, below min_resolution 0\.8"):
        start_round(eight_prompts, reward=reward, witness=ShapesTruth(), min_resolution=0.8)
    # without a witness: what does not read the request gives the same number for any request
    with pytest.raises(NoResolutionError, match=r"\(gap 0\.000, 32 scored\): the reward does not read the request"):
        start_round(eight_prompts, reward=reward)


def test_without_a_witness_a_ranking_by_chance_is_refused(eight_prompts: Path) -> None:
    with pytest.raises(
        NoResolutionError, match=r"within groups, the scores correlate by .* they rank the pictures of one request by chance"
    ):
        start_round(eight_prompts, reward=ReadsOnly(), min_resolution=0.8)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_a_strategy_that_splits_weights_is_refused(strategy: type) -> None:
    module = tiny.rl_module()
    module._trainer = SimpleNamespace(strategy=strategy())
    with pytest.raises(ValueError, match=rf"{strategy.__name__} is not supported: use -c configs/trainer/ddp.yaml"):
        module.configure_model()


def test_a_reward_with_resolution_or_a_check_that_is_off_passes(eight_prompts: Path) -> None:
    with_witness = start_round(eight_prompts, witness=ShapesTruth(), min_resolution=0.8)
    # ShapesTruth against itself, pooled over groups in float64
    assert with_witness["train/within_group_corr"] == pytest.approx(1.0, abs=1e-6)
    assert with_witness["train/truth"] == with_witness["train/reward"]
    assert 0.0 <= with_witness["train/exact"] <= 1.0
    start_round(eight_prompts)
    off = start_round(eight_prompts, reward=Noise(), min_resolution=None)
    assert off["train/unscored_rate"] == 0.0


def test_edits_train_as_requests_for_pictures_do(tmp_path: Path) -> None:
    data = tiny.rl_data(tiny.requests(tmp_path, 4, edit_share=1.0))
    module = tiny.rl_module(min_resolution=None)
    trainer = tiny.trainer(max_epochs=1, accumulate_grad_batches=4)
    trainer.fit(module, data)
    rollout = module.last_rollout
    assert rollout is not None and {record.task for record in rollout.records} == {"edit"}
    assert "image_faithfulness" in rollout.rewards.aspects and bool(rollout.rewards.valid.all())
    after = tiny.adapters(module)
    assert any(bool(tensor.any()) for name, tensor in after.items() if "lora_B" in name)
    assert float(trainer.callback_metrics["train/skipped_steps"]) == 0.0
    # two requests with four pictures each: a text is encoded once for all four
    assert float(trainer.callback_metrics["train/encoder_calls_saved"]) >= 0.5
    assert float(trainer.callback_metrics["train/encoder_kept_mb"]) > 0.0


def test_a_reward_that_scores_nothing_is_refused(eight_prompts: Path) -> None:
    with pytest.raises(NoResolutionError, match="0 scored"):
        start_round(eight_prompts, reward=Partly(4, lost=range(4)))


# -- what comes out ---------------------------------------------------------------------------------------------------------


def draw(generator: Any, count: int = 4) -> np.ndarray:
    requests = [
        "a red circle at the top left",
        "a blue square at the bottom right",
        "a green cross at the top right",
        "letter A",
    ]
    images = generator.sample(requests[:count], [], list(range(count)))
    return np.stack([np.asarray(image) for image in images])


def test_the_exported_lora_gives_the_same_pictures(undisturbed: Run) -> None:
    trained = draw(undisturbed.module.generator)
    base = tiny.generator()
    base.load()
    assert (draw(base) != trained).any()
    base.pipe.load_lora_weights(str(undisturbed.lora))
    # the same LoRA on the same layers in the same order: the same arithmetic
    np.testing.assert_array_equal(draw(base), trained)
    loaded = tiny.generator(adapter=str(undisturbed.lora))
    loaded.load()
    np.testing.assert_array_equal(draw(loaded), trained)


def test_the_moving_average_is_the_average(undisturbed: Run) -> None:
    start = tiny.rl_module()
    start.configure_model()
    expected = of(tiny.adapters(start), policies.POLICY)
    for step, adapters in enumerate(undisturbed.recorder.steps, start=1):
        decay = min((1 + step) / (10 + step), 0.5)
        expected = {name: decay * value + (1 - decay) * adapters[name] for name, value in expected.items()}
    assert len(undisturbed.recorder.steps) == 2 * ROUNDS
    for name, value in undisturbed.average.average.items():
        # float32 rounding of eight steps on numbers below 1
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)


def test_validation_uses_the_average_and_puts_the_policy_back(undisturbed: Run) -> None:
    recorder = undisturbed.recorder
    assert len(recorder.validated) == ROUNDS
    last = recorder.validated[-1]
    assert same(of(last, policies.POLICY), undisturbed.average.average)
    assert same(of(recorder.rounds[-1], policies.POLICY), of(recorder.steps[-1], policies.POLICY))
    assert not same(of(last, policies.POLICY), of(recorder.rounds[-1], policies.POLICY))
    averaged = tiny.generator(adapter=str(undisturbed.lora.with_name("ema")))
    averaged.load()
    raw = undisturbed.recorder.rounds[-1]
    assert undisturbed.module.denoiser is not None
    policies.load_adapter_state(undisturbed.module.denoiser, policies.POLICY, undisturbed.average.average)
    try:
        np.testing.assert_array_equal(draw(averaged), draw(undisturbed.module.generator))
    finally:
        policies.load_adapter_state(undisturbed.module.denoiser, policies.POLICY, of(raw, policies.POLICY))


# -- settings ---------------------------------------------------------------------------------------------------------------


def test_steps_that_do_not_end_with_a_round_are_refused(prompts: tuple[Path, Path]) -> None:
    with pytest.raises(
        ValueError, match="a round has 4 batches, which accumulate_grad_batches 3 does not divide; nearest legal: 2"
    ):
        tiny.trainer(max_epochs=1, accumulate_grad_batches=3).fit(tiny.rl_module(), tiny.rl_data(prompts[0]))
