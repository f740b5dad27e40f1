"""Pretrain the embedded base VLM on captions, from random weights to a transformers folder.

``python -m rationalrewards.components.shapes.pretrain_critic --out FOLDER``

Rows are drawn afresh for every step (variety is what teaches shape: ``docs/architecture.md``); the loss is on the assistant's
words only. The first quarter of the steps shows one picture per row, which is cheap; then one to three. The learning
rate warms up, stays, and falls linearly over the last part, so that the folders saved on the way are usable too. A save
writes a whole folder next to the target and renames its files in.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rationalrewards.components.shapes.captions import (
    CaptionRow,
    any_scene,
    caption_batch,
    caption_rows,
    compared,
    in_between,
    parse_caption,
)
from rationalrewards.components.shapes.drawing import DAMAGES, damage, draw, random_shifts
from rationalrewards.components.shapes.judge import read
from rationalrewards.components.shapes.scenes import (
    PLACES,
    QUALITY,
    describe,
    describe_quality,
    describe_scene,
    random_edit,
    random_scene,
)
from rationalrewards.components.shapes.tiny_critic import build_tiny_vlm, load_critic
from torch.nn.functional import cross_entropy
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

BUCKET = 4
"""Batches that are drawn together and sorted by length, so that little of a batch is padding."""


def _length(row: CaptionRow) -> int:
    return 16 * 4 * len(row.images) + sum(len(asked) + len(told) for asked, told in row.turns)


def batches(
    batch: int, rng: random.Random, pictures_per_row: Sequence[int], processor: Qwen3VLProcessor
) -> Iterator[dict[str, torch.Tensor]]:
    """An endless stream of freshly drawn batches of ``caption_rows``."""
    while True:
        rows = sorted(caption_rows(BUCKET * batch, rng, pictures_per_row), key=_length)
        groups = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        rng.shuffle(groups)
        for group in groups:
            yield caption_batch(group, processor.tokenizer)


def caption_loss(model: Qwen3VLForConditionalGeneration, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy over the labelled tokens, and the share of them that come first; logits only where needed."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    known = labels >= 0
    logits = model.lm_head(hidden[known])
    return cross_entropy(logits, labels[known]), (logits.argmax(-1) == labels[known]).float().mean()


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, decay: float = 0.35) -> float:
    """Warm-up, stable, then linear decay to 2 % of the peak over the last ``decay`` of the steps."""
    rise = min(1.0, (step + 1) / warmup)
    fall = min(1.0, max(0.02, (steps - step) / (decay * steps)))
    return peak * min(rise, fall)


def save(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, out: Path, log: Sequence[dict[str, float]]) -> None:
    """Write the folder such that a reader sees the old or the new file at any instant, never half of one."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        model.save_pretrained(scratch)
        processor.tokenizer.backend_tokenizer.no_padding()  # the last batch's padding is no part of the tokenizer
        processor.save_pretrained(scratch)
        (Path(scratch) / "pretraining.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
        for path in Path(scratch).iterdir():
            path.chmod(0o644)
            os.replace(path, out / path.name)


# ---------------------------------------------------------------------------------- measuring


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@torch.no_grad()
def answer(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    images: Sequence[Sequence[Image.Image]],
    questions: Sequence[str],
    max_new_tokens: int = 40,
    batch: int = 64,
) -> list[str]:
    """Greedy answers to one question per row of pictures, through the real processor and ``generate``."""
    answers: list[str] = []
    for start in range(0, len(questions), batch):
        rows = zip(images[start : start + batch], questions[start : start + batch], strict=True)
        chats = [
            [{"role": "user", "content": [*({"type": "image", "image": one} for one in row), _text(question)]}]
            for row, question in rows
        ]
        inputs = processor.apply_chat_template(
            chats,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        answers += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def place_accuracy(answers: Sequence[str], images: Sequence[Image.Image]) -> dict[str, float]:
    """Compare whole-picture captions with the judge's reading.

    Returns:
        ``place`` (share of places whose thing is fully right), ``picture`` (all four right), ``quality`` (the words of
        quality right) and ``near`` (those at most one step, half a point, off), all 0 to 1.
    """
    places, pictures, exact, near = [], [], [], []
    for text, reading in zip(answers, read(list(images)), strict=True):
        seen, words = parse_caption(text)
        right = [seen.get(place) == describe(reading.scene.at(place)) for place in PLACES]
        places += right
        pictures.append(all(right))
        off = abs(QUALITY.index(words) - QUALITY.index(describe_quality(reading.quality))) if words in QUALITY else 9
        exact.append(off == 0)
        near.append(off <= 1)
    return {
        "place": float(np.mean(places)),
        "picture": float(np.mean(pictures)),
        "quality": float(np.mean(exact)),
        "near": float(np.mean(near)),
    }


def request_accuracy(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, number: int, seed: int) -> float:
    """Share of held-out requests, beside a picture of something else, that are said place by place without a fault (0 to 1)."""
    rng = random.Random(f"request {seed}")
    scenes = [random_scene(rng) for _ in range(number)]
    asks = [
        f"<request>{scene.request(rng.choice(('terse', 'detailed')))}</request> say the request place by place"
        for scene in scenes
    ]
    told = answer(model, processor, [[image] for image in pictures("clean", number, seed)], asks)
    return float(np.mean([text == describe_scene(scene) for text, scene in zip(told, scenes, strict=True)]))


def comparison_accuracy(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, number: int, seed: int) -> float:
    """Share of held-out pairs of clean pictures, half of them one edit apart, whose comparison is without a fault (0 to 1)."""
    rng = random.Random(f"comparison {seed}")
    firsts = [any_scene(rng) for _ in range(number)]
    seconds = [random_edit(scene, rng).apply(scene) if rng.random() < 0.5 else any_scene(rng) for scene in firsts]
    rows = [[draw(scene, random_shifts(rng)) for scene in pair] for pair in zip(firsts, seconds, strict=True)]
    told = answer(model, processor, rows, ["compare picture 1 and picture 2"] * number, max_new_tokens=160)
    pairs = zip(told, firsts, seconds, strict=True)
    return float(np.mean([text.splitlines()[-1:] == [compared(first, second)] for text, first, second in pairs]))


def pictures(kind: str, number: int, seed: int) -> list[Image.Image]:
    """Held-out pictures of a kind: ``clean``, one of ``DAMAGES`` or ``in-between``."""
    rng = random.Random(f"{kind} {seed}")
    images = []
    for _ in range(number):
        scene = any_scene(rng)
        if kind == "in-between":
            images.append(in_between(scene, rng))
        else:
            drawn = draw(scene, random_shifts(rng))
            images.append(drawn if kind == "clean" else damage(drawn, kind, rng.random(), rng))
    return images


def measure(
    model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, number: int, seed: int = 10_000_019
) -> dict[str, dict[str, float]]:
    """Caption accuracy on ``number`` held-out pictures of every kind, and on picture k of 3 (kinds mixed)."""
    model.eval()
    results: dict[str, dict[str, float]] = {}
    mixed: list[Image.Image] = []
    for kind in ("clean", *DAMAGES, "in-between"):
        images = pictures(kind, number, seed)
        told = answer(model, processor, [[image] for image in images], ["describe the picture"] * number)
        results[kind] = place_accuracy(told, images)
        mixed += images[: number // 2]
    random.Random(seed).shuffle(mixed)
    triples = [mixed[start : start + 3] for start in range(0, len(mixed) - 2, 3)]
    for k in range(3):
        told = answer(model, processor, triples, [f"describe picture {k + 1}"] * len(triples))
        results[f"picture {k + 1} of 3"] = place_accuracy(told, [row[k] for row in triples])
    asked = [PLACES[index % 4] for index in range(len(mixed))]
    told = answer(model, processor, [[image] for image in mixed], [f"what is at the {place}" for place in asked])
    truth = [f"{place} {describe(one.scene.at(place))}" for place, one in zip(asked, read(mixed), strict=True)]
    results["one place asked"] = {"place": float(np.mean([a == b for a, b in zip(told, truth, strict=True)]))}
    results["a request, said place by place"] = {"picture": request_accuracy(model, processor, number, seed)}
    results["two pictures compared"] = {"pair": comparison_accuracy(model, processor, number, seed)}
    model.train()
    return results


def plot_curve(log: Sequence[dict[str, float]], path: Path) -> None:
    """Draw loss and accuracies over the steps as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.7), constrained_layout=True)
    left.plot([entry["step"] for entry in log], [entry["loss"] for entry in log], color="tab:blue", linewidth=1)
    left.set(xlabel="step", ylabel="caption loss (nats per token)", yscale="log")
    for name, label in (
        ("clean", "clean drawing"),
        ("in-between", "in-between picture"),
        ("third", "picture 3 of 3"),
        ("quality", "quality, in-between"),
        ("request", "a request, said again"),
        ("compared", "two pictures, compared"),
    ):
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        right.plot(*zip(*points, strict=True), marker=".", label=label)
    right.set(xlabel="step", ylabel="share right (generated)", ylim=(0, 1.02))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _glance(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, number: int = 32) -> dict[str, float]:
    """A small measurement for the curve, cheap enough to repeat."""
    model.eval()
    glance = {}
    for kind in ("clean", "in-between"):
        images = pictures(kind, number, 77)
        told = answer(model, processor, [[image] for image in images], ["describe the picture"] * number)
        right = place_accuracy(told, images)
        glance[kind] = right["place"]
        if kind == "in-between":
            glance["quality"] = right["quality"]
    images = pictures("clean", 3 * number, 78)
    rows = [images[start : start + 3] for start in range(0, 3 * number, 3)]
    told = answer(model, processor, rows, ["describe picture 3"] * number)
    glance["third"] = place_accuracy(told, images[2::3])["place"]
    glance["request"] = request_accuracy(model, processor, number, 79)
    glance["compared"] = comparison_accuracy(model, processor, number, 80)
    model.train()
    return glance


# ---------------------------------------------------------------------------------- training


def pretrain(
    out: Path,
    steps: int,
    seed: int,
    batch: int,
    peak: float,
    save_minutes: float = 4.0,
    glance_every: int = 500,
) -> list[dict[str, float]]:
    """Train and write the folder; returns the log (one entry per 25 steps).

    Args:
        out: The folder to write; it is replaced file by file every ``save_minutes`` and at the end.
        steps: Optimiser steps; a quarter of them with one picture per row.
        seed: Seed of the weights and of the drawn rows.
        batch: Rows per step.
        peak: Highest learning rate.
        save_minutes: Minutes between saves on the way.
        glance_every: Steps between the small measurements of the curve.
    """
    log: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as fresh:
        model, processor = load_critic(build_tiny_vlm(fresh, seed=seed))
    rng = random.Random(seed)
    alone = BUCKET * math.ceil(0.25 * steps / BUCKET)
    rows = chain(islice(batches(batch, rng, (1,), processor), alone), batches(batch, rng, (1, 1, 1, 2, 2, 3), processor))
    model.train()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    recent: list[tuple[float, float]] = []
    started = saved = time.monotonic()
    for step, inputs in zip(range(1, steps + 1), rows, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, steps, peak)
        loss, hits = caption_loss(model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append((loss.item(), hits.item()))
        if step % 25 == 0 or step == steps:
            mean = np.mean(recent, axis=0)
            recent = []
            entry = {"step": step, "loss": float(mean[0]), "tokens": float(mean[1]), "seconds": time.monotonic() - started}
            if step % glance_every == 0 or step == steps:
                entry |= _glance(model, processor)
            log.append({name: round(value, 4) for name, value in entry.items()})
            print(log[-1], flush=True)
        if time.monotonic() - saved > 60 * save_minutes or step == steps:
            save(model, processor, out, log)
            saved = time.monotonic()
    return log


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretrain the embedded base VLM on captions of freshly drawn pictures.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write (a transformers folder)")
    parser.add_argument("--steps", type=int, default=8000, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=32, help="rows per step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", type=int, default=200, help="held-out pictures of every kind to measure on at the end")
    parser.add_argument("--curve", type=Path, help="PNG to draw the training curve to (needs matplotlib)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    log = pretrain(options.out, options.steps, options.seed, options.batch, options.lr)
    if options.curve is not None:
        plot_curve(log, options.curve)
    model, processor = load_critic(options.out)
    print(json.dumps(measure(model, processor, options.measure), indent=2))


if __name__ == "__main__":
    main()
