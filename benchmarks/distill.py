"""Useful tokens per second of distillation: TRL's SFTTrainer and RationaleDistillModule on the same rows of the shapes world.

    python benchmarks/distill.py [RATIONALES] [--pairs 64] [--epochs 3] [--batch-size 16] [--rounds 3] [--only ...] [--out FILE]

RATIONALES is a ``rationales.jsonl``, as ``make quickstart`` leaves one in ``quickstart/rationalize``; without it, a teacher without faults
writes rationales for ``--pairs`` drawn pairs. Both sides train the embedded Qwen3-VL in float32 with the same AdamW, clipping and rows,
without gradient checkpointing. First, on the same batches, unpacked, their losses must agree step by step, or nothing else is reported.
Then the ways take turns, ``--rounds`` times each, and medians are shown. Time is from the first batch to the last step, all epochs, with
what each side does on the way (reading pictures, tokenising; ours also proves its first batch). Useful tokens are those of requests,
pictures and answers, without padding. FLOPs and memory are counted in a run of their own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lightning.pytorch import Callback, Trainer
from rationalrewards.components.backbone import freeze
from rationalrewards.components.checkpoints import resolve
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.distillation import Row
from rationalrewards.components.measuring import PeakBytes, flop_counter
from rationalrewards.components.parrot import Ledger, ParrotOptions, rationalize
from rationalrewards.components.records import Preference, read_jsonl, write_jsonl
from rationalrewards.components.shapes.pairs import write_preferences
from rationalrewards.components.shapes.teacher import ShapesTeacher
from rationalrewards.datamodules import RationaleDataModule
from rationalrewards.lightning_modules import RationaleDistillModule
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

STUDENT = "embedded:shapes-critic"
RATE, CLIP, SEED = 1e-3, 1.0, 0
AGREE_STEPS = 8
AGREE = 1e-4
"""Largest relative difference of two losses of a step: both sides sum in float32 in another order (1e-6), which training magnifies."""


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    """The same on both sides; epsilon above rounding, whose noise would else be magnified to whole steps where gradients all but vanish."""
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=RATE, weight_decay=0.01, eps=1e-4)


@dataclass
class Way:
    """One way to train, and what it cost."""

    name: str
    train: Callable[[], tuple[list[float], float]]
    """Trains, and gives the loss of every step and the seconds from the first batch to the last step."""
    seconds: list[float] = field(default_factory=list)
    flops: float = 0.0
    memory: float = 0.0
    losses: Sequence[float] = ()


# -- ours ------------------------------------------------------------------------------------------------------------------


class Watch(Callback):
    """Loss of every step, and the time of all."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.start = self.end = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.end = time.perf_counter()


def ours(path: Path, arguments: argparse.Namespace, frozen: bool, steps: int = -1, **options: Any) -> tuple[list[float], float]:
    """A fit of RationaleDistillModule."""
    module = RationaleDistillModule(
        STUDENT,
        CritiqueFormat("shapes"),
        optimizer=optimizer,
        freeze_vision=frozen,
        freeze_projector=frozen,
        max_length=2048,
        **options,
    )
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=arguments.epochs,
        max_steps=steps,
        gradient_clip_val=CLIP,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, rows_of(path, arguments))
    return watch.losses, watch.end - watch.start


def rows_of(path: Path, arguments: argparse.Namespace) -> RationaleDataModule:
    """The rows, in our batches."""
    return RationaleDataModule(str(path), CritiqueFormat("shapes"), batch_size=arguments.batch_size, seed=SEED)


# -- theirs ----------------------------------------------------------------------------------------------------------------


class Timer(TrainerCallback):
    """The time of all steps."""

    def __init__(self) -> None:
        self.start = self.end = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.end = time.perf_counter()


class Recorded(SFTTrainer):
    """SFTTrainer that keeps its losses, unrounded."""

    losses: list[float]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


def as_theirs(rows: Sequence[Row], processor: Any) -> Dataset:
    """Our rows as TRL's prompt and completion: the same tokens."""
    records = []
    for messages, answer in rows:
        prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images = [part["image"] for turn in messages for part in turn["content"] if part["type"] == "image"]
        records.append(
            {
                "prompt": prompt,
                "completion": answer + processor.tokenizer.eos_token,
                "images": images,
                "length": len(prompt) + len(answer) + 100 * len(images),
            }
        )
    return Dataset.from_list(records)


def theirs(
    rows: Dataset, arguments: argparse.Namespace, frozen: bool, folder: str, steps: int = -1, sampling: str = "random"
) -> tuple[list[float], float]:
    """A run of SFTTrainer."""
    student = AutoModelForImageTextToText.from_pretrained(resolve(STUDENT), dtype=torch.float32)
    freeze(student, frozen, frozen)
    config = SFTConfig(
        folder,
        per_device_train_batch_size=arguments.batch_size,
        num_train_epochs=arguments.epochs,
        max_steps=steps,
        max_grad_norm=CLIP,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        completion_only_loss=True,
        max_length=None,
        train_sampling_strategy=sampling,
        length_column_name="length",
        remove_unused_columns=False,
        logging_steps=10**6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
    )
    timer, steady = Timer(), optimizer(student.parameters())
    constant = torch.optim.lr_scheduler.LambdaLR(steady, lambda step: 1.0)
    trainer = Recorded(
        student,
        config,
        train_dataset=rows,
        processing_class=AutoProcessor.from_pretrained(resolve(STUDENT)),
        callbacks=[timer],
        optimizers=(steady, constant),
    )
    trainer.losses = []
    trainer.train()
    return trainer.losses, timer.end - timer.start


# -- the race --------------------------------------------------------------------------------------------------------------


def drawn_rationales(folder: Path, pairs: int) -> Path:
    """Rationales of a teacher without faults for drawn pairs."""
    written = read_jsonl(write_preferences(folder / "data", pairs, SEED, label_noise=0.0), Preference)
    teacher = ShapesTeacher(hallucination=0.0, obedience=0.0, vagueness=0.0, label_echo=0.0, position_bias=0.0)
    outcomes = rationalize(written, teacher, CritiqueFormat("shapes"), ParrotOptions(control_share=0.0), Ledger())
    path = folder / "rationales.jsonl"
    write_jsonl(path, [outcome.rationale for outcome in outcomes if outcome.rationale is not None])
    return path


def agree(path: Path, data: RationaleDataModule, arguments: argparse.Namespace, frozen: bool, folder: str, processor: Any) -> str:
    """Largest relative difference of the losses of a step, on the same batches, unpacked; and of how many steps.

    Raises:
        AssertionError: If it is above ``AGREE``.
    """
    # TRL cuts rows into batches one after the other: up to the one that is not full
    full = takewhile(lambda batch: len(batch) == arguments.batch_size, data.train_dataloader())
    batches = list(islice(full, AGREE_STEPS))
    steps = len(batches)
    rows = as_theirs([row for batch in batches for row in batch], processor)
    first, _ = theirs(rows, arguments, frozen, folder, steps, "sequential")
    second, _ = ours(path, arguments, frozen, steps, packing=False, picture_bytes=0)
    assert len(first) == len(second) == steps > 0, (first, second)
    apart = max(abs(one - other) / abs(one) for one, other in zip(first, second, strict=True))
    assert apart <= AGREE, f"losses differ by {apart:.1e}: {first} and {second}"
    return f"{apart:.1e} over {steps} steps"


def count(way: Way) -> None:
    """FLOPs and memory of a way, in a run of its own."""
    with PeakBytes() as memory, flop_counter() as flops:
        way.train()
    way.flops, way.memory = float(flops.get_total_flops()), memory.peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rationales", nargs="?")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of the ways to run, as the table has them; all if omitted")
    parser.add_argument("--out", help="JSON file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    processor = AutoProcessor.from_pretrained(resolve(STUDENT))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(arguments.rationales) if arguments.rationales else drawn_rationales(Path(folder), arguments.pairs)
        data = rows_of(path, arguments)
        data.setup("fit")
        loaded = [row.load(data.format) for row in data.rows]
        rows = as_theirs(loaded, processor)
        module = RationaleDistillModule(STUDENT, data.format, max_length=2048)
        module.configure_model()
        masks = [module.encode([row])["attention_mask"] for row in loaded]
        useful = arguments.epochs * sum(int(mask.sum()) for mask in masks)
        print(
            f"{len(loaded)} rows of {min(mask.shape[1] for mask in masks)} to {max(mask.shape[1] for mask in masks)} tokens, "
            f"{useful} useful tokens in {arguments.epochs} epochs, batches of {arguments.batch_size}, {arguments.threads} threads, "
            f"medians of {arguments.rounds}"
        )
        for frozen in (True, False):
            title = "frozen vision" if frozen else "vision trains"
            apart = agree(path, data, arguments, frozen, folder, processor)
            print(f"\n{title}: losses agree to {apart} on the same batches\n")

            def way(name: str, train: Callable[..., tuple[list[float], float]], **options: Any) -> Way:
                return Way(name, lambda: train(**options))

            trl = {"rows": rows, "arguments": arguments, "frozen": frozen, "folder": folder}
            own = {"path": path, "arguments": arguments, "frozen": frozen}
            ways = [
                way("TRL SFTTrainer", theirs, **trl),
                way("TRL, grouped by length", theirs, **trl, sampling="group_by_length"),
                way("ours, padded", ours, **own, packing=False, picture_bytes=0),
                way("ours, packed", ours, **own, picture_bytes=0),
                *([way("ours, packed, pictures once", ours, **own)] if frozen else []),
            ]
            ways = [one for one in ways if arguments.only is None or one.name in arguments.only]
            for one in ways:
                count(one)
            for _ in range(arguments.rounds):
                for one in ways:
                    one.losses, seconds = one.train()
                    one.seconds.append(seconds)
            print("| | useful tokens/s | times TRL | MFLOP per useful token | peak MB of tensors | last loss |")
            print("|---|---:|---:|---:|---:|---:|")
            base = statistics.median(ways[0].seconds)
            for one in ways:
                seconds = statistics.median(one.seconds)
                numbers = {
                    "tokens_per_second": useful / seconds,
                    "times_first": base / seconds,
                    "mflop_per_token": one.flops / useful / 1e6,
                    "peak_mb": one.memory,
                    "last_loss": statistics.fmean(one.losses[-4:]),
                    "seconds": one.seconds,
                }
                results[f"{title}: {one.name}"] = numbers
                print(
                    f"| {one.name} | {numbers['tokens_per_second']:.0f} | {numbers['times_first']:.2f} | "
                    f"{numbers['mflop_per_token']:.2f} | {numbers['peak_mb']:.0f} | {numbers['last_loss']:.3f} |"
                )
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
