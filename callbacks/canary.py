"""Fixed requests that are drawn and judged again and again, to notice when a policy only pleases its reward."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.generation import policies
from rationalrewards.components.generation.noise import normal, seed_for
from rationalrewards.components.objectives import kl_loss
from rationalrewards.components.pages import Row, contact_sheet
from rationalrewards.components.records import PromptRecord, open_pictures
from rationalrewards.components.rewards import CanaryRule, Check, RewardModel
from rationalrewards.datamodules.readers import PromptSet, read_prompts

from .guard import STOPPED_TAG
from .mlflow import mlflow_run
from .writers import writable_folder

log = logging.getLogger(__name__)

CHECKS = "canaries.jsonl"
"""File with one JSON object per check: ``epoch``, mean ``reward`` and ``held_out``, ``kl``, and why it was bad, if it was."""

_SIDE = 112


@dataclass
class _Drawn:
    """One canary picture: number of its request and copy, the picture (small), its rewards and its distance from the base model."""

    request: int
    copy: int
    picture: Image.Image
    reward: float
    held_out: float
    kl: float


class HackCanary(Callback):
    """Draws the same requests from the same noise every few rounds, and stops when the reward rises on them while a held-out judge's falls.

    Each check logs ``canary/reward``, ``canary/held_out`` (means of the pictures that could be scored) and ``canary/kl`` (mean squared
    distance of the policy's velocity from the base model's, on its own pictures at a few noise levels): the over-optimisation curve is the
    second over the third. The first check is made before the first round. When to stop is said by
    :class:`~rationalrewards.components.rewards.CanaryRule`.

    The reason stands in ``stopped`` (empty while the run goes on), in the log, in ``canaries.jsonl``, and, with an ``MLFlowLogger``, in
    the run's tag ``rationalrewards.stopped``. The pictures stand in ``canaries_<epoch>.png`` and, in MLflow, below ``canaries/``.

    :class:`ResolutionGuard` looks at the pictures that are trained on, and at whether the reward tells *them* apart; this looks at
    whether the policy gets better. One says that the signal is gone, the other that it leads astray.

    Args:
        prompts: The requests: a file, as ``read_prompts`` reads it, or a public set. None of them should be trained on.
        held_out: The judge that is not trained on; the module's witness if omitted.
        every_n_epochs: Rounds between two checks.
        limit: Most requests; the first ones are taken.
        copies: Pictures per request.
        levels: Noise levels of the sampler's schedule at which the distance from the base model is measured.
        rule: When to stop.
        stop: Whether to stop at all, or only to say so.
        output_dir: Folder for what is written; None writes nothing.
        seed: Seed of the noise.

    Raises:
        ValueError: If a count is below 1, or when training begins and there is no second judge or fewer than two requests.
    """

    def __init__(
        self,
        prompts: str | PromptSet,
        held_out: RewardModel | None = None,
        every_n_epochs: int = 5,
        limit: int = 16,
        copies: int = 2,
        levels: int = 3,
        rule: CanaryRule | None = None,
        stop: bool = True,
        output_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        counts = {"every_n_epochs": every_n_epochs, "limit": limit, "copies": copies, "levels": levels}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.prompts = prompts
        self.held_out = held_out
        self.every_n_epochs = every_n_epochs
        self.limit = limit
        self.copies = copies
        self.levels = levels
        self.rule = rule or CanaryRule()
        self.stop = stop
        self.folder = None if output_dir is None else Path(output_dir)
        self.seed = seed
        self.checks: list[Check] = []
        self.stopped = ""
        self._records: list[PromptRecord] = []
        self._ids: list[str] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the requests, and check that there is a judge to hold out and a folder to write to."""
        if self._judge(pl_module) is None:
            raise ValueError("HackCanary needs a judge that is not trained on: give it `held_out`, or the module a `witness`")
        source = self.prompts
        records = list(source.read()) if isinstance(source, PromptSet) else read_prompts(source)
        self._records = records[: self.limit]
        if len(self._records) < 2:
            raise ValueError(f"{self.prompts} has {len(self._records)} requests; HackCanary compares over at least 2, better 16")
        if self.folder is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            writable_folder(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the judge, and refuse to go on with checks of other requests."""
        ids = [record.id for record in self._records]
        if self.checks and self._ids != ids:
            raise ValueError(
                f"the checkpoint's canaries were drawn for other requests than {self.prompts} has now: give the same file and limit"
            )
        self._ids = ids
        if self.held_out is not None:
            self.held_out.load(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check once before anything is trained."""
        if not self.checks:
            self._check(trainer, pl_module, trainer.current_epoch)
            for logger in trainer.loggers:
                logger.log_metrics(self._means(self.checks[-1]), step=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, and stop if it has come to that."""
        done = trainer.current_epoch + 1
        if done % self.every_n_epochs or any(check.epoch >= done for check in self.checks):
            return
        self._check(trainer, pl_module, done)
        pl_module.log_dict(self._means(self.checks[-1]), sync_dist=trainer.world_size > 1)
        reason = self.rule.verdict(self.checks, self._requests())
        if not reason:
            return
        self.stopped = f"{'stopped' if self.stop else 'to be stopped'} after round {trainer.current_epoch}: {reason}"
        log.warning(self.stopped)
        trainer.should_stop |= self.stop
        if (run := mlflow_run(trainer, self)) is not None:
            run[0].set_tag(run[1], STOPPED_TAG, self.stopped)

    def _judge(self, pl_module: LightningModule) -> RewardModel | None:
        judge: Any = self.held_out or getattr(pl_module, "witness", None)
        return judge if isinstance(judge, RewardModel) else None

    def _requests(self) -> torch.Tensor:
        """Which request each canary picture is of."""
        return torch.arange(len(self._ids)).repeat_interleave(self.copies)

    def _check(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        drawn = {(one.request, one.copy): one for one in self._draw(trainer, pl_module)}
        # a process without a request of its own repeats another's
        pictures = [drawn[key] for key in sorted(drawn)]
        self.checks.append(
            Check(
                epoch,
                torch.tensor([one.reward for one in pictures], dtype=torch.float64),
                torch.tensor([one.held_out for one in pictures], dtype=torch.float64),
                math.fsum(one.kl for one in pictures) / len(pictures),
            )
        )
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write(trainer, pictures, epoch)

    @torch.no_grad()
    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> list[_Drawn]:
        module: Any = pl_module
        training = module.denoiser.training
        module.denoiser.eval()
        rank, world, count = trainer.global_rank, trainer.world_size, len(self._records)
        # as many for every process, so that all take part in whatever they compute together
        mine = [(rank + turn * world) % count for turn in range(-(-count // world))]
        drawn: list[_Drawn] = []
        asked: list[CritiqueRequest] = []
        try:
            for number in mine:
                record = self._records[number]
                sources = open_pictures(record, record.sources)
                keys: list[tuple[int | str, ...]] = [(self.seed, "canary", record.id, copy) for copy in range(self.copies)]
                recording = module.generator.record([record.prompt] * self.copies, sources, [seed_for(*key) for key in keys])
                distance = self._distance(module, recording, keys)
                for copy, image in enumerate(recording.images):
                    asked.append(CritiqueRequest(record.task, record.prompt, image, sources))
                    small = image.convert("RGB")
                    small.thumbnail((_SIDE, _SIDE))
                    drawn.append(_Drawn(number, copy, small, math.nan, math.nan, float(distance[copy])))
        finally:
            module.denoiser.train(training)
        judge = self._judge(pl_module)
        assert judge is not None
        rewards, held_out = module.reward.score(asked).total.tolist(), judge.score(asked).total.tolist()
        for one, reward, other in zip(drawn, rewards, held_out, strict=True):
            one.reward, one.held_out = reward, other
        if world == 1:
            return drawn
        gathered: list[Any] = [None] * world
        torch.distributed.all_gather_object(gathered, drawn)
        return [one for part in gathered for one in part]

    def _distance(self, module: Any, recording: Any, keys: list[tuple[int | str, ...]]) -> torch.Tensor:
        """Mean squared distance of velocities from the base model's ``[copies]``, at levels spread over the schedule."""
        schedule = recording.sigmas
        chosen = [schedule[(2 * index + 1) * len(schedule) // (2 * self.levels)] for index in range(self.levels)]
        total = torch.zeros(self.copies)
        for index, level in enumerate(chosen):
            x0 = recording.x0
            noise = normal(x0, [(*key, "distance", index) for key in keys])
            x_t = (1 - level) * x0 + level * noise
            sigma = torch.full((self.copies,), float(level), device=x0.device, dtype=x0.dtype)
            v = recording.velocity(x_t, sigma)
            with policies.use(module.denoiser, None):
                total += kl_loss(v, recording.velocity(x_t, sigma)).float().cpu()
        return total / len(chosen)

    @staticmethod
    def _means(check: Check) -> dict[str, float]:
        values = {
            "canary/reward": float(check.reward.nanmean()),
            "canary/held_out": float(check.held_out.nanmean()),
            "canary/kl": check.kl,
        }
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _write(self, trainer: Trainer, pictures: list[_Drawn], epoch: int) -> None:
        rows = [
            Row(
                record.prompt,
                [one.picture for one in pictures if one.request == number],
                [f"{one.reward:.2f}, held out {one.held_out:.2f}" for one in pictures if one.request == number],
            )
            for number, record in enumerate(self._records)
        ]
        sheet = contact_sheet(rows, side=_SIDE)
        if self.folder is not None:
            sheet.save(self.folder / f"canaries_{epoch:05d}.png")
            part = (self.folder / CHECKS).with_suffix(".part")
            part.write_text(
                "".join(json.dumps(self._line(number)) + "\n" for number in range(len(self.checks))), encoding="utf-8"
            )
            part.replace(self.folder / CHECKS)
        if (run := mlflow_run(trainer, self)) is not None:
            run[0].log_image(run[1], sheet, f"canaries/{epoch:05d}_pictures.png")

    def _line(self, number: int) -> dict[str, Any]:
        check = self.checks[number]
        means = {name.removeprefix("canary/"): value for name, value in self._means(check).items()}
        return {"epoch": check.epoch, **means, "bad": self.rule.bad(self.checks[: number + 1], self._requests())}

    def state_dict(self) -> dict[str, Any]:
        """The checks so far, and why the run was stopped."""
        rows = [(check.epoch, check.reward.tolist(), check.held_out.tolist(), check.kl) for check in self.checks]
        return {"ids": self._ids, "checks": rows, "stopped": self.stopped}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._ids = list(state_dict["ids"])
        self.checks = [
            Check(epoch, torch.tensor(reward, dtype=torch.float64), torch.tensor(held_out, dtype=torch.float64), kl)
            for epoch, reward, held_out, kl in state_dict["checks"]
        ]
        self.stopped = state_dict["stopped"]
