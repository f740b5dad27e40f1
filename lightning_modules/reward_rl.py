"""Reward RL: the critic's scores train the generator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from rationalrewards.components.cost_card import Work
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.generation import (
    FlowGenerator,
    PolicyVelocities,
    Recording,
    Savers,
    draw_window,
    join_steps,
    policies,
    stochastic_steps,
)
from rationalrewards.components.generation.noise import generator_for, normal, seed_for
from rationalrewards.components.memory import explain_out_of_memory
from rationalrewards.components.objectives import (
    NFT,
    NoisedBatch,
    Objective,
    Velocities,
    kl_loss,
    reference_scale,
    same_weights,
)
from rationalrewards.components.records import PromptRecord, open_pictures
from rationalrewards.components.rewards import (
    AdvantageOptions,
    PromptCurriculum,
    RepeatNoise,
    RewardModel,
    group_scores,
    repeat_sums,
)
from rationalrewards.datamodules.prompts import RolloutBatch
from torch import Tensor

from .base import LESS_AT_ONCE, RewardsModule
from .everywhere import everywhere, gather
from .resolution import check_against_witness, check_alone, correlation
from .rollout import Call, Rollout, Round

SAVERS = Savers()


class RewardRLModule(RewardsModule):
    """Trains a LoRA on any diffusers flow pipeline with scored pictures of its own.

    One epoch is one rollout round: pictures are sampled with the old policy, scored, and trained on at several noise levels; then the
    old policy follows. Use :class:`~rationalrewards.datamodules.PromptDataModule` and set ``trainer.accumulate_grad_batches`` to the
    batches per optimizer step (all of a round, in the paper).

    Args:
        generator: The generator.
        reward: What trains it.
        witness: A second reward that is only watched, never trained on.
        objective: How scores become a gradient; default :class:`~rationalrewards.components.objectives.NFT` as in the paper.
        optimizer: Optimizer, given the LoRA's parameters.
        scheduler: Learning-rate scheduler, stepped every optimizer step.
        savers: What to leave out or share in an update.
        advantages: How rewards become advantages; ``clip`` in it is the objective's ``adv_clip_max``.
        noise_groups: Groups per process and round whose pictures are scored once more, to measure the noise of one score, which shrinks
            the next rounds' advantages; 0 leaves it at ``advantages.noise``.
        background: Score the pictures of each pipeline call in the background as soon as they exist, and train on the first calls while
            later ones are being scored; the gradient is the same to the last bit. ``None`` does so where the reward is remote; ``True``
            suits a critic in this process on another device.
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
        objective: Objective | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        savers: Savers = SAVERS,
        advantages: AdvantageOptions | None = None,
        noise_groups: int = 0,
        background: bool | None = None,
        min_resolution: float | None = 0.15,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.reward = reward
        self.witness = witness
        self.objective = NFT() if objective is None else objective
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.savers = savers
        self.advantages = replace(advantages or AdvantageOptions(), clip=self.objective.adv_clip_max)
        self.noise_groups = noise_groups
        self.noise = RepeatNoise()
        self.background = background
        self._repeats: dict[str, tuple[float, float]] = {}
        self.min_resolution = min_resolution
        self.seed = seed
        self.strict_loading = False  # checkpoints hold the adapters only; on_load_checkpoint checks that none is missing
        self.denoiser: torch.nn.Module | None = None
        self.last_rollout: Rollout | None = None
        self._velocities: PolicyVelocities | None = None
        self._old_is_policy: bool | None = None  # None: to be found out
        self._round: Round | None = None
        self._planned = 0
        self._valid = 0
        self._skipped = 0
        self.work = Work()
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
        self._velocities = PolicyVelocities(self.denoiser, self.savers)
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
        """Check that the round's batches fit optimizer steps and objective, and move everything to this rank's device."""
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
        self._check_batches(plan(0, self.global_rank, self.trainer.world_size))
        self._to_device()
        if self.trainer.fit_loop.restarted_mid_epoch:  # Lightning leaves out on_train_epoch_start: sample the same round again
            self.on_train_epoch_start()

    def _check_batches(self, batches: Sequence[RolloutBatch]) -> None:
        name = type(self.objective).__name__
        group = 1 + max(copy for batch in batches for copy in batch.copies)
        size = len(batches[0])
        if self.objective.uses_pairs and size % group:
            raise ValueError(
                f"{name} compares pictures of a group, but batches of {size} hold no whole groups of {group}: set the data module's "
                f"batch_size to a multiple of group_size, e.g. {group}"
            )
        stochastic, visits = self.objective.stochastic, 1 + max(visit for batch in batches for visit in batch.visits)
        if stochastic is not None and visits != stochastic.size:
            raise ValueError(
                f"{name} trains on each of {stochastic.size} recorded steps once, but the data module's visits is {visits}: set it to "
                f"{stochastic.size}, or the objective's window_size to {visits}"
            )

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
        self._roll_out([batch for batch in batches if 0 in batch.visits])

    @torch.no_grad()
    def _roll_out(self, batches: Sequence[RolloutBatch]) -> None:
        assert self.denoiser is not None
        self.last_rollout = None
        self._old_is_policy = None
        threads = self._threads(len(batches))
        self.work += Work(texts=len({record.group for batch in batches for record in batch.records}))
        self._round = Round(self.current_epoch, self.reward, self.witness, self.advantages, self.noise.std(), threads)
        self.denoiser.eval()
        try:
            with policies.use(self.denoiser, policies.OLD):
                for batch in batches:
                    self._round.add(self._sampled(batch))
        finally:
            if threads is not None:  # they go when there is nothing left to score
                threads.shutdown(wait=False)
        self.denoiser.train()
        if threads is None or (self.min_resolution is not None and not self._checked_resolution):
            self._complete()

    def _threads(self, calls: int) -> ThreadPoolExecutor | None:
        """As many as a remote reward can have to do, or one for a model that is asked once at a time."""
        remote = self.reward.remote
        if not (remote if self.background is None else self.background):
            return None
        return ThreadPoolExecutor(2 * calls if remote else 1, thread_name_prefix="reward")

    def _sampled(self, batch: RolloutBatch) -> Call:
        """One call of the pipeline, with stochastic steps where the objective trains on them."""
        sources = open_pictures(batch.records[0], batch.records[0].sources)
        samples = list(zip(batch.records, batch.copies, strict=True))
        keys = [self._key(record, copy, "picture") for record, copy in samples]
        stochastic = self.objective.stochastic
        with ExitStack() as stack:
            scheduler = None
            if stochastic is not None:
                last = self.generator.steps - 2 if stochastic.last is None else stochastic.last
                # one window for the whole round: members of a group are to differ by what was drawn, not by when
                window = draw_window(stochastic.size, stochastic.first, last, self.seed, self.current_epoch)
                scheduler = stack.enter_context(
                    stochastic_steps(self.generator.pipe, keys, window, eta=stochastic.eta, form=stochastic.form)
                )
            recording = self.generator.record(
                [record.prompt for record in batch.records], sources, [seed_for(*key) for key in keys]
            )
        requests = [
            CritiqueRequest(record.task, record.prompt, image, sources)
            for record, image in zip(batch.records, recording.images, strict=True)
        ]
        made = len(requests)
        self.work += Work(pictures=made, critiques=made, sampling=made * len(recording.sigmas))
        return Call(samples, requests, recording, [] if scheduler is None else scheduler.recorded)

    def _complete(self) -> None:
        """When all of a round is scored: log it, and in the first one ask whether the reward tells pictures apart.

        All processes come here at the same place of the round.
        """
        assert self._round is not None
        if self.last_rollout is not None:
            return
        self.last_rollout = self._round.rollout()
        requests = [request for call in self._round.calls for request in call.requests]
        self._log_rollout(self.last_rollout)
        self._repeats = self._repeat_sums(self.last_rollout, requests) if self.noise_groups else {}
        if not self._checked_resolution and self.min_resolution is not None:
            self._check_resolution(self.last_rollout, requests, self.min_resolution)
        self._checked_resolution = True

    def _key(self, record: PromptRecord, copy: int, purpose: str, step: int = 0) -> tuple[int | str, ...]:
        return (self.seed, self.current_epoch, record.id, copy, purpose, step)

    def _repeat_sums(self, rollout: Rollout, requests: Sequence[CritiqueRequest]) -> dict[str, tuple[float, float]]:
        """How the scores of some groups differ from those of the same pictures scored again."""
        chosen = set(list(dict.fromkeys(rollout.groups))[: self.noise_groups])
        rows = [index for index, group in enumerate(rollout.groups) if group in chosen]
        self.work += Work(critiques=len(rows))
        again = self.reward.again([requests[index] for index in rows], self.current_epoch + 1)
        return repeat_sums(rollout.rewards.select(rows), again, self.advantages)

    def _log_rollout(self, rollout: Rollout) -> None:
        """Log the round's numbers over the pictures of all processes: a mean of means would weigh them unequally."""
        total = everywhere(rollout.rewards.total)
        scored = total[~total.isnan()]
        values: dict[str, Any] = {
            "train/reward": scored.mean() if len(scored) else torch.tensor(float("nan")),
            "train/reward_std": everywhere(rollout.advantages.group_std).nanmean(),
            "train/unscored_rate": 1.0 - len(scored) / len(total),
            "train/flat_groups": rollout.advantages.flat / rollout.advantages.groups,
            "train/noisy_groups": rollout.advantages.noisy / rollout.advantages.groups,
        }
        if rollout.witness is not None:
            values["train/truth"] = everywhere(rollout.witness.total).nanmean()
            if "exact" in rollout.witness.aspects:
                column = rollout.witness.aspects.index("exact")
                values["train/exact"] = everywhere(rollout.witness.values[:, column]).nanmean()
            values["train/within_group_corr"] = correlation(rollout.rewards.total, rollout.witness.total, rollout.groups)
        saved = self.generator.savings
        if calls := saved.text_runs + saved.text_reused + saved.image_runs + saved.image_reused:
            values["train/encoder_calls_saved"] = (saved.text_reused + saved.image_reused) / calls
            values["train/encoder_kept_mb"] = saved.kept_bytes / 1e6
        for name, value in values.items():
            self.log(
                name,
                float(value),
                prog_bar=name in ("train/reward", "train/truth"),
                on_step=False,
                on_epoch=True,
                sync_dist=True,
                batch_size=len(total),
            )

    def _check_resolution(self, rollout: Rollout, requests: Sequence[CritiqueRequest], least: float) -> None:
        if rollout.witness is not None:
            check_against_witness(rollout.rewards, rollout.witness, rollout.groups, least)
            return
        samples = zip(rollout.records, rollout.copies, strict=True)
        seeds = [seed_for(*self._key(record, copy, "invisible noise")) for record, copy in samples]
        self.work += Work(critiques=2 * len(requests))
        check_alone(self.reward, rollout.rewards, requests, rollout.groups, seeds, self.global_rank, least)

    # -- an update ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """The objective's loss of one micro-batch, at one or several noise levels per picture."""
        with explain_out_of_memory(f"training on {len(batch.records) * len(batch.visits)} pictures at once", LESS_AT_ONCE):
            loss = self._loss(batch)
        if self._is_last_call(batch):
            self._complete()
        return loss

    def _is_last_call(self, batch: RolloutBatch) -> bool:
        assert self._round is not None
        return batch.index == len(self._round.calls) - 1

    def _loss(self, batch: RolloutBatch) -> Tensor:
        assert self._round is not None and self._velocities is not None
        call, levels = self._round.calls[batch.index], len(batch.visits)
        advantages = self._round.advantages(batch.index)
        chosen = self.objective.choose(self._round.rewards(batch.index).total, advantages.weights, call.groups)
        # the planned count, so that every rank and micro-batch weighs the same; on_before_optimizer_step makes it the valid one
        self._planned += chosen.planned * levels
        self._valid += chosen.valid * levels
        rows, weights = chosen.rows, None
        if not self.savers.drop_unused and not self.objective.uses_pairs:
            rows, weights = list(range(len(batch))), advantages.weights.to(self.device).repeat(levels)
        if not rows:
            return self._nothing()
        noised, recording = self._noised(batch, call, rows, advantages.values)
        kl_scale = self._kl_scale(batch)
        v = self._velocities(
            recording,
            noised.x_t,
            noised.sigma,
            old=self.objective.uses_old and not self._old_velocity_is_known(),
            reference=self.objective.uses_reference or kl_scale > 0,
        )
        count = len(noised.x_t)
        self.work += Work(policy=count, frozen=count * sum(velocity is not None for velocity in (v.old, v.reference)))
        if self.objective.uses_old and v.old is None:
            v = Velocities(v.policy, v.policy.detach(), v.reference)
        policy = self.objective.policy_loss(noised, v)
        self._log_update("policy_loss", policy, weights)
        for name, value in self.objective.diagnostics(noised, v).items():
            self._log_update(name, value, weights)
        loss = policy
        if kl_scale > 0:
            assert v.reference is not None
            kl = kl_loss(v.policy, v.reference)
            self._log_update("kl", kl, weights)
            loss = policy + self.objective.kl_weight * kl_scale * kl
        return (loss if weights is None else loss[weights]).sum() / (chosen.planned * levels)

    def _log_update(self, name: str, values: Tensor, weights: Tensor | None) -> None:
        values = values.detach() if weights is None else values.detach()[weights]
        if len(values):
            self.log(f"train/{name}", values.mean(), batch_size=len(values))

    def _nothing(self) -> Tensor:
        """A loss of nothing that every process can go backward from: under DDP each parameter has to be in it."""
        assert self.denoiser is not None
        trained = policies.parameters_of(self.denoiser, policies.POLICY).values()
        return torch.stack([parameter.flatten()[0] * 0.0 for parameter in trained]).sum()

    def _kl_scale(self, batch: RolloutBatch) -> float:
        if self.objective.kl_weight == 0:
            return 0.0
        every = self.savers.reference_every
        number = batch.index + batch.visits[0] // len(batch.visits)  # every second of a call's visits, and of the calls
        return reference_scale(number, every, seed_for(self.seed, self.current_epoch, "reference") % every)

    def _old_velocity_is_known(self) -> bool:
        """Whether the old policy is the policy to the last bit; asked once per optimizer step."""
        if not self.savers.skip_equal_old:
            return False
        if self._old_is_policy is None:
            assert self.denoiser is not None
            policy, old = (policies.parameters_of(self.denoiser, name).values() for name in (policies.POLICY, policies.OLD))
            self._old_is_policy = same_weights(policy, old)
        return self._old_is_policy

    def _noised(self, batch: RolloutBatch, call: Call, rows: list[int], advantages: Tensor) -> tuple[NoisedBatch, Recording]:
        """The chosen pictures at the visits' noise levels, and the recording of as many samples."""
        halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]] if self.objective.uses_pairs else [rows]
        places = [(row, visit) for half in halves for visit in batch.visits for row in half]
        at = [row for row, _ in places]
        recording = call.recording
        if at != list(range(len(batch))):
            recording = recording.select(at)
        x0 = recording.x0
        chosen = advantages[at].to(x0)
        if call.steps:
            step = join_steps([call.steps[visit].select(rows) for visit in batch.visits])
            return NoisedBatch(x0, None, step.sigma, step.x_t, chosen, step), recording
        samples = call.samples
        # both pictures of a pair get the same noise and level
        keys = [(samples[row][0], 0 if self.objective.uses_pairs else samples[row][1], visit) for row, visit in places]
        sigma = torch.tensor([self._level(*key, recording.sigmas) for key in keys]).to(x0)
        eps = normal(x0, [self._key(record, copy, "noise", visit) for record, copy, visit in keys])
        wide = sigma.view(-1, *([1] * (x0.ndim - 1)))
        return NoisedBatch(x0, eps, sigma, (1 - wide) * x0 + wide * eps, chosen), recording

    def _level(self, record: PromptRecord, copy: int, visit: int, schedule: Sequence[float]) -> float:
        """A picture's noise level at a visit: its own permutation of the sampler's schedule, as in DiffusionNFT's code."""
        order = torch.randperm(len(schedule), generator=generator_for(*self._key(record, copy, "levels")))
        return schedule[int(order[visit % len(schedule)])]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the mean over planned samples into the mean over valid ones; skip a step that has none or is not finite."""
        counts = torch.tensor([self._planned, self._valid], dtype=torch.float64, device=self.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(counts)
        planned, valid = counts.tolist()
        self._planned = self._valid = 0
        self._old_is_policy = None
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
        decay = self.objective.old_decay(self.global_step)
        policies.sync_old(self.denoiser, decay)
        self.log("train/old_decay", decay)
        self._round = None
        self.noise.add(gather([self._repeats]))
        for name, std in self.noise.std().items():
            self.log(f"train/noise/{name}", std)
        curriculum: PromptCurriculum | None = getattr(getattr(self.trainer, "datamodule", None), "curriculum", None)
        if curriculum is not None:
            assert self.last_rollout is not None
            rollout = self.last_rollout
            scores = group_scores(rollout.rewards.total, rollout.groups, self.advantages.min_valid)
            curriculum.observe(self.current_epoch, gather(scores))

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
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:  # what is of its bill
            made, steps = len(requests), self.generator.eval_steps or self.generator.steps
            self.work += Work(held_out=made, critiques=made, sampling=made * steps)
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
            "noise": self.noise.state_dict(),
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
        self.noise.load_state_dict(stored["noise"])
        self._checked_resolution = stored["checked_resolution"]


def _fingerprint(module: torch.nn.Module) -> str:
    """12 hexadecimal digits over a model's parameter names, shapes and a sample of each parameter's values."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
