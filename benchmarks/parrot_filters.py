"""What each option of PARROT's stages selects, on the shapes world with a simulated teacher of known faults.

``filters``: for every arm and teacher, of the pairs with human-like labels: the share kept; precision, the share of kept comparisons that
say of both pictures what they show; recall, the share of the pairs whose label is the true one that are kept with such a comparison;
and the share of comparisons written for the *wrong* label that pass. ``students``: the accuracy on held-out pairs, judged by the truth,
of a critic distilled on what an arm keeps, with equal steps for all arms. ``table`` prints both as Markdown, ``plot`` draws them.

    python benchmarks/parrot_filters.py data --out OUT --seeds 42 1 2
    python benchmarks/parrot_filters.py filters --out OUT --seeds 42 1 2
    python benchmarks/parrot_filters.py students --out OUT --seeds 42 1 2     # hours: 4 to 6 minutes a student on one core
    python benchmarks/parrot_filters.py table --out OUT
    python benchmarks/parrot_filters.py plot --out OUT --to docs/img/parrot_filters.png

Results are appended to OUT/filters.jsonl and OUT/students.jsonl; what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.parrot import Ledger, ParrotOptions, ScreenOptions, rationalize, write_rationales
from rationalrewards.components.parrot.linter import findings
from rationalrewards.components.records import Preference, read_jsonl
from rationalrewards.components.shapes.teacher import ShapesTeacher
from rationalrewards.components.shapes.truth import faithful, true_difference

FORMAT = CritiqueFormat("shapes")
TIE = 0.03
"""True rewards closer than this are a tie to the people who labelled (:func:`.write_preferences`)."""

TEACHERS: dict[str, dict[str, float]] = {
    **{
        f"hallucination {rate:.0%}": {"hallucination": rate, "vagueness": 0.1, "label_echo": 0.1, "position_bias": 0.3}
        for rate in (0.0, 0.1, 0.2, 0.3)
    },
    # without the label it decides as many pairs rightly as the paper's teacher (64 to 76 % on the paper's benchmarks)
    "paper": {"hallucination": 0.8, "vagueness": 0.1, "label_echo": 0.1, "position_bias": 0.3},
}

NONE = {"check_votes": 0, "order_agreement": False}
ARMS: dict[str, dict[str, Any]] = {
    "unanchored, all kept": {"hint": False, **NONE},
    "unanchored, checked": {"hint": False},
    "anchored, all kept": NONE,
    "anchored, order agreement only": {"check_votes": 0},
    "check: all, no pictures (the paper's)": {"check_show": "all", "check_images": False, "order_agreement": False},
    "check: justifications, no pictures": {"check_images": False, "order_agreement": False},
    "check: all, pictures": {"check_show": "all", "order_agreement": False},
    "check: scores, pictures": {"check_show": "scores", "order_agreement": False},
    "check: justifications, pictures": {"order_agreement": False},
    "+ order agreement": {},
    "+ order agreement, both orders": {"check_orders": 2},
    "+ order agreement, 5 votes": {"check_votes": 5},
    "+ order agreement, 5 votes, over 0.8": {"check_votes": 5, "check_threshold": 0.8},
    "+ order agreement, 9 votes, unanimous": {"check_votes": 9, "check_threshold": 1.0},
    "+ order agreement, 4 anchors": {"anchors": 4},
    "+ order agreement, 4 anchors, both orders": {"anchors": 4, "check_orders": 2},
    "+ order agreement, no reference": {"project_reference": False},
}
STUDENTS = (
    "unanchored, all kept",
    "unanchored, checked",
    "anchored, all kept",
    "check: all, no pictures (the paper's)",
    "+ order agreement",
    "+ order agreement, 4 anchors, both orders",
)


def options(arm: str, seed: int, control: float) -> ParrotOptions:
    """The options of an arm. Pictures of one colour are right answers in this world."""
    return ParrotOptions(
        **ARMS[arm],
        control_share=control,
        audit_share=0.0,
        seed=seed,
        screen=ScreenOptions(min_contrast=0.0),
    )


def run(pairs: list[Preference], teacher: ShapesTeacher, arm: str, seed: int, control: float, ledger: Ledger) -> list[Any]:
    """The outcomes of a set under an arm."""
    setting = options(arm, seed, control)
    found = []
    for start in range(0, len(pairs), 100):
        found += rationalize(pairs[start : start + 100], teacher, FORMAT, setting, ledger)
    return found


def training_pairs(out: Path, seed: int) -> list[Preference]:
    """The training pairs of a seed."""
    return read_jsonl(out / f"seed{seed}" / "train" / "preferences.jsonl", Preference)


@cache
def labelled_truly(path: Path) -> frozenset[str]:
    """Ids of the pairs whose label is the true one."""
    found = set()
    for pair in read_jsonl(path, Preference):
        difference = true_difference(pair)
        truth = "tie" if abs(difference) < TIE else ("A" if difference > 0 else "B")
        if truth == pair.winner:
            found.add(pair.id)
    return frozenset(found)


def filters(out: Path, seeds: list[int], limit: int, control: float) -> None:
    """Every arm under every teacher: no training."""
    done = {(row["seed"], row["teacher"], row["arm"]) for row in rows(out / "filters.jsonl")}
    for seed in seeds:
        pairs = training_pairs(out, seed)[:limit]
        truly = labelled_truly(out / f"seed{seed}" / "train" / "preferences.jsonl") & {pair.id for pair in pairs}
        for teacher, rates in TEACHERS.items():
            ledger = Ledger()
            for arm in ARMS:
                if (seed, teacher, arm) in done:
                    continue
                outcomes = run(pairs, ShapesTeacher(**rates, seed=seed), arm, seed, control, ledger)
                kept = [outcome for outcome in outcomes if outcome.kept]
                sound = [o for o in kept if faithful(o.texts["pair"], o.pair) and not findings(o.texts["pair"], o.pair.prompt)]
                wrong = [o.wrong_label_passed for o in outcomes if o.wrong_label_passed is not None]
                decided = [o for o in outcomes if o.pair.winner != "tie" and o.comparison is not None]
                row = {
                    "seed": seed,
                    "teacher": teacher,
                    "arm": arm,
                    "pairs": len(pairs),
                    "kept": len(kept),
                    "sound": len(sound),
                    "truly_labelled": len(truly),
                    "sound_and_truly_labelled": sum(outcome.pair.id in truly for outcome in sound),
                    "wrong_label_passed": sum(wrong),
                    "wrong_label_asked": len(wrong),
                    "verdict_is_label": sum(o.comparison.verdict() == o.pair.winner for o in decided),
                    "decided": len(decided),
                    "calls_per_pair": sum(float(stage["calls"] or 0) for stage in own_usage(outcomes, arm, seed, rates, pairs)),
                }
                append(out / "filters.jsonl", row)


def own_usage(outcomes: Any, arm: str, seed: int, rates: dict[str, float], pairs: list[Preference]) -> Iterator[dict[str, Any]]:
    """What an arm asks of a teacher on a tenth of the pairs, by a ledger of its own (arms share answers in the other)."""
    few = pairs[:: max(1, len(pairs) // 100)]
    ledger = Ledger()
    run(few, ShapesTeacher(**rates, seed=seed), arm, seed, 0.0, ledger)
    for stage in ledger.usage().values():
        yield {"calls": float(stage["calls"] or 0) / len(few)}


def students(out: Path, seeds: list[int], steps: int, only: list[str] | None) -> None:
    """Distil and evaluate a critic on what an arm keeps of a seed's pairs, teacher ``paper``."""
    done = {(row["seed"], row["arm"], row["steps"]) for row in rows(out / "students.jsonl")}
    for seed in seeds:
        pairs = training_pairs(out, seed)
        for arm in only or STUDENTS:
            if (seed, arm, steps) in done:
                continue
            with tempfile.TemporaryDirectory(dir=out) as scratch, Ledger() as ledger:
                folder = Path(scratch)
                outcomes = run(pairs, ShapesTeacher(**TEACHERS["paper"], seed=seed), arm, seed, 0.0, ledger)
                write_rationales(ledger, folder / "rationales.jsonl")
                command("fit", "distill", folder, seed, [f"--data.init_args.train={folder / 'rationales.jsonl'}"], steps)
                test = out / f"seed{seed}" / "test" / "preferences.jsonl"
                command("test", "evaluate", folder, seed, [f"--data.init_args.paths={test}"])
                found = json.loads((folder / "evaluate" / "evaluation.json").read_text())
                row = {
                    "seed": seed,
                    "arm": arm,
                    "steps": steps,
                    "kept": sum(outcome.kept for outcome in outcomes),
                    "accuracy": found["test/pair_accuracy"],
                    "n": int(found["test/n_pairs"]),
                    "unscored": found["test/unscored_rate"],
                }
                append(out / "students.jsonl", row)


def command(verb: str, stage: str, folder: Path, seed: int, overrides: list[str], steps: int | None = None) -> None:
    """Run ``rationalrewards`` on the shapes config of a stage."""
    import rationalrewards.configs

    config = Path(rationalrewards.configs.__path__[0]) / stage / "shapes.yaml"
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    if verb == "fit":
        export = {"class_path": "rationalrewards.callbacks.CriticExport", "init_args": {"output_dir": str(folder / "critic")}}
        own = [f"--trainer.max_steps={steps}", f"--trainer.callbacks={json.dumps([export])}", f"--data.init_args.seed={seed}"]
    else:
        writer = {"class_path": "rationalrewards.callbacks.EvaluationWriter"}
        writer |= {"init_args": {"output_dir": str(folder / "evaluate")}}  # type: ignore[dict-item]
        path = "--model.init_args.reward.init_args.critic.init_args.chat.init_args.path"
        own = [f"{path}={folder / 'critic'}", f"--trainer.callbacks={json.dumps([writer])}"]
    arguments = ["-m", "rationalrewards", verb, "--config", str(config), f"--seed_everything={seed}", *quiet, *own, *overrides]
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def rows(path: Path) -> list[dict[str, Any]]:
    """Results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def append(path: Path, row: dict[str, Any]) -> None:
    """Keep a result, and show it."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def share(found: list[dict[str, Any]], part: str, whole: str) -> float:
    """A share over all seeds; NaN of nothing."""
    total = sum(row[whole] for row in found)
    return sum(row[part] for row in found) / total if total else math.nan


def pooled_accuracy(found: list[dict[str, Any]]) -> tuple[float, float, int]:
    """Accuracy over all seeds' pairs, half its 95 % interval, and the number of pairs."""
    n = sum(row["n"] for row in found)
    rate = sum(row["accuracy"] * row["n"] for row in found) / n
    return rate, 1.96 * math.sqrt(rate * (1 - rate) / n), n


def table(out: Path) -> None:
    """Markdown."""
    found = rows(out / "filters.jsonl")
    for teacher in TEACHERS:
        of_teacher = [row for row in found if row["teacher"] == teacher]
        if not of_teacher:
            continue
        print(f"\nTeacher: {teacher}\n\n| arm | kept | precision | recall | wrong label passes | calls per pair |")
        print("| --- | --- | --- | --- | --- | --- |")
        for arm in ARMS:
            own = [row for row in of_teacher if row["arm"] == arm]
            if own:
                shares = [("kept", "pairs"), ("sound", "kept"), ("sound_and_truly_labelled", "truly_labelled")]
                cells = [f"{share(own, *names):.2f}" for names in shares]
                checked = ARMS[arm].get("check_votes") != 0
                cells.append(f"{share(own, 'wrong_label_passed', 'wrong_label_asked'):.2f}" if checked else "no check")
                print(f"| {arm} | {' | '.join(cells)} | {fmean(row['calls_per_pair'] for row in own):.1f} |")
    trained = rows(out / "students.jsonl")
    if trained:
        seeds = sorted({row["seed"] for row in trained})
        print(f"\n| student of | kept | accuracy, seeds {', '.join(map(str, seeds))} | all | \n| --- | --- | --- | --- |")
        for arm in STUDENTS:
            own = sorted((row for row in trained if row["arm"] == arm), key=lambda row: row["seed"])
            if own:
                each = ", ".join(f"{row['accuracy']:.3f}" for row in own)
                rate, half, n = pooled_accuracy(own)
                print(f"| {arm} | {fmean(row['kept'] for row in own):.0f} | {each} | {rate:.3f} ± {half:.3f} of {n} |")


def plot(out: Path, to: Path) -> None:
    """Precision and wrong labels passed against recall, a column for each teacher; and the students, one point for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = rows(out / "filters.jsonl")
    teachers = [name for name in TEACHERS if any(row["teacher"] == name for row in found)]
    figure, axes = plt.subplots(2, len(teachers), figsize=(3.4 * len(teachers), 8.4), squeeze=False)
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for column, teacher in enumerate(teachers):
        for number, arm in enumerate(ARMS):
            own = [row for row in found if (row["teacher"], row["arm"]) == (teacher, arm)]
            look = {"color": colours[number % 20], "marker": "osD^vPX*"[number % 8], "s": 46, "label": arm}
            recall = share(own, "sound_and_truly_labelled", "truly_labelled")
            axes[0][column].scatter(recall, share(own, "sound", "kept"), **look)
            if ARMS[arm].get("check_votes") != 0:
                axes[1][column].scatter(recall, share(own, "wrong_label_passed", "wrong_label_asked"), **look)
        axes[0][column].set_title(teacher)
        axes[1][column].set_xlabel("recall")
        for row in (0, 1):
            axes[row][column].margins(0.15)
            axes[row][column].grid(alpha=0.3)
    axes[0][0].set_ylabel("precision")
    axes[1][0].set_ylabel("wrong labels that pass the check")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, fontsize=9, frameon=False)
    figure.suptitle("Each panel has its own axes")
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.savefig(to, dpi=110)

    trained = rows(out / "students.jsonl")
    arms = [arm for arm in STUDENTS if any(row["arm"] == arm for row in trained)]
    if not arms:
        return
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(arms) + 1.2))
    for place, arm in enumerate(reversed(arms)):
        own = [row for row in trained if row["arm"] == arm]
        axis.scatter([row["accuracy"] for row in own], [place] * len(own), color="tab:blue", alpha=0.6)
        axis.scatter(pooled_accuracy(own)[0], place, color="black", marker="|", s=260)
    axis.set_yticks(range(len(arms)), list(reversed(arms)))
    axis.set_xlabel("accuracy on held-out pairs: a point a seed, the bar for all")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(to.with_stem(f"{to.stem}_students"), dpi=110)


def data(out: Path, seeds: list[int]) -> None:
    """The pairs of every seed, as the quickstart's."""
    from rationalrewards.components.shapes.make_data import make_data

    for seed in seeds:
        if not (out / f"seed{seed}").exists():
            make_data(out / f"seed{seed}", seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("data", "filters", "students", "table", "plot"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--limit", type=int, default=500, help="pairs of each seed for filters")
    parser.add_argument("--control", type=float, default=0.25, help="share of the pairs that is run with the wrong label too")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of a student")
    parser.add_argument("--arms", nargs="+", choices=STUDENTS, help="students of these arms only")
    parser.add_argument("--to", type=Path, default=Path("parrot_filters.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    match arguments.verb:
        case "data":
            data(arguments.out, arguments.seeds)
        case "filters":
            filters(arguments.out, arguments.seeds, arguments.limit, arguments.control)
        case "students":
            students(arguments.out, arguments.seeds, arguments.steps, arguments.arms)
        case "table":
            table(arguments.out)
        case "plot":
            plot(arguments.out, arguments.to)


if __name__ == "__main__":
    main()
