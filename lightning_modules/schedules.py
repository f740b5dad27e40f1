"""Learning-rate schedules for ``scheduler: {class_path: ..., init_args: ...}`` in a config."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class CosineWithWarmup(LambdaLR):
    """A linear warm-up from 0, then half a cosine down; stepped once per optimizer step.

    With ``w = ceil(warmup * total_steps)`` warm-up steps, step ``s`` runs at the optimizer's learning rate times ``s / w`` during
    the warm-up, and times ``final + (1 - final) * (1 + cos(pi * (s - w) / (total_steps - w))) / 2`` after it: what the
    transformers Trainer does for ``lr_scheduler_type: cosine`` with a ``warmup_ratio``, and so what the paper's recipe does
    (``rationalrewards_full_sft.yaml`` in TIGER-AI-Lab/RationalRewards). Steps beyond ``total_steps`` stay at ``final``.

    Args:
        optimizer: The optimizer.
        total_steps: Optimizer steps of the whole run.
        warmup: Share of them that warms up, in [0, 1).
        final: Share of the learning rate that is left at the end, in [0, 1].

    Raises:
        ValueError: If a share is out of its range or there are no steps.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final: float = 0.0) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}: give the optimizer steps of the whole run")
        if not 0.0 <= warmup < 1.0:
            raise ValueError(f"warmup is the share of the steps that warms up, in [0, 1), got {warmup}")
        if not 0.0 <= final <= 1.0:
            raise ValueError(f"final is the share of the learning rate that is left, in [0, 1], got {final}")
        rising = math.ceil(warmup * total_steps)

        def factor(step: int) -> float:
            if step < rising:
                return step / rising
            if step >= total_steps:
                return final
            falling = (step - rising) / (total_steps - rising)
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * falling))

        super().__init__(optimizer, factor)
