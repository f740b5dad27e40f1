"""One update of reward RL: the official order of work and ours, on the same pictures of the embedded generator.

    python benchmarks/update.py [--groups 4] [--group-size 8] [--batch-size 8] [--levels 3] [--rounds 5] [--threads 2] [--out FILE]

The official order (the training script of RationalRewards, written here anew on the same model): for every batch of a round and every
noise level a forward of the old policy, one of the policy and one of the base model, and a backward; one optimizer step at the end. Ours
is ``RewardRLModule``. Both start with the same adapters, noise and advantages; their steps must agree, or nothing else is reported. Then
the ways take turns, ``--rounds`` times each, and medians are shown: of the update alone (sampling is the same on both sides) and of the
whole round. FLOPs and memory are counted in a run of their own.

``decay 0``: old policy and policy are the same when a round begins (type 0 of DiffusionNFT's code). ``decay .5``: they differ, as in the
paper after 500 steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rationalrewards.components.generation import FlowGenerator, Savers, policies
from rationalrewards.components.measuring import PeakBytes, flop_counter
from rationalrewards.components.objectives import NFT, kl_loss, nft_loss, optimality
from rationalrewards.components.shapes.pairs import write_prompts
from rationalrewards.components.shapes.tiny_generator import PIPELINE_KWARGS
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.datamodules import PromptDataModule
from rationalrewards.lightning_modules import RewardRLModule
from torch import Tensor

AGREE = 1e-3
"""Largest distance of two steps, relative to their length: float32 sums in other batch shapes, through a network and back."""
KL_WEIGHT, CLIP = 1e-3, 1.0
TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "to_qkv_mlp_proj",
    "to_out",
)


@dataclass
class Way:
    """One way to make an update, and what it cost."""

    name: str
    run: Callable[[], tuple[Tensor, float, float]]
    """Makes one update; gives the step, the seconds of the update and those of the round."""
    update: list[float] = field(default_factory=list)
    round: list[float] = field(default_factory=list)
    flops: float = 0.0
    memory: float = 0.0


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """A step along the gradient: an optimizer that divides by its size would hide a difference."""
    return torch.optim.SGD(parameters, lr=1.0)


def module_for(arguments: argparse.Namespace, decay: float, savers: Savers) -> RewardRLModule:
    """A module whose policy is away from the base, and from the old policy unless ``decay`` is 0."""
    generator = FlowGenerator(
        "embedded:shapes-generator",
        steps=4,
        pipeline_kwargs=dict(PIPELINE_KWARGS),
        source_size=64,
        rank=16,
        alpha=32,
        targets=TARGETS,
    )
    objective = NFT(kl_weight=KL_WEIGHT, old_decay_rate=1.0, old_decay_max=decay)
    module = RewardRLModule(
        generator, ShapesTruth(), objective=objective, optimizer=sgd, savers=savers, min_resolution=None, seed=arguments.seed
    )
    module.configure_model()
    assert module.denoiser is not None
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policies.parameters_of(module.denoiser, policies.POLICY).items():
            if "lora_B" in name:
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=noise))
    policies.sync_old(module.denoiser, decay)
    return module


def data_for(arguments: argparse.Namespace, at_once: int, levels: int) -> PromptDataModule:
    """One round of requests."""
    return PromptDataModule(
        arguments.prompts,
        groups_per_epoch=arguments.groups,
        group_size=arguments.group_size,
        batch_size=arguments.batch_size,
        visits=levels,
        visits_at_once=at_once,
        seed=arguments.seed,
    )


def weights(module: RewardRLModule) -> Tensor:
    """The policy's."""
    assert module.denoiser is not None
    return torch.cat([p.detach().flatten() for p in policies.parameters_of(module.denoiser, policies.POLICY).values()])


class Clock(Callback):
    """When the round began, when its first update did, and when it ended."""

    begun = first = ended = 0.0

    def on_train_start(self, *args: Any) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.first = self.first or time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.ended = time.perf_counter()


def ours(
    arguments: argparse.Namespace, decay: float, savers: Savers, at_once: int = 1, levels: int | None = None
) -> tuple[Tensor, float, float]:
    """A round of RewardRLModule."""
    module = module_for(arguments, decay, savers)
    before, clock, levels = weights(module), Clock(), levels or arguments.levels
    batches = arguments.groups * arguments.group_size // arguments.batch_size * levels // at_once
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=batches,
        gradient_clip_val=CLIP,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data_for(arguments, at_once, levels))
    return weights(module) - before, clock.ended - clock.first, clock.ended - clock.begun


def official(arguments: argparse.Namespace, decay: float) -> tuple[Tensor, float, float]:
    """The official order. Pictures and noise are those of our module, so that the step can be compared."""
    module = module_for(arguments, decay, Savers())
    denoiser = module.denoiser
    assert denoiser is not None
    data = data_for(arguments, 1, arguments.levels)
    data.setup("fit")
    batches = data.batches(0, 0, 1)
    begun = time.perf_counter()
    # sampling, and rewards after all of it, are the module's own, which has no trainer here to log to
    with warnings.catch_warnings(action="ignore"):
        module._roll_out([batch for batch in batches if 0 in batch.visits])
    rollout, drawn = module.last_rollout, module._round
    assert rollout is not None and drawn is not None
    parameters = list(policies.parameters_of(denoiser, policies.POLICY).values())
    before, optimizer = weights(module), sgd(parameters)
    first = time.perf_counter()
    planned = len(batches) * arguments.batch_size
    valid = int(rollout.advantages.weights.sum()) * arguments.levels
    for batch in batches:
        call, advantages = drawn.calls[batch.index], drawn.advantages(batch.index)
        noised, recording = module._noised(batch, call, list(range(len(batch))), advantages.values)
        with torch.no_grad(), policies.use(denoiser, policies.OLD):
            v_old = recording.velocity(noised.x_t, noised.sigma)
        v = recording.velocity(noised.x_t, noised.sigma)
        with torch.no_grad(), policies.use(denoiser, None):
            v_reference = recording.velocity(noised.x_t, noised.sigma)
        loss = nft_loss(v, v_old, noised.x_t, noised.x0, noised.sigma, optimality(noised.advantages), nft_beta=1.0)
        loss = loss + KL_WEIGHT * kl_loss(v, v_reference)
        ((advantages.weights * loss).sum() / planned).backward()
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.mul_(planned / valid)
    torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    optimizer.step()
    ended = time.perf_counter()
    return weights(module) - before, ended - first, ended - begun


def ways_for(arguments: argparse.Namespace, decay: float) -> list[Way]:
    """The ways to compare, the official order first."""
    plain = Savers(skip_equal_old=False, drop_unused=False, share_prefix=False)
    together = Savers(one_forward="frozen" if decay else "no")
    fewer = Savers(one_forward="frozen" if decay else "no", reference_every=2)
    levels = arguments.levels
    return [
        Way("official order", lambda: official(arguments, decay)),
        Way("ours, no savers", lambda: ours(arguments, decay, plain)),
        Way("ours, as it comes", lambda: ours(arguments, decay, Savers())),
        Way(f"ours, {levels} levels at once", lambda: ours(arguments, decay, together, levels)),
        Way("ours, one level of each picture", lambda: ours(arguments, decay, together, 1, 1)),
        Way("ours, one level, reference in every second batch", lambda: ours(arguments, decay, fewer, 1, 1)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--edits", action="store_true", help="edits instead of text-to-image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        share = 1.0 if arguments.edits else 0.0
        arguments.prompts = str(write_prompts(Path(folder), arguments.groups, 5, share, style="detailed"))
        for decay in (0.0, 0.5):
            ways = ways_for(arguments, decay)
            for way in ways:
                with PeakBytes() as memory, flop_counter() as flops:
                    step, _, _ = way.run()
                way.flops, way.memory = float(flops.get_total_flops()), memory.peak / 1e6
                if way is ways[0]:
                    expected = step
                elif "one level" not in way.name:  # the others are other estimates of the same expectation
                    apart = float((step - expected).norm() / expected.norm())
                    assert apart < AGREE, f"{way.name}: the step differs by {apart:.1e}"
            for _ in range(arguments.rounds):
                for way in ways:
                    _, update, whole = way.run()
                    way.update.append(update)
                    way.round.append(whole)
            print(
                f"\ndecay {decay:g}: {arguments.groups} groups of {arguments.group_size}, {arguments.levels} levels, batches of "
                f"{arguments.batch_size}, {arguments.threads} threads, medians of {arguments.rounds}\n"
            )
            print("| | updates/min | times official | whole rounds/min | GFLOP a round | peak MB of tensors |")
            print("|---|---:|---:|---:|---:|---:|")
            base = statistics.median(ways[0].update)
            for way in ways:
                update, whole = statistics.median(way.update), statistics.median(way.round)
                results[f"decay {decay:g}: {way.name}"] = {
                    "update_seconds": way.update,
                    "round_seconds": way.round,
                    "times_official": base / update,
                    "gflop": way.flops / 1e9,
                    "peak_mb": way.memory,
                }
                print(
                    f"| {way.name} | {60 / update:.1f} | {base / update:.2f} | {60 / whole:.1f} | {way.flops / 1e9:.2f} | "
                    f"{way.memory:.0f} |"
                )
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
