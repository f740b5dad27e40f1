"""A picture generator as a recipe: which diffusers pipeline, how it samples, and the LoRA that is trained on it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from peft import get_peft_model_state_dict
from PIL import Image

from ..checkpoints import resolve
from ..memory import explain_out_of_memory
from . import policies
from .encoders import EncoderMemory, EncoderSavings
from .tape import PipelineTape, Recording, UnprovenPipelineError, as_pictures, pictures_of

Size = tuple[int, int]
"""Width and height in pixels."""

T = TypeVar("T")


class FlowGenerator:
    """Any diffusers flow-matching pipeline, text-to-image or editing.

    Args:
        path: Folder or hub id that ``DiffusionPipeline.from_pretrained`` loads.
        steps: Sampling steps.
        eval_steps: Sampling steps where nothing is trained on (validation, refinement); default ``steps``.
        pipeline_kwargs: Further arguments of the pipeline's call, e.g. height, width and guidance. Guidance by a second denoiser
            call must be off for training; guidance that the denoiser is told as a number (FLUX) is trained with.
        eval_kwargs: What :meth:`sample` changes of them, and training does not, e.g. ``{"true_cfg_scale": 4.0, "negative_prompt": ""}``.
        dtype: Weight type, e.g. ``"bfloat16"``.
        rank: LoRA rank.
        alpha: LoRA scale (the update is multiplied by ``alpha / rank``).
        targets: Suffixes of the linear layers that get a LoRA.
        adapter: Folder of a trained LoRA to load on top of the base when only sampling.
        gradient_checkpointing: Trade compute for memory in training.
        source_size: Source pictures whose shorter side is below this many pixels are enlarged to it (some pipelines refuse small
            ones); ``None`` leaves them.
        buckets: Sizes (width, height) to choose from for edits: the picture gets the one whose aspect ratio is nearest to the first
            source's. ``None``: the size in ``pipeline_kwargs``.
        encoder_cache_gib: Main memory (GiB) for what text encoders and VAE answered before, see :class:`EncoderMemory`; 0 asks them
            again each time.
        park_encoders: Keep text encoders and VAE in main memory between their uses.
        tolerance: Largest replay difference that the tape accepts; see ``PipelineTape``.
        revision: Hub revision to pin.
    """

    def __init__(
        self,
        path: str,
        steps: int = 20,
        eval_steps: int | None = None,
        pipeline_kwargs: dict[str, Any] | None = None,
        eval_kwargs: dict[str, Any] | None = None,
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
        buckets: Sequence[Size] | None = None,
        encoder_cache_gib: float = 4.0,
        park_encoders: bool = False,
        tolerance: float = 0.0,
        revision: str | None = None,
    ) -> None:
        self.path = path
        self.steps = steps
        self.eval_steps = eval_steps
        self.pipeline_kwargs = pipeline_kwargs or {}
        self.eval_kwargs = eval_kwargs or {}
        self.dtype = dtype
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.adapter = adapter
        self.gradient_checkpointing = gradient_checkpointing
        self.source_size = source_size
        self.buckets = buckets
        self.encoder_cache_gib = encoder_cache_gib
        self.park_encoders = park_encoders
        self.tolerance = tolerance
        self.revision = revision
        self.pipe: Any = None
        self.tape: PipelineTape | None = None
        self.encoders: EncoderMemory | None = None
        self._one_prompt = False  # learned from the pipeline's own refusal of a list of prompts

    @property
    def savings(self) -> EncoderSavings:
        """What was saved by asking no encoder twice, since the pipeline was loaded."""
        return EncoderSavings() if self.encoders is None else self.encoders.savings

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
                self._load_adapter(self.adapter)
        if self.encoders is None:
            self.encoders = EncoderMemory(self.pipe, int(self.encoder_cache_gib * 2**30))
        if device is not None:
            self._place(torch.device(device))

    def _place(self, device: torch.device) -> None:
        assert self.encoders is not None
        if not self.park_encoders:
            self.pipe.to(device)
            return
        self.encoders.park(device)
        parked = {id(part) for part in self.encoders.parts}
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module) and id(part) not in parked:
                part.to(device)

    def _load_adapter(self, folder: str) -> None:
        if hasattr(self.pipe, "load_lora_weights"):
            self.pipe.load_lora_weights(folder)
        else:
            self.denoiser.load_lora_adapter(folder, prefix=None, use_safetensors=True)  # type: ignore[operator]

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
        self,
        steps: int,
        prompts: Sequence[str],
        sources: Sequence[Image.Image],
        seeds: Sequence[int],
        size: Size | None = None,
        changes: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
        arguments = {"num_inference_steps": steps, **self.pipeline_kwargs, **(changes or {}), "prompt": list(prompts)}
        for name, value in arguments.items():
            if name.startswith("negative_prompt") and isinstance(value, str):  # some pipelines take one per request only
                arguments[name] = [value] * len(prompts)
        arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        if sources:
            enlarged = [self._enlarge(source) for source in sources]
            arguments["image"] = enlarged[0] if len(enlarged) == 1 else enlarged
            if self.buckets and size is None:
                size = nearest_bucket(sources[0].size, self.buckets)
        if size is not None:
            arguments["width"], arguments["height"] = size
        return arguments

    def _enlarge(self, source: Image.Image) -> Image.Image:
        short = min(source.size)
        if self.source_size is None or short >= self.source_size:
            return source
        width, height = (round(side * self.source_size / short) for side in source.size)
        return source.resize((width, height), Image.Resampling.NEAREST)

    def _call(self, run: Callable[..., T], arguments: Callable[[], dict[str, Any]]) -> T:
        """Call the pipeline; if it takes no list of prompts, but all are the same, as several pictures of one prompt."""
        given = arguments()
        count, prompts = len(given["prompt"]), set(given["prompt"])
        copies = next((name for name in _COPIES if name in inspect.signature(self.pipe.__call__).parameters), None)
        if count > 1 and len(prompts) == 1 and copies is not None:
            if not self._one_prompt:
                try:
                    return run(**given)
                except UnprovenPipelineError:
                    raise
                except ValueError:
                    given = arguments()  # the generators may have moved on
            texts = {name: value for name, value in given.items() if name.startswith(("prompt", "negative_prompt"))}
            first = {name: value[:1] for name, value in texts.items() if isinstance(value, list)}
            made = run(**{**given, **first, copies: count})
            self._one_prompt = True
            return made
        return run(**given)

    def record(
        self,
        prompts: Sequence[str],
        sources: Sequence[Image.Image],
        seeds: Sequence[int],
        keep_steps: bool = False,
        size: Size | None = None,
    ) -> Recording:
        """Sample with the current policy and record what training needs; see :meth:`sample`.

        A pipeline that takes one prompt per call (Qwen-Image-Edit) records copies of one prompt only.
        """
        assert self.tape is not None, "call prepare_training first"
        tape = self.tape
        with self._sampling(len(prompts)):
            return self._call(
                lambda **arguments: tape.record(keep_steps=keep_steps, **arguments),
                lambda: self._arguments(self.steps, prompts, sources, seeds, size),
            )

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        sources: Sequence[Image.Image],
        seeds: Sequence[int],
        sizes: Sequence[Size] | None = None,
    ) -> list[Image.Image]:
        """Sample pictures.

        Args:
            prompts: One request per picture.
            sources: Source pictures, shared by all requests of the call (diffusers pipelines take one set of sources per call).
            seeds: One seed per picture: a picture depends on its own seed, not on its batch.
            sizes: Width and height of each picture, where they differ: requests of one size share a call of the pipeline.

        Returns:
            One picture per request; of a video, a sheet of its frames (see :class:`Recording`).
        """
        for given, what in ((seeds, "seeds"), (sizes, "sizes")):
            if given is not None and len(given) != len(prompts):
                raise ValueError(f"{len(prompts)} prompts but {len(given)} {what}")
        groups: dict[Size | None, list[int]] = {}
        for index in range(len(prompts)):
            groups.setdefault(None if sizes is None else (sizes[index][0], sizes[index][1]), []).append(index)
        made: dict[int, Image.Image] = {}
        for size, indices in groups.items():
            images = self._sample_size([prompts[i] for i in indices], sources, [seeds[i] for i in indices], size)
            made.update(zip(indices, images, strict=True))
        return [made[index] for index in range(len(prompts))]

    def _sample_size(
        self, prompts: list[str], sources: Sequence[Image.Image], seeds: list[int], size: Size | None
    ) -> list[Image.Image]:
        steps = self.steps if self.eval_steps is None else self.eval_steps

        def pictures(**arguments: Any) -> list[Image.Image]:
            return pictures_of(self.pipe(**as_pictures(self.pipe, arguments)))[0]

        with self._sampling(len(prompts)):
            return self._call(pictures, lambda: self._arguments(steps, prompts, sources, seeds, size, self.eval_kwargs))

    @contextmanager
    def _sampling(self, pictures: int) -> Iterator[None]:
        size = " x ".join(str(self.pipeline_kwargs[side]) for side in ("width", "height") if side in self.pipeline_kwargs)
        assert self.encoders is not None, "call load first"
        with (
            explain_out_of_memory(
                f"{pictures} pictures{f' of {size} pixels' if size else ''} at once",
                "lower the data module's batch_size or eval_batch_size, or the size in pipeline_kwargs",
            ),
            self.encoders.active(),
        ):
            yield

    def save_adapter(self, folder: str | Path, adapter: str = policies.POLICY) -> Path:
        """Write an adapter as a LoRA that ``pipe.load_lora_weights(folder)`` loads.

        Of a pipeline without that method, ``pipe.transformer.load_lora_adapter(folder, prefix=None)`` loads it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not hasattr(self.pipe, "save_lora_weights"):  # of a pipeline without a LoRA loader: its denoiser has PEFT's
            self.denoiser.save_lora_adapter(folder, adapter_name=adapter)  # type: ignore[operator]
            return folder
        layers = get_peft_model_state_dict(self.denoiser, adapter_name=adapter)
        config = getattr(self.denoiser, "peft_config", {}).get(adapter)
        self.pipe.save_lora_weights(
            folder,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=config.to_dict() if config else None,
        )
        return folder


_COPIES = ("num_images_per_prompt", "num_videos_per_prompt")


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect ratio is nearest to a picture's, on a logarithmic scale; of equal ones the nearest in area.

    Args:
        size: Width and height of the picture.
        buckets: Widths and heights to choose from.
    """
    ratio, area = math.log(size[0] / size[1]), math.log(size[0] * size[1])
    width, height = min(buckets, key=lambda b: (round(abs(math.log(b[0] / b[1]) - ratio), 6), abs(math.log(b[0] * b[1]) - area)))
    return width, height
