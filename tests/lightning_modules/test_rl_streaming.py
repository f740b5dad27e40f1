"""Rewards come in while later ones are under way: the same steps to the last bit, and nothing waits that need not."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.generation import policies
from rationalrewards.components.objectives import DPO, NFT, FlowGRPO, Objective
from rationalrewards.components.rewards import RewardModel, Rewards
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.lightning_modules import RewardRLModule

pytestmark = tiny.QUIET

CALLS = 4
PATIENCE = 60.0
"""Seconds after which what never happens fails the test; nothing waits for them that goes well."""


class Remote(RewardModel):
    """The ground truth as a server would give it.

    Args:
        after: Per call of a round, by its first request: what has to happen before it answers.
    """

    def __init__(self, after: Sequence[threading.Event | None] = ()) -> None:
        self.after = after
        self.began: list[threading.Thread] = []
        self.lock = threading.Lock()
        self.broken = False

    @property
    def remote(self) -> bool:
        return True

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        with self.lock:
            number = len(self.began) % CALLS
            self.began.append(threading.current_thread())
        if self.after and (event := self.after[number]) is not None and not event.wait(PATIENCE):
            raise TimeoutError(f"call {number} waited in vain")
        if self.broken:
            raise ConnectionError("the server has gone away")
        return ShapesTruth().score(requests)


class Starts(Callback):
    """Says when training on a call begins."""

    def __init__(self, events: Sequence[threading.Event]) -> None:
        self.events = events

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.events[batch.index].set()


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.requests(tmp_path_factory.mktemp("requests"), 8)


def fit(train: Path, reward: RewardModel, rounds: int = 1, callbacks: Sequence[Callback] = (), **options: Any) -> RewardRLModule:
    """Rounds of four groups of four in four calls, each visited twice."""
    module = tiny.rl_module(reward=reward, **{"min_resolution": None, **options})
    trainer = tiny.trainer(max_epochs=rounds, accumulate_grad_batches=2 * CALLS, callbacks=list(callbacks))
    trainer.fit(module, tiny.rl_data(train, groups_per_epoch=4))
    return module


def same(first: RewardRLModule, second: RewardRLModule) -> bool:
    one, two = tiny.adapters(first), tiny.adapters(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_training_begins_before_the_last_rewards_are_there(requests: Path) -> None:
    """The rewards of each call come when the call before it has been trained on, which would never end if anything waited for all."""
    trained = [threading.Event() for _ in range(CALLS)]
    module = fit(requests, Remote([None, *trained[:-1]]), callbacks=[Starts(trained)], background=True)
    assert all(event.is_set() for event in trained)
    assert module.last_rollout is not None and len(module.last_rollout.images) == 4 * CALLS


@pytest.mark.parametrize("objective", [NFT(), DPO(100.0), FlowGRPO(1e-3, window_size=2)], ids=["nft", "dpo", "grpo"])
def test_the_steps_are_those_of_waiting_for_all(requests: Path, objective: Objective) -> None:
    waiting = fit(requests, ShapesTruth(), rounds=2, objective=objective)
    streaming = fit(requests, Remote(), rounds=2, objective=objective)
    assert same(streaming, waiting)
    one, two = waiting.last_rollout, streaming.last_rollout
    assert one is not None and two is not None
    assert torch.equal(one.advantages.values, two.advantages.values) and torch.equal(one.rewards.total, two.rewards.total)
    start = tiny.rl_module()
    start.configure_model()
    assert not same(streaming, start)


def test_a_group_over_several_calls_waits_for_all_of_it(requests: Path) -> None:
    """Calls of two pictures of groups of four: the first call is trained on when the second is scored, not before."""
    modules = []
    for reward in (ShapesTruth(), Remote()):
        module = tiny.rl_module(reward=reward, min_resolution=None)
        data = tiny.rl_data(requests, groups_per_epoch=2, batch_size=2, visits=1)
        tiny.trainer(max_epochs=1, accumulate_grad_batches=4).fit(module, data)
        modules.append(module)
    assert same(*modules)
    rollout = modules[1].last_rollout
    assert rollout is not None and bool((rollout.advantages.values != 0).any())


def test_rewards_are_asked_for_outside_this_thread_and_all_at_once_otherwise(requests: Path) -> None:
    streaming, waiting = Remote(), Remote()
    fit(requests, streaming)
    assert len(streaming.began) == CALLS and threading.main_thread() not in streaming.began
    fit(requests, waiting, background=False)
    assert waiting.began == [threading.main_thread()]


class Local(ShapesTruth):
    """A witness in this process."""

    threads: list[threading.Thread]

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        self.threads = [*getattr(self, "threads", []), threading.current_thread()]
        return super().score(requests)


def test_a_witness_in_this_process_is_asked_once_and_in_its_own_thread(requests: Path) -> None:
    witness, reward = Local(), Remote()
    fit(requests, reward, witness=witness)
    assert threading.main_thread() not in reward.began and witness.threads == [threading.main_thread()]


def test_a_reward_that_fails_ends_the_run_with_its_reason_and_leaves_no_thread(requests: Path) -> None:
    reward = Remote()
    reward.broken = True
    with pytest.raises(ConnectionError, match="the server has gone away"):
        fit(requests, reward)
    for thread in reward.began:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_the_first_round_waits_for_its_check(requests: Path) -> None:
    trained = [threading.Event() for _ in range(CALLS)]

    class Seen(Callback):
        complete = False

        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
            assert isinstance(pl_module, RewardRLModule)
            if trainer.current_epoch == 0 and batch_idx == 0:
                self.complete = pl_module.last_rollout is not None

    seen = Seen()
    module = fit(requests, Remote(), callbacks=[seen, Starts(trained)], witness=ShapesTruth(), min_resolution=0.9)
    assert seen.complete
    assert policies.parameters_of(module.denoiser, policies.POLICY)  # type: ignore[arg-type]
