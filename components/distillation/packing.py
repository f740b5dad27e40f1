"""Rows of unequal length in one sequence: no padding, and what rows begin with alike is there once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "rationalrewards_rows"
"""Name of the attention that knows rows: ``sdpa``, but for sequences that come with their :class:`Span`."""


def worth_sharing(common: int, own: int, width: int) -> bool:
    """Whether having a common beginning once saves more than it costs.

    It saves the layers' products for ``common`` tokens, about ``24 * width**2`` operations each. It costs what attention saves by being
    causal: with a mask it is computed in full over the row's ``own`` tokens, ``2 * width * own**2`` operations more.

    Args:
        common: Tokens of the common beginning.
        own: Tokens of the row after it.
        width: Width of the language model.
    """
    return common * 12 * width > own**2


@dataclass(frozen=True)
class Span:
    """Where a row lies in a packed sequence, as half-open ranges of tokens.

    Args:
        start: First token of its own.
        stop: End of its own tokens.
        shared: Range of the tokens before, that it begins with, in another row; empty if all are its own.
    """

    start: int
    stop: int
    shared: tuple[int, int] = (0, 0)


@torch.compiler.disable  # spans differ from batch to batch, and each would be compiled anew
def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    spans: Sequence[Span] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``sdpa`` row by row: exactly the products that count, where a mask over all rows would compute their square."""
    if spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # split and not sliced: the gradient of a slice is as large as the whole
    lengths = [span.stop - span.start for span in spans]
    queries, keys, values = (whole.split(lengths, dim=2) for whole in (query, key, value))
    place = {span.start: number for number, span in enumerate(spans)}
    outputs = []
    for number, (span, length) in enumerate(zip(spans, lengths, strict=True)):
        mine, mask = (keys[number], values[number]), None
        first, last = span.shared
        if common := last - first:
            head = place[first]
            before = keys[head][:, :, :common], values[head][:, :, :common]
            mine = torch.cat([before[0], mine[0]], dim=2), torch.cat([before[1], mine[1]], dim=2)
            mask = torch.ones(length, common + length, dtype=torch.bool, device=query.device).tril_(common)[None, None]
        outputs.append(sdpa_attention_forward(module, queries[number], *mine, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def attend_by_rows(decoder: Any) -> bool:
    """Let a language model with ``sdpa`` attend by :data:`ATTENTION`; returns whether it does.

    Other implementations stay. Of those, flash attention and flex attention find the rows of a packed sequence by their positions and
    waste nothing either; eager attention makes a mask of the square of the sequence.
    """
    config = decoder.config
    if config._attn_implementation == "sdpa":
        config._attn_implementation = ATTENTION
    return bool(config._attn_implementation == ATTENTION)


def positions(model: Any, encoded: dict[str, Tensor]) -> Tensor:
    """Positions of padded rows as the model counts them alone: ``[B, L]``, or ``[4, B, L]`` of text, time, height and width (mRoPE).

    Args:
        model: The inner model of transformers; those with positions in three dimensions have ``get_rope_index``.
        encoded: Padded inputs.
    """
    mask = encoded["attention_mask"]
    text = (mask.cumsum(dim=1) - 1).clamp_(min=0)
    if not hasattr(model, "get_rope_index"):
        return text
    if not any(name.endswith("grid_thw") for name in encoded):
        return text.expand(4, *text.shape)
    known = inspect.signature(model.get_rope_index).parameters
    found: Tensor = model.get_rope_index(**{name: tensor for name, tensor in encoded.items() if name in known})[0]
    return torch.cat([text[None], found.to(text)])


def pack(model: Any, encoded: dict[str, Tensor], by_rows: bool) -> tuple[dict[str, Any], Tensor]:
    """Padded rows as one sequence without padding.

    Positions start anew with each row. With ``by_rows``, a row whose beginning another row has too is without it: attention is
    causal, so that those tokens' states are the same in both, and the row attends to them there.

    Args:
        model: The inner model.
        encoded: Right-padded inputs ``[B, L]`` with ``labels``; pictures' tensors are passed on.
        by_rows: Whether the model attends by :data:`ATTENTION`.

    Returns:
        Inputs of one row ``[1, T]`` without ``labels``, and the labels ``[1, T]``.
    """
    encoded = dict(encoded)
    labels = encoded.pop("labels")
    keep = encoded["attention_mask"].bool()
    lengths = keep.sum(dim=1).tolist()
    shared = [(0, 0)] * len(lengths)
    if by_rows:
        shared = _beginnings(encoded["input_ids"], encoded.get("mm_token_type_ids"), labels, lengths, _width(model))
    spans: list[Span] = []
    for row, (length, (head, common)) in enumerate(zip(lengths, shared, strict=True)):
        start = spans[-1].stop if spans else 0
        first = spans[head].start if common else 0
        spans.append(Span(start, start + length - common, (first, first + common)))
        keep[row, :common] = False
    place = positions(model, encoded)
    packed: dict[str, Any] = {
        name: tensor[keep][None] if tensor.shape == keep.shape else tensor
        for name, tensor in encoded.items()
        if name != "attention_mask"
    }
    packed["position_ids"] = place[..., keep].unsqueeze(-2)
    if by_rows:
        packed["spans"] = spans
        # not looked at; without one transformers would make one, of the square of the sequence
        packed["attention_mask"] = keep.new_ones(1, 1, 1, 1)
    return packed, labels[keep][None]


def _width(model: Any) -> int:
    return int(model.get_decoder().config.hidden_size)


def _beginnings(ids: Tensor, kinds: Tensor | None, labels: Tensor, lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """For each row, an earlier row (of those that have all their tokens) and how many tokens it begins with alike; none: ``(0, 0)``.

    Up to the first picture, and short of the token before the answer, which predicts something else in each row.
    """
    # the first token that is not to be shared
    ends = (labels != -100).int().argmax(dim=1) - 1
    if kinds is not None:
        ends = torch.minimum(ends, torch.where((kinds != 0).any(dim=1), (kinds != 0).int().argmax(dim=1), ends))
    heads: list[int] = []
    found: list[tuple[int, int]] = []
    for row in range(len(ids)):
        best = (0, 0)
        for head in heads:
            most = int(min(ends[row], ends[head]))
            alike = int((ids[row, :most] == ids[head, :most]).int().cumprod(dim=0).sum())
            best = max(best, (head, alike), key=lambda one: one[1])
        if not worth_sharing(best[1], lengths[row] - best[1], width):
            best = (0, 0)
            heads.append(row)
        found.append(best)
    return found
