"""A vision-language model in this process, through transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_managed_module

from ..checkpoints import fingerprint, resolve
from ..memory import explain_out_of_memory
from .base import ChatModel, ChatReply, ChatRequest, Place, Weights, in_order
from .constraint import Constraints
from .decoding import Row, StopStrings, common_prefix, decode, roomy_cache, share_prefix, shareable
from .weighing import OptionTrees, weigh_trees

log = logging.getLogger(__name__)

_WORTH_SHARING = 16
"""Tokens of a common beginning from which one forward for it saves more than it costs."""

_IDLE = ChatRequest(
    [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (32, 32))}, {"type": "text", "text": "."}]}],
    max_tokens=1,
)
"""What a process is asked that has nothing to ask while others have: with a picture, so that it meets the same weights."""


class TransformersChat(ChatModel):
    """Batched generation with any image-text-to-text model of transformers.

    Args:
        path: Folder or hub id that ``AutoModelForImageTextToText`` and ``AutoProcessor`` load.
        dtype: Weight type, e.g. ``"bfloat16"``; ``"auto"`` takes the one in the checkpoint.
        batch_size: Requests per forward; more at once run in several batches.
        adapter: Folder of a PEFT adapter to load on top.
        attention: Attention implementation as transformers names it.
        revision: Hub revision to pin.
        max_pixels: Larger pictures are brought down to this many pixels; see :func:`load_processor`.
        device_map: How accelerate spreads the weights, e.g. ``"auto"`` for a model that is too large for one device. The model then
            stays where it was put, whatever device :meth:`load` is given.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        batch_size: int = 16,
        adapter: str | None = None,
        attention: str = "sdpa",
        revision: str | None = None,
        max_pixels: int | None = None,
        device_map: str | dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.dtype = dtype
        self.batch_size = batch_size
        self.adapter = adapter
        self.attention = attention
        self.revision = revision
        self.max_pixels = max_pixels
        self.device_map = device_map
        self._picture_tokens: set[int] = set()
        self.model: Any = None
        self.processor: Any = None
        self._constraints: Constraints | None = None

    @property
    def identity(self) -> str:
        return self.path + (f"+{self.adapter}" if self.adapter else "") + (f"@{self.revision}" if self.revision else "")

    @property
    def fingerprint(self) -> str:
        return fingerprint(f"{self.identity} {self.dtype} {self.max_pixels}", self.path, self.adapter)

    @property
    def weights(self) -> str | None:
        return self.path

    @property
    def in_lockstep(self) -> bool:
        """See :attr:`ChatModel.in_lockstep`; true of a model that DeepSpeed ZeRO-3 or FSDP has split."""
        split = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(self.model)
        return split and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1

    def load(self, device: Any = None) -> None:
        """Load weights and processor, and move them to ``device`` (default: stay where they are, the CPU at first)."""
        if self.model is None:
            model = AutoModelForImageTextToText.from_pretrained(
                resolve(self.path),
                dtype=self.dtype,
                attn_implementation=self.attention,
                revision=self.revision,
                device_map=self.device_map,
            )
            if self.adapter:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, self.adapter)
            self.attach(model, load_processor(self.path, self.max_pixels, self.revision))
        if device is not None and self.device_map is None:
            self.model.to(device)

    def attach(self, model: Any, processor: Any) -> TransformersChat:
        """Use a model that is loaded already, e.g. one in training; returns itself."""
        self.model, self.processor, self._constraints = model, processor, None
        self._option_trees = OptionTrees(processor.tokenizer)
        self._stops = cache(partial(StopStrings, processor.tokenizer))
        self.processor.tokenizer.padding_side = "left"
        return self

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        return in_order(self.stream(requests))

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[list[tuple[int, ChatReply]]]:
        self.load()
        # alike requests together: less padding, and answers of about one length
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].images()), len(requests[i].text())))
        lockstep = self.in_lockstep
        if lockstep:  # `generate` may look at the pictures first, but FSDP wants its first forward to be the whole model's
            with _evaluating(self.model):
                self.model(input_ids=torch.full((1, 1), self.processor.tokenizer.eos_token_id, device=self.model.device))
        for position in range(0, _most(len(order)) if lockstep else len(order), self.batch_size):
            batch = order[position : position + self.batch_size]
            with _evaluating(self.model):  # not around the yield: the caller would run without gradients too
                replies = self._generate([requests[i] for i in batch] or [_IDLE], lockstep)
            yield list(zip(batch, replies, strict=bool(batch)))

    def _generate(self, batch: Sequence[ChatRequest], lockstep: bool) -> list[ChatReply]:
        inputs = dict(self.encode(batch).to(self.model.device))
        tokenizer = self.processor.tokenizer
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        picture = getattr(self.processor, "image_token_id", -1)
        counts = [prompt.count(picture) for prompt in prompts]
        if self._picture_tokens != {*counts}:
            self._picture_tokens = {*counts}
            log.info("%s: %d to %d picture tokens a request", self.identity, min(counts), max(counts))
        rows = [self._row(request) for request in batch]
        longest = max(request.max_tokens for request in batch)
        size = f"{len(batch)} requests of up to {inputs['input_ids'].shape[1]} tokens and {longest} more at once"
        with explain_out_of_memory(size, "lower batch_size or max_pixels of the chat, or max_tokens"):
            shared = common_prefix(prompts, picture)
            cache = roomy_cache(self.model.config)
            shared = shared if shared >= _WORTH_SHARING and len(batch) > 1 and not lockstep and shareable(cache) else 0
            if shared:
                inputs, cache = share_prefix(self.model, inputs, shared)
            self.model.generate(
                **inputs,
                past_key_values=cache,
                custom_generate=decode,
                rows=rows,
                lockstep=lockstep,
                max_new_tokens=longest,
                pad_token_id=tokenizer.pad_token_id,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        return [
            self._reply(request, row, len(prompt), pictures, shared if index else 0)
            for index, (request, row, prompt, pictures) in enumerate(zip(batch, rows, prompts, counts, strict=True))
        ]

    @property
    def weighs_cheaply(self) -> bool:
        """See :attr:`ChatModel.weighs_cheaply`; true unless the attention or a split model stands against it."""
        return self._takes_masks and (self.model is None or not self.in_lockstep)

    @property
    def _attention(self) -> str:
        return self.attention if self.model is None else str(self.model.config._attn_implementation)

    @property
    def _takes_masks(self) -> bool:
        return self._attention in ("sdpa", "eager")

    def weigh(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> list[list[Weights]]:
        """See :meth:`ChatModel.weigh`; exact, from one reading of each answer and one forward for all of its places."""
        return in_order(self.stream_weights(requests, answers, places))

    def stream_weights(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> Iterator[list[tuple[int, list[Weights]]]]:
        self.load()
        if not self._takes_masks:
            raise ValueError(
                f"expected scores need an attention that takes masks of its own: sdpa or eager, not {self._attention}"
            )
        if self.in_lockstep:
            raise ValueError(
                "expected scores cannot be had of a model that is split over processes; leave them out (expected: false)"
            )
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].images()), len(requests[i].text() + answers[i])))
        yield [(index, []) for index in order if not places[index]]
        order = [index for index in order if places[index]]
        for position in range(0, len(order), self.batch_size):
            batch = order[position : position + self.batch_size]
            with _evaluating(self.model):  # not around the yield, as above
                weighed = self._weigh([requests[i] for i in batch], [answers[i] for i in batch], [places[i] for i in batch])
            yield list(zip(batch, weighed, strict=True))

    def _weigh(
        self, batch: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> list[list[Weights]]:
        tokenizer = self.processor.tokenizer
        encoded = tokenizer(list(answers), add_special_tokens=False, return_offsets_mapping=True)
        trees = [
            [self._option_trees.tree(answer, offsets, place) for place in of_row]
            for answer, offsets, of_row in zip(answers, encoded["offset_mapping"], places, strict=True)
        ]
        # all that comes after the last place is not read
        tokens = [
            ids[: max((tree.at for tree in of_row if tree), default=0)]
            for ids, of_row in zip(encoded["input_ids"], trees, strict=True)
        ]
        inputs = _with_answers(dict(self.encode(batch)), tokens, tokenizer.pad_token_id)
        known = [[tree for tree in of_row if tree is not None] for of_row in trees]
        lengths = inputs["attention_mask"].sum(1).tolist()
        weights: list[list[Weights]] = [] if any(known) else [[] for _ in batch]
        size = f"{len(batch)} answers of up to {inputs['input_ids'].shape[1]} tokens at once"
        with explain_out_of_memory(size, "lower batch_size or max_pixels of the chat"):
            if any(known):
                self.model.generate(
                    **{name: value.to(self.model.device) for name, value in inputs.items()},
                    past_key_values=roomy_cache(self.model.config),
                    custom_generate=weigh_trees,
                    answers=[len(ids) for ids in tokens],
                    trees=known,
                    found=weights,
                    max_new_tokens=1,
                    pad_token_id=tokenizer.pad_token_id,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                )
        unknown = Weights({}, "the answer's tokens do not part where the options do")
        filled = [iter(of_row) for of_row in weights]
        rows = [[unknown if tree is None else next(rest) for tree in of_row] for of_row, rest in zip(trees, filled, strict=True)]
        # one reading for all places of an answer
        return [
            [replace(row[0], prompt_tokens=length if of_row else 0), *row[1:]]
            for row, of_row, length in zip(rows, known, lengths, strict=True)
        ]

    def _row(self, request: ChatRequest) -> Row:
        if self._constraints is None:
            ends = frozenset({self.processor.tokenizer.eos_token_id, *_as_set(self.model.generation_config.eos_token_id)})
            vocabulary = self.model.get_output_embeddings().weight.shape[0]
            self._constraints = Constraints(self.processor.tokenizer, vocabulary, ends)
        return Row(
            request.max_tokens,
            self._constraints.ends,
            self._stops(request.stop) if request.stop else None,
            self._constraints.start(request.form) if request.form else None,
            request.temperature,
            request.seed,
        )

    def _reply(self, request: ChatRequest, row: Row, prompt_tokens: int, image_tokens: int, reused: int) -> ChatReply:
        text = self.processor.tokenizer.decode(row.tokens, skip_special_tokens=True)
        cut = min((text.find(mark) for mark in request.stop if mark in text), default=-1)
        return ChatReply(
            text[:cut].rstrip() if cut >= 0 else text,
            failure="" if row.ended else f"the answer was cut off after {request.max_tokens} tokens",
            prompt_tokens=prompt_tokens,
            image_tokens=image_tokens,
            completion_tokens=len(row.tokens),
            reused_tokens=reused,
        )

    def encode(self, batch: Sequence[ChatRequest]) -> Any:
        """The model's inputs for a batch: left-padded ``input_ids``, ``attention_mask``, pixels and grids."""
        texts = [
            self.processor.apply_chat_template(
                list(request.messages),
                tokenize=False,
                add_generation_prompt=not request.continues,
                continue_final_message=request.continues,
            )
            for request in batch
        ]
        images = [image for request in batch for image in request.images()]
        inputs = self.processor(text=texts, images=images or None, padding=True, return_tensors="pt")
        self._check_pictures(inputs)
        return inputs

    def _check_pictures(self, inputs: Any) -> None:
        """Whether pictures became as many tokens as their patches make, of no more pixels than allowed.

        Raises:
            RuntimeError: If not. A limit that is ignored, or tokens that are cut off, change scores and cost silently otherwise.
        """
        pictures = getattr(self.processor, "image_processor", None)
        if pictures is None or "image_grid_thw" not in inputs or not hasattr(pictures, "merge_size"):
            return  # not a processor of the Qwen-VL kind
        patches = inputs["image_grid_thw"].prod(dim=1)
        expected = int((patches // pictures.merge_size**2).sum())
        found = int((inputs["input_ids"] == self.processor.image_token_id).sum())
        if found != expected:
            raise RuntimeError(
                f"{self.identity}: {found} picture tokens in the prompts, but {expected} from their pictures' patches"
            )
        largest = int(patches.max()) * pictures.patch_size**2
        if self.max_pixels is not None and largest > max(self.max_pixels, pictures.size["shortest_edge"]):
            raise RuntimeError(
                f"{self.identity}: a picture of {largest} pixels is in the prompts; max_pixels={self.max_pixels} was ignored"
            )


def load_processor(path: str, max_pixels: int | None = None, revision: str | None = None) -> Any:
    """A model's processor, with a limit on the size of pictures.

    Args:
        path: Folder, hub id or ``embedded:`` name.
        max_pixels: Larger pictures are brought down to at most this many pixels, aspect kept (of Qwen-VL processors, whose picture
            tokens grow with the pixels); ``None`` leaves the limit that is stored with the model.
        revision: Hub revision to pin.

    Raises:
        ValueError: If ``max_pixels`` is given for a processor that does not count pixels.
    """
    processor = AutoProcessor.from_pretrained(resolve(path), revision=revision)
    if max_pixels is not None:
        pictures = getattr(processor, "image_processor", processor)
        if "Qwen" not in type(pictures).__name__ or pictures.size.get("longest_edge") is None:
            raise ValueError(f"{path}: {type(pictures).__name__} knows no limit in pixels; leave out max_pixels")
        # its names say edge, its numbers are pixels of the whole picture
        pictures.size = {"shortest_edge": min(pictures.size["shortest_edge"], max_pixels), "longest_edge": max_pixels}
    return processor


def _most(count: int) -> int:
    """The largest of all processes' counts."""
    counts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(counts, count)
    return max(counts)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without gradients and dropout; a model in training goes on training."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _with_answers(inputs: dict[str, torch.Tensor], answers: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """Left-padded prompts with the tokens of an answer after each, left-padded again."""
    longest = max(map(len, answers))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    width = ids.shape[1] + longest
    for name, value in inputs.items():
        if value.shape == mask.shape:
            fill = {"input_ids": pad}.get(name, 0)
            inputs[name] = torch.nn.functional.pad(value, (longest, 0), value=fill)
    column = torch.arange(width).expand(len(ids), width)
    moved = torch.tensor([[len(answer)] for answer in answers])
    source = torch.where(column < width - moved, column + moved, column)
    for name, value in inputs.items():
        if value.shape == (len(ids), width):
            inputs[name] = value.gather(1, source)
    for row, answer in enumerate(answers):
        if answer:
            inputs["input_ids"][row, -len(answer) :] = torch.tensor(answer)
            inputs["attention_mask"][row, -len(answer) :] = 1
            for name in ("mm_token_type_ids", "token_type_ids"):
                if name in inputs:
                    inputs[name][row, -len(answer) :] = 0
    return inputs


def _as_set(ids: int | Sequence[int] | None) -> set[int]:
    return set() if ids is None else ({ids} if isinstance(ids, int) else set(ids))
