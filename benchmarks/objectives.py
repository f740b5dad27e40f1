"""NFT, AWM, DPO, Flow-GRPO and GRPO-Guard on the shapes world: the trained critic is the reward, the truth is the judge.

    python benchmarks/objectives.py run --out OUT --critics CRITIC42 CRITIC1 CRITIC2 --seeds 42 1 2     # hours: about 4 minutes a run
    python benchmarks/objectives.py table --out OUT
    python benchmarks/objectives.py plot --out OUT --to docs/img/objectives.png

CRITIC is a folder that ``make quickstart`` leaves in ``quickstart/distill/critic``, one for each seed. A run trains on text-to-image or on
edits with one objective, its rounds, pictures and noise being the same for all, and after every second round the truth judges pictures of
held-out requests from fixed noise. Cost is counted in FLOPs of the generator, sampling included: ``table`` compares at equal pictures and
at equal FLOPs. Learning rates are given per objective (``--rates``); the defaults are the best of a sweep over 1e-4, 3e-4 and 1e-3 with
seed 7, which ``sweep`` does. Results are appended to OUT/results.jsonl; what is there is not done again.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rationalrewards.components.chat import TransformersChat
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.generation import FlowGenerator
from rationalrewards.components.measuring import flop_counter
from rationalrewards.components.objectives import AWM, DPO, NFT, FlowGRPO, Objective
from rationalrewards.components.rewards import CritiqueReward
from rationalrewards.components.shapes.pairs import write_prompts
from rationalrewards.components.shapes.tiny_generator import PIPELINE_KWARGS, SOURCE_SIZE
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.datamodules import PromptDataModule
from rationalrewards.lightning_modules import RewardRLModule

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
SAMPLING_STEPS, GROUPS, GROUP_SIZE, VISITS = 4, 12, 8, 3
DECAY = {"old_decay_rate": 0.02, "old_decay_max": 0.7}
TASKS = ("t2i", "edit")
HELD_OUT = 96

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "NFT": lambda: NFT(kl_weight=1e-3, **DECAY),
    "NFT, one level": lambda: NFT(kl_weight=1e-3, **DECAY),
    "AWM": lambda: AWM(kl_weight=1e-3, **DECAY),
    "DPO": lambda: DPO(dpo_beta=100.0),
    "Flow-GRPO": lambda: FlowGRPO(clip_range=1e-3, window_size=2, eta=0.8, form="cps", kl_weight=1e-3),
    "GRPO-Guard": lambda: FlowGRPO(clip_range=1e-3, guard=True, window_size=2, window_first=1, eta=0.7, kl_weight=1e-3),
}
LEVELS = {"NFT, one level": 1, "Flow-GRPO": 2, "GRPO-Guard": 2}
RATES = dict.fromkeys(OBJECTIVES, 3e-4)


class Watch(Callback):
    """FLOPs of the updates so far, and what the truth said of held-out pictures after which of them."""

    def __init__(self, sampling: float) -> None:
        self.sampling = sampling
        self.flops = 0.0
        self.points: list[dict[str, float]] = []
        self._counter: Any = None

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.flops += self.sampling

    def on_train_batch_start(self, *args: Any) -> None:
        self._counter = flop_counter()
        self._counter.__enter__()

    def on_train_batch_end(self, *args: Any) -> None:
        self._counter.__exit__(None, None, None)
        self.flops += float(self._counter.get_total_flops())

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rounds = 0 if trainer.state.fn == "validate" else trainer.current_epoch + 1
        self.points.append(
            {"rounds": rounds, "gflop": self.flops / 1e9, "truth": numbers["val/truth"], "reward": numbers["val/reward"]}
        )


def train(arguments: argparse.Namespace, critic: str, seed: int, task: str, name: str, rate: float) -> list[dict[str, float]]:
    """One run; gives its points."""
    folder = arguments.out / f"seed{seed}" / task
    share = 1.0 if task == "edit" else 0.0
    files = [
        write_prompts(folder / part, count, 10 * seed + number, share, style="detailed")
        if not (folder / part / "prompts.jsonl").is_file()
        else folder / part / "prompts.jsonl"
        for number, (part, count) in enumerate((("train", 4 * GROUPS), ("val", HELD_OUT)))
    ]
    generator = FlowGenerator(
        "embedded:shapes-generator",
        steps=SAMPLING_STEPS,
        eval_steps=8,
        pipeline_kwargs=dict(PIPELINE_KWARGS),
        source_size=SOURCE_SIZE,
        rank=16,
        alpha=32,
        targets=TARGETS,
    )
    chat = TransformersChat(critic, batch_size=96)
    module = RewardRLModule(
        generator,
        CritiqueReward(Critic(chat, CritiqueFormat("shapes"), max_tokens=320, constrained=True)),
        witness=ShapesTruth(),
        objective=OBJECTIVES[name](),
        optimizer=functools.partial(torch.optim.AdamW, lr=rate, weight_decay=1e-4),
        min_resolution=None,
        seed=seed,
    )
    levels = LEVELS.get(name, VISITS)
    size = GROUP_SIZE if task == "edit" else GROUPS * GROUP_SIZE
    data = PromptDataModule(
        str(files[0]),
        val=str(files[1]),
        groups_per_epoch=GROUPS,
        group_size=GROUP_SIZE,
        batch_size=size,
        visits=levels,
        eval_batch_size=HELD_OUT,
        seed=seed,
    )
    module.configure_model()
    with flop_counter() as counter:
        generator.sample(["a red circle"], [], [0])
    # one sampling pass of every picture; evaluation has twice the training's steps
    watch = Watch(counter.get_total_flops() * SAMPLING_STEPS / 8 * GROUPS * GROUP_SIZE)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=arguments.rounds,
        accumulate_grad_batches=GROUPS * GROUP_SIZE // size * levels,
        gradient_clip_val=1.0,
        check_val_every_n_epoch=2,
        num_sanity_val_steps=0,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    return watch.points


def results(out: Path) -> list[dict[str, Any]]:
    """Runs so far."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run(arguments: argparse.Namespace, jobs: Sequence[tuple[str, int, str, str, float]]) -> None:
    """Do what has no result yet."""
    for critic, seed, task, name, rate in jobs:
        key = {"seed": seed, "task": task, "objective": name, "rate": rate, "rounds": arguments.rounds}
        if any(all(row[part] == value for part, value in key.items()) for row in results(arguments.out)):
            continue
        row = {**key, "points": train(arguments, critic, seed, task, name, rate)}
        with (arguments.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({**key, "truth": [round(point["truth"], 3) for point in row["points"]]}), flush=True)


def at_flops(points: Sequence[dict[str, float]], gflop: float) -> float:
    """Truth at a cost, by interpolation; the last value where a run was cheaper."""
    for low, high in pairwise(points):
        if low["gflop"] <= gflop <= high["gflop"]:
            share = (gflop - low["gflop"]) / (high["gflop"] - low["gflop"])
            return low["truth"] + share * (high["truth"] - low["truth"])
    return points[-1]["truth"]


def best_rates(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The learning rate of each objective that led furthest in the sweep, over both tasks."""
    found = {}
    for name in OBJECTIVES:
        ends: dict[float, list[float]] = {}
        for row in rows:
            if row["objective"] == name and row["seed"] == SWEEP_SEED:
                ends.setdefault(row["rate"], []).append(row["points"][-1]["truth"])
        if ends:
            found[name] = max(ends, key=lambda rate: fmean(ends[rate]))
    return found


SWEEP_SEED = 7


def table(out: Path) -> None:
    """Markdown: gain in truth at equal pictures and at equal FLOPs, each seed, by task."""
    rows = [row for row in results(out) if row["seed"] != SWEEP_SEED]
    for task in TASKS:
        own = [row for row in rows if row["task"] == task]
        if not own:
            continue
        budget = min(row["points"][-1]["gflop"] for row in own if row["objective"] == "NFT")
        print(f"\n{task}: truth of held-out requests before {fmean(row['points'][0]['truth'] for row in own):.3f}\n")
        print(
            f"| objective | rate | TFLOP of a run | truth after {own[0]['rounds']} rounds | truth at {budget / 1e3:.1f} TFLOP |"
        )
        print("|---|---:|---:|---:|---:|")
        for name in OBJECTIVES:
            mine = [row for row in own if row["objective"] == name]
            if not mine:
                continue
            ends = ", ".join(f"{row['points'][-1]['truth']:.3f}" for row in mine)
            equal = ", ".join(f"{at_flops(row['points'], budget):.3f}" for row in mine)
            cost = fmean(row["points"][-1]["gflop"] for row in mine) / 1e3
            print(f"| {name} | {mine[0]['rate']:g} | {cost:.2f} | {ends} | {equal} |")


def plot(out: Path, to: Path) -> None:
    """Truth against pictures and against FLOPs, mean of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in results(out) if row["seed"] != SWEEP_SEED]
    figure, axes = plt.subplots(len(TASKS), 2, figsize=(10, 7), sharey="row", squeeze=False)
    for line, task in zip(axes, TASKS, strict=True):
        for name in OBJECTIVES:
            mine = [row["points"] for row in rows if (row["task"], row["objective"]) == (task, name)]
            if not mine:
                continue
            truth = [fmean(point["truth"] for point in points) for points in zip(*mine, strict=True)]
            line[0].plot([point["rounds"] * GROUPS * GROUP_SIZE for point in mine[0]], truth, marker=".", label=name)
            line[1].plot([fmean(p["gflop"] for p in points) / 1e3 for points in zip(*mine, strict=True)], truth, marker=".")
        line[0].set(xlabel="pictures", ylabel=f"{task}: truth, held out")
        line[1].set(xlabel="TFLOP of the generator")
        for axis in line:
            axis.grid(alpha=0.3)
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(to, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("sweep", "run", "table", "plot"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--critics", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--rates", type=json.loads, default={}, help='learning rates as JSON, e.g. {"DPO": 1e-4}')
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--to", type=Path, default=Path("objectives.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = [(task, name) for task in arguments.tasks for name in arguments.objectives]
    match arguments.verb:
        case "sweep":
            sweep = [(arguments.critics[0], SWEEP_SEED, task, name, rate) for task, name in chosen for rate in (1e-4, 3e-4, 1e-3)]
            run(arguments, sweep)
            print(json.dumps(best_rates(results(arguments.out))))
        case "run":
            rates = {**RATES, **best_rates(results(arguments.out)), **arguments.rates}
            pairs = zip(arguments.critics, arguments.seeds, strict=True)
            run(arguments, [(critic, seed, task, name, rates[name]) for critic, seed in pairs for task, name in chosen])
        case "table":
            table(arguments.out)
        case "plot":
            plot(arguments.out, arguments.to)


if __name__ == "__main__":
    main()
