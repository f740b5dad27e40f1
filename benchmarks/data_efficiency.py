"""How many preference pairs is a rationale worth? A critic against Bradley-Terry heads on the same base and pairs of the shapes world.

Of a pool of pairs with human-like labels the first 125, 250 … 8,000 are used. ``critic``: PARROT writes rationales for them (with the
simulated teacher of ``configs/rationalize/shapes.yaml``), and a student is distilled on what is kept. ``Bradley-Terry``: a scalar head
learns the same labels. ``Bradley-Terry, five votes``: it learns the share of five people who prefer the picture, more than the others are
told. All start from the same base, take the same number of optimizer steps of 16 rows or pairs, and keep the best of their validations on
128 further pairs with human-like labels. Judged on held-out pairs by the truth.

    python benchmarks/data_efficiency.py data --out OUT --seeds 42 1 2
    python benchmarks/data_efficiency.py run --out OUT --seeds 42 1 2     # hours: 2 to 8 minutes a model on one core
    python benchmarks/data_efficiency.py table --out OUT
    python benchmarks/data_efficiency.py plot --out OUT --to docs/img/data_efficiency.png

Results are appended to OUT/results.jsonl; what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.parrot import Ledger, ParrotOptions, ScreenOptions, rationalize, write_rationales
from rationalrewards.components.records import Preference, Rationale, read_jsonl, write_jsonl
from rationalrewards.components.seeds import seed_for
from rationalrewards.components.shapes.make_data import shapes_generator
from rationalrewards.components.shapes.pairs import human_label, write_preferences
from rationalrewards.components.shapes.teacher import ShapesTeacher
from rationalrewards.components.shapes.truth import true_difference

SIZES = (125, 250, 500, 1000, 2000, 4000, 8000)
ARMS = ("critic", "Bradley-Terry", "Bradley-Terry, five votes")
LABEL_NOISE, TIE = 0.04, 0.03  # the defaults of write_preferences


def data(out: Path, seed: int, pool: int, validation: int, test: int) -> None:
    """Pool, validation and test pairs of a seed, votes and rationales for the pool."""
    folder = out / f"seed{seed}"
    if (folder / "rationales.jsonl").is_file():
        return
    generator = shapes_generator()
    generator.load()
    drawn: dict[str, Any] = {"generated_share": 0.25, "changes": (0, 1, 2, 3, 4), "letter_rate": 0.6}  # as in make_data
    write_preferences(folder / "pool", pool, 10 * seed + 1, generator, **drawn)
    write_preferences(folder / "val", validation, 10 * seed + 5, generator, **drawn)
    write_preferences(folder / "test", test, 10 * seed + 2, generator, label_noise=0.0)
    pairs = read_jsonl(folder / "pool" / "preferences.jsonl", Preference)
    rng = random.Random(seed_for(seed, "votes"))
    voted = []
    for pair in pairs:
        difference = true_difference(pair)
        votes = [human_label(difference, rng, LABEL_NOISE, TIE) for _ in range(5)]
        voted.append(replace(pair, label=fmean(votes)))
    write_jsonl(folder / "votes.jsonl", voted)
    teacher = ShapesTeacher(hallucination=0.1, obedience=0.7, vagueness=0.05, label_echo=0.03, position_bias=0.05, seed=seed)
    options = ParrotOptions(control_share=0.0, audit_share=0.0, seed=seed, screen=ScreenOptions(min_contrast=0.0))
    with Ledger() as ledger:
        for start in range(0, len(pairs), 200):
            rationalize(pairs[start : start + 200], teacher, CritiqueFormat("shapes"), options, ledger)
        write_rationales(ledger, folder / "rationales.jsonl")


def run(out: Path, seeds: Sequence[int], sizes: Sequence[int], arms: Sequence[str], steps: int) -> None:
    """Train and judge every model that has no result yet; small sets first, so that all seeds have a curve early."""
    done = {(row["seed"], row["arm"], row["pairs"], row["steps"]) for row in results(out)}
    for seed in seeds:
        for size in sizes:
            for arm in arms:
                if (seed, arm, size, steps) in done:
                    continue
                with tempfile.TemporaryDirectory(dir=out) as scratch:
                    row = trained(out / f"seed{seed}", Path(scratch), seed, size, arm, steps)
                row = {"seed": seed, "arm": arm, "pairs": size, "steps": steps, **row}
                with (out / "results.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


def trained(folder: Path, scratch: Path, seed: int, size: int, arm: str, steps: int) -> dict[str, Any]:
    """Train one model and judge it."""
    first = read_jsonl(folder / "pool" / "preferences.jsonl", Preference)[:size]
    model = scratch / "model"
    exporter = {
        "class_path": "rationalrewards.callbacks.CriticExport",
        "init_args": {"output_dir": str(model), "monitor": "val/pair_accuracy"},
    }
    fit = [f"--trainer.max_steps={steps}", f"--trainer.callbacks={json.dumps([exporter])}", f"--data.init_args.seed={seed}"]
    fit += [f"--trainer.val_check_interval={steps // 4}", "--trainer.check_val_every_n_epoch=null"]
    fit += ["--trainer.num_sanity_val_steps=0"]
    validation = folder / "val" / "preferences.jsonl"
    rows = size
    if arm == "critic":
        ids = {pair.id for pair in first}
        kept = [rationale for rationale in read_jsonl(folder / "rationales.jsonl", Rationale) if rationale.pair.id in ids]
        write_jsonl(scratch / "rationales.jsonl", kept)
        rows = len(kept)
        fit += [f"--data.init_args.train={scratch / 'rationales.jsonl'}", f"--data.init_args.val_preferences={validation}"]
        command("fit", "distill", seed, fit)
    else:
        train = scratch / "pairs.jsonl"
        votes = {pair.id: pair for pair in read_jsonl(folder / "votes.jsonl", Preference)} if "votes" in arm else {}
        write_jsonl(train, [votes.get(pair.id, pair) for pair in first])
        command("fit", "preference", seed, [*fit, f"--data.init_args.train={train}", f"--data.init_args.val={validation}"])
    writer = {"class_path": "rationalrewards.callbacks.EvaluationWriter", "init_args": {"output_dir": str(scratch / "judged")}}
    test = [f"--trainer.callbacks={json.dumps([writer])}", f"--data.init_args.paths={folder / 'test' / 'preferences.jsonl'}"]
    if arm == "critic":
        test.append(f"--model.init_args.reward.init_args.critic.init_args.chat.init_args.path={model}")
    else:
        head = {"path": str(model), "format": {"rubric": "shapes"}}
        reward = {"class_path": "rationalrewards.components.rewards.PreferenceHeadReward", "init_args": head}
        test.append(f"--model.init_args.reward={json.dumps(reward)}")
    command("test", "evaluate", seed, test)
    found = json.loads((scratch / "judged" / "evaluation.json").read_text())
    return {
        "kept": rows,
        "accuracy": found["test/pair_accuracy"],
        "n": int(found["test/n_pairs"]),
        "unscored": found["test/unscored_rate"],
    }


def command(verb: str, stage: str, seed: int, overrides: list[str]) -> None:
    """Run ``rationalrewards`` on the shapes config of a stage."""
    import rationalrewards.configs

    config = Path(rationalrewards.configs.__path__[0]) / stage / "shapes.yaml"
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    arguments = ["-m", "rationalrewards", verb, "--config", str(config), f"--seed_everything={seed}", *quiet, *overrides]
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def results(out: Path) -> list[dict[str, Any]]:
    """Results so far."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def pairs_for(curve: dict[int, float], accuracy: float) -> float:
    """Pairs at which a curve first reaches an accuracy, by interpolation over log(pairs); NaN where it never does or always has."""
    sizes = sorted(curve)
    if curve[sizes[0]] >= accuracy:
        return math.nan
    for low, high in pairwise(sizes):
        if curve[low] < accuracy <= curve[high]:
            share = (accuracy - curve[low]) / (curve[high] - curve[low])
            return float(low * (high / low) ** share)
    return math.nan


def curves(rows: list[dict[str, Any]]) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Results by arm and number of pairs."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for row in rows:
        found.setdefault(row["arm"], {}).setdefault(row["pairs"], []).append(row)
    return found


def table(out: Path) -> None:
    """Markdown: accuracies, and the ratio of pairs at equal accuracy, seed by seed."""
    rows = results(out)
    found = curves(rows)
    sizes = sorted({row["pairs"] for row in rows})
    print("| " + " | ".join(["pairs", *map(str, sizes)]) + " |\n|" + " --- |" * (len(sizes) + 1))
    for arm in ARMS:
        cells = [", ".join(f"{row['accuracy']:.3f}" for row in found.get(arm, {}).get(size, [])) or "-" for size in sizes]
        print(f"| {arm} | {' | '.join(cells)} |")
    for other in ARMS[1:]:
        for seed in sorted({row["seed"] for row in rows}):
            own = {arm: {r["pairs"]: r["accuracy"] for r in rows if (r["seed"], r["arm"]) == (seed, arm)} for arm in ARMS}
            if not own["critic"] or not own[other]:
                continue
            best = max(own[other].values())
            needed = pairs_for(own["critic"], best)
            at = min(size for size, accuracy in own[other].items() if accuracy == best)
            reached = (
                f"the critic needs {needed:.0f} pairs, {at / needed:.1f} times fewer"
                if needed == needed
                else (
                    f"the critic is there with its smallest set, {min(own['critic'])} pairs"
                    if own["critic"][min(own["critic"])] >= best
                    else "the critic does not get there"
                )
            )
            print(f"\nseed {seed}: the best of {other} is {best:.3f}, with {at} pairs; {reached}")


def plot(out: Path, to: Path) -> None:
    """Accuracy against pairs: a thin line for each seed, a thick one for their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = curves(results(out))
    figure, axis = plt.subplots(figsize=(7, 4.4))
    for arm, colour in zip(ARMS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        by_size = dict(sorted(found.get(arm, {}).items()))
        if not by_size:
            continue
        axis.plot(by_size, [fmean(r["accuracy"] for r in rows) for rows in by_size.values()], color=colour, lw=2.5, label=arm)
        for size, rows in by_size.items():
            axis.scatter([size] * len(rows), [r["accuracy"] for r in rows], color=colour, s=18, alpha=0.6)
    axis.axhline(0.5, color="grey", lw=0.8, ls=":")
    axis.set(xscale="log", xlabel="preference pairs", ylabel="accuracy on held-out pairs, by the truth")
    axis.set_xticks(SIZES, [str(size) for size in SIZES])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(to, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("data", "run", "table", "plot"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of every model")
    parser.add_argument("--validation", type=int, default=128)
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--to", type=Path, default=Path("data_efficiency.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    match arguments.verb:
        case "data":
            for seed in arguments.seeds:
                data(arguments.out, seed, max(arguments.sizes), arguments.validation, arguments.test)
        case "run":
            run(arguments.out, arguments.seeds, arguments.sizes, arguments.arms, arguments.steps)
        case "table":
            table(arguments.out)
        case "plot":
            plot(arguments.out, arguments.to)


if __name__ == "__main__":
    main()
