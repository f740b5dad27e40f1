"""Online DPO on pairs of a group."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rationalrewards.components.objectives import best_and_worst, dpo_loss
from torch import Tensor

NAMES = ("v_better", "v_worse", "v_reference_better", "v_reference_worse", "x0_better", "x0_worse", "eps")


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) for name in NAMES}


def _swapped(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    def other(name: str) -> str:
        return name.replace("better", "worse") if "better" in name else name.replace("worse", "better")

    return {other(name): value for name, value in batch.items()}


@pytest.mark.parametrize("dpo_beta", [0.5, 20.0])
def test_against_a_transcription(batch: dict[str, Tensor], dpo_beta: float) -> None:
    a = {name: value.numpy() for name, value in batch.items()}
    expected = []
    for p in range(3):
        e = {
            f"{who}{which}": np.mean((a[f"v_{who}{which}"][p] - (a["eps"][p] - a[f"x0_{which}"][p])) ** 2)
            for who in ("", "reference_")
            for which in ("better", "worse")
        }
        inside = (e["better"] - e["reference_better"]) - (e["worse"] - e["reference_worse"])
        expected.append(np.logaddexp(0.0, 0.5 * dpo_beta * inside))
    np.testing.assert_allclose(
        dpo_loss(**batch, dpo_beta=dpo_beta).numpy(), expected, rtol=1e-10
    )  # float64 sums in another order


def test_the_two_ways_to_order_a_pair_have_probabilities_that_add_up_to_one(batch: dict[str, Tensor]) -> None:
    total = (-dpo_loss(**batch, dpo_beta=0.5)).exp() + (-dpo_loss(**_swapped(batch), dpo_beta=0.5)).exp()
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-14)


def test_at_the_reference_the_loss_is_log_2_and_the_gradient_a_quarter_beta(batch: dict[str, Tensor]) -> None:
    better, worse = (batch[f"v_reference_{which}"].clone().requires_grad_() for which in ("better", "worse"))
    loss = dpo_loss(**{**batch, "v_better": better, "v_worse": worse}, dpo_beta=100.0)
    assert loss.tolist() == pytest.approx([math.log(2)] * 3, abs=1e-15)
    loss.sum().backward()
    for v, which, sign in ((better, "better", 1), (worse, "worse", -1)):
        error_gradient = 2 * (v.detach() - (batch["eps"] - batch[f"x0_{which}"])) / 20
        # sigmoid(0) = 1/2, times beta / 2
        torch.testing.assert_close(v.grad, sign * 25.0 * error_gradient, rtol=1e-12, atol=1e-14)


def test_equal_pictures_teach_nothing(batch: dict[str, Tensor]) -> None:
    """The same picture under the same noise has the same velocity: nothing is left of the loss's gradient."""
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    for other, moves in ((batch["x0_better"], False), (batch["x0_worse"], True)):
        weight.grad = None
        v_better, v_worse = (0.5 * (x0 + batch["eps"]) @ weight for x0 in (batch["x0_better"], other))
        pair = {**batch, "v_better": v_better, "v_worse": v_worse, "x0_worse": other}
        pair["v_reference_worse"] = pair["v_reference_better"]
        dpo_loss(**pair, dpo_beta=10.0).sum().backward()
        assert weight.grad is not None
        largest = float(weight.grad.abs().max())
        assert largest > 1e-3 if moves else largest < 1e-13  # two equal sums of products cancel


def test_extreme_betas_stay_finite(batch: dict[str, Tensor]) -> None:
    v = batch["v_better"].clone().requires_grad_()
    loss = dpo_loss(**{**batch, "v_better": v}, dpo_beta=1e6)
    loss.sum().backward()
    assert loss.isfinite().all() and v.grad is not None and v.grad.isfinite().all()


def test_pairs_of_groups() -> None:
    nan = float("nan")
    rewards = torch.tensor([0.2, 0.9, 0.5, 0.5, nan, 0.1, 0.9, nan, 0.4, 0.3])
    groups = ["a", "a", "b", "b", "a", "a", "a", "c", "c", "d"]
    better, worse = best_and_worst(rewards, groups)
    # a: the first of two best against the worst; b is flat; c and d have one scored member each
    assert better.tolist() == [1] and worse.tolist() == [5]
    better, worse = best_and_worst(torch.tensor([1.0, 0.0, 2.0, 3.0]), ["x", "x", "y", "y"])
    assert better.tolist() == [0, 3] and worse.tolist() == [1, 2]


def test_an_unscored_member_changes_no_pair_of_the_others() -> None:
    rewards, groups = torch.tensor([0.3, float("nan"), 0.8, 0.1]), ["g"] * 4
    better, worse = best_and_worst(rewards, groups)
    kept = [0, 2, 3]
    alone = best_and_worst(rewards[kept], ["g"] * 3)
    assert [kept[index] for index in torch.cat(alone).tolist()] == torch.cat([better, worse]).tolist()


def test_no_pair_at_all() -> None:
    better, worse = best_and_worst(torch.tensor([0.5, 0.5]), ["g", "g"])
    assert better.dtype == worse.dtype == torch.int64 and len(better) == len(worse) == 0
