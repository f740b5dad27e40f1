"""Cross-entropy over a large vocabulary without its logits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LOGIT_BYTES = 2**28
"""Memory for logits at a time: 450 tokens of a vocabulary of 150,000 in float32."""


class _SummedCrossEntropy(torch.autograd.Function):
    """Loss and gradients of a chunk of tokens in one go, while its logits are there: nothing is computed twice.

    The sum's gradient is linear in the one number that comes back from behind it, so that it may be computed before.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int, differentiate: bool
    ) -> Tensor:
        accurate = _accurate(hidden.dtype)
        wanted = [differentiate and needed for needed in ctx.needs_input_grad[:3]]
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        # sums over chunks in the accurate type: in bfloat16 each further chunk would round what is there
        grad_weight = torch.zeros_like(weight, dtype=accurate) if wanted[1] else None
        grad_bias = torch.zeros_like(bias, dtype=accurate) if wanted[2] and bias is not None else None
        loss = torch.zeros((), dtype=accurate, device=hidden.device)
        for start in range(0, len(targets), chunk):
            part, goal = hidden[start : start + chunk], targets[start : start + chunk, None]
            logits = nn.functional.linear(part, weight, bias).to(accurate)
            highest = logits.amax(dim=1, keepdim=True)
            chosen = logits.gather(1, goal) - highest
            exponents = logits.sub_(highest).exp_()
            total = exponents.sum(dim=1, keepdim=True)
            loss += (total.log() - chosen).sum()
            if not any(wanted):
                continue
            # softmax minus one-hot, the gradient of cross-entropy by the logits
            gradient = exponents.div_(total)
            gradient.scatter_add_(1, goal, gradient.new_full(goal.shape, -1.0))
            if grad_bias is not None:
                grad_bias += gradient.sum(dim=0)
            gradient = gradient.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, weight, out=grad_hidden[start : start + chunk])
            if grad_weight is not None and accurate == hidden.dtype:
                grad_weight.addmm_(gradient.T, part)
            elif grad_weight is not None:
                grad_weight += gradient.T @ part
        ctx.save_for_backward(
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # in place: each is asked for once and belongs to nobody else
        return (*(None if known is None else known.mul_(gradient) for known in ctx.saved_tensors), None, None, None)


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def summed_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logit_bytes: int = LOGIT_BYTES
) -> Tensor:
    """Sum of the cross-entropies of a linear head, its logits computed and forgotten chunk by chunk.

    Equal to ``cross_entropy(linear(hidden, weight, bias), targets, reduction="sum")`` with the softmax taken in float32 (float64 of
    float64), in both value and gradients, up to the order of sums. Gradients are computed together with the value, as Liger Kernel's
    fused linear cross-entropy does (arXiv 2410.10989, section 3.2), so that no product is computed twice; they cannot be
    differentiated again.

    Args:
        hidden: Hidden states ``[N, D]``.
        weight: The head's weight ``[V, D]``.
        bias: The head's bias ``[V]``, if it has one.
        targets: Token ids ``[N]``, each of which counts.
        logit_bytes: Memory for the logits of a chunk; one token at least.

    Returns:
        A scalar, at least float32.
    """
    if torch.is_autocast_enabled(hidden.device.type):  # as `linear` under autocast
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    chunk = max(1, logit_bytes // (len(weight) * _accurate(hidden.dtype).itemsize))
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _SummedCrossEntropy.apply(hidden, weight, bias, targets, chunk, torch.is_grad_enabled())
    return loss


@contextmanager
def losses_for_logits(head: nn.Linear, at: Tensor, targets: Tensor, logit_bytes: int = LOGIT_BYTES) -> Iterator[None]:
    """Within, a model's head answers with the summed cross-entropy in place of logits.

    In place, and not after the model, because DDP, DeepSpeed and FSDP gather the head's weight for the model's own forward only.

    Args:
        head: The model's output layer.
        at: Positions ``[N]`` in the flattened hidden states that predict a token that counts.
        targets: The tokens ``[N]`` that they should predict.
        logit_bytes: Memory for logits at a time.
    """

    def answer(hidden: Tensor) -> Tensor:
        return summed_cross_entropy(hidden.flatten(0, -2)[at], head.weight, head.bias, targets, logit_bytes)

    head.forward = answer  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward
