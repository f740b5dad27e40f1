"""Reward RL: the critic's scores train the generator (DiffusionNFT, arXiv 2509.16117)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from PIL import Image
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.generation import FlowGenerator, Recording, policies
from rationalrewards.components.generation.noise import generator_for, normal, seed_for
from rationalrewards.components.memory import explain_out_of_memory
from rationalrewards.components.objectives import kl_loss, nft_loss, old_policy_decay, optimality
from rationalrewards.components.records import PromptRecord, open_pictures
from rationalrewards.components.rewards import (
    Advantages,
    RewardModel,
    Rewards,
    group_advantages,
    within_group_correlation,
)
from rationalrewards.datamodules.prompts import RolloutBatch
from torch import Tensor

from .base import LESS_AT_ONCE, RewardsModule

log = logging.getLogger(__name__)

T = TypeVar("T")


class NoResolutionError(RuntimeError):
    """A reward that cannot tell the pictures of one request apart; training on it would be training on noise."""


@dataclass
class Rollout:
    """One round of this rank: what was made, how it was scored, what it is worth."""

    epoch: int
    records: list[PromptRecord]
    copies: list[int]
    groups: list[str]
    images: list[Image.Image]
    rewards: Rewards
    witness: Rewards | None
    advantages: Advantages

    @property
    def prompts(self) -> list[str]:
        """The request of every picture."""
        return [record.prompt for record in self.records]


@dataclass
class _Entry:
    recording: Recording
    start: int
    stop: int


class RewardRLModule(RewardsModule):
    """Trains a LoRA on any diffusers flow pipeline with DiffusionNFT.

    One epoch is one rollout round: pictures are sampled with the old policy, scored, and trained on at several noise levels;
    then ``old <- decay * old + (1 - decay) * policy``. Use :class:`~rationalrewards.datamodules.PromptDataModule` and set
    ``trainer.accumulate_grad_batches`` to the batches per optimizer step (all of a round, in the paper).

    Args:
        generator: The generator.
        reward: What trains it.
        witness: A second reward that is only watched, never trained on.
        optimizer: Optimizer, given the LoRA's parameters.
        scheduler: Learning-rate scheduler, stepped every optimizer step.
        nft_beta: Mixing weight of the implicit policies; not the KL weight.
        kl_weight: Weight of the distance to the base model.
        adv_clip_max: Largest advantage, and scale of the policy loss.
        old_decay_rate: The old policy's decay grows by this per optimizer step ...
        old_decay_max: ... up to this.
        train_flat_groups: Keep groups whose members all scored the same (only the KL term acts on them).
        min_valid: Fewest scored members of a group that gives a signal; default half of it.
        min_resolution: Smallest within-group correlation of reward and witness in the first round, where there is a witness;
            without one, matched requests must score above shuffled ones by two standard errors, and the within-group correlation of
            the scores with those of the same pictures under invisible noise must be as large. ``None`` trains on anything.
        seed: Seed of all noise.
    """

    def __init__(
        self,
        generator: FlowGenerator,
        reward: RewardModel,
        witness: RewardModel | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        nft_beta: float = 1.0,
        kl_weight: float = 1e-4,
        adv_clip_max: float = 5.0,
        old_decay_rate: float = 0.001,
        old_decay_max: float = 0.5,
        train_flat_groups: bool = False,
        min_valid: int | None = None,
        min_resolution: float | None = 0.15,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.reward = reward
        self.witness = witness
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.nft_beta = nft_beta
        self.kl_weight = kl_weight
        self.adv_clip_max = adv_clip_max
        self.old_decay_rate = old_decay_rate
        self.old_decay_max = old_decay_max
        self.train_flat_groups = train_flat_groups
        self.min_valid = min_valid
        self.min_resolution = min_resolution
        self.seed = seed
        self.strict_loading = False  # checkpoints hold the adapters only; on_load_checkpoint checks that none is missing
        self.denoiser: torch.nn.Module | None = None
        self.last_rollout: Rollout | None = None
        self._buffer: dict[int, _Entry] = {}
        self._planned = 0
        self._valid = 0
        self._skipped = 0
        self._checked_resolution = False
        self._base = ""

    # -- set-up ----------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the pipeline, add the policies; only the denoiser becomes part of this module.

        Raises:
            ValueError: Under a strategy that splits weights or keeps them in its own form, which the policies' exchange does not know.
        """
        if self.denoiser is not None:
            return
        strategy = None if self._trainer is None else self.trainer.strategy
        if isinstance(strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
            raise ValueError(
                f"RewardRLModule trains on one device or, as every process holds the whole LoRA, with DDP; {type(strategy).__name__} is "
                "not supported: use -c configs/trainer/ddp.yaml"
            )
        self.generator.load()
        self._base = _fingerprint(self.generator.denoiser)
        self.generator.prepare_training(self.seed)
        self.denoiser = self.generator.denoiser
        self.denoiser.train()
        self.reward.load()
        if self.witness is not None:
            self.witness.load()

    def configure_optimizers(self) -> Any:
        """The given optimizer over the trained adapter only."""
        assert self.denoiser is not None
        optimizer = self.optimizer(list(policies.parameters_of(self.denoiser, policies.POLICY).values()))
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def on_train_start(self) -> None:
        """Check that optimizer steps end with the round, and move everything to this rank's device."""
        plan = getattr(getattr(self.trainer.train_dataloader, "sampler", None), "plan", None)
        if plan is None:
            raise ValueError("RewardRLModule needs batches in rounds: use rationalrewards.datamodules.PromptDataModule")
        batches = len(self.trainer.train_dataloader)  # type: ignore[arg-type]
        accumulate = self.trainer.accumulate_grad_batches
        if batches % accumulate:
            legal = min((n for n in range(1, batches + 1) if batches % n == 0), key=lambda n: abs(n - accumulate))
            raise ValueError(
                f"a round has {batches} batches, which accumulate_grad_batches {accumulate} does not divide; nearest legal: {legal}"
            )
        self._to_device()
        if self.trainer.fit_loop.restarted_mid_epoch:  # Lightning leaves out on_train_epoch_start: sample the same round again
            self.on_train_epoch_start()

    def on_validation_start(self) -> None:
        """Move everything to this rank's device."""
        self._to_device()

    def _to_device(self) -> None:
        self.generator.load(self.device)
        for model in (self.reward, self.witness):
            if model is not None:
                model.load(self.device)

    # -- one round ------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Sample, score, compare."""
        plan = self.trainer.train_dataloader.sampler.plan  # type: ignore[union-attr]
        batches: list[RolloutBatch] = list(plan(self.current_epoch, self.global_rank, self.trainer.world_size))
        self._roll_out([batch for batch in batches if batch.visit == 0])

    @torch.no_grad()
    def _roll_out(self, batches: Sequence[RolloutBatch]) -> None:
        assert self.denoiser is not None
        self._buffer = {}
        records: list[PromptRecord] = []
        copies: list[int] = []
        images: list[Image.Image] = []
        requests: list[CritiqueRequest] = []
        self.denoiser.eval()
        with policies.use(self.denoiser, policies.OLD):
            for batch in batches:
                sources = open_pictures(batch.records[0], batch.records[0].sources)
                keys = [self._key(record, copy, "picture") for record, copy in self._samples(batch)]
                recording = self.generator.record(
                    [record.prompt for record in batch.records], sources, [seed_for(*key) for key in keys]
                )
                self._buffer[batch.index] = _Entry(recording, len(records), len(records) + len(keys))
                records += batch.records
                copies += batch.copies
                images += recording.images
                requests += [
                    CritiqueRequest(record.task, record.prompt, image, sources)
                    for record, image in zip(batch.records, recording.images, strict=True)
                ]
        self.denoiser.train()
        groups = [record.group for record in records]
        rewards = self.reward.score(requests)
        witness = self.witness.score(requests) if self.witness is not None else None
        advantages = group_advantages(
            rewards.total,
            groups,
            min_valid=self.min_valid,
            train_flat_groups=self.train_flat_groups,
            clip=self.adv_clip_max,
        )
        self.last_rollout = Rollout(self.current_epoch, records, copies, groups, images, rewards, witness, advantages)
        self._log_rollout(self.last_rollout)
        if not self._checked_resolution and self.min_resolution is not None:
            self._check_resolution(self.last_rollout, requests)
        self._checked_resolution = True

    def _samples(self, batch: RolloutBatch) -> list[tuple[PromptRecord, int]]:
        return list(zip(batch.records, batch.copies, strict=True))

    def _key(self, record: PromptRecord, copy: int, purpose: str, step: int = 0) -> tuple[int | str, ...]:
        return (self.seed, self.current_epoch, record.id, copy, purpose, step)

    def _log_rollout(self, rollout: Rollout) -> None:
        """Log the round's numbers over the pictures of all processes: a mean of means would weigh them unequally."""
        total = _everywhere(rollout.rewards.total)
        scored = total[~total.isnan()]
        values: dict[str, Any] = {
            "train/reward": scored.mean() if len(scored) else torch.tensor(float("nan")),
            "train/reward_std": _everywhere(rollout.advantages.group_std).nanmean(),
            "train/unscored_rate": 1.0 - len(scored) / len(total),
            "train/flat_groups": rollout.advantages.flat / rollout.advantages.groups,
        }
        if rollout.witness is not None:
            values["train/truth"] = _everywhere(rollout.witness.total).nanmean()
            if "exact" in rollout.witness.aspects:
                column = rollout.witness.aspects.index("exact")
                values["train/exact"] = _everywhere(rollout.witness.values[:, column]).nanmean()
            values["train/within_group_corr"] = self._correlation(rollout)
        for name, value in values.items():
            self.log(
                name,
                float(value),
                prog_bar=name in ("train/reward", "train/truth"),
                sync_dist=True,
                batch_size=len(total),
            )

    def _correlation(self, rollout: Rollout) -> float:
        """Within-group correlation of reward and witness over all processes."""
        assert rollout.witness is not None
        first, second = _everywhere(rollout.rewards.total), _everywhere(rollout.witness.total)
        return within_group_correlation(first, second, _gather(rollout.groups))

    def _check_resolution(self, rollout: Rollout, requests: Sequence[CritiqueRequest]) -> None:
        """Refuse a reward that is noise inside groups: all processes decide alike, on the pictures of all."""
        assert self.min_resolution is not None
        if rollout.witness is not None:
            found = self._correlation(rollout)
            if not found >= self.min_resolution:
                raise NoResolutionError(
                    f"the reward's within-group correlation with the witness is {found:.2f}, below min_resolution "
                    f"{self.min_resolution:g}: it cannot tell the pictures of one request apart, and training on it would train on "
                    "noise. Train a better critic, or set min_resolution: null to go on all the same"
                )
            return
        prompts = _gather(rollout.prompts)
        start = self.global_rank * len(requests) + len(prompts) // 2
        shifted = [
            CritiqueRequest(r.task, prompts[(start + index) % len(prompts)], r.image, r.sources)
            for index, r in enumerate(requests)
        ]
        gap = _everywhere(rollout.rewards.total - self.reward.score(shifted).total)
        gap = gap[~gap.isnan()]
        if len(gap) < 2 or float(gap.mean()) <= 2.0 * float(gap.std()) / len(gap) ** 0.5:
            raise NoResolutionError(
                f"pictures score no higher for their own request than for another one (gap {float(gap.mean()) if len(gap) else 0:.3f}, "
                f"{len(gap)} scored): the reward does not read the request. Check the critic's rubric and weights, or set "
                "min_resolution: null to go on all the same"
            )
        noisy = [
            replace(request, image=with_invisible_noise(request.image, seed_for(*self._key(record, copy, "invisible noise"))))
            for request, record, copy in zip(requests, rollout.records, rollout.copies, strict=True)
        ]
        steady = within_group_correlation(
            _everywhere(rollout.rewards.total), _everywhere(self.reward.score(noisy).total), _gather(rollout.groups)
        )
        if not steady >= self.min_resolution:
            raise NoResolutionError(
                f"within groups, the scores correlate by {steady:.2f} with those of the same pictures under noise that nobody sees, below "
                f"min_resolution {self.min_resolution:g}: they rank the pictures of one request by chance. Train a better critic, or set "
                "min_resolution: null to go on all the same"
            )

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """DiffusionNFT on one micro-batch at one noise level per picture."""
        with explain_out_of_memory(f"training on {len(batch.records)} pictures at once", LESS_AT_ONCE):
            return self._nft_step(batch)

    def _nft_step(self, batch: RolloutBatch) -> Tensor:
        entry, rollout = self._buffer[batch.index], self.last_rollout
        assert rollout is not None and self.denoiser is not None
        recording = entry.recording
        samples = self._samples(batch)
        x0 = recording.x0
        sigma = self._sigmas(samples, batch.visit, recording.sigmas).to(x0)
        noise = normal(x0, [self._key(record, copy, "noise", batch.visit) for record, copy in samples])
        shaped = sigma.view(-1, *([1] * (x0.ndim - 1)))
        x_t = (1 - shaped) * x0 + shaped * noise
        advantages = rollout.advantages.values[entry.start : entry.stop].to(x0)
        weights = rollout.advantages.weights[entry.start : entry.stop].to(x0)
        v = recording.velocity(x_t, sigma)
        with torch.no_grad(), policies.use(self.denoiser, policies.OLD):
            v_old = recording.velocity(x_t, sigma)
        r = optimality(advantages, self.adv_clip_max)
        policy = nft_loss(v, v_old, x_t, x0, sigma, r, nft_beta=self.nft_beta, adv_clip_max=self.adv_clip_max)
        loss = policy
        if self.kl_weight > 0:
            with torch.no_grad(), policies.use(self.denoiser, None):
                v_reference = recording.velocity(x_t, sigma)
            kl = kl_loss(v, v_reference)
            loss = policy + self.kl_weight * kl
            self.log("train/kl", kl.mean().detach(), batch_size=len(samples))
        self.log("train/policy_loss", policy.mean().detach(), batch_size=len(samples))
        # the planned count, so that every rank and micro-batch weighs the same; on_before_optimizer_step makes it the valid one
        self._planned += len(samples)
        self._valid += int(weights.sum())
        return (weights * loss).sum() / len(samples)

    def _sigmas(self, samples: Sequence[tuple[PromptRecord, int]], visit: int, schedule: Sequence[float]) -> Tensor:
        """Each picture's noise level at a visit: its own permutation of the sampler's schedule, as in DiffusionNFT's code."""
        levels = torch.tensor(schedule)
        chosen = []
        for record, copy in samples:
            order = torch.randperm(len(levels), generator=generator_for(*self._key(record, copy, "levels")))
            chosen.append(levels[order[visit % len(levels)]])
        return torch.stack(chosen)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the mean over planned samples into the mean over valid ones; skip a step that has none or is not finite."""
        counts = torch.tensor([self._planned, self._valid], dtype=torch.float64, device=self.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(counts)
        planned, valid = counts.tolist()
        self._planned = self._valid = 0
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None)
        for parameter in parameters:
            if valid == 0 or not finite:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.mul_(planned / valid)
        self._skipped += int(valid == 0 or not finite)
        self.log("train/skipped_steps", float(self._skipped))

    def on_train_epoch_end(self) -> None:
        """Let the old policy follow."""
        assert self.denoiser is not None
        decay = old_policy_decay(self.global_step, self.old_decay_rate, self.old_decay_max)
        policies.sync_old(self.denoiser, decay)
        self.log("train/old_decay", decay)
        self._buffer = {}

    # -- validation -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validation_step(self, batch: Sequence[PromptRecord], batch_idx: int) -> None:
        """Sample fixed requests from fixed noise with the trained policy, and score them."""
        requests = []
        calls: dict[tuple[str, ...], list[PromptRecord]] = {}
        for record in batch:
            calls.setdefault(record.sources, []).append(record)
        for sources, records in calls.items():
            pictures = open_pictures(records[0], sources)
            seeds = [seed_for(self.seed, "validation", record.id) for record in records]
            images = self.generator.sample([record.prompt for record in records], pictures, seeds)
            requests += [CritiqueRequest(r.task, r.prompt, image, pictures) for r, image in zip(records, images, strict=True)]
        for name, model in (("reward", self.reward), ("truth", self.witness)):
            if model is None:
                continue
            rewards = model.score(requests)
            scored = rewards.total[rewards.valid]
            if len(scored):
                self.log(f"val/{name}", float(scored.mean()), batch_size=len(scored), sync_dist=True, prog_bar=True)
            self.log(f"val/{name}_unscored_rate", 1 - len(scored) / len(requests), batch_size=len(requests), sync_dist=True)

    # -- checkpoints ----------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapters only: the base is named by path and hash."""
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if ".lora_" in key}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the base, and what else a resume needs."""
        checkpoint["reward_rl"] = {
            "base": self.generator.path,
            "base_hash": self._base,
            "skipped": self._skipped,
            "checked_resolution": self._checked_resolution,
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse another base, or a checkpoint that lacks an adapter's weights."""
        stored = checkpoint.get("reward_rl")
        if stored is None:
            raise ValueError("this is no checkpoint of RewardRLModule: it names no base model")
        self.configure_model()
        if stored["base_hash"] != self._base:
            raise ValueError(
                f"the checkpoint was trained on {stored['base']} ({stored['base_hash']}), but {self.generator.path} has other weights "
                f"({self._base}); give the same base"
            )
        missing = [name for name in self.state_dict() if name not in checkpoint["state_dict"]]
        if missing:
            raise ValueError(f"the checkpoint lacks {len(missing)} adapter weights, first {missing[0]!r}; other LoRA settings?")
        self._skipped = stored["skipped"]
        self._checked_resolution = stored["checked_resolution"]


def with_invisible_noise(image: Image.Image, seed: int) -> Image.Image:
    """The picture with every value moved by at most 2 of 255."""
    noise = np.random.default_rng(seed).integers(-2, 3, size=(image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image.convert("RGB")).astype(int) + noise, 0, 255).astype(np.uint8))


def _gather(values: list[T]) -> list[T]:
    """Every process's values, in the order of the processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return values
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, values)
    return [value for part in gathered for value in part]


def _everywhere(values: Tensor) -> Tensor:
    """One tensor of every process's ``[n]``."""
    return torch.tensor(_gather(values.tolist()))


def _fingerprint(module: torch.nn.Module) -> str:
    """12 hexadecimal digits over a model's parameter names, shapes and a sample of each parameter's values."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
