"""How probable other strings would have been at places of an answer: what :meth:`TransformersChat.weigh` computes.

The answer is read once. Then one forward looks at all places at once: for each, the tokens of its options as a tree, every token
seeing the answer up to its place and its own branch only. So a number of several tokens has its exact joint probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    at: int
    tails: dict[str, tuple[int, ...]]

    def nodes(self) -> list[tuple[int, ...]]:
        """What the model must read to know all probabilities: the beginnings of the options, the empty one first."""
        found = {tail[:depth] for tail in self.tails.values() for depth in range(len(tail))}
        return sorted(found, key=len)

    def weights(self, following: dict[tuple[int, ...], Tensor]) -> Weights:
        """Joint probabilities, from the log-probabilities of the next token after each node."""
        reached: dict[tuple[int, ...], float] = {(): 1.0}
        every = sorted({*self.nodes(), *self.tails.values()}, key=len)
        for path in every[1:]:
            reached[path] = reached[path[:-1]] * float(following[path[:-1]][path[-1]].exp())
        options = {}
        for option, tail in self.tails.items():
            longer = sum(reached[path] for path in every if len(path) == len(tail) + 1 and path[:-1] == tail)
            options[option] = max(reached[tail] - longer, 0.0)
        return Weights(options)


def option_tree(tokenizer: Any, answer: str, offsets: Sequence[tuple[int, int]], place: Place) -> Tree | None:
    """The tree of a place.

    Args:
        tokenizer: A fast tokenizer of transformers.
        answer: The answer.
        offsets: First and last character, exclusive, of each token of the answer.
        place: The place.

    Returns:
        The tree; ``None`` if the answer's tokens do not part where the options do.
    """
    line = answer.rfind("\n", 0, place.start) + 1  # tokens do not reach over a line's end, and a line is quickly encoded
    before = answer[line : place.start]
    encoded = tokenizer([before + option for option in place.options], add_special_tokens=False, return_offsets_mapping=True)
    shared = min(map(len, encoded["input_ids"])) - 1
    for index in range(shared):
        if len({ids[index] for ids in encoded["input_ids"]}) > 1:
            shared = index
            break
    parted = line + (encoded["offset_mapping"][0][shared - 1][1] if shared else 0)
    at = next((index for index, (start, _) in enumerate(offsets) if start == parted), None)
    if at is None:
        return None
    return Tree(at, {option: tuple(ids[shared:]) for option, ids in zip(place.options, encoded["input_ids"], strict=True)})


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
    nodes = [[(tree, path) for tree in of_row for path in tree.nodes()] for of_row in trees]
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
    for row, of_row in enumerate(nodes):
        following = logits[row].float().log_softmax(dim=-1).cpu()
        known = {(id(tree), path): following[number] for number, (tree, path) in enumerate(of_row)}
        found.append([tree.weights({path: known[id(tree), path] for path in tree.nodes()}) for tree in trees[row]])
