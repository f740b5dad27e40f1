"""Over-optimisation by best-of-N: how good is the picture that a reward picks out of N, judged by the truth it does not know?

``draw`` makes ``--copies`` pictures of the base generator for each of ``--prompts`` requests of the shapes world and judges them by its
truth. ``score`` scores them with rewards of a run of ``make quickstart`` (the distilled critic's written and expected scores) and, where
given, with a scalar head that was trained on the same pairs. ``table`` and ``plot`` show the truth of the best of N = 1 … 256 over all
draws, the mean of all requests, with the intervals that resampling requests gives.

    python benchmarks/over_optimisation.py draw --out OUT --runs quickstart seed1 seed2
    python benchmarks/over_optimisation.py score --out OUT --runs quickstart seed1 seed2 [--heads HEAD HEAD1 HEAD2]
    python benchmarks/over_optimisation.py table --out OUT
    python benchmarks/over_optimisation.py plot --out OUT --to docs/img/over_optimisation.png

Results stand in OUT/<run>.pt; what is there is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from rationalrewards.components.chat import TransformersChat
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.generation.noise import seed_for
from rationalrewards.components.metrics import clustered_bootstrap
from rationalrewards.components.records import PromptRecord, read_jsonl
from rationalrewards.components.rewards import CritiqueReward, RewardModel, best_of_n, turning_point
from rationalrewards.components.shapes.make_data import shapes_generator
from rationalrewards.components.shapes.truth import ShapesTruth
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

AT_ONCE = 128


def draw(out: Path, run: Path, prompts: int, copies: int) -> None:
    """Pictures of a run's held-out requests, and their truth."""
    if (out / f"{run.name}.pt").is_file():
        return
    generator = shapes_generator()
    generator.load()
    records = [r for r in read_jsonl(run / "data" / "heldout" / "prompts.jsonl", PromptRecord) if not r.sources][:prompts]
    pictures: list[Image.Image] = []
    for record in records:
        for start in range(0, copies, AT_ONCE):
            chunk = range(start, min(copies, start + AT_ONCE))
            pictures += generator.sample(
                [record.prompt] * len(chunk), (), [seed_for(0, "best-of-n", record.id, i) for i in chunk]
            )
    found: dict[str, Any] = {
        "prompts": [record.prompt for record in records],
        "pictures": torch.stack([pil_to_tensor(picture) for picture in pictures]),
        "rewards": {},
    }
    truth = ShapesTruth().score(requests(found))
    found["truth"] = truth.total.reshape(len(records), -1)
    found["exact"] = truth.values[:, truth.aspects.index("exact")].reshape(len(records), -1)
    torch.save(found, out / f"{run.name}.pt")


def requests(found: dict[str, Any]) -> list[CritiqueRequest]:
    """The pictures with their requests, those of a request one after the other."""
    copies = len(found["pictures"]) // len(found["prompts"])
    prompts = [prompt for prompt in found["prompts"] for _ in range(copies)]
    return [
        CritiqueRequest("t2i", prompt, to_pil_image(picture)) for prompt, picture in zip(prompts, found["pictures"], strict=True)
    ]


def score(out: Path, run: Path, head: Path | None) -> None:
    """Score the pictures with the rewards of a run."""
    path = out / f"{run.name}.pt"
    found = torch.load(path)
    for name, reward in rewards(run, head).items():
        if name in found["rewards"]:
            continue
        reward.load(torch.device("cpu"))
        asked = requests(found)
        totals = torch.cat([reward.score(asked[start : start + 1024]).total for start in range(0, len(asked), 1024)])
        found["rewards"][name] = totals.reshape(found["truth"].shape)
        torch.save(found, path)
        print(f"{run.name}: {name}, {int(totals.isnan().sum())} of {len(totals)} unscored", flush=True)


def rewards(run: Path, head: Path | None) -> dict[str, RewardModel]:
    """The rewards of a run, by name."""
    models: dict[str, RewardModel] = {}
    for name, expected in (("critic, written scores", False), ("critic, expected scores", True)):
        chat = TransformersChat(str(run / "distill" / "critic"), batch_size=96)
        critic = Critic(chat, CritiqueFormat("shapes"), max_tokens=320, constrained=True, expected=expected)
        models[name] = CritiqueReward(critic)
    if head is not None:
        from rationalrewards.components.rewards import PreferenceHeadReward

        models["Bradley-Terry head"] = PreferenceHeadReward(str(head))
    models["truth (oracle)"] = ShapesTruth()
    return models


def curves(out: Path, held_out: str = "truth") -> tuple[list[int], dict[str, Tensor]]:
    """Values of N, and of every reward the held-out score ``[requests of all runs, sizes]``."""
    found = [torch.load(path) for path in sorted(out.glob("*.pt"))]
    if not found:
        raise SystemExit(f"{out} has no results yet; run `draw` and `score` first")
    copies = min(one["truth"].shape[1] for one in found)
    sizes = [2**power for power in range(20) if 2**power <= copies]
    names = dict.fromkeys(name for one in found for name in one["rewards"])
    return sizes, {
        name: torch.cat(
            [best_of_n(one["rewards"][name], one[held_out], sizes) for one in found if name in one["rewards"]],
        )
        for name in names
    }


def table(out: Path) -> None:
    """Markdown."""
    for held_out in ("truth", "exact"):
        sizes, found = curves(out, held_out)
        print(f"\n| {held_out} of the picture picked by | " + " | ".join(f"N = {n}" for n in sizes) + " | highest at |")
        print("| --- |" + " --- |" * (len(sizes) + 1))
        for name, curve in found.items():
            means = curve.mean(dim=0).tolist()
            top = turning_point(means)
            print(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} | {sizes[-1 if top is None else top]} |")
    prompts = len(next(iter(found.values())))
    unscored = fmean(
        float(total.isnan().double().mean()) for path in out.glob("*.pt") for total in torch.load(path)["rewards"].values()
    )
    print(f"\n{prompts} requests; {unscored:.2%} unscored")


def plot(out: Path, to: Path) -> None:
    """Truth of the picked picture against N."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes, found = curves(out)
    figure, axis = plt.subplots(figsize=(7, 4.4))
    for name, curve in found.items():
        intervals = [clustered_bootstrap(column, torch.arange(len(column))) for column in curve.T]
        (line,) = axis.plot(sizes, curve.mean(dim=0), marker="o", markersize=4, label=name)
        low, high = zip(*intervals, strict=True)
        axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.set(xscale="log", xlabel="N pictures to pick from", ylabel="true reward of the picked picture")
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(to, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("draw", "score", "table", "plot"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("quickstart")], help="folders that `make quickstart` left")
    parser.add_argument("--heads", type=Path, nargs="+", help="folders of exported scalar heads, one for each run")
    parser.add_argument("--prompts", type=int, default=24, help="requests of each run")
    parser.add_argument("--copies", type=int, default=256, help="pictures of each request")
    parser.add_argument("--to", type=Path, default=Path("over_optimisation.png"))
    arguments = parser.parse_args()
    heads = arguments.heads or [None] * len(arguments.runs)
    if len(heads) != len(arguments.runs):
        parser.error(f"{len(arguments.runs)} runs but {len(heads)} heads")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    match arguments.verb:
        case "draw":
            for run in arguments.runs:
                draw(arguments.out, run, arguments.prompts, arguments.copies)
        case "score":
            for run, head in zip(arguments.runs, heads, strict=True):
                score(arguments.out, run, head)
        case "table":
            table(arguments.out)
        case "plot":
            plot(arguments.out, arguments.to)


if __name__ == "__main__":
    main()
