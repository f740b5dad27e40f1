"""How good the judge of an RL run still is, measured while it trains."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.records import PromptRecord, open_pictures
from rationalrewards.components.rewards import RewardModel, Rewards, joined, judge_diagnostics

log = logging.getLogger(__name__)


class _Rollout(Protocol):
    epoch: int
    records: list[PromptRecord]
    groups: list[str]
    images: list[Image.Image]
    rewards: Rewards


class JudgeDiagnostics(Callback):
    """Logs how far a round's scores differ in a group, how much of that is noise, and how often they hit the end of the scale.

    Every figure of :func:`~rationalrewards.components.rewards.judge_diagnostics`, as ``judge/<figure>/<aspect>``, over the pictures of
    all processes. For the noise, the pictures of the first few groups are scored once more, with other seeds and under noise that
    nobody sees (:meth:`RewardModel.again`); that is ``groups`` times the size of a group more to score per process. Nothing is trained
    on these scores.

    ``judge/noise/<aspect>`` is what :class:`~rationalrewards.components.rewards.AdvantageOptions` calls ``noise``, in its units; that of
    the total is the one for summed advantages.

    Args:
        every_n_epochs: Rounds between two measurements; the first round is measured.
        groups: Groups of each process whose pictures are scored again; 0 measures no noise.

    Raises:
        ValueError: If a count is out of range.
    """

    def __init__(self, every_n_epochs: int = 5, groups: int = 4) -> None:
        if every_n_epochs < 1 or groups < 0:
            raise ValueError(f"every_n_epochs must be at least 1 and groups at least 0, got {every_n_epochs} and {groups}")
        self.every_n_epochs = every_n_epochs
        self.groups = groups
        self._measured: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rounds of another run."""
        self._measured = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the round that has just been trained on."""
        rollout: _Rollout | None = getattr(pl_module, "last_rollout", None)
        if rollout is None:
            log.debug("JudgeDiagnostics: the module holds no last_rollout, nothing to measure")
            return
        if rollout.epoch == self._measured or rollout.epoch % self.every_n_epochs:
            return
        self._measured = rollout.epoch
        chosen = set(list(dict.fromkeys(rollout.groups))[: self.groups])
        rows = [index for index, group in enumerate(rollout.groups) if group in chosen]
        again = self._score_again(pl_module, rollout, rows) if self.groups else None
        parts = _everywhere((_bare(rollout.rewards), rollout.groups, again, rows), trainer.world_size)
        starts = [0]
        for rewards, *_ in parts:
            starts.append(starts[-1] + len(rewards.total))
        figures = judge_diagnostics(
            joined([rewards for rewards, *_ in parts]),
            [group for _, groups, _, _ in parts for group in groups],
            joined([repeat for _, _, repeat, _ in parts]) if self.groups else None,
            [start + row for start, (*_, chosen_rows) in zip(starts, parts, strict=False) for row in chosen_rows],
        )
        # every process has the same figures; told so, Lightning does not warn that they might differ
        pl_module.log_dict({f"judge/{name}": value for name, value in figures.items()}, sync_dist=trainer.world_size > 1)

    @staticmethod
    @torch.no_grad()
    def _score_again(pl_module: LightningModule, rollout: _Rollout, rows: list[int]) -> Rewards:
        reward: Any = pl_module.reward
        assert isinstance(reward, RewardModel)
        records = [rollout.records[row] for row in rows]
        pictures = {record.sources: open_pictures(record, record.sources) for record in records}
        requests = [
            CritiqueRequest(record.task, record.prompt, rollout.images[row], pictures[record.sources])
            for row, record in zip(rows, records, strict=True)
        ]
        return _bare(reward.again(requests, rollout.epoch + 1))


def _bare(rewards: Rewards) -> Rewards:
    """Rewards without what was said, to send to other processes."""
    return Rewards(
        rewards.total.cpu(),
        rewards.aspects,
        rewards.values.cpu(),
        rewards.reasons,
        None,
        rewards.weights,
        rewards.bounds,
    )


def _everywhere(part: Any, world_size: int) -> list[Any]:
    """What every process holds, in the order of the processes."""
    if world_size == 1:
        return [part]
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, part)
    return gathered
