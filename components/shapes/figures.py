"""The figures of the shapes world's main job: what its ground truth says of a critic, a generator and refined pictures.

Every rate and mean comes with ``<name>_ci95``, a 95 % interval, and its number of cases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..critic import CritiqueRequest
from ..generation import FlowGenerator
from ..generation.noise import seed_for
from ..metrics import clustered_bootstrap, wilson_interval, within_group_correlation_interval
from ..pictures import open_picture
from ..records import Preference, PromptRecord, Refinement, open_pictures, read_jsonl
from ..rewards import RewardModel, within_group_correlation
from . import judge
from .phrases import Asked
from .truth import ShapesTruth


def rate_interval(name: str, rate: float | None, n: int) -> dict[str, Any]:
    """The 95 % Wilson interval (``<name>_ci95``) and the number of cases (``<name>_n``) of a rate; no interval for no rate."""
    if rate is None or rate != rate:
        return {f"{name}_n": n}
    return {f"{name}_ci95": list(wilson_interval(rate * n, n)), f"{name}_n": n}


def aspect_errors(preferences: Path, judgements: Path) -> dict[str, dict[str, Any]]:
    """Mean absolute errors of a critic's aspect scores (1 to 4) on preference pairs.

    Args:
        preferences: The pairs.
        judgements: ``judgements.jsonl`` of :class:`~rationalrewards.callbacks.EvaluationWriter`.

    Returns:
        ``aspect_mae``, ``aspect_mae_ci95`` (resampling pairs) and ``aspect_mae_n``, each by aspect. What is unscored has no error.
    """
    pairs = {pair.id: pair for pair in read_jsonl(preferences, Preference)}
    errors: dict[str, list[float]] = {}
    clusters: dict[str, list[int]] = {}
    for number, line in enumerate(judgements.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        pair = pairs[row["id"]]
        source = judge.read([open_picture(path) for path in pair.sources])[0].scene if pair.sources else None
        for scores, reading in zip(row["scores"], judge.read([open_picture(path) for path in pair.candidates]), strict=True):
            for key, truth in Asked(pair.prompt, source).scores(reading).items():
                if truth is not None and scores.get(key) is not None:
                    errors.setdefault(key, []).append(abs(scores[key] - truth))
                    clusters.setdefault(key, []).append(number)
    return {
        "aspect_mae": {key: sum(found) / len(found) for key, found in errors.items()},
        "aspect_mae_ci95": {
            key: list(clustered_bootstrap(torch.tensor(found), torch.tensor(clusters[key]))) for key, found in errors.items()
        },
        "aspect_mae_n": {key: len(found) for key, found in errors.items()},
    }


def generator_figures(
    generator: FlowGenerator, reward: RewardModel, records: Sequence[PromptRecord], copies: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Sample requests from fixed noise; score by ground truth and by a critic; keep 24 pictures.

    Args:
        generator: The generator, loaded.
        reward: The critic, loaded.
        records: Requests.
        copies: Pictures per request.
        seed: Seed of the noise.
        folder: Where pictures and ``captions.json`` go.

    Returns:
        ``exact`` (share of pictures with every place as asked), ``truth`` and ``reward`` (means in [0, 1]), ``n`` pictures, and
        ``within_group_corr`` of reward and truth over ``within_group_corr_n`` pictures that both scored.
    """
    calls: dict[tuple[str, ...], list[PromptRecord]] = {}
    for record in records:  # a pipeline call takes one set of source pictures
        calls.setdefault(record.sources, []).append(record)
    requests: list[CritiqueRequest] = []
    groups: list[str] = []
    for copy in range(copies):
        for paths, same in calls.items():
            sources = open_pictures(same[0], paths)
            seeds = [seed_for(seed, "heldout", record.id, copy) for record in same]
            images = generator.sample([record.prompt for record in same], sources, seeds)
            requests += [CritiqueRequest(r.task, r.prompt, image, sources) for r, image in zip(same, images, strict=True)]
            groups += [record.group for record in same]
    truth, rewards = ShapesTruth().score(requests), reward.score(requests)
    folder.mkdir(parents=True, exist_ok=True)
    captions = []
    for index, request in enumerate(requests[:24]):
        request.image.save(folder / f"{index:02d}.png")
        critique = rewards.critiques[index] if rewards.critiques else None
        captions.append({"prompt": request.prompt, "critique": critique.text if critique else ""})
    (folder / "captions.json").write_text(json.dumps(captions, indent=2), encoding="utf-8")
    clusters = torch.tensor([int(group, 16) % 2**62 for group in groups])
    figures: dict[str, Any] = {"n": len(requests)}
    exact = truth.values[:, truth.aspects.index("exact")]
    for name, values in (("exact", exact), ("truth", truth.total), ("reward", rewards.total)):
        scored = ~values.isnan()
        figures[name] = float(values[scored].mean())
        figures[f"{name}_ci95"] = list(clustered_bootstrap(values[scored], clusters[scored]))
    figures["within_group_corr"] = within_group_correlation(rewards.total, truth.total, groups)
    figures["within_group_corr_ci95"] = list(within_group_correlation_interval(rewards.total, truth.total, clusters))
    figures["within_group_corr_n"] = int((~rewards.total.isnan()).sum())
    return figures


def refinement_figures(path: Path) -> dict[str, Any]:
    """What the arms of a refinement chose, by ground truth.

    Args:
        path: ``refinements.jsonl`` of :class:`~rationalrewards.callbacks.RefinementWriter`.

    Returns:
        By arm the share of requests that are met exactly, with its interval and ``<arm>_images``, the mean number of pictures; ``n``
        requests; ``gain``, the paired difference of refine_keep_best and best_of_n; ``harm_rate``, the share of requests whose kept
        picture is truly worse than the first one. The last two only where their arms were run.
    """
    traces = read_jsonl(path, Refinement)
    truth = ShapesTruth().score([_chosen(trace) for trace in traces])
    exact = _by_arm(traces, truth.values[:, truth.aspects.index("exact")].tolist())
    total = _by_arm(traces, truth.total.tolist())
    figures: dict[str, Any] = {"n": len(next(iter(exact.values()), {}))}
    for arm, values in exact.items():
        figures[arm], figures[f"{arm}_ci95"] = _mean_interval(list(values.values()))
        made = [len(trace.candidates) for trace in traces if trace.arm == arm]
        figures[f"{arm}_images"] = sum(made) / len(made)
    if {"refine_keep_best", "best_of_n"} <= set(exact):
        kept, best = exact["refine_keep_best"], exact["best_of_n"]
        figures["gain"], figures["gain_ci95"] = _mean_interval([kept[key] - best[key] for key in kept])
    if {"refine_keep_best", "base"} <= set(total):
        kept, base = total["refine_keep_best"], total["base"]
        figures["harm_rate"] = sum(kept[key] < base[key] - 1e-6 for key in base) / len(base)
        figures |= rate_interval("harm_rate", figures["harm_rate"], len(base))
    return figures


def _chosen(trace: Refinement) -> CritiqueRequest:
    sources: tuple[Image.Image, ...] = tuple(open_picture(path) for path in trace.sources)
    return CritiqueRequest(trace.task, trace.prompt, open_picture(trace.candidates[trace.chosen].image), sources)


def _by_arm(traces: Sequence[Refinement], values: Sequence[float]) -> Mapping[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for trace, value in zip(traces, values, strict=True):
        found.setdefault(trace.arm, {})[trace.id] = value
    return found


def _mean_interval(values: Sequence[float]) -> tuple[float, list[float]]:
    tensor = torch.tensor(values)
    return float(tensor.mean()), list(clustered_bootstrap(tensor, torch.arange(len(tensor))))
