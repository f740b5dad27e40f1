"""How the loop asks for pictures: a pipeline of diffusers, any function, or a server, all through :meth:`ImageSource.sample`."""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from ..checkpoints import fingerprint
from ..generation import FlowGenerator
from ..generation.tape import as_pictures, pictures_of
from ..records import Unscored

log = logging.getLogger(__name__)

Sampled = Image.Image | Unscored
"""A picture, or why there is none."""

ImageFunction = Callable[[Sequence[str], Sequence[Image.Image], Sequence[int]], Sequence[Image.Image | None]]
"""``(prompts, sources, seeds) -> images``; a ``None`` stands for a picture that could not be made."""


class ImageSource(ABC):
    """Whatever makes pictures. Built as a recipe: weights and connections come with :meth:`load`.

    :class:`~rationalrewards.components.generation.FlowGenerator` has the same form and is taken wherever one of these is.
    """

    calls_at_once = 1
    """Calls of :meth:`sample` that may run side by side, each in a thread of its own."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """All that a picture depends on besides request, source pictures and seed, as far as this process can know it."""

    @abstractmethod
    def sample(self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]) -> Sequence[Sampled]:
        """Make pictures, one per prompt and in order. One that cannot be made is :class:`Unscored`; nothing raises for it.

        Args:
            prompts: One request per picture.
            sources: Source pictures, shared by all requests of the call.
            seeds: One seed per picture.
        """

    def stream(
        self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]
    ) -> Iterator[list[tuple[int, Sampled]]]:
        """:meth:`sample` in parts, each with the numbers of its requests, so that a kill loses as little as possible."""
        yield list(enumerate(self.sample(prompts, sources, seeds)))

    def load(self, device: Any = None) -> None:  # noqa: B027 - optional hook
        """Load weights or connect. Called before the first request; safe to call again."""


class PipelineImages(ImageSource):
    """A loaded pipeline of diffusers. It only samples, so the pipeline need not be flow matching, and nothing of it is changed.

    A call that raises is made again picture by picture (some pipelines take one prompt a call), and what raises alone is a picture that
    could not be made. So is one that the pipeline's safety checker blackened.

    Args:
        pipe: The pipeline.
        **arguments: Further arguments of its call, e.g. ``num_inference_steps``.
    """

    def __init__(self, pipe: Any, **arguments: Any) -> None:
        self.pipe = pipe
        self.arguments = arguments
        self._takes = inspect.signature(pipe.__call__).parameters

    @property
    def identity(self) -> str:
        name = getattr(getattr(self.pipe, "config", None), "_name_or_path", None) or ""
        return f"{type(self.pipe).__name__} {name} {sorted(self.arguments.items(), key=str)}"

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]) -> list[Sampled]:
        if sources and "image" not in self._takes:
            return [Unscored(f"{type(self.pipe).__name__} takes no source picture: it does not edit")] * len(prompts)
        return _each_alone_if_need_be(self._call, prompts, sources, seeds)

    def _call(self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]) -> list[Sampled]:
        arguments = {**self.arguments, "prompt": list(prompts)}
        for name, value in self.arguments.items():
            if name.startswith("negative_prompt") and isinstance(value, str):  # some pipelines take one per request only
                arguments[name] = [value] * len(prompts)
        if sources:
            arguments["image"] = sources[0] if len(sources) == 1 else list(sources)
        arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        output = self.pipe(**as_pictures(self.pipe, arguments))
        withheld = getattr(output, "nsfw_content_detected", None) or [False] * len(prompts)
        return [
            Unscored("the pipeline's safety checker withheld it") if bad else image
            for image, bad in zip(pictures_of(output)[0], withheld, strict=True)
        ]


class FunctionImages(ImageSource):
    """Any function ``(prompts, sources, seeds) -> images``.

    A call that raises is made again picture by picture, and what raises alone, or is ``None``, is a picture that could not be made.

    Args:
        function: The function.
        name: What stands for it in a folder of kept pictures, which cannot know whether its code has changed.
    """

    def __init__(self, function: ImageFunction, name: str | None = None) -> None:
        self.function = function
        self.name = name or f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"

    @property
    def identity(self) -> str:
        return self.name

    def sample(self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]) -> list[Sampled]:
        return _each_alone_if_need_be(self.function, prompts, sources, seeds)


def _each_alone_if_need_be(
    call: Callable[..., Sequence[Any]], prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]
) -> list[Sampled]:
    try:
        made = list(call(list(prompts), tuple(sources), list(seeds)))
        if len(made) != len(prompts):
            raise ValueError(f"{len(made)} pictures came back for {len(prompts)} requests")
    except Exception as error:
        if len(prompts) == 1:
            log.warning("a picture could not be made: %s: %s", type(error).__name__, error)
            return [Unscored(f"{type(error).__name__}: {str(error)[:300]}")]
        return [
            one
            for prompt, seed in zip(prompts, seeds, strict=True)
            for one in _each_alone_if_need_be(call, [prompt], sources, [seed])
        ]
    return [
        one if isinstance(one, Image.Image | Unscored) else Unscored(f"{type(one).__name__} came back instead of a picture")
        for one in made
    ]


def image_source(pipe: Any, **arguments: Any) -> FlowGenerator | ImageSource:
    """Whatever makes pictures as something that the loop can ask.

    Args:
        pipe: A generator or :class:`ImageSource` (given back as it is), a loaded diffusers pipeline, or a function.
        **arguments: Further arguments of a pipeline's call.

    Raises:
        ValueError: If it is none of these, or takes no arguments.
    """
    if not isinstance(pipe, FlowGenerator | ImageSource):
        if callable(pipe) and "prompt" in inspect.signature(pipe.__call__).parameters:
            return PipelineImages(pipe, **arguments)
        if callable(pipe) and not arguments:
            return FunctionImages(pipe)
        if not callable(pipe):
            raise ValueError(
                f"{type(pipe).__name__} makes no pictures: give a FlowGenerator, an ImageSource, a diffusers pipeline, or a function "
                "(prompts, sources, seeds) -> images"
            )
    if arguments:
        raise ValueError(
            f"{next(iter(arguments))!r} is an argument of a diffusers pipeline's call; {type(pipe).__name__} has its settings already"
        )
    return pipe


def identity_of(source: FlowGenerator | ImageSource) -> str:
    """What a picture depends on besides request, source pictures and seed: settings and, of local folders, weights."""
    if isinstance(source, ImageSource):
        return source.identity
    names = (
        *("path", "revision", "dtype", "adapter", "steps", "eval_steps", "pipeline_kwargs", "eval_kwargs"),
        *("source_size", "buckets"),
    )
    return fingerprint(repr([(name, getattr(source, name)) for name in names]), source.path, source.adapter)


def streamed(
    source: FlowGenerator | ImageSource, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]
) -> Iterator[list[tuple[int, Sampled]]]:
    """:meth:`ImageSource.stream` of either kind."""
    if isinstance(source, ImageSource):
        yield from source.stream(prompts, sources, seeds)
    else:
        yield list(enumerate(source.sample(prompts, sources, seeds)))
