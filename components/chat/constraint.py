"""Answers forced into a form, token by token, through llguidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from ..answer_form import AnswerForm


class Constraint:
    """How far one answer has come in its form; see :class:`Constraints`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def take(self, token: int) -> list[int]:
        """Go on by a token, and by all tokens that must follow it; returns those."""
        self._matcher.consume_token(token)
        forced = [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()
        if forced:
            self._matcher.consume_tokens(forced)
        return list(forced)

    @staticmethod
    def allowed(constraints: Sequence[Constraint], width: int) -> torch.Tensor:
        """Which tokens may come next, ``bool [constraints, width]``."""
        masks = allocate_token_bitmask(len(constraints), width)
        for row, constraint in enumerate(constraints):
            fill_next_token_bitmask(constraint._matcher, masks, row)
        bits = torch.from_numpy(masks)[:, :, None] >> torch.arange(32)
        return (bits & 1).bool().flatten(1)[:, :width]


class Constraints:
    """Forms as a model's tokenizer sees them. Made once per model, as it takes about a second for a large vocabulary.

    Args:
        tokenizer: The fast tokenizer of transformers.
        vocabulary: Columns of the model's logits, which may be more than the tokenizer has tokens.
        ends: Tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: frozenset[int]) -> None:
        self.ends = ends
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(ends))
        self._starts: dict[AnswerForm, LLMatcher] = {}

    def start(self, form: AnswerForm) -> Constraint:
        """The beginning of an answer in this form.

        Raises:
            ValueError: If llguidance cannot follow the form.
        """
        if form not in self._starts:
            grammar = form.lark()
            problem = LLMatcher.validate_grammar(grammar, self._tokenizer)
            if problem:
                raise ValueError(f"the answer's form cannot be followed: {problem}")
            self._starts[form] = LLMatcher(self._tokenizer, grammar)
        return Constraint(self._starts[form].deep_copy())
