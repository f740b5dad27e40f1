"""Pretrains the embedded base generator from nothing.

``python -m rationalrewards.components.shapes.pretrain_generator --out FOLDER``

Freshly drawn pictures all the way. The VAE comes first (squared error and a slight KL term); then text encoder and
transformer learn together by flow matching, in the packed latent layout and with the position ids that the pipeline
itself builds. The folder is rewritten every few minutes with a checkpoint that loads.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import Flux2KleinPipeline
from PIL import Image
from torch import nn

from . import judge
from .drawing import DAMAGES, SIZE, damage, draw, random_shifts, to_pixels
from .scenes import Style, random_edit, random_scene
from .tiny_generator import PIPELINE_KWARGS, Sample, build_generator, draw_sample, load_generator, upscale_source

log = logging.getLogger(__name__)

MINUTES_BETWEEN_SAVES = 4.0
HISTORY = "pretraining.jsonl"


def as_tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures of one size as the VAE takes them: ``float32 [N, 3, H, W]`` in -1...1."""
    return torch.from_numpy(np.stack([to_pixels(image) for image in images])).permute(0, 3, 1, 2) * 2.0 - 1.0


def _vae_pictures(rng: random.Random, count: int) -> list[Image.Image]:
    """Clean and damaged drawings, and 32 x 32 windows of the upscaled sources, which the encoder must read as well."""
    pictures = []
    for _ in range(count):
        picture = draw(random_scene(rng), random_shifts(rng))
        if rng.random() < 0.35:
            picture = damage(picture, rng.choice(DAMAGES), rng.uniform(0.0, 0.8), rng)
        if rng.random() < 0.3:
            left, top = rng.randrange(SIZE + 1), rng.randrange(SIZE + 1)
            picture = upscale_source(picture).crop((left, top, left + SIZE, top + SIZE))
        pictures.append(picture)
    return pictures


def train_vae(pipeline: Flux2KleinPipeline, steps: int, seed: int, batch: int = 16) -> float:
    """Trains the VAE in place and sets the statistics of its latent normalisation.

    Returns:
        Root mean squared error of clean reconstructions, on pixel values 0...1.
    """
    vae = pipeline.vae.train()
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, 50, steps))
    start = time.monotonic()
    for step in range(steps):
        pictures = as_tensor(_vae_pictures(rng, batch))
        latents = vae.encode(pictures).latent_dist
        mean, logvar = latents.mean, latents.logvar
        noise = torch.randn(mean.shape, generator=generator)
        rebuilt = vae.decode(mean + torch.exp(0.5 * logvar) * noise).sample
        error = F.mse_loss(rebuilt, pictures)
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        loss = error + 2e-5 * kl
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            log.info(
                "vae step %d: rmse %.4f, kl %.2f, %.0f s",
                step + 1,
                error.item() ** 0.5 / 2,
                kl.item(),
                time.monotonic() - start,
            )
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        total = torch.cat([_patches(pipeline, [draw_sample(rng, False).target for _ in range(64)]) for _ in range(16)])
        vae.bn.running_mean.copy_(total.mean(dim=(0, 2, 3)))
        vae.bn.running_var.copy_(total.var(dim=(0, 2, 3)))
        clean = as_tensor([draw(random_scene(rng), random_shifts(rng)) for _ in range(256)])
        rebuilt = vae.decode(vae.encode(clean).latent_dist.mode()).sample
    return F.mse_loss(rebuilt, clean).item() ** 0.5 / 2


def _patches(pipeline: Flux2KleinPipeline, images: Sequence[Image.Image]) -> torch.Tensor:
    return pipeline._patchify_latents(pipeline.vae.encode(as_tensor(images)).latent_dist.mode())


def _warm_cosine(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


@torch.no_grad()
def pack(pipeline: Flux2KleinPipeline, images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes pictures of one size.

    Returns:
        Normalised latents, packed as the transformer takes them ``[N, h * w, C]``, and before packing ``[N, C, h, w]``.
    """
    latents = pipeline._encode_vae_image(as_tensor(images), generator=None)
    return pipeline._pack_latents(latents), latents


def flow_loss(pipeline: Flux2KleinPipeline, samples: Sequence[Sample], generator: torch.Generator) -> torch.Tensor:
    """Flow-matching loss of samples of one kind (all text-to-image, or all edits), with the pipeline's own inputs.

    The noisy picture is ``x_t = (1 - s) x_0 + s e`` and the velocity to predict ``e - x_0`` (Lipman et al., "Flow
    Matching for Generative Modeling", 2023), with the noise level ``s`` drawn from a logit-normal distribution (Esser
    et al., "Scaling Rectified Flow Transformers", 2024) and given to the transformer as its time, as the pipeline gives
    t / 1000.
    """
    clean, latents = pack(pipeline, [sample.target for sample in samples])
    count, tokens, _ = clean.shape
    noise = torch.randn(clean.shape, generator=generator)
    # A few more high noise levels than low ones: there the picture's content is decided.
    sigma = torch.sigmoid(0.4 + 1.1 * torch.randn(count, generator=generator))
    level = sigma.view(-1, 1, 1)
    hidden, ids = (1 - level) * clean + level * noise, pipeline._prepare_latent_ids(latents)
    if samples[0].source is not None:
        sources, source_latents = pack(pipeline, [sample.source for sample in samples if sample.source is not None])
        hidden = torch.cat([hidden, sources], dim=1)
        ids = torch.cat([ids, pipeline._prepare_image_ids([source_latents[:1]]).repeat(count, 1, 1)], dim=1)
    prompts, text_ids = pipeline.encode_prompt(
        [sample.request for sample in samples],
        max_sequence_length=PIPELINE_KWARGS["max_sequence_length"],
        text_encoder_out_layers=PIPELINE_KWARGS["text_encoder_out_layers"],
    )
    velocity = pipeline.transformer(
        hidden_states=hidden,
        timestep=sigma,
        guidance=None,
        encoder_hidden_states=prompts,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0][:, :tokens]
    return F.mse_loss(velocity, noise - clean)


@torch.no_grad()
def measure(pipeline: Flux2KleinPipeline, seed: int, count: int, edits: int, steps: int = 8) -> dict[str, float]:
    """Draws held-out requests and lets the judge read the pictures.

    Args:
        pipeline: The pipeline to measure.
        seed: Chooses the requests.
        count: Number of scenes; each is asked for in both styles.
        edits: Number of edits, all detailed.
        steps: Denoising steps.

    Returns:
        Exact-match rates (0...1) as ``terse``, ``detailed`` and ``edit``, and mean qualities (1...4).
    """
    rng = random.Random(f"held-out {seed}")
    scenes = [random_scene(rng) for _ in range(count)]
    result: dict[str, float] = {}
    styles: tuple[Style, ...] = ("terse", "detailed")
    for style in styles:
        generators = [torch.Generator().manual_seed(index) for index in range(count)]
        requests = [scene.request(style) for scene in scenes]
        images = pipeline(prompt=requests, generator=generators, num_inference_steps=steps, **PIPELINE_KWARGS).images
        readings = judge.read(images)
        result[style] = sum(seen.scene == scene for seen, scene in zip(readings, scenes, strict=True)) / count
        result[f"{style} quality"] = sum(seen.quality for seen in readings) / count
    hits = 0
    for index in range(edits):
        scene, shifts = random_scene(rng), random_shifts(rng)
        edit = random_edit(scene, rng)
        images = pipeline(
            prompt=edit.request("detailed"),
            image=upscale_source(draw(scene, shifts)),
            generator=torch.Generator().manual_seed(index),
            num_inference_steps=steps,
            **PIPELINE_KWARGS,
        ).images
        hits += judge.read(images)[0].scene == edit.apply(scene)
    result["edit"] = hits / max(1, edits)
    return result


def save(pipeline: Flux2KleinPipeline, out: Path, history: Sequence[dict[str, float]] = ()) -> None:
    """Writes checkpoint and training log; every file appears whole, so that a reader never meets half of one.

    The VAE is stored in float16, which moves pictures by less than a grey level and keeps the folder under 5 MB; it is loaded
    as float32 like the rest.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        pipeline.save_pretrained(folder)
        copy.deepcopy(pipeline.vae).half().save_pretrained(Path(folder) / "vae")
        (Path(folder) / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                if path.name == "config.json":  # where the part was read from is nobody's business
                    entries = json.loads(path.read_text(encoding="utf-8"))
                    entries.pop("_name_or_path", None)
                    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
                place = out / path.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.chmod(0o644)  # safetensors writes files that only their owner may read
                os.replace(path, place)


def draw_curve(history: list[dict[str, float]], path: Path) -> None:
    """Draws loss and exact-match rates over the training steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot([row["step"] for row in history], [row["loss"] for row in history], label="text-to-image")
    left.plot([row["step"] for row in history], [row["edit loss"] for row in history], label="edit")
    left.set(title="Flow-matching loss", xlabel="step", ylim=(0, 1.0))
    left.legend()
    measured = [row for row in history if "terse" in row]
    for name in ("terse", "detailed", "edit"):
        right.plot([row["step"] for row in measured], [row[name] for row in measured], marker=".", label=name)
    right.set(title="Exact match, 8 steps, held-out requests", xlabel="step", ylim=(0, 1))
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are orthogonalised by five Newton-Schulz steps, in float32.

    After Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); ``torch.optim.Muon`` does the
    same in bfloat16, which few CPUs are fast at.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever given
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                buffer = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = _orthogonal(weight.grad.lerp(buffer, group["momentum"]))
                # a step of equal root mean square for every shape
                update *= 0.2 * max(weight.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.mT


def train_flow(
    pipeline: Flux2KleinPipeline,
    out: Path,
    steps: int,
    seed: int,
    batch: int,
    lr: float,
    edit_share: float,
    curve: Path | None = None,
) -> Flux2KleinPipeline:
    """Trains text encoder and transformer together.

    Args:
        pipeline: The pipeline to train; its VAE is left alone.
        out: Folder that is rewritten with the averaged weights every few minutes and at the end.
        steps: Optimizer steps; learning rates fall along a cosine over them.
        seed: Chooses samples and noise.
        batch: Samples per step.
        lr: Peak learning rate of AdamW, which trains all but the blocks' matrices; Muon trains those at twice that.
        edit_share: Share of edits in a batch and in the loss, 0...1.
        curve: Where to draw the training curve.

    Returns:
        The pipeline with exponentially averaged weights.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    learners = nn.ModuleList([pipeline.transformer, pipeline.text_encoder]).train().requires_grad_(True)
    average = Flux2KleinPipeline(
        **{
            **pipeline.components,
            "transformer": copy.deepcopy(pipeline.transformer),
            "text_encoder": copy.deepcopy(pipeline.text_encoder),
        }
    )
    average.set_progress_bar_config(disable=True)
    averaged = nn.ModuleList([average.transformer, average.text_encoder]).eval().requires_grad_(False)
    matrices = [
        weight for name, weight in learners.named_parameters() if weight.ndim == 2 and ("blocks." in name or ".layers." in name)
    ]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in learners.parameters() if id(weight) not in chosen]
    optimizers = [torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01), Muon(matrices, lr=2 * lr)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: _warm_cosine(step, 100, steps)) for one in optimizers]
    edits = round(edit_share * batch)
    history: list[dict[str, float]] = []
    losses: list[tuple[float, float]] = []
    start = saved = time.monotonic()
    for step in range(1, steps + 1):
        drawn = flow_loss(pipeline, [draw_sample(rng, edit=False) for _ in range(batch - edits)], generator)
        changed = flow_loss(pipeline, [draw_sample(rng, edit=True) for _ in range(edits)], generator)
        learners.zero_grad()
        ((1 - edit_share) * drawn + edit_share * changed).backward()
        nn.utils.clip_grad_norm_(learners.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        with torch.no_grad():
            decay = min(0.996, (1 + step) / (10 + step))
            for mean, new in zip(averaged.parameters(), learners.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        losses.append((drawn.item(), changed.item()))
        if step % 50 == 0 or step == steps:
            means = np.mean(losses, axis=0)
            losses.clear()
            row = {"step": float(step), "loss": float(means[0]), "edit loss": float(means[1])}
            if time.monotonic() - saved > 60 * MINUTES_BETWEEN_SAVES or step == steps:
                row |= measure(average, seed=0, count=48, edits=24)
            history.append({key: round(value, 4) for key, value in row.items()})
            if "terse" in row:
                save(average, out, history)
                saved = time.monotonic()
            log.info("%.0f s: %s", time.monotonic() - start, json.dumps(history[-1]))
            if curve is not None and "terse" in row:
                draw_curve(history, curve)
    return average


def main() -> None:
    """Runs both stages; ``--from-stage draw`` takes the finished VAE that stands in ``--out``."""
    parser = argparse.ArgumentParser(description="Pretrain the embedded base generator of the shapes world.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint (diffusers layout)")
    parser.add_argument("--vae-steps", type=int, default=2000, help="optimizer steps of the VAE stage")
    parser.add_argument("--steps", type=int, default=1300, help="optimizer steps of the drawing stage")
    parser.add_argument("--batch", type=int, default=48, help="samples per step of the drawing stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--from-stage", choices=("vae", "draw"), default="vae", help="the first stage to run")
    parser.add_argument("--curve", type=Path, help="where to draw the training curve (PNG; needs matplotlib)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    out, seed = arguments.out, arguments.seed
    if arguments.from_stage == "vae":
        pipeline = build_generator(seed)
        error = train_vae(pipeline, arguments.vae_steps, seed)
        log.info("VAE done: clean reconstructions are %.4f RMSE away", error)
        save(pipeline, out)
    else:
        pipeline = load_generator(out)
        pipeline.vae.requires_grad_(False)
    train_flow(pipeline, out, arguments.steps, seed + 1, arguments.batch, lr=2e-3, edit_share=1 / 3, curve=arguments.curve)


if __name__ == "__main__":
    main()
