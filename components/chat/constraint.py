"""Answers forced into a grammar, token by token, through llguidance."""

from __future__ import annotations

from typing import Any

import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from transformers import LogitsProcessor


class GrammarConstraint(LogitsProcessor):
    """Allows, for every row of a batch, only the tokens that keep its answer within the grammar.

    Args:
        grammar: Grammar in llguidance's Lark dialect.
        tokenizer: The tokenizer as llguidance knows it; see :func:`constraint_tokenizer`.
        rows: Rows of the batch.
        prompt_length: Tokens of the prompt, padding included; what follows them is the answer.

    Raises:
        ValueError: If the grammar is not one.
    """

    def __init__(self, grammar: str, tokenizer: Any, rows: int, prompt_length: int) -> None:
        problem = LLMatcher.validate_grammar(grammar, tokenizer)
        if problem:
            raise ValueError(f"the answer's grammar is not valid: {problem}")
        first = LLMatcher(tokenizer, grammar)
        self.matchers = [first, *(first.deep_copy() for _ in range(rows - 1))]
        self.open = [True] * rows
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > self.prompt_length:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                matcher = self.matchers[row]
                # a row that met a stop string is padded from there on, which no grammar foresees
                self.open[row] = self.open[row] and not matcher.is_stopped() and matcher.validate_tokens([token]) == 1
                if self.open[row]:
                    matcher.consume_token(token)
        width = scores.shape[1]
        masks = allocate_token_bitmask(len(self.matchers), width)
        for row, matcher in enumerate(self.matchers):
            if self.open[row] and not matcher.is_stopped():  # a finished row is padded whatever its scores are
                fill_next_token_bitmask(matcher, masks, row)
        bits = torch.from_numpy(masks).to(scores.device)[:, :, None] >> torch.arange(32, device=scores.device)
        allowed = (bits & 1).bool().flatten(1)[:, :width]
        return scores.masked_fill(~allowed, -float("inf"))


def constraint_tokenizer(tokenizer: Any, vocabulary: int, ends: set[int]) -> Any:
    """A fast tokenizer as llguidance knows it; made once per model, as it takes about a second for a large vocabulary.

    Args:
        tokenizer: The tokenizer of transformers.
        vocabulary: Columns of the model's logits, which may be more than the tokenizer has tokens.
        ends: Tokens that end an answer.
    """
    return from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(ends))
