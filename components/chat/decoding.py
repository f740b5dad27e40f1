"""The decode loop of :class:`TransformersChat`: transformers' own preparation, prefill and caches, and what ``generate`` does not do.

Against ``generate`` it saves work in four places, none of which changes an answer beyond rounding:

- keys and values are written into spare room instead of being copied at every token;
- what all prompts of a batch begin with is computed once, for one row (:func:`share_prefix`);
- text that a form leaves no choice about is appended without a forward pass for each of its tokens;
- rows that came to their end leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .constraint import Constraint

_JUMP_SHARE = 0.3
"""Share of the rows that must wait with forced text before it is fed: feeding costs all rows as many columns as the longest piece."""
_LEAVE_SHARE = 0.125
"""Share of the batch that must have ended before the others move up: moving copies all keys and values once."""


@dataclass(eq=False)
class Row:
    """One answer under way.

    Args:
        limit: Most tokens.
        ends: Tokens that end the answer.
        stops: Whether the answer has met a stop string, asked after each token; ``None`` if it has none.
        constraint: The form that the answer is forced into, if any.
        temperature: Sampling temperature; 0 is greedy.
        seed: Seed of the sampling.
    """

    limit: int
    ends: frozenset[int]
    stops: Callable[[list[int]], bool] | None = None
    constraint: Constraint | None = None
    temperature: float = 0.0
    seed: int = 0
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    waiting: list[int] = field(default_factory=list)
    _generator: torch.Generator | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more is to come: the answer has ended, or is as long as it may be."""
        return self.ended or len(self.tokens) >= self.limit

    def take(self, token: int) -> None:
        """Append a token and all that the form forces after it; they wait to be fed to the model."""
        self.waiting = []
        for one in (token, *(self.constraint.take(token) if self.constraint else ())):
            if one in self.ends:
                self.ended = True
                return
            self.tokens.append(one)
            self.waiting.append(one)
            self.ended = self.stops is not None and self.stops(self.tokens)
            if self.done:
                return

    def draw(self) -> float:
        """The next number in [0, 1) of this answer's own: its tokens depend on its request, not on its batch."""
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.seed)
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


class StopStrings:
    """Whether an answer has come to one of its stop strings with its newest token; keeps no answer, so that many can share one.

    Args:
        tokenizer: The tokenizer of transformers.
        strings: The strings.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self.tokenizer, self.strings = tokenizer, strings
        self.window = 1 + max(len(text.encode()) for text in strings)  # no token is shorter than a byte
        self._may_end: dict[int, bool] = {}

    def __call__(self, tokens: list[int]) -> bool:
        newest = tokens[-1]
        if newest not in self._may_end:
            text = self.tokenizer.decode([newest])
            # the last character of a stop string, or a part of some character
            self._may_end[newest] = "\ufffd" in text or any(string[-1] in text for string in self.strings)
        if not self._may_end[newest]:
            return False
        tail = self.tokenizer.decode(tokens[-self.window :])
        return any(text in tail for text in self.strings)


class RoomyLayer(DynamicLayer):
    """A layer's keys and values with room to grow into: the default layer copies all of them for every token."""

    keys: Any
    values: Any
    _room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if not self._fits(after):
            shape = (*key_states.shape[:2], after + max(64, after // 4), key_states.shape[-1])
            room = (key_states.new_empty(shape), value_states.new_empty(*shape[:3], value_states.shape[-1]))
            if before:
                for whole, stored in zip(room, (self.keys, self.values), strict=True):
                    whole[:, :, :before] = stored
            self._room = room
        assert self._room is not None
        self._room[0][:, :, before:after], self._room[1][:, :, before:after] = key_states, value_states
        self.keys, self.values = self._room[0][:, :, :after], self._room[1][:, :, :after]
        return self.keys, self.values

    def _fits(self, length: int) -> bool:
        """Whether what is stored lies in the room (selecting rows replaces it) and so much can."""
        room = self._room
        return (
            room is not None
            and length <= room[0].shape[-2]
            and self.keys is not None
            and self.keys.data_ptr() == room[0].data_ptr()
            and len(self.keys) == len(room[0])
        )


def roomy_cache(config: Any) -> DynamicCache:
    """The cache that transformers would make for a model, its plain layers replaced by :class:`RoomyLayer`."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def shareable(cache: DynamicCache) -> bool:
    """Whether all layers hold all that was said, so that gaps between a row's tokens change nothing; a sliding window would count them."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def common_prefix(prompts: Sequence[Sequence[int]], before: int) -> int:
    """How many tokens all prompts begin with, counted up to the first token ``before`` (a picture) and to their last but one."""
    shortest = min(map(len, prompts)) - 1
    for index in range(shortest):
        token = prompts[0][index]
        if token == before or any(prompt[index] != token for prompt in prompts):
            return index
    return shortest


def share_prefix(model: Any, inputs: dict[str, Tensor], length: int) -> tuple[dict[str, Tensor], DynamicCache]:
    """Compute what all rows begin with once.

    Args:
        model: The model.
        inputs: Left-padded inputs of the batch, ``[rows, tokens]`` each.
        length: Tokens of the common beginning.

    Returns:
        The inputs with padding after the beginning instead of before it, and a cache that holds the beginning for every row.
    """
    mask = inputs["attention_mask"]
    rows, width = mask.shape
    pads = width - mask.sum(dim=1, keepdim=True)
    column = torch.arange(width, device=mask.device).expand(rows, width)
    # beginning, padding, rest: the columns of each from where they stood after the padding
    source = torch.where(column < length, column + pads, torch.where(column < length + pads, column - length, column))
    moved = {name: value.gather(1, source) if value.shape == mask.shape else value for name, value in inputs.items()}
    single = roomy_cache(model.config)
    few = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}  # none of them is looked at
    model(input_ids=moved["input_ids"][:1, :length], past_key_values=single, use_cache=True, **few)
    cache = roomy_cache(model.config)
    for index, layer in enumerate(single.layers):
        cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), index)
    return moved, cache


def decode(
    model: Any,
    input_ids: Tensor,
    generation_config: Any,
    rows: list[Row],
    lockstep: bool = False,
    **model_kwargs: Any,
) -> int:
    """Complete all rows; made to be the ``custom_generate`` of ``model.generate``.

    Args:
        model: The model.
        input_ids: The prompts, padded, ``[rows, tokens]``.
        generation_config: What ``generate`` made of its arguments.
        rows: The answers to write, one per prompt.
        lockstep: Whether other processes hold parts of the weights, so that all must run as many forwards as the longest.
        **model_kwargs: The model's further inputs, prepared by ``generate``.

    Returns:
        Forward passes, the prefill included.
    """
    outputs = model._prefill(input_ids, generation_config, model_kwargs, is_first_iteration=True)
    cache = outputs.past_key_values
    plain = shareable(cache)
    mask = model_kwargs["attention_mask"]
    mask = torch.ones_like(input_ids) if mask is None else mask
    positions = model_kwargs["position_ids"][..., -1:]
    further = {name: model_kwargs[name] for name in ("use_cache", "logits_to_keep") if name in model_kwargs}
    choose(rows, outputs.logits[:, -1])
    slots, forwards = list(rows), 1  # the rows that hold a place in the batch
    while model._has_unfinished_sequences(all(row.done for row in slots), lockstep, device=input_ids.device):
        open_rows = [row for row in slots if not row.done]
        if open_rows and len(open_rows) <= (1 - _LEAVE_SHARE) * len(slots):
            keep = torch.tensor([index for index, row in enumerate(slots) if not row.done], device=input_ids.device)
            cache.batch_select_indices(keep)
            positions, mask, slots = positions.index_select(-2, keep), mask[keep], open_rows
        feeding = _next_to_feed(open_rows) if plain else open_rows
        pieces = _pieces(slots, feeding, None if plain else 1)
        width = max(1, *map(len, pieces))
        counts = torch.tensor([len(piece) for piece in pieces], device=input_ids.device)[:, None]
        padded = [[0] * (width - len(piece)) + piece for piece in pieces]
        column = torch.arange(width, device=input_ids.device) - width
        mask = torch.cat([mask, (column + counts >= 0).to(mask.dtype)], dim=1)
        inputs = model.prepare_inputs_for_generation(
            torch.tensor(padded, device=input_ids.device),
            past_key_values=cache,
            attention_mask=mask,
            position_ids=positions + (column + counts + 1).clamp(min=0),
            **further,
        )
        logits = model(**inputs, return_dict=True).logits[:, -1]
        forwards += 1
        positions = positions + counts
        ready = [index for index, (row, piece) in enumerate(zip(slots, pieces, strict=True)) if piece and not row.waiting]
        if ready:
            choose([slots[index] for index in ready], logits[torch.tensor(ready, device=logits.device)])
    return forwards


def _pieces(slots: Sequence[Row], feeding: Sequence[Row], most: int | None) -> list[list[int]]:
    """What each row is fed now, at most so many tokens; they wait no longer."""
    fed = {id(row) for row in feeding}
    pieces = []
    for row in slots:
        pieces.append(row.waiting[:most] if id(row) in fed else [])
        row.waiting = row.waiting[len(pieces[-1]) :]
    return pieces


def _next_to_feed(rows: list[Row]) -> list[Row]:
    """Rows with one token go on at once, those with forced text wait until enough of them do."""
    jumping = sum(len(row.waiting) > 1 for row in rows)
    if jumping >= _JUMP_SHARE * len(rows):
        return rows
    return [row for row in rows if len(row.waiting) == 1]


def choose(rows: Sequence[Row], logits: Tensor) -> None:
    """Choose each row's next token from its logits, ``[rows, vocabulary]``, within its form and at its temperature."""
    scores = logits.float()
    constrained = [(index, row.constraint) for index, row in enumerate(rows) if row.constraint is not None]
    if constrained:
        allowed = Constraint.allowed([constraint for _, constraint in constrained], scores.shape[1]).to(scores.device)
        index = torch.tensor([index for index, _ in constrained], device=scores.device)
        scores = scores.index_copy(0, index, scores[index].masked_fill(~allowed, -torch.inf))
    chosen = scores.argmax(dim=-1)
    warm = [index for index, row in enumerate(rows) if row.temperature > 0]
    if warm:
        index = torch.tensor(warm, device=scores.device)
        temperature = torch.tensor([rows[i].temperature for i in warm], device=scores.device)[:, None]
        # the inverse of the distribution function, at one number per row: a draw that needs no noise as wide as the vocabulary
        mass = (scores[index] / temperature).softmax(dim=-1).double().cumsum(dim=-1)
        at = torch.tensor([rows[i].draw() for i in warm], dtype=torch.float64, device=scores.device)[:, None] * mass[:, -1:]
        chosen = chosen.index_copy(0, index, torch.searchsorted(mass, at, right=True)[:, 0])
    for row, token in zip(rows, chosen.tolist(), strict=True):
        row.take(token)
