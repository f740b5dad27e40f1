"""A vision-language model in this process, through transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ..checkpoints import resolve
from ..memory import explain_out_of_memory
from .base import ChatModel, ChatReply, ChatRequest
from .constraint import GrammarConstraint, constraint_tokenizer

_CHECK_EVERY = 4  # tokens between looks for a stop string: looking decodes text, and the answer is cut at the string anyway


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
    ) -> None:
        self.path = path
        self.dtype = dtype
        self.batch_size = batch_size
        self.adapter = adapter
        self.attention = attention
        self.revision = revision
        self.max_pixels = max_pixels
        self.model: Any = None
        self.processor: Any = None
        self._constraint_tokenizer: Any = None

    @property
    def identity(self) -> str:
        return self.path + (f"+{self.adapter}" if self.adapter else "") + (f"@{self.revision}" if self.revision else "")

    @property
    def fingerprint(self) -> str:
        folders = [Path(resolve(path)) for path in (self.path, self.adapter) if path]
        files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()]
        settings = f"{self.identity} {self.dtype} {self.max_pixels}"
        return hashlib.sha256("\n".join([settings, *map(_sampled_digest, files)]).encode()).hexdigest()[:16]

    @property
    def weights(self) -> str | None:
        return self.path

    def load(self, device: Any = None) -> None:
        """Load weights and processor, and move them to ``device`` (default: stay where they are, the CPU at first)."""
        if self.model is None:
            model = AutoModelForImageTextToText.from_pretrained(
                resolve(self.path), dtype=self.dtype, attn_implementation=self.attention, revision=self.revision
            )
            if self.adapter:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, self.adapter)
            self.attach(model, load_processor(self.path, self.max_pixels, self.revision))
        if device is not None:
            self.model.to(device)

    def attach(self, model: Any, processor: Any) -> TransformersChat:
        """Use a model that is loaded already, e.g. one in training; returns itself."""
        self.model, self.processor = model, processor
        self.processor.tokenizer.padding_side = "left"
        return self

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        self.load()
        # alike requests together: less padding, and one sampling setting per batch
        order = sorted(
            range(len(requests)),
            key=lambda i: (_settings(requests[i]), len(requests[i].images()), len(requests[i].text())),
        )
        replies: list[ChatReply | None] = [None] * len(requests)
        position = 0
        while position < len(order):
            settings = _settings(requests[order[position]])
            batch = [i for i in order[position : position + self.batch_size] if _settings(requests[i]) == settings]
            for index, reply in zip(batch, self._generate([requests[i] for i in batch]), strict=True):
                replies[index] = reply
            position += len(batch)
        return [reply for reply in replies if reply is not None]

    @torch.no_grad()
    def _generate(self, batch: Sequence[ChatRequest]) -> list[ChatReply]:
        was_training = self.model.training
        self.model.eval()
        try:
            return self._generate_eval(batch)
        finally:
            self.model.train(was_training)

    def _generate_eval(self, batch: Sequence[ChatRequest]) -> list[ChatReply]:
        first = batch[0]
        inputs = self.encode(batch).to(self.model.device)
        tokenizer = self.processor.tokenizer
        prompt_length = inputs["input_ids"].shape[1]
        ends = {tokenizer.eos_token_id, *_as_set(self.model.generation_config.eos_token_id)}
        processors: list[LogitsProcessor] = []
        if first.form:
            if self._constraint_tokenizer is None:
                vocabulary = self.model.get_output_embeddings().weight.shape[0]
                self._constraint_tokenizer = constraint_tokenizer(tokenizer, vocabulary, ends)
            processors.append(GrammarConstraint(first.form.lark(), self._constraint_tokenizer, len(batch), prompt_length))
        if first.temperature > 0:
            processors.append(_RowNoise(first.temperature, [request.seed for request in batch]))
        stop = StoppingCriteriaList([_StopStrings(tokenizer, first.stop, prompt_length)] if first.stop else [])
        size = f"{len(batch)} requests of up to {prompt_length} tokens and {first.max_tokens} more at once"
        with explain_out_of_memory(size, "lower batch_size or max_pixels of the chat, or max_tokens"):
            output = self.model.generate(
                **inputs,
                max_new_tokens=first.max_tokens,
                stopping_criteria=stop,
                logits_processor=LogitsProcessorList(processors),
                pad_token_id=tokenizer.pad_token_id,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        prompt_tokens = inputs["attention_mask"].sum(dim=1).tolist()
        image_token = getattr(self.processor, "image_token_id", None)
        image_tokens = (inputs["input_ids"] == image_token).sum(dim=1).tolist() if image_token is not None else [0] * len(batch)
        replies = []
        for row, prompt, pictures in zip(output[:, prompt_length:].tolist(), prompt_tokens, image_tokens, strict=True):
            length = next((i for i, token in enumerate(row) if token in ends), len(row))
            text = tokenizer.decode(row[:length], skip_special_tokens=True)
            cut = min((text.find(mark) for mark in first.stop if mark in text), default=-1)
            finished = length < len(row) or cut >= 0
            replies.append(
                ChatReply(
                    text[:cut].rstrip() if cut >= 0 else text,
                    failure="" if finished else f"the answer was cut off after {first.max_tokens} tokens",
                    prompt_tokens=prompt,
                    image_tokens=pictures,
                    completion_tokens=length,
                )
            )
        return replies

    def encode(self, batch: Sequence[ChatRequest]) -> Any:
        """The model's inputs for a batch: left-padded ``input_ids``, ``attention_mask``, pixels and grids."""
        texts = [
            self.processor.apply_chat_template(list(request.messages), tokenize=False, add_generation_prompt=True)
            for request in batch
        ]
        images = [image for request in batch for image in request.images()]
        return self.processor(text=texts, images=images or None, padding=True, return_tensors="pt")


def _sampled_digest(file: Path, samples: int = 64, block: int = 4096) -> str:
    """A digest of a file's name, size and of blocks spread over it: weights are too large to be read whole at every start."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"{file.name} {size}".encode())
    with file.open("rb") as stream:
        for index in range(samples):
            stream.seek(index * size // samples)
            digest.update(stream.read(block))
    return digest.hexdigest()


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


class _RowNoise(LogitsProcessor):
    """Sampling by the Gumbel-max trick, each row from its own seed: the argmax of what this returns is a draw at ``temperature``.

    An answer then depends on its request alone, not on the batch that it is generated in.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.stack([torch.rand(scores.shape[1], generator=generator) for generator in self.generators])
        gumbel = -torch.log(-torch.log(uniform.clamp(min=1e-20)))
        return scores.float() / self.temperature + gumbel.to(scores.device)


class _StopStrings(StoppingCriteria):
    """Ends each row once its new text holds one of the strings."""

    def __init__(self, tokenizer: Any, strings: Sequence[str], prompt_length: int) -> None:
        self.tokenizer, self.strings, self.prompt_length = tokenizer, strings, prompt_length
        self.window = _CHECK_EVERY + max(len(tokenizer(text)["input_ids"]) for text in strings) + 4
        self.done: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self.done is None:
            self.done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        new = input_ids.shape[1] - self.prompt_length
        if new % _CHECK_EVERY == 0:
            tails = self.tokenizer.batch_decode(input_ids[:, -min(new, self.window) :])
            for row, tail in enumerate(tails):
                if any(text in tail for text in self.strings):
                    self.done[row] = True
        return self.done


def _settings(request: ChatRequest) -> tuple[int, float, tuple[str, ...], str]:
    return (request.max_tokens, request.temperature, request.stop, repr(request.form))


def _as_set(ids: int | Sequence[int] | None) -> set[int]:
    return set() if ids is None else ({ids} if isinstance(ids, int) else set(ids))
