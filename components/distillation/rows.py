"""Supervised rows as a model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..chat import ChatRequest, TransformersChat
from ..critique.formats import Message

Row = tuple[list[Message], str]
"""A request with its pictures, and the answer to learn."""


def answer_tokens(tokenizer: Any, answer: str) -> list[int]:
    """An answer and the end of its turn, tokenised apart from the request, exactly as generation continues from it."""
    return list(tokenizer(f"{answer}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"])


def encode_rows(chat: TransformersChat, rows: Sequence[Row], max_length: int) -> dict[str, Tensor]:
    """Model inputs of rows: request, answer and end of turn, with ``labels`` on the answer's tokens only.

    Args:
        chat: The student with its processor, which shows requests as generation will.
        rows: The rows.
        max_length: Longest row in tokens.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` ``[B, L]`` (right-padded), and the pictures' tensors.

    Raises:
        ValueError: If a row is longer than ``max_length``.
    """
    tokenizer = chat.processor.tokenizer
    inputs = dict(chat.encode([ChatRequest(messages) for messages, _ in rows]))
    mask = inputs["attention_mask"].bool()
    answers = [answer_tokens(tokenizer, answer) for _, answer in rows]
    lengths = [int(mask[i].sum()) + len(answer) for i, answer in enumerate(answers)]
    if max(lengths) > max_length:
        request = next(part["text"] for part in reversed(rows[lengths.index(max(lengths))][0][-1]["content"]) if "text" in part)
        raise ValueError(
            f"a row has {max(lengths)} tokens, more than max_length {max_length}: {request[:80]!r}; raise max_length or use smaller "
            "pictures"
        )
    encoded: dict[str, Tensor] = {}
    for name, tensor in inputs.items():
        if not (isinstance(tensor, Tensor) and tensor.shape == mask.shape):
            encoded[name] = tensor
            continue
        fill = tokenizer.pad_token_id if name == "input_ids" else 0
        padded = torch.full((len(rows), max(lengths)), fill, dtype=tensor.dtype)
        for i, answer in enumerate(answers):
            prompt = tensor[i][mask[i]]
            padded[i, : len(prompt)] = prompt
            if name in ("input_ids", "attention_mask"):
                tail = torch.tensor(answer) if name == "input_ids" else torch.ones(len(answer))
                padded[i, len(prompt) : len(prompt) + len(answer)] = tail
        encoded[name] = padded
    labels = torch.full((len(rows), max(lengths)), -100)
    for i, answer in enumerate(answers):
        labels[i, lengths[i] - len(answer) : lengths[i]] = torch.tensor(answer)
    encoded["labels"] = labels
    return encoded
