"""The loss of a large vocabulary is the same number as with all logits in memory, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
from rationalrewards.components.distillation.loss import losses_for_logits, summed_cross_entropy
from rationalrewards.components.measuring import PeakBytes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

TOKENS, WIDTH, VOCABULARY = 37, 24, 1009


def parts(dtype: torch.dtype, bias: bool = False) -> tuple[list[Tensor], Tensor]:
    draw = torch.Generator().manual_seed(0)
    made = [torch.randn(TOKENS, WIDTH, generator=draw), torch.randn(VOCABULARY, WIDTH, generator=draw)]
    made += [torch.randn(VOCABULARY, generator=draw)] if bias else []
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=draw)
    return [one.to(dtype).requires_grad_() for one in made], targets


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = linear(hidden, weight, bias)
    return cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 10, 37, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    # a product of float32 is rounded to 6e-8 of it, and sums are of a thousand terms in another order; of bfloat16 to 8 bits
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 1e-2)],
)
def test_value_and_gradients_are_those_of_all_logits_at_once(
    dtype: torch.dtype, tolerance: float, bias: bool, chunk: int
) -> None:
    mine, targets = parts(dtype, bias)
    theirs, _ = parts(dtype, bias)
    accurate = torch.float64 if dtype == torch.float64 else torch.float32
    loss = summed_cross_entropy(mine[0], mine[1], mine[2] if bias else None, targets, chunk * VOCABULARY * accurate.itemsize)
    expected = plain(theirs[0], theirs[1], theirs[2] if bias else None, targets)
    assert loss.dtype == expected.dtype == accurate
    torch.testing.assert_close(loss, expected, rtol=min(tolerance, 1e-6), atol=0)
    (3.0 * loss).backward()
    (3.0 * expected).backward()
    for one, other in zip(mine, theirs, strict=True):
        assert one.grad is not None and other.grad is not None and one.grad.dtype == dtype
        assert float((one.grad - other.grad).abs().max()) <= tolerance * float(other.grad.abs().max())


@pytest.mark.parametrize("trains", [0, 1])
def test_what_is_frozen_gets_no_gradient(trains: int) -> None:
    (hidden, weight), targets = parts(torch.float32)
    frozen = (hidden, weight)[1 - trains].requires_grad_(False)
    summed_cross_entropy(hidden, weight, None, targets).backward()
    assert frozen.grad is None and (hidden, weight)[trains].grad is not None


def test_under_autocast_products_are_taken_as_linear_takes_them() -> None:
    mine, targets = parts(torch.float32)
    theirs, _ = parts(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = (
            summed_cross_entropy(mine[0], mine[1], None, targets, 5 * VOCABULARY * 4),
            plain(theirs[0], theirs[1], None, targets),
        )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    for one, other in zip(mine, theirs, strict=True):
        assert one.grad is not None and other.grad is not None and one.grad.dtype == torch.float32
        assert float((one.grad - other.grad).abs().max()) <= 1e-2 * float(other.grad.abs().max())  # rounded to 8 bits


def test_a_second_backward_is_refused_instead_of_wrong() -> None:
    (hidden, weight), targets = parts(torch.float32)
    loss = summed_cross_entropy(hidden, weight, None, targets)
    (2.0 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_vocabulary_of_150000_does_not_own_the_memory() -> None:
    tokens, vocabulary, width, chunk = 256, 150_000, 16, 16
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    chunk_bytes = chunk * vocabulary * 4
    peaks = []
    for work in (
        lambda: summed_cross_entropy(hidden, weight, None, targets, chunk_bytes),
        lambda: plain(hidden, weight, None, targets),
    ):
        hidden.grad = weight.grad = None
        with PeakBytes() as memory:
            work().backward()
        peaks.append(memory.peak)
    # all logits, and their gradient beside them
    assert peaks[1] > 2 * tokens * vocabulary * 4
    # one chunk of logits, the weight's gradient (and its copy while it is handed on), and rows of a few numbers
    assert peaks[0] < chunk_bytes + 2 * weight.nbytes + 1_000_000 < 0.1 * peaks[1]


def test_a_head_answers_with_the_loss_only_within() -> None:
    head = nn.Linear(WIDTH, VOCABULARY)
    hidden = torch.randn(2, 20, WIDTH)
    at, targets = torch.tensor([3, 5, 21]), torch.tensor([7, 0, 1008])
    logits = head(hidden)
    with losses_for_logits(head, at, targets):
        inside = head(hidden)
    torch.testing.assert_close(inside, cross_entropy(logits.flatten(0, 1)[at], targets, reduction="sum"))
    assert torch.equal(head(hidden), logits)
