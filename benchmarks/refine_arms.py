"""The arms of refinement side by side: which is worth its pictures and its critic's tokens?

``requests`` writes requests of the shapes world, text to image and edits. ``run`` takes them through every arm of
``configs/refine/arms.yaml``, once for each folder that ``make quickstart`` left (its critic, and with ``--rl`` the generator that it
trained), each with a seed of its own; what is on file is not made again. ``table`` and ``plot`` put the runs together: a request that
several runs have is one cluster of the intervals. A label before a folder sets its arms beside those of the folders without, and compares
them with their base, so that RL alone (``rl: base``), refinement alone and both (``rl: refine_keep_best``) stand in one table at equal
numbers of pictures.

    python benchmarks/refine_arms.py requests --out OUT/requests --count 96
    python benchmarks/refine_arms.py run --out OUT --requests OUT/requests/prompts.jsonl --folders quickstart seed1 seed2
    python benchmarks/refine_arms.py run --out OUT --requests OUT/requests/prompts.jsonl --folders quickstart seed1 seed2 --rl
    python benchmarks/refine_arms.py table --runs OUT/quickstart OUT/seed1 OUT/seed2 rl=OUT/quickstart-rl rl=OUT/seed1-rl rl=OUT/seed2-rl
    python benchmarks/refine_arms.py plot --runs OUT/quickstart OUT/seed1 OUT/seed2 --to docs/img/refine_arms.png
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rationalrewards.components.records import Refinement, read_jsonl
from rationalrewards.components.refine.figures import comparison, comparison_markdown, labelled

ROOT = Path(__file__).resolve().parents[1]


def run(out: Path, requests: Path, folders: Sequence[Path], images: int, batch: int, rl: bool) -> None:
    """Run all arms, once for each folder of the quickstart."""
    for number, folder in enumerate(folders):
        to = out / (f"{folder.name}-rl" if rl else folder.name)
        writer = {"class_path": "rationalrewards.callbacks.RefinementWriter", "init_args": {"output_dir": str(to.resolve())}}
        command = [
            *(sys.executable, "-m", "rationalrewards", "predict", "-c", str(ROOT / "configs" / "refine" / "arms.yaml")),
            f"--data.init_args.predict={requests.resolve()}",
            f"--data.init_args.eval_batch_size={batch}",
            f"--model.init_args.options.images_per_prompt={images}",
            f"--model.init_args.options.best_of={max(1, images // 2)}",
            f"--model.init_args.options.seed={42 + number}",
            "--trainer.logger=false",
            f"--trainer.callbacks={json.dumps([writer])}",
            *([f"--model.init_args.generator.init_args.adapter={folder.resolve() / 'rl' / 'lora'}"] if rl else []),
        ]
        subprocess.run(command, check=True, env={**os.environ, "SHAPES_OUT": str(folder.resolve())})


def read_runs(named: Sequence[str]) -> list[list[Refinement]]:
    """Refinements of some folders; the first folder of a label goes with the first folder without, and so on."""
    by_label: dict[str, list[list[Refinement]]] = {}
    for name in named:
        label, _, folder = name.rpartition("=")
        records = read_jsonl(Path(folder) / "refinements.jsonl", Refinement)
        by_label.setdefault(label, []).append(labelled(records, label) if label else records)
    runs: list[list[Refinement]] = [[] for _ in range(max(map(len, by_label.values())))]
    for label in sorted(by_label, key=bool):  # those without a label first: their first pictures are what all compare with
        for merged, records in zip(runs, by_label[label], strict=False):
            merged += records
    return runs


def plot(named: Sequence[str], to: Path, arms: Sequence[str] | None = None) -> None:
    """The held-out score over the number of pictures, each task on a plane of its own: an arm has a colour, a label a kind of line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = comparison(read_runs(named))
    shown = dict.fromkeys(row["arm"] for rows in found["tasks"].values() for row in rows)
    shown = dict.fromkeys(arm for arm in shown if arms is None or arm.rpartition(": ")[2] in arms)
    colours = {arm: f"C{number}" for number, arm in enumerate(dict.fromkeys(arm.rpartition(": ")[2] for arm in shown))}
    styles = dict(zip(dict.fromkeys(arm.rpartition(": ")[0] for arm in shown), ("-", "--", ":", "-."), strict=False))
    figure, axes = plt.subplots(1, len(found["tasks"]), figsize=(5.2 * len(found["tasks"]) + 2.6, 4.8), squeeze=False)
    for axis, (task, rows) in zip(axes[0], found["tasks"].items(), strict=True):
        for number, arm in enumerate(shown):
            curve = [row for row in rows if row["arm"] == arm and row["score"] is not None]
            label, _, plain = arm.rpartition(": ")
            # a little to the side of each other, so that the bars of one N can be told apart
            at = [row["images"] * (1 + 0.012 * (number - len(shown) / 2)) for row in curve]
            bars = zip(
                *((row["score"] - row["score_ci95"][0], row["score_ci95"][1] - row["score"]) for row in curve), strict=True
            )
            axis.errorbar(
                at,
                [row["score"] for row in curve],
                yerr=[list(side) for side in bars],
                color=colours[plain],
                linestyle=styles.get(label, "-"),
                marker="o",
                markersize=3.5,
                elinewidth=0.7,
                label=arm,
            )
        sizes = sorted({row["images"] for row in rows})
        axis.set(xscale="log", xlabel="pictures", title={"t2i": "text to image", "edit": "editing"}[task])
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("held-out score")
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="center right")
    figure.tight_layout(rect=(0, 0, 1 - 2.4 / figure.get_figwidth(), 1))
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=130)


def main() -> None:
    """Parse arguments and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("requests", "run", "table", "plot"))
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--count", type=int, default=96, help="requests to write")
    parser.add_argument("--edit-share", type=float, default=0.5, help="share of edits among them")
    parser.add_argument("--seed", type=int, default=991, help="seed of the requests, of no other data")
    parser.add_argument("--requests", type=Path, help="requests to take through the arms")
    parser.add_argument(
        "--folders", type=Path, nargs="+", default=[Path("quickstart")], help="folders that `make quickstart` left"
    )
    parser.add_argument("--images", type=int, default=8, help="pictures of a request")
    parser.add_argument("--batch", type=int, default=48, help="requests at once")
    parser.add_argument("--rl", action="store_true", help="with the generator that RL has trained")
    parser.add_argument("--runs", nargs="+", help="folders of runs, FOLDER or LABEL=FOLDER")
    parser.add_argument("--arms", nargs="+", help="arms to draw (default: all)")
    parser.add_argument("--to", type=Path, default=Path("refine_arms.png"), help="picture to write")
    given = parser.parse_args()
    match given.verb:
        case "requests":
            from rationalrewards.components.shapes.pairs import write_prompts

            print(write_prompts(given.out, given.count, given.seed, given.edit_share))
        case "run":
            run(given.out, given.requests, given.folders, given.images, given.batch, given.rl)
        case "table":
            print(comparison_markdown(comparison(read_runs(given.runs))))
        case "plot":
            plot(given.runs, given.to, given.arms)


if __name__ == "__main__":
    main()
