"""A picture generator as a recipe: which diffusers pipeline, how it samples, and the LoRA that is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import get_peft_model_state_dict
from PIL import Image

from ..checkpoints import resolve
from ..memory import explain_out_of_memory
from . import policies
from .tape import PipelineTape, Recording


class FlowGenerator:
    """Any diffusers flow-matching pipeline, text-to-image or editing.

    Args:
        path: Folder or hub id that ``DiffusionPipeline.from_pretrained`` loads.
        steps: Sampling steps.
        eval_steps: Sampling steps where nothing is trained on (validation, refinement); default ``steps``.
        pipeline_kwargs: Further arguments of the pipeline's call, e.g. height, width and guidance. Guidance by a second denoiser
            call must be off for training.
        dtype: Weight type, e.g. ``"bfloat16"``.
        rank: LoRA rank.
        alpha: LoRA scale (the update is multiplied by ``alpha / rank``).
        targets: Suffixes of the linear layers that get a LoRA.
        adapter: Folder of a trained LoRA to load on top of the base when only sampling.
        gradient_checkpointing: Trade compute for memory in training.
        source_size: Source pictures whose shorter side is below this many pixels are enlarged to it (some pipelines refuse small
            ones); ``None`` leaves them.
        tolerance: Largest replay difference that the tape accepts; see ``PipelineTape``.
        revision: Hub revision to pin.
    """

    def __init__(
        self,
        path: str,
        steps: int = 20,
        eval_steps: int | None = None,
        pipeline_kwargs: dict[str, Any] | None = None,
        dtype: str = "float32",
        rank: int = 32,
        alpha: int = 64,
        targets: Sequence[str] = (
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "to_add_out",
        ),
        adapter: str | None = None,
        gradient_checkpointing: bool = False,
        source_size: int | None = None,
        tolerance: float = 0.0,
        revision: str | None = None,
    ) -> None:
        self.path = path
        self.steps = steps
        self.eval_steps = eval_steps
        self.pipeline_kwargs = pipeline_kwargs or {}
        self.dtype = dtype
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.adapter = adapter
        self.gradient_checkpointing = gradient_checkpointing
        self.source_size = source_size
        self.tolerance = tolerance
        self.revision = revision
        self.pipe: Any = None
        self.tape: PipelineTape | None = None

    @property
    def denoiser(self) -> torch.nn.Module:
        """The pipeline's transformer."""
        return self.pipe.transformer

    def load(self, device: Any = None) -> None:
        """Load the pipeline (once) and move it to ``device``."""
        if self.pipe is None:
            self.pipe = DiffusionPipeline.from_pretrained(
                resolve(self.path), dtype=getattr(torch, self.dtype), revision=self.revision
            )
            self.pipe.set_progress_bar_config(disable=True)
            if self.adapter:
                self.pipe.load_lora_weights(self.adapter)
        if device is not None:
            self.pipe.to(device)

    def prepare_training(self, seed: int) -> None:
        """Freeze everything and add the policies' adapters.

        Raises:
            ValueError: If an adapter was given as well (merge it first), or the pipeline is not flow matching.
        """
        if self.adapter:
            raise ValueError("`adapter` is for sampling; to train on from a LoRA, give the run's checkpoint as --ckpt_path")
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
        self.tape = PipelineTape(self.pipe, self.tolerance)
        policies.add_policies(self.denoiser, self.rank, self.alpha, self.targets, seed)
        if self.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]

    def _arguments(
        self, steps: int, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]
    ) -> dict[str, Any]:
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
        arguments = {"num_inference_steps": steps, **self.pipeline_kwargs, "prompt": list(prompts)}
        arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        if sources:
            enlarged = [self._enlarge(source) for source in sources]
            arguments["image"] = enlarged[0] if len(enlarged) == 1 else enlarged
        return arguments

    def _enlarge(self, source: Image.Image) -> Image.Image:
        short = min(source.size)
        if self.source_size is None or short >= self.source_size:
            return source
        width, height = (round(side * self.source_size / short) for side in source.size)
        return source.resize((width, height), Image.Resampling.NEAREST)

    def record(
        self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int], keep_steps: bool = False
    ) -> Recording:
        """Sample with the current policy and record what training needs; see :meth:`sample`."""
        assert self.tape is not None, "call prepare_training first"
        with self._explained(len(prompts)):
            return self.tape.record(keep_steps=keep_steps, **self._arguments(self.steps, prompts, sources, seeds))

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]) -> list[Image.Image]:
        """Sample pictures.

        Args:
            prompts: One request per picture.
            sources: Source pictures, shared by all requests of the call (diffusers pipelines take one set of sources per call).
            seeds: One seed per picture: a picture depends on its own seed, not on its batch.

        Returns:
            One picture per request.
        """
        steps = self.steps if self.eval_steps is None else self.eval_steps
        with self._explained(len(prompts)):
            return list(self.pipe(**self._arguments(steps, prompts, sources, seeds)).images)

    def _explained(self, pictures: int) -> AbstractContextManager[None]:
        size = " x ".join(str(self.pipeline_kwargs[side]) for side in ("width", "height") if side in self.pipeline_kwargs)
        return explain_out_of_memory(
            f"{pictures} pictures{f' of {size} pixels' if size else ''} at once",
            "lower the data module's batch_size or eval_batch_size, or the size in pipeline_kwargs",
        )

    def save_adapter(self, folder: str | Path, adapter: str = policies.POLICY) -> Path:
        """Write an adapter as a LoRA that ``pipe.load_lora_weights(folder)`` loads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        layers = get_peft_model_state_dict(self.denoiser, adapter_name=adapter)
        config = getattr(self.denoiser, "peft_config", {}).get(adapter)
        self.pipe.save_lora_weights(
            folder,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=config.to_dict() if config else None,
        )
        return folder
