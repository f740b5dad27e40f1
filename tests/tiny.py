"""The smallest runs of each stage on the shapes world, for pytest's own process and for programs that tests start.

Everything is imported where it is used: importing this file costs nothing, and a program pays only for what it runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from rationalrewards.components.chat import ChatModel, ChatRequest
    from rationalrewards.components.generation import FlowGenerator
    from rationalrewards.components.records import Preference
    from rationalrewards.datamodules import PromptDataModule, RationaleDataModule
    from rationalrewards.lightning_modules import RationaleDistillModule, RewardRLModule
    from torch import Tensor

TARGETS = ("to_q", "to_k", "to_v")

QUIET = [
    # what a run as small as a test's gives cause for, and no fault of it
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    # a resumed run writes where the first one did
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # most of these runs validate on nothing
    pytest.mark.filterwarnings("ignore:Total length of `(list|DataLoader)` across ranks is zero"),
    # PEFT 0.21 asks transformers 5.23 by an old name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
"""Warnings of Lightning that tests with a Trainer expect."""


def trainer(**changes: Any) -> Trainer:
    """A quiet Trainer of one CPU process."""
    from lightning.pytorch import Trainer

    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(**{"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, **quiet, **changes})


def generator(**changes: Any) -> FlowGenerator:
    """The embedded generator: three sampling steps, a LoRA of rank 4 on the attention."""
    from rationalrewards.components.generation import FlowGenerator
    from rationalrewards.components.shapes.tiny_generator import PIPELINE_KWARGS

    options = {"steps": 3, "pipeline_kwargs": dict(PIPELINE_KWARGS), "source_size": 64, "rank": 4, "alpha": 8}
    return FlowGenerator(**{"path": "embedded:shapes-generator", "targets": TARGETS, **options, **changes})


def requests(folder: Path, count: int = 4, edit_share: float = 0.0, seed: int = 5) -> Path:
    """Write requests to generate from."""
    from rationalrewards.components.shapes.pairs import write_prompts

    return write_prompts(folder, count, seed, edit_share, style="detailed")


def pairs(folder: Path, count: int = 12, seed: int = 3) -> Path:
    """Write preference pairs of drawn pictures with their true labels, ties included."""
    from rationalrewards.components.shapes.pairs import write_preferences

    return write_preferences(folder, count, seed, label_noise=0.0)


def rationales(folder: Path, count: int = 12, seed: int = 3) -> Path:
    """Write the rationales that a teacher without faults gives for drawn pairs."""
    from rationalrewards.components.critique import CritiqueFormat
    from rationalrewards.components.parrot import Ledger, ParrotOptions, rationalize
    from rationalrewards.components.records import Preference, read_jsonl, write_jsonl
    from rationalrewards.components.shapes.teacher import ShapesTeacher

    written = read_jsonl(pairs(folder / "data", count, seed), Preference)
    teacher = ShapesTeacher(hallucination=0.0, obedience=0.0, vagueness=0.0, label_echo=0.0, position_bias=0.0)
    options = ParrotOptions(control_share=0.0)
    outcomes = rationalize(written, teacher, CritiqueFormat("shapes"), options, Ledger())
    path = folder / "rationales.jsonl"
    write_jsonl(path, [outcome.rationale for outcome in outcomes if outcome.rationale is not None])
    return path


def rl_module(**changes: Any) -> RewardRLModule:
    """DiffusionNFT on the embedded generator, with the ground truth as its reward."""
    from rationalrewards.components.objectives import NFT
    from rationalrewards.components.shapes.truth import ShapesTruth
    from rationalrewards.lightning_modules import RewardRLModule

    options = {"optimizer": adamw, "objective": NFT(kl_weight=1e-3, old_decay_rate=0.1), "seed": 7}
    return RewardRLModule(**{"generator": generator(), "reward": ShapesTruth(), **options, **changes})


def adamw(parameters: Any) -> Any:
    """Large steps, so that a few of them show."""
    import torch

    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4)


def rl_data(train: Path, **changes: Any) -> PromptDataModule:
    """Rounds of two groups of four, in two batches that are visited twice: four batches a round."""
    from rationalrewards.datamodules import PromptDataModule

    sizes = {"groups_per_epoch": 2, "group_size": 4, "batch_size": 4, "visits": 2, "eval_batch_size": 4}
    return PromptDataModule(**{"train": str(train), "seed": 11, **sizes, **changes})


def adapters(module: RewardRLModule) -> dict[str, Tensor]:
    """Copies of the policy's and the old policy's weights."""
    from rationalrewards.components.generation import policies

    assert module.denoiser is not None
    return {
        **policies.adapter_state(module.denoiser, policies.POLICY),
        **policies.adapter_state(module.denoiser, policies.OLD),
    }


def distill_module(**changes: Any) -> RationaleDistillModule:
    """Distillation of the embedded critic, all of it trained."""
    from rationalrewards.components.critique import CritiqueFormat
    from rationalrewards.lightning_modules import RationaleDistillModule

    free = {"freeze_vision": False, "freeze_projector": False}
    return RationaleDistillModule(
        **{
            "path": "embedded:shapes-critic",
            "format": CritiqueFormat("shapes"),
            "optimizer": adamw,
            "max_length": 512,
            **free,
            **changes,
        }
    )


def distill_data(train: Path, **changes: Any) -> RationaleDataModule:
    """Batches of two rows."""
    from rationalrewards.components.critique import CritiqueFormat
    from rationalrewards.datamodules import RationaleDataModule

    asked = {"format": CritiqueFormat("shapes"), "batch_size": 2, "seed": 1}
    return RationaleDataModule(**{"train": str(train), **asked, **changes})


def decided(path: Path) -> list[Preference]:
    """The pairs of a file that are no ties."""
    from rationalrewards.components.records import Preference, read_jsonl

    return [pair for pair in read_jsonl(path, Preference) if pair.winner != "tie"]


def drawings(count: int, seed: int = 0) -> list[Any]:
    """Different drawn pictures."""
    from rationalrewards.components.shapes.drawing import draw, random_shifts
    from rationalrewards.components.shapes.scenes import random_scene

    rng = random.Random(seed)
    return [draw(random_scene(rng), random_shifts(rng)) for _ in range(count)]


def truthful(fails: Callable[[ChatRequest], bool] = lambda request: False) -> ChatModel:
    """A chat model that critiques single pictures as the ground truth sees them.

    Args:
        fails: Requests that get no answer.
    """
    import re

    from rationalrewards.components.chat import ChatModel, ChatReply
    from rationalrewards.components.critique import CritiqueFormat
    from rationalrewards.components.critique.grammar import REFINEMENT_HEADING
    from rationalrewards.components.shapes import judge, phrases

    class Truthful(ChatModel):
        format = CritiqueFormat("shapes")
        asked = 0

        @property
        def identity(self) -> str:
            return "the ground truth"

        def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
            self.asked += len(requests)
            return [ChatReply("", failure="told to fail") if fails(r) else ChatReply(self._critique(r)) for r in requests]

        def _critique(self, request: ChatRequest) -> str:
            prompt = re.search(r"<request>(.*?)</request>", request.text(), re.DOTALL)
            assert prompt is not None
            *sources, image = request.images()
            asked = phrases.Asked(prompt[1], judge.read(sources[:1])[0].scene if sources else None)
            critique = phrases.critique(asked, judge.read([image])[0])
            text = self.format.render(critique, "edit" if sources else "t2i")
            if request.continues:  # the answer has begun, up to the refinement's heading
                text = text.partition(f"{REFINEMENT_HEADING}\n")[2]
            return min((text.split(mark)[0] for mark in request.stop), key=len, default=text)

    return Truthful()


def smooth(parameters: Any) -> Any:
    """AdamW whose step depends smoothly on the gradient: where it is all but zero, its sign is rounding and must not count."""
    import torch

    return torch.optim.AdamW(parameters, lr=1e-3, eps=1e-2)
