"""What each form of the advantages is worth on the shapes world, whose truth is known.

``score`` draws ``--copies`` pictures for each of ``--prompts`` held-out requests of the runs that `make quickstart` left, and has each
run's critic score them twice (the second time under noise that nobody sees). ``table`` makes groups of ``--size`` of them, turns the
critic's scores into advantages in every form, and says

- how much of the advantages' length points at the truth: ``<A, t> / (|A| |t|)`` for the true rewards ``t`` less their group means. It is
  what an optimizer that divides by the gradient's size gains per step, and 1 for the truth itself;
- the same for the true scores of each aspect, and in the quarter of the groups whose true rewards differ least.

Intervals resample requests. ``fit`` trains with each form (``configs/rl/shapes.yaml``, one run after the other) and ``gain`` shows the
truth of the pictures of the last rounds. Nothing that is there is done again.

    python benchmarks/advantages.py score --out OUT --runs quickstart seed1 seed2
    python benchmarks/advantages.py table --out OUT
    python benchmarks/advantages.py fit --out OUT --runs quickstart seed1 seed2 [--forms plain per_aspect] [--rounds 14]
    python benchmarks/advantages.py gain --out OUT
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from rationalrewards.callbacks import read_history
from rationalrewards.components.chat import TransformersChat
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.metrics import group_centred, group_index, group_sums, resampled_interval
from rationalrewards.components.records import Critique, PromptRecord, read_jsonl
from rationalrewards.components.rewards import (
    AdvantageOptions,
    CritiqueReward,
    RepeatNoise,
    Rewards,
    critique_rewards,
    joined,
    repeat_sums,
    reward_advantages,
)
from rationalrewards.components.seeds import seed_for
from rationalrewards.components.shapes.make_data import shapes_generator
from rationalrewards.components.shapes.truth import ShapesTruth
from torch import Tensor

KINDS = ("written scores", "expected scores")
FORMS: dict[str, AdvantageOptions] = {
    "plain": AdvantageOptions(),
    "floor 0.02": AdvantageOptions(floor=0.02),
    "floor 0.05": AdvantageOptions(floor=0.05),
    "ridge": AdvantageOptions(shrinkage="ridge"),
    "posterior": AdvantageOptions(shrinkage="posterior"),
    "per aspect": AdvantageOptions("per_aspect"),
    "per aspect, floor 0.05": AdvantageOptions("per_aspect", floor=0.05),
    "per aspect, posterior": AdvantageOptions("per_aspect"),
}
MEASURED = ("ridge", "posterior", "per aspect, posterior")
"""Forms that are told the noise that scoring twice has found."""

TRAINED = {
    "plain": [],
    "written": ["--model.init_args.reward.init_args.critic.init_args.expected=false"],
    "per_aspect": ["--model.init_args.advantages.mode=per_aspect"],
    "floor": ["--model.init_args.advantages.floor=0.05"],
    "posterior": ["--model.init_args.advantages.noise={noise}"],
}


def score(out: Path, run: Path, prompts: int, copies: int) -> None:
    """Pictures of a run's held-out requests, their truth, and what its critic says of them, twice."""
    path = out / f"{run.name}.pt"
    if path.is_file():
        return
    generator = shapes_generator()
    generator.load()
    truth: list[Rewards] = []
    rounds: dict[str, list[list[Rewards]]] = {name: [[], []] for name in KINDS}
    model = reward(run)
    records = [r for r in read_jsonl(run / "data" / "heldout" / "prompts.jsonl", PromptRecord) if not r.sources][:prompts]
    for number, record in enumerate(records):
        seeds = [seed_for(0, "advantages", record.id, copy) for copy in range(copies)]
        images = generator.sample([record.prompt] * copies, (), seeds)
        asked = [CritiqueRequest("t2i", record.prompt, image) for image in images]
        truth.append(bare(ShapesTruth().score(asked)))
        for turn, rewards in enumerate((model.score(asked), model.again(asked, 1))):
            assert rewards.critiques is not None
            rounds["expected scores"][turn].append(bare(rewards))
            rounds["written scores"][turn].append(bare(critique_rewards([written(one) for one in rewards.critiques])))
        print(f"{run.name}: request {number + 1} of {len(records)}", flush=True)
    found = {name: [joined(parts) for parts in both] for name, both in rounds.items()}
    torch.save({"prompts": [r.prompt for r in records], "copies": copies, "truth": joined(truth), "rewards": found}, path)


def reward(run: Path) -> CritiqueReward:
    """A run's critic, with expected scores."""
    chat = TransformersChat(str(run / "distill" / "critic"), batch_size=96)
    model = CritiqueReward(Critic(chat, CritiqueFormat("shapes"), max_tokens=320, constrained=True, expected=True))
    model.load(torch.device("cpu"))
    return model


def written(critique: Critique) -> Critique:
    """A critique as it was written, without the expected scores."""
    return replace(critique, aspects={key: replace(judged, expected=None) for key, judged in critique.aspects.items()})


def bare(rewards: Rewards) -> Rewards:
    """Without what was said."""
    return Rewards(rewards.total, rewards.aspects, rewards.values, rewards.reasons, None, rewards.weights, rewards.bounds)


def forms(found: dict[str, Any], kind: str, groups: list[str]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Advantages ``[n]`` of a run in every form, and the noise that scoring twice has found."""
    first, second = found["rewards"][kind]
    advantages, noises = {}, {}
    for name, options in FORMS.items():
        meter = RepeatNoise()
        meter.add([repeat_sums(first, second, options)])
        noise = meter.std()
        noises.update(noise)
        advantages[name] = reward_advantages(first, groups, options, noise if name in MEASURED else None).values.double()
    return advantages, noises


def centred_truth(found: dict[str, Any], kind: str, groups: list[str]) -> tuple[dict[str, Tensor], Tensor]:
    """True scores less their group means ``[n]``, of the total and of each aspect, and which are in the flattest quarter of groups.

    A picture that the critic has not scored takes no part in its group's truth either; nor do places where an aspect does not apply.
    """
    names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([names[group] for group in groups])
    scored = found["rewards"][kind][0].valid
    columns = {"total": found["truth"].total.double()}
    for number, aspect in enumerate(found["truth"].aspects):
        if aspect != "exact" and not found["truth"].values[:, number].isnan().all():
            columns[aspect] = found["truth"].values[:, number].double()
    centred = {}
    for name, values in columns.items():
        kept = scored & ~values.isnan()
        centred[name] = torch.zeros_like(values)
        centred[name][kept] = group_centred(values[kept], *group_index(index[kept]))
    spread = group_sums(centred["total"].square(), index, len(names))
    return centred, (spread <= spread.quantile(0.25))[index]


def table(out: Path, size: int) -> None:
    """Markdown."""
    runs = [torch.load(path, weights_only=False) for path in sorted(out.glob("*.pt"))]
    if not runs:
        raise SystemExit(f"{out} has no scores yet; run `score` first")
    for kind in KINDS:
        sums: dict[str, dict[str, list[Tensor]]] = {name: {} for name in FORMS}
        for found in runs:
            copies, count = found["copies"], len(found["prompts"])
            groups = [f"{request}/{copy // size}" for request in range(count) for copy in range(copies)]
            requests = torch.arange(count).repeat_interleave(copies)
            advantages, noises = forms(found, kind, groups)
            truth, flattest = centred_truth(found, kind, groups)
            print(f"noise of {kind}: {', '.join(f'{name} {value:.3f}' for name, value in noises.items())}")
            for name, values in advantages.items():
                parts = {**truth, "flattest quarter": truth["total"] * flattest}
                for part, true in parts.items():
                    used = values * flattest if part == "flattest quarter" else values * (true != 0)
                    columns = torch.stack([used * true, used.square(), true.square()], dim=1)
                    sums[name].setdefault(part, []).append(group_sums(columns, requests, count))
        others = [part for part in next(iter(sums.values())) if part != "total"]
        print(f"\n| {kind} | total | 95 % | of each run | {' | '.join(others)} |\n| {' | '.join(['---'] * (4 + len(others)))} |")
        for name, parts_of in sums.items():
            low, high = resampled_interval(torch.cat(parts_of["total"]), _towards)
            alone = ", ".join(f"{_whole(part):.3f}" for part in parts_of["total"])
            rest = " | ".join(f"{_whole(torch.cat(parts_of[part])):.3f}" for part in others)
            print(f"| {name} | {_whole(torch.cat(parts_of['total'])):.3f} | {low:.3f} to {high:.3f} | {alone} | {rest} |")
        print()


def _whole(sums: Tensor) -> float:
    return float(_towards(sums.sum(dim=0, keepdim=True)))


def _towards(sums: Tensor) -> Tensor:
    return sums[:, 0] / (sums[:, 1] * sums[:, 2]).sqrt()


def fit(out: Path, run: Path, chosen: list[str], rounds: int, noise: float) -> None:
    """Train on a run's critic in each form; a folder with a whole history is left alone."""
    config = Path(__file__).resolve().parents[1] / "configs" / "rl" / "shapes.yaml"
    for name in chosen:
        folder = out / "fit" / run.name / name
        history = folder / "rl" / "history.jsonl"
        if len(read_history(history)) >= rounds:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("data", "distill"):
            if not (folder / part).exists():
                (folder / part).symlink_to((run / part).resolve())
        options = [option.format(noise=noise) for option in TRAINED[name]]
        subprocess.run(
            [sys.executable, "-m", "rationalrewards", "fit", "-c", str(config), f"--trainer.max_epochs={rounds}", *options],
            env={**os.environ, "SHAPES_OUT": str(folder)},
            cwd=folder,
            check=True,
        )


def gain(out: Path, last: int = 3) -> None:
    """Markdown: truth of the pictures of the last rounds less that of the first, mean and standard deviation over runs."""
    gains: dict[str, list[float]] = {}
    for path in sorted((out / "fit").glob("*/*/rl/history.jsonl")):
        rows = [float(row["train/truth"]) for row in read_history(path)]
        if len(rows) > last:
            gains.setdefault(path.parents[1].name, []).append(fmean(rows[-last:]) - rows[0])
    print(f"| form | truth of the last {last} rounds less the first's | of each run |\n| --- | --- | --- |")
    for name, values in sorted(gains.items(), key=lambda item: -fmean(item[1])):
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        print(f"| {name} | {fmean(values):+.3f}{spread} | {', '.join(f'{value:+.3f}' for value in values)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("score", "table", "fit", "gain"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("quickstart")], help="folders that `make quickstart` left")
    parser.add_argument("--prompts", type=int, default=48, help="requests of each run")
    parser.add_argument("--copies", type=int, default=16, help="pictures of each request")
    parser.add_argument("--size", type=int, default=8, help="pictures of a group")
    parser.add_argument("--forms", nargs="+", choices=tuple(TRAINED), default=list(TRAINED), help="what to train with")
    parser.add_argument("--rounds", type=int, default=14, help="rounds of training")
    parser.add_argument("--noise", type=float, default=0.03, help="noise of a total that `posterior` is trained with")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    match arguments.verb:
        case "score":
            for run in arguments.runs:
                score(arguments.out, run, arguments.prompts, arguments.copies)
        case "table":
            table(arguments.out, arguments.size)
        case "fit":
            for run in arguments.runs:
                fit(arguments.out, run, arguments.forms, arguments.rounds, arguments.noise)
        case "gain":
            gain(arguments.out)


if __name__ == "__main__":
    main()
