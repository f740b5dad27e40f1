"""What a critique costs and how well it tells the pictures of one request apart: written, expected and sampled scores.

    python benchmarks/expected_scores.py CRITIC PROMPTS [--groups 24] [--copies 8] [--samples 8]

CRITIC is a trained critic's folder and PROMPTS a JSONL of requests of the shapes world; ``make quickstart`` leaves both, as
``quickstart/distill/critic`` and ``quickstart/data/heldout/prompts.jsonl``. The base generator makes ``--copies`` pictures for each
request. Every picture is scored, and again under noise of at most 2 of 255, which nobody sees. Within groups, what the two scores
share is signal and what they do not is noise; their ratio is the signal-to-noise ratio. Correlation, ordered pairs and exact ties
are against the ground truth. Costs are CPU seconds of one thread per picture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rationalrewards.components.chat import TransformersChat
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.generation import FlowGenerator
from rationalrewards.components.pictures import open_picture
from rationalrewards.components.records import PromptRecord, read_jsonl
from rationalrewards.components.rewards import critique_rewards, with_invisible_noise
from rationalrewards.components.rewards.advantages import within_group_correlation
from rationalrewards.components.shapes.tiny_generator import PIPELINE_KWARGS, SOURCE_SIZE
from rationalrewards.components.shapes.truth import ShapesTruth
from torch import Tensor


def pictures(prompts: Path, groups: int, copies: int) -> tuple[list[CritiqueRequest], list[str]]:
    """Pictures of the base generator, and which request each belongs to."""
    generator = FlowGenerator("embedded:shapes-generator", 8, pipeline_kwargs=dict(PIPELINE_KWARGS), source_size=SOURCE_SIZE)
    generator.load()
    requests, names = [], []
    for record in read_jsonl(prompts, PromptRecord)[:groups]:
        sources = tuple(open_picture(path) for path in record.sources)
        made = generator.sample([record.prompt] * copies, sources, list(range(copies)))
        requests += [CritiqueRequest(record.task, record.prompt, image, sources) for image in made]
        names += [record.group] * copies
    return requests, names


def centred(scores: Tensor, copies: int) -> Tensor:
    """Scores less the mean of their group, ``[groups, copies]``."""
    grouped = scores.double().reshape(-1, copies)
    return grouped - grouped.mean(dim=1, keepdim=True)


def signal_to_noise(first: Tensor, second: Tensor, copies: int) -> float:
    """Variance within groups that two scorings share over the variance that they do not."""
    one, other = centred(first, copies), centred(second, copies)
    noise = float((one - other).square().mean() / 2)
    total = float((one.square().mean() + other.square().mean()) / 2)
    return (total - noise) / noise if noise else float("inf")


def ordered(scores: Tensor, truth: Tensor, copies: int) -> tuple[float, float]:
    """Share of the pairs of a group that differ in truth and are put in order, and of those that are tied."""
    gaps = [values.double().reshape(-1, copies) for values in (scores, truth)]
    found, real = (values[:, :, None] - values[:, None, :] for values in gaps)
    decided = real > 1e-6
    return float((found[decided] > 0).double().mean()), float((found[decided] == 0).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("critic")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--groups", type=int, default=24)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    requests, names = pictures(arguments.prompts, arguments.groups, arguments.copies)
    noisy = [CritiqueRequest(r.task, r.prompt, with_invisible_noise(r.image, seed), r.sources) for seed, r in enumerate(requests)]
    truth = ShapesTruth().score(requests).total
    chat = TransformersChat(arguments.critic, batch_size=96)
    critics = {
        name: Critic(chat, CritiqueFormat("shapes"), max_tokens=320, constrained=True, expected=name == "expected")
        for name in ("written", "expected")
    }
    chat.load()

    def ask(critic: str, seed: int = 0) -> tuple[list[list[object]], float]:
        temperature = arguments.temperature if seed else 0.0
        start = time.process_time()
        found = [critics[critic].critique(which, False, seed, temperature) for which in (requests, noisy)]
        return found, (time.process_time() - start) / 2 / len(requests)

    def line(name: str, critiques: Sequence[Sequence[list[object]]], cost: float) -> None:
        first, second = (critique_rewards(*[of_seed[which] for of_seed in critiques]).total for which in (0, 1))
        noise, correlation = signal_to_noise(first, second, arguments.copies), within_group_correlation(first, truth, names)
        right, tied = ordered(first, truth, arguments.copies)
        cells = [
            f"{cost * 1e3:.0f}",
            f"{noise:.1f}",
            f"{noise / cost / 1e3:.3f}",
            f"{correlation:.3f}",
            f"{right:.3f}",
            f"{tied:.3f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    print(f"{len(requests)} pictures in {arguments.groups} groups, greedy or at temperature {arguments.temperature:g}\n")
    print("| scores | ms | signal-to-noise | per ms | correlation | pairs ordered | ties |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in critics:
        found, cost = ask(name)
        line(name, [found], cost)
    for name in critics:
        sampled, spent = [], 0.0
        for seed in range(1, arguments.samples + 1):
            found, cost = ask(name, seed)
            sampled.append(found)
            spent += cost
            if seed in (1, 2, 4, 8, arguments.samples):
                line(f"{name}, mean of {seed} sampled", sampled, spent)


if __name__ == "__main__":
    main()
