"""Refinement as one call, without a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..critic import Critic
from ..pictures import open_picture
from ..records import PromptRecord
from ..rewards import RewardModel
from .images import image_source
from .options import RefineOptions
from .search import run_arm
from .shelf import Shelf
from .studio import Studio
from .trace import Trace

Source = Image.Image | str | Path
"""A source picture, or where it is."""


def refine(
    pipe: Any,
    critic: Critic,
    prompts: str | Sequence[str],
    images: Source | Sequence[Source | Sequence[Source] | None] | None = None,
    rounds: int = 3,
    budget: int = 8,
    *,
    options: RefineOptions | None = None,
    reward: RewardModel | None = None,
    judge: RewardModel | None = None,
    folder: str | Path | None = None,
    batch_size: int = 16,
    device: Any = None,
    **arguments: Any,
) -> list[Trace]:
    """Make better pictures of requests: criticise each, rewrite its request, make it again, and keep the best.

    The budget is spread over the rounds: with the defaults a first picture, then up to three rounds of two, each rewritten from the
    critique of the best so far. A request is finished as soon as a picture is accepted. Every picture is scored on the original request.

    Args:
        pipe: A loaded diffusers pipeline (any: it only samples), a function ``(prompts, sources, seeds) -> images``, an
            :class:`OpenAIImages` endpoint, a ``FlowGenerator``, or an :class:`ImageSource` of your own.
        critic: The critic; loaded if it is not.
        prompts: The requests.
        images: Source pictures of edits: for one request a picture, for several a list with a picture, a list of pictures, or ``None``
            (text to image) for each.
        rounds: Rounds of rewriting at most.
        budget: Pictures of a request at most, the first one included.
        options: All else about the search; then ``rounds`` and ``budget`` are not looked at.
        reward: A reward model that picks instead of the critic.
        judge: A reward model that picks nothing; its scores are noted (:attr:`.Made.held_out`).
        folder: Keep pictures and answers here as they come: the same call goes on where a killed one was. The folder belongs to one
            generator; a pipeline whose weights were changed in memory, or a function with new code, needs another.
        batch_size: Requests that go through the rounds together.
        device: Where to load critic, generator and reward models to; they stay where they are if omitted.
        **arguments: Further arguments of a diffusers pipeline's call, e.g. ``num_inference_steps=28``.

    Returns:
        One trace per request, in order: ``image`` is the chosen picture, ``request`` what it was made for, ``made`` all pictures with
        their critiques, ``stop`` why it ended there.

    Raises:
        ValueError: If numbers of requests and pictures differ, or ``pipe`` makes no pictures.

    Example::

        pipe = DiffusionPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0", torch_dtype=torch.float16).to("cuda")
        critic = Critic(OpenAIChat("rationalrewards-8b", "http://localhost:8000/v1"))
        (cats,) = refine(pipe, critic, "two cats on a red sofa", num_inference_steps=30)
        cats.image.save("cats.png")
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    sources = _sources(images, texts, isinstance(prompts, str))
    source = image_source(pipe, **arguments)
    for part in (source, critic, *(model for model in (reward, judge) if model is not None)):
        part.load(device)
    if options is None:
        breadth = max(1, (budget - 1) // max(1, rounds))
        options = RefineOptions(images_per_prompt=budget, rounds=rounds, breadth=breadth, parent="best")
    records = [
        PromptRecord(
            str(index), "edit" if found else "t2i", text, tuple(f"picture {n} of request {index}" for n in range(len(found)))
        )
        for index, (text, found) in enumerate(zip(texts, sources, strict=True))
    ]
    by_id = {record.id: found for record, found in zip(records, sources, strict=True)}
    shelf = Shelf(folder)
    traces = []
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        studio = Studio(
            source,
            critic,
            options.seed,
            options.blank,
            reward,
            judge,
            shelf if folder is not None else Shelf(),
            options.pictures_per_call or len(batch),
            {record.id: by_id[record.id] for record in batch},
        )
        traces += run_arm("refine_keep_best", batch, studio, options)
    return traces


def _sources(images: Any, texts: Sequence[str], single: bool) -> list[tuple[Image.Image, ...]]:
    """The source pictures of every request."""
    if images is None:
        return [() for _ in texts]
    if isinstance(images, Source) or (single and not any(isinstance(one, list | tuple) for one in images)):
        images = [images]
    if len(images) != len(texts):
        raise ValueError(
            f"{len(texts)} requests but source pictures for {len(images)}; give one entry per request, None for none"
        )
    groups = [() if one is None else (one,) if isinstance(one, Source) else tuple(one) for one in images]
    return [tuple(one.convert("RGB") if isinstance(one, Image.Image) else open_picture(one) for one in group) for group in groups]
