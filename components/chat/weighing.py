"""How probable other strings would have been at places of an answer: what :meth:`TransformersChat.weigh` computes.

The answer is read once. Then one forward looks at all places at once: for each, the tokens of its options as a tree, every token
seeing the answer up to its place and its own branch only. So a number of several tokens has its exact joint probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .base import Place, Weights


@dataclass(frozen=True)
class Tree:
    """The options of one place as tokens.

    Args:
        at: Tokens of the answer before the place.
        tails: Option to its tokens after those.
        branches: What the model must read to know all probabilities: the beginnings of the tails, the empty one first, each with the
            tokens that may follow it.
    """

    at: int
    tails: Mapping[str, tuple[int, ...]]
    branches: Mapping[tuple[int, ...], tuple[int, ...]]

    def weights(self, following: Sequence[Sequence[float]]) -> Weights:
        """Joint probabilities, from those of the tokens after each beginning, in the order of ``branches``."""
        reached: dict[tuple[int, ...], float] = {(): 1.0}
        left: dict[tuple[int, ...], float] = {}  # of what reaches a beginning, the part that none of its tokens follows
        for (path, tokens), probabilities in zip(self.branches.items(), following, strict=True):
            for token, probability in zip(tokens, probabilities, strict=False):
                reached[*path, token] = reached[path] * probability
            left[path] = reached[path] * max(0.0, 1.0 - sum(probabilities[: len(tokens)]))
        return Weights({option: left.get(tail, reached[tail]) for option, tail in self.tails.items()})


class OptionTrees:
    """Makes trees for answers in one tokenizer's tokens.

    Args:
        tokenizer: A fast tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[str, tuple[str, ...]], tuple[int, Tree]] = {}

    def tree(self, answer: str, offsets: Sequence[tuple[int, int]], place: Place) -> Tree | None:
        """The tree of a place.

        Args:
            answer: The answer.
            offsets: First and last character, exclusive, of each token of the answer.
            place: The place.

        Returns:
            The tree; ``None`` if the answer's tokens do not part where the options do.
        """
        line = answer.rfind("\n", 0, place.start) + 1  # tokens do not reach over a line's end, and such lines are few
        key = answer[line : place.start], place.options
        if key not in self._known:
            self._known[key] = self._parted(*key)
        characters, tree = self._known[key]
        at = next((index for index, (start, _) in enumerate(offsets) if start == line + characters), None)
        return None if at is None else replace(tree, at=at)

    def _parted(self, before: str, options: tuple[str, ...]) -> tuple[int, Tree]:
        """After how many characters the options part, and the tree from there on."""
        encoded = self.tokenizer([before + option for option in options], add_special_tokens=False, return_offsets_mapping=True)
        shared = min(map(len, encoded["input_ids"])) - 1
        for index in range(shared):
            if len({ids[index] for ids in encoded["input_ids"]}) > 1:
                shared = index
                break
        tails = {option: tuple(ids[shared:]) for option, ids in zip(options, encoded["input_ids"], strict=True)}
        branches: dict[tuple[int, ...], dict[int, None]] = {}
        for tail in tails.values():
            for depth, token in enumerate(tail):
                branches.setdefault(tail[:depth], {})[token] = None
        ordered = {path: tuple(branches[path]) for path in sorted(branches, key=len)}
        return (encoded["offset_mapping"][0][shared - 1][1] if shared else 0), Tree(0, tails, ordered)


def weigh_trees(
    model: Any,
    input_ids: Tensor,
    generation_config: Any,
    answers: Sequence[int],
    trees: Sequence[Sequence[Tree]],
    found: list[list[Weights]],
    **model_kwargs: Any,
) -> None:
    """Weigh the trees of a batch; made to be the ``custom_generate`` of ``model.generate``.

    Args:
        model: The model.
        input_ids: Prompts with their answers, left-padded, ``[rows, tokens]``.
        generation_config: What ``generate`` made of its arguments.
        answers: Tokens of each row's answer.
        trees: The trees of each row.
        found: Gets the weights of each row.
        **model_kwargs: The model's further inputs, prepared by ``generate``.
    """
    rows, width = input_ids.shape
    mask, positions = model_kwargs["attention_mask"], model_kwargs["position_ids"]
    real = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    nodes = [[(tree, path) for tree in of_row for path in tree.branches] for of_row in trees]
    most = max(map(len, nodes))
    tokens = torch.zeros(rows, most, dtype=torch.long)
    column = torch.zeros(rows, most, dtype=torch.long)  # of the last token of the answer that a node sees
    depth = torch.zeros(rows, most, dtype=torch.long)
    sees = torch.eye(most, dtype=torch.bool).repeat(rows, 1, 1)
    for row, of_row in enumerate(nodes):
        index = {}
        for number, (tree, path) in enumerate(of_row):
            index[id(tree), path] = number
            column[row, number] = width - answers[row] + tree.at - 1
            # the token before a place is read again, as the root of its tree: its own logits were not kept
            tokens[row, number] = path[-1] if path else input_ids[row, column[row, number]]
            depth[row, number] = len(path)
            for above in range(len(path)):
                sees[row, number, index[id(tree), path[:above]]] = True
    device = input_ids.device
    tokens, column, depth = tokens.to(device), column.to(device), depth.to(device)
    past = (torch.arange(width, device=device) < column[:, :, None]) & real[:, None, :]
    visible = torch.cat([past, sees.to(device)], dim=2)[:, None]
    at = column.expand(*positions.shape[:-2], *column.shape)
    cache = model._prefill(input_ids, generation_config, model_kwargs, is_first_iteration=True).past_key_values
    logits = model(
        input_ids=tokens,
        attention_mask=torch.zeros(visible.shape, dtype=model.dtype, device=device).masked_fill(
            ~visible, torch.finfo(model.dtype).min
        ),
        position_ids=positions.expand(*positions.shape[:-2], rows, width).gather(-1, at) + depth,
        past_key_values=cache,
        use_cache=True,
    ).logits
    for row, answer in enumerate(trees):
        branches = [tokens for tree in answer for tokens in tree.branches.values()]
        if not branches:
            found.append([])
            continue
        widest = max(map(len, branches))
        after = torch.tensor([[*tokens, *[0] * (widest - len(tokens))] for tokens in branches], device=device)
        scores = logits[row, : len(branches)].float()
        following = iter((scores.gather(1, after) - scores.logsumexp(dim=1, keepdim=True)).exp().tolist())
        found.append([tree.weights([next(following) for _ in tree.branches]) for tree in answer])
