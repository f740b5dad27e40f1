"""The four objectives in reward RL: each lowers its own loss, costs what it should, and saving work changes nothing that it must not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.generation import Savers, policies
from rationalrewards.components.measuring import flop_counter
from rationalrewards.components.objectives import (
    AWM,
    DPO,
    NFT,
    FlowGRPO,
    NoisedBatch,
    Objective,
    Velocities,
    reference_scale,
)
from rationalrewards.components.rewards import RewardModel, Rewards
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.lightning_modules import RewardRLModule
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

pytestmark = tiny.QUIET

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "nft": lambda: NFT(kl_weight=1e-3),
    "awm": lambda: AWM(kl_weight=1e-3),
    "dpo": lambda: DPO(dpo_beta=100.0),
    "grpo": lambda: FlowGRPO(clip_range=1e-3, window_size=1, kl_weight=1e-3),
    "guard": lambda: FlowGRPO(clip_range=1e-3, guard=True, window_size=1),
}
each = pytest.mark.parametrize("name", OBJECTIVES)


class LosesFirst(RewardModel):
    """The ground truth, which cannot score the first picture of a batch of two groups of four."""

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        rewards = ShapesTruth().score(requests)
        rewards.total[0] = float("nan")
        rewards.reasons[0] = "lost"
        return rewards


@dataclass
class Counter(Callback):
    """FLOPs of every micro-batch, forward and backward; and what was logged."""

    flops: list[int] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    _mode: FlopCounterMode | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._mode = flop_counter()
        self._mode.__enter__()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._stop()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._stop()
        self.metrics.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    def _stop(self) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self.flops.append(self._mode.get_total_flops())
            self._mode = None


def gradient_step(parameters: Any) -> torch.optim.Optimizer:
    """A step of minus the gradient."""
    return torch.optim.SGD(parameters, lr=1.0)


@dataclass
class Update:
    """One optimizer step and what it was of."""

    module: RewardRLModule
    counter: Counter
    moved: Tensor

    @property
    def flops(self) -> int:
        return sum(self.counter.flops)


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.requests(tmp_path_factory.mktemp("requests"), 4)


def update(
    train: Path,
    objective: Objective,
    *,
    savers: dict[str, Any] | None = None,
    away: float = 0.0,
    reward: RewardModel | None = None,
    data: dict[str, Any] | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = gradient_step,
    rounds: int = 1,
) -> Update:
    """A round of two groups of four in one batch, and one step.

    Args:
        train: The requests.
        objective: The objective.
        savers: Options of the savers.
        away: How far policy and old policy are from the base and, by half of it, from each other.
        reward: Another reward than the ground truth.
        data: Changes of the data module's settings.
        optimizer: Another one than minus the gradient.
        rounds: Rounds; FLOPs are those of the last one.
    """
    module = tiny.rl_module(
        objective=objective,
        reward=reward or ShapesTruth(),
        optimizer=optimizer,
        min_resolution=None,
        savers=Savers(**savers or {}),
    )
    module.configure_model()
    assert module.denoiser is not None
    with torch.no_grad():
        noise = torch.Generator().manual_seed(3)
        for policy, size in ((policies.POLICY, away), (policies.OLD, away / 2)):
            for parameter_name, parameter in policies.parameters_of(module.denoiser, policy).items():
                if "lora_B" in parameter_name:
                    parameter.copy_(size * torch.randn(parameter.shape, generator=noise))
    before = flat(module)
    counter = Counter()
    settings = {"batch_size": 8, "visits": 1, **(data or {})}
    batches = 8 // settings["batch_size"] * settings["visits"] // settings.get("visits_at_once", 1)
    trainer = tiny.trainer(max_epochs=rounds, accumulate_grad_batches=batches, callbacks=[counter])
    trainer.fit(module, tiny.rl_data(train, **settings))
    assert trainer.global_step == rounds and len(counter.flops) == rounds * batches
    counter.flops = counter.flops[-batches:]
    return Update(module, counter, flat(module) - before)


def flat(module: RewardRLModule) -> Tensor:
    assert module.denoiser is not None
    return torch.cat([p.detach().flatten().clone() for p in policies.parameters_of(module.denoiser, policies.POLICY).values()])


def apart(first: Tensor, second: Tensor) -> float:
    """Distance of two gradients, relative to their size."""
    return float((first - second).norm() / second.norm())


# -- each objective -----------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("edit_share", [0.0, 1.0], ids=["t2i", "edit"])
def test_a_step_lowers_the_objective_s_own_loss(tmp_path: Path, name: str, edit_share: float) -> None:
    module = tiny.rl_module(objective=OBJECTIVES[name](), optimizer=gradient_step, min_resolution=None)
    counter = Probe()
    data = tiny.rl_data(tiny.requests(tmp_path, 4, edit_share=edit_share), visits=1)
    tiny.trainer(max_epochs=1, accumulate_grad_batches=2, callbacks=[counter]).fit(module, data)
    # along minus the gradient by a step small enough for the slope to hold, the loss falls by the step times the squared norm; NFT's by
    # half of it, as the divisor of an error, which its gradient holds fixed, grows with the error's root
    slope = 0.5 if name == "nft" else 1.0
    assert counter.before - counter.after == pytest.approx(slope * counter.expected, rel=0.2)


class Probe(Callback):
    """The round's loss before the step, and after a small one along the gradient."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        assert isinstance(pl_module, RewardRLModule) and pl_module.denoiser is not None
        parameters = list(policies.parameters_of(pl_module.denoiser, policies.POLICY).values())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        squared = sum(float(g.double().square().sum()) for g in gradients)
        step = 1e-3 / squared**0.5
        self.before = self._loss(trainer, pl_module)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(step * gradient)
        pl_module._old_is_policy = None
        self.after = self._loss(trainer, pl_module)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(step * gradient)
        self.expected = step * squared

    @torch.no_grad()
    def _loss(self, trainer: Trainer, module: RewardRLModule) -> float:
        planned, valid = module._planned, module._valid
        batches = trainer.train_dataloader.sampler.plan(0, 0, 1)  # type: ignore[union-attr]
        losses = [float(module._loss(batch).double()) for batch in batches]
        module._planned, module._valid = planned, valid
        return sum(losses) / len(losses)


def test_on_policy_the_ratio_is_one_and_logged(requests: Path) -> None:
    for guard in (False, True):
        done = update(requests, FlowGRPO(clip_range=1e-3, guard=guard, window_size=2), data={"visits": 2})
        for metrics in done.counter.metrics:
            # the same forward in the same batch: the recorded probability to the last bit
            assert metrics["train/ratio"] == 1.0 and metrics["train/clipped"] == 0.0


def test_after_a_step_the_ratio_moves(requests: Path) -> None:
    counter = Counter()
    module = tiny.rl_module(
        objective=FlowGRPO(clip_range=1e-6, window_size=1), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), min_resolution=None
    )
    # two steps a round: the second batch meets a policy that has moved since it was sampled
    tiny.trainer(max_epochs=1, callbacks=[counter]).fit(module, tiny.rl_data(requests, visits=1))
    first, second = counter.metrics
    assert first["train/ratio"] == 1.0 and second["train/ratio"] != 1.0
    assert second["train/clipped"] > 0.0
    rollout = module.last_rollout
    assert rollout is not None
    # and the policy, not an average of it, samples the next round
    assert module.denoiser is not None
    old, policy = (policies.parameters_of(module.denoiser, name).values() for name in (policies.OLD, policies.POLICY))
    assert all(torch.equal(a, b) for a, b in zip(old, policy, strict=True))


def test_members_of_a_group_share_the_window_and_rounds_do_not(tmp_path: Path) -> None:
    seen: dict[int, set[tuple[int, ...]]] = {}

    class Windows(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            assert isinstance(pl_module, RewardRLModule)
            assert pl_module._round is not None
            entries = pl_module._round.calls
            seen.setdefault(trainer.current_epoch, set()).update(tuple(step.index for step in entry.steps) for entry in entries)

    objective = FlowGRPO(clip_range=1e-3, window_size=2)
    module = tiny.rl_module(objective=objective, min_resolution=None, generator=tiny.generator(steps=8))
    trainer = tiny.trainer(max_epochs=5, accumulate_grad_batches=4, callbacks=[Windows()])
    trainer.fit(module, tiny.rl_data(tiny.requests(tmp_path, 4), visits=2))
    assert all(len(windows) == 1 for windows in seen.values())
    places = [windows.pop() for windows in seen.values()]
    assert all(second == first + 1 and 0 <= first <= 5 for first, second in places)
    assert len(set(places)) > 1  # five draws of six places: all equal once in 6^4


class Watched(DPO):
    """Keeps what it was given."""

    given: list[NoisedBatch]

    def policy_loss(self, batch: NoisedBatch, v: Velocities) -> Tensor:
        self.given = [*getattr(self, "given", []), batch]
        return super().policy_loss(batch, v)


def test_a_pair_is_best_and_worst_at_the_same_noise(requests: Path) -> None:
    objective = Watched(100.0)
    done = update(requests, objective, data={"visits": 2, "visits_at_once": 2})
    (batch,), rollout = objective.given, done.module.last_rollout
    assert rollout is not None and batch.eps is not None
    better, worse = rollout.rewards.total.view(2, 4).argmax(dim=1), rollout.rewards.total.view(2, 4).argmin(dim=1)
    assert (better != worse).all()
    # two pairs at two levels each: the better pictures level by level, then the worse ones
    assert len(batch.x0) == 8
    eps, sigma, clean = (tensor.view(2, 2, 2, *tensor.shape[1:]) for tensor in (batch.eps, batch.sigma, batch.x0))
    assert torch.equal(eps[0], eps[1]) and torch.equal(sigma[0], sigma[1])
    assert torch.equal(clean[:, 0], clean[:, 1])  # both levels are of the same pictures
    assert not torch.equal(eps[0, 0], eps[0, 1]) and not torch.equal(eps[0, 0, 0], eps[0, 0, 1])
    advantages = batch.advantages.view(2, 2, 2)[:, 0]
    expected = rollout.advantages.values.view(2, 4)
    assert torch.equal(advantages[0], expected.gather(1, better[:, None])[:, 0])
    assert torch.equal(advantages[1], expected.gather(1, worse[:, None])[:, 0])


# -- what is refused ----------------------------------------------------------------------------------------------------------


def test_pairs_need_whole_groups_in_a_batch(requests: Path) -> None:
    module = tiny.rl_module(objective=DPO(100.0), min_resolution=None)
    with pytest.raises(
        ValueError, match=r"DPO compares pictures of a group, but batches of 2 hold no whole groups of 4.*e\.g\. 4"
    ):
        tiny.trainer(max_epochs=1).fit(module, tiny.rl_data(requests, batch_size=2))


def test_visits_and_window_must_agree(requests: Path) -> None:
    module = tiny.rl_module(objective=FlowGRPO(clip_range=1e-3, window_size=1), min_resolution=None)
    with pytest.raises(ValueError, match=r"each of 1 recorded steps once, but the data module's visits is 2"):
        tiny.trainer(max_epochs=1).fit(module, tiny.rl_data(requests, visits=2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NFT(nft_beta=0.0), "nft_beta must be above 0"),
        (lambda: NFT(kl_weight=-1.0), "kl_weight must not be negative"),
        (lambda: NFT(adv_clip_max=0.0), "adv_clip_max must be above 0"),
        (lambda: NFT(old_decay_max=1.5), "old_decay_max must be between 0 and 1"),
        (lambda: AWM(weight="cubic"), "weight is one of"),  # type: ignore[arg-type]
        (lambda: AWM(clip_range=0.0), "clip_range must be above 0"),
        (lambda: DPO(0.0), "dpo_beta must be above 0"),
        (lambda: FlowGRPO(0.0), "clip_range must be above 0"),
        (lambda: FlowGRPO(1e-3, guard=True, form="cps"), "defined for form 'flow'"),
        (lambda: FlowGRPO(1e-3, window_size=0), "window_size must be at least 1"),
        (lambda: Savers(reference_every=0), "reference_every must be at least 1"),
        (lambda: Savers(one_forward="both"), "one_forward is one of"),  # type: ignore[arg-type]
    ],
)
def test_settings_without_meaning_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -- savers: equal where they claim so ------------------------------------------------------------------------------------------

PLAIN = {"skip_equal_old": False, "drop_unused": False, "share_prefix": False}


@each
def test_what_claims_the_same_bits_has_them(requests: Path, name: str) -> None:
    plain = update(requests, OBJECTIVES[name](), savers=PLAIN)
    assert float(plain.moved.norm()) > 0
    for saver in ("skip_equal_old", "share_prefix"):
        saved = update(requests, OBJECTIVES[name](), savers={**PLAIN, saver: True})
        assert torch.equal(saved.moved, plain.moved), saver


def test_policies_that_differ_are_both_computed(requests: Path) -> None:
    plain = update(requests, NFT(), savers=PLAIN, away=0.02)
    saved = update(requests, NFT(), savers={**PLAIN, "skip_equal_old": True}, away=0.02)
    assert torch.equal(saved.moved, plain.moved) and saved.flops == plain.flops


@each
def test_what_shares_forwards_differs_by_rounding(requests: Path, name: str) -> None:
    plain = update(requests, OBJECTIVES[name](), savers=PLAIN, away=0.02, reward=LosesFirst())
    for saver, value in (("drop_unused", True), ("one_forward", "frozen"), ("one_forward", "all")):
        saved = update(requests, OBJECTIVES[name](), savers={**PLAIN, saver: value}, away=0.02, reward=LosesFirst())
        # float32 sums over batches of other shapes, through a network (1e-6 for one), and for the ratios their exponential
        assert apart(saved.moved, plain.moved) < 1e-3, (saver, value, apart(saved.moved, plain.moved))


@each
def test_visits_at_once_are_visits_one_by_one(requests: Path, name: str) -> None:
    def objective() -> Objective:
        return FlowGRPO(1e-3, guard=name == "guard", window_size=2) if name in ("grpo", "guard") else OBJECTIVES[name]()

    apiece = update(requests, objective(), away=0.02, data={"visits": 2})
    at_once = update(requests, objective(), away=0.02, data={"visits": 2, "visits_at_once": 2})
    assert apart(at_once.moved, apiece.moved) < 1e-3  # as above


def test_a_reference_in_every_second_batch_is_right_on_average(requests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"batch_size": 4, "visits": 1}

    def kl_gradient(every: int) -> Tensor:
        """Of the KL term alone: what its weight changes."""
        with_kl, without = (
            update(requests, NFT(kl_weight=weight), savers={"reference_every": every}, away=0.02, data=sizes).moved
            for weight in (1.0, 0.0)
        )
        return with_kl - without

    always, first = kl_gradient(1), kl_gradient(2)
    # the other of the two batches: a round begins with one or the other by its seed
    monkeypatch.setattr(
        "rationalrewards.lightning_modules.reward_rl.reference_scale",
        lambda number, every, offset: reference_scale(number, every, offset + 1),
    )
    second = kl_gradient(2)
    assert apart(first, always) > 0.1 and apart(second, always) > 0.1
    # differences of float32 steps
    assert apart((first + second) / 2, always) < 1e-3


# -- and what they cost ---------------------------------------------------------------------------------------------------------


def standing(parameters: Any) -> torch.optim.Optimizer:
    """No step at all: a second round is as the first one, less what is found out once."""
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.fixture(scope="module")
def one_forward(requests: Path) -> int:
    """FLOPs of the bare denoiser's forward of one picture."""
    generator = tiny.generator()
    generator.load()
    generator.prepare_training(1)
    recording = generator.record(["a red circle"], [], [1])
    with torch.no_grad(), policies.use(generator.denoiser, None), flop_counter() as counter:
        recording.velocity(recording.x0, torch.tensor([0.5]))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("make", "savers", "data", "budget"),
    [
        # three forwards and a backward, which needs no gradients of the base's weights
        (lambda: NFT(), PLAIN, {}, 4.1),
        (lambda: AWM(), PLAIN, {}, 4.1),
        # the old policy's velocity is known
        (lambda: NFT(), {}, {}, 3.07),
        (lambda: NFT(), {}, {"visits": 2, "visits_at_once": 2}, 6.14),
        (lambda: NFT(kl_weight=0.0), {}, {}, 2.09),
        (lambda: AWM(), {}, {}, 3.07),
        # the reference in one of two micro-batches
        (lambda: NFT(), {"reference_every": 2}, {"batch_size": 4}, 2.58),
        # two pictures of four, policy and reference
        (lambda: DPO(100.0), {}, {}, 1.54),
        (lambda: FlowGRPO(1e-3, window_size=1), {}, {}, 2.09),
        (lambda: FlowGRPO(1e-3, window_size=1, guard=True), {}, {}, 2.09),
        (lambda: FlowGRPO(1e-3, window_size=1, kl_weight=1e-3), {}, {}, 3.07),
        # the backward goes through all three
        (lambda: NFT(), {**PLAIN, "one_forward": "all"}, {}, 6.25),
        (lambda: NFT(), {**PLAIN, "one_forward": "frozen"}, {}, 4.1),
    ],
)
def test_an_update_stays_in_its_budget(
    requests: Path,
    one_forward: int,
    make: Callable[[], Objective],
    savers: dict[str, Any],
    data: dict[str, Any],
    budget: float,
) -> None:
    """In forwards per picture and level; the counts of FLOPs are exact, and the budgets 1 % above them at most."""
    done = update(requests, make(), savers=savers, data=data, optimizer=standing, rounds=2)
    used = sum(done.counter.flops) / 8 / one_forward
    assert 0.985 * budget < used <= budget


def test_an_unscored_picture_is_not_computed(requests: Path) -> None:
    all_scored, one_lost = (
        update(requests, NFT(), reward=reward, optimizer=standing, rounds=2) for reward in (None, LosesFirst())
    )
    assert 8 * one_lost.flops == 7 * all_scored.flops
