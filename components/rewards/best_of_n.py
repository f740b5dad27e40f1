"""What picking the best of N by a reward does to a judge that the reward does not know."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def best_of_n(selecting: Tensor, held_out: Tensor, sizes: Sequence[int]) -> Tensor:
    """Expected held-out score of the picture that a reward picks out of N, for each prompt.

    Of M pictures of a prompt there are ``C(M, N)`` ways to draw N, and in ``C(k, N)`` of them none is above the k-th from below. So the
    mean over all draws follows from one sort, without drawing. Pictures that get the same reward are as likely to be picked as each
    other. What the reward could not score is picked only where nothing else was drawn.

    A reward is being over-optimised from the N on at which this curve turns down (Gao et al., arXiv 2210.10760, Section 3).

    Args:
        selecting: The reward that picks ``[prompts, M]``, any scale; NaN where unscored.
        held_out: The judge ``[prompts, M]``, any scale.
        sizes: Values of N, each from 1 to M. For N = 1 this is the mean of all pictures.

    Returns:
        ``float64 [prompts, len(sizes)]``.

    Raises:
        ValueError: If the shapes differ, an N is out of range, or ``held_out`` is not a number everywhere: leave such pictures out.
    """
    if selecting.shape != held_out.shape or selecting.ndim != 2:
        raise ValueError(f"both are [prompts, M], got {list(selecting.shape)} and {list(held_out.shape)}")
    pictures = selecting.shape[1]
    wrong = [n for n in sizes if not 1 <= n <= pictures]
    if wrong:
        raise ValueError(f"of {pictures} pictures the best of {wrong[0]} cannot be picked; give sizes from 1 to {pictures}")
    if not held_out.isfinite().all():
        raise ValueError("the held-out judge has no score for some pictures: leave these out of both")
    rewards = selecting.double().nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    order = rewards.argsort(dim=1)
    rewards, judged = rewards.gather(1, order), held_out.double().gather(1, order)
    # by how many pictures the picked one can be preceded, were it the last of those with its reward
    below = torch.searchsorted(rewards, rewards, right=False)
    upto = torch.searchsorted(rewards, rewards, right=True)
    curves = []
    for n in sizes:
        ways = math.comb(pictures, n)
        share = torch.tensor([math.comb(k, n) / ways for k in range(pictures + 1)], dtype=torch.float64)
        picked = (share[upto] - share[below]) / (upto - below)
        curves.append((picked * judged).sum(dim=1))
    return torch.stack(curves, dim=1)


def turning_point(curve: Sequence[float]) -> int | None:
    """Index after which a best-of-N curve never reaches its height again; ``None`` if its last point is its highest.

    Args:
        curve: Held-out scores for growing N, as the mean of :func:`best_of_n` over prompts.
    """
    if not curve:
        raise ValueError("an empty curve turns nowhere")
    top = max(range(len(curve)), key=lambda index: (curve[index], index))
    return None if top == len(curve) - 1 else top
