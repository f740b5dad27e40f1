r"""How much does a critic's score of one picture change when it is asked again, before and after distillation?

    python benchmarks/repeat_queries.py --pairs quickstart/data/test/preferences.jsonl \
        --critics embedded:shapes-critic quickstart/distill/critic

Every picture of the first ``--count`` decided pairs is critiqued ``--repeats`` times at ``--temperature``, each time with another seed. Per
critic: the standard deviation of one picture's rewards (0 to 1) over the repeats, that between pictures without it, the ratio of the two
variances, the share of pairs whose order in one query is not that in another, and the accuracy of one query and of the mean of all.
Critiques are held to the format's form, which a base that was never distilled needs; what stays unscored is left out and counted.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import torch
from rationalrewards.components.chat import TransformersChat
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.metrics import clustered_bootstrap
from rationalrewards.components.records import Preference, open_pictures, read_jsonl
from rationalrewards.components.rewards import critique_rewards
from torch import Tensor


def repeated(path: str, rubric: str, pairs: list[Preference], repeats: int, temperature: float) -> Tensor:
    """Rewards ``[repeats, pairs, 2]``, NaN where unscored."""
    untrained = path.startswith("embedded:")
    critic = Critic(
        TransformersChat(path, batch_size=96),
        CritiqueFormat(rubric),
        max_tokens=320,
        constrained=True,
        expected=False,
        **({"prose_tokens": 12, "reasks": 0} if untrained else {}),  # it would fill the longest prose there can be
    )
    critic.load(torch.device("cpu"))
    requests = [
        CritiqueRequest(pair.task, pair.prompt, picture, open_pictures(pair, pair.sources))
        for pair in pairs
        for picture in open_pictures(pair, pair.candidates)
    ]
    rows = []
    for seed in range(1, repeats + 1):
        rows.append(critique_rewards(critic.critique(requests, False, seed, temperature)).total)
        print(f"{path}: {seed} of {repeats}", flush=True)
    return torch.stack(rows).double().reshape(repeats, len(pairs), 2)


def figures(rewards: Tensor, pairs: list[Preference]) -> str:
    """A row of the table."""
    pictures = rewards.flatten(1)
    counts = (~pictures.isnan()).sum(dim=0)
    means = pictures.nanmean(dim=0)
    variances = (pictures - means).square().nansum(dim=0) / (counts - 1)
    variances = variances[counts > 1]
    noise = (variances / counts[counts > 1]).mean()  # what the repeats leave in the means
    spread = (means[~means.isnan()].var() - noise).clamp(min=0).sqrt().item()
    groups = torch.tensor([int(pair.group, 16) % 2**62 for pair in pairs])
    low, high = clustered_bootstrap(variances, groups.repeat_interleave(2)[counts > 1])
    verdicts = (rewards[..., 0] - rewards[..., 1]).sign()  # [repeats, pairs]
    flips = [(verdicts[i] != verdicts[j])[~(verdicts[i] + verdicts[j]).isnan()] for i, j in combinations(range(len(verdicts)), 2)]
    wanted = torch.tensor([1.0 if pair.winner == "A" else -1.0 for pair in pairs], dtype=torch.float64)
    once = (verdicts == wanted).double().mean()
    mean_verdicts = (rewards.nanmean(dim=0)[:, 0] - rewards.nanmean(dim=0)[:, 1]).sign()
    cells = [
        f"{variances.mean().sqrt():.3f} ({max(0.0, low) ** 0.5:.3f} to {high**0.5:.3f})",
        f"{spread:.3f}",
        f"{spread**2 / variances.mean():.1f}",
        f"{torch.cat(flips).double().mean():.2f}",
        f"{once:.3f}",
        f"{(mean_verdicts == wanted).double().mean():.3f}",
        f"{pictures.isnan().double().mean():.1%}",
    ]
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--critics", nargs="+", required=True)
    parser.add_argument("--rubric", default="shapes")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [pair for pair in read_jsonl(arguments.pairs, Preference) if pair.winner != "tie"][: arguments.count]
    rows = [
        f"| {path} | {figures(repeated(path, arguments.rubric, pairs, arguments.repeats, arguments.temperature), pairs)} |"
        for path in arguments.critics
    ]
    print(
        "\n| critic | std of one picture over repeats | std of pictures | ratio of variances | order changes | right, one query "
        f"| right, mean of {arguments.repeats} | unscored |\n|" + " --- |" * 8
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
