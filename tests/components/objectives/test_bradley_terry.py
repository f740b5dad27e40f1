"""Losses on pairs of scores, against closed forms, draws and numerical derivatives in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from rationalrewards.components.objectives import bradley_terry_loss, gaussian_loss, rao_kupper_log_probabilities, rao_kupper_loss
from rationalrewards.components.objectives.bradley_terry import GAUSSIAN_FORMS, inverse_softplus
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, softplus

LABELS = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 1.0], dtype=torch.float64)
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _gaussian(form: str) -> Loss:
    return lambda a, b, sa, sb, label: gaussian_loss(a, b, sa, sb, label, form)  # type: ignore[arg-type]


LOSSES: dict[str, Loss] = {
    "bradley_terry": lambda a, b, sa, sb, label: bradley_terry_loss(a, b, label),
    "rao_kupper": lambda a, b, sa, sb, label: rao_kupper_loss(a, b, label, 0.7),
    **{form: _gaussian(form) for form in GAUSSIAN_FORMS},
}


@pytest.fixture
def pairs() -> list[Tensor]:
    """Means, log-sigmas and labels of 60 pairs."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(60, generator=generator, dtype=torch.float64) for _ in range(4)]
    return [3 * draw[0], 3 * draw[1], 0.5 * draw[2], 0.5 * draw[3], LABELS.repeat(10)]


def test_bradley_terry_is_the_cross_entropy_of_its_probability(pairs: list[Tensor]) -> None:
    a, b, _, _, label = pairs
    probability = a.exp() / (a.exp() + b.exp())
    expected = binary_cross_entropy(probability, label, reduction="none")
    torch.testing.assert_close(bradley_terry_loss(a, b, label), expected, atol=1e-12, rtol=1e-10)  # rounding of exp and log
    # a pair on which 7 of 10 agree is best explained by a finite distance
    best = torch.tensor([math.log(0.7 / 0.3)], dtype=torch.float64, requires_grad=True)
    bradley_terry_loss(best, torch.zeros(1, dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)).backward()
    assert abs(float(best.grad)) < 1e-15  # type: ignore[arg-type] # one rounding of 0.7


def test_extreme_scores_stay_finite() -> None:
    a, b = torch.tensor([200.0, -200.0]), torch.tensor([-200.0, 200.0])
    label = torch.tensor([0.0, 1.0])
    assert bradley_terry_loss(a, b, label).tolist() == [400.0, 400.0]
    for form in GAUSSIAN_FORMS:
        for log_sigma in (-8.0, 3.0):
            sigma = torch.full((2,), log_sigma)
            assert gaussian_loss(a, b, sigma, sigma, label, form).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_pair_may_be_swapped(name: str, pairs: list[Tensor]) -> None:
    a, b, sa, sb, label = pairs
    torch.testing.assert_close(LOSSES[name](a, b, sa, sb, label), LOSSES[name](b, a, sb, sa, 1 - label), atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_numerical_ones(name: str, pairs: list[Tensor]) -> None:
    *inputs, label = (tensor[:12].clone() for tensor in pairs)
    for tensor in inputs:
        tensor.requires_grad_()
    used = inputs if name in GAUSSIAN_FORMS else inputs[:2]
    rest = tuple(inputs[len(used) :])
    assert torch.autograd.gradcheck(lambda *given: LOSSES[name](*given, *rest, label), used)


@pytest.mark.parametrize("name", LOSSES)
def test_an_even_label_leaves_equal_scores_alone(name: str) -> None:
    a = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor([0.2], dtype=torch.float64)
    LOSSES[name](a, b, sigma, sigma, torch.tensor([0.5], dtype=torch.float64)).backward()
    assert abs(float(a.grad)) < 1e-15 and abs(float(b.grad)) < 1e-15  # type: ignore[arg-type] # sums of terms that cancel
    LOSSES[name](a, b, sigma, sigma, torch.tensor([0.7], dtype=torch.float64)).backward()
    assert float(a.grad) < -0.01 and float(b.grad) > 0.01  # type: ignore[arg-type]


# -- ties -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [1e-3, 0.3, math.log(5.0), 4.0])
def test_outcomes_add_up_to_one(threshold: float, pairs: list[Tensor]) -> None:
    a, b, *_ = pairs
    outcomes = rao_kupper_log_probabilities(a, b, threshold)
    torch.testing.assert_close(sum(one.exp() for one in outcomes), torch.ones_like(a), atol=1e-12, rtol=0)
    # Rao and Kupper's own form, with worths exp(a), exp(b) and theta = exp(t)
    theta, worth_a, worth_b = math.exp(threshold), a.exp(), b.exp()
    torch.testing.assert_close(outcomes[0].exp(), worth_a / (worth_a + theta * worth_b), atol=1e-12, rtol=1e-9)
    tie = worth_a * worth_b * (theta**2 - 1) / ((worth_a + theta * worth_b) * (theta * worth_a + worth_b))
    torch.testing.assert_close(outcomes[1].exp(), tie, atol=1e-12, rtol=1e-9)


def test_a_judge_with_logistic_noise_ties_within_the_threshold() -> None:
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(400_000, generator=generator, dtype=torch.float64)
    noisy = 0.8 + torch.log(uniform / (1 - uniform))
    threshold = 1.1
    seen = [float((noisy > threshold).double().mean()), float((noisy.abs() <= threshold).double().mean())]
    said = rao_kupper_log_probabilities(torch.tensor([0.8]), torch.tensor([0.0]), threshold)
    # four standard errors of a share over 400,000 draws
    assert [float(one.exp()) for one in said[:2]] == pytest.approx(seen, abs=4 * 0.5 / 400_000**0.5)


def test_votes_are_wins_and_losses_and_only_a_half_is_a_tie() -> None:
    a, b, t = torch.tensor([0.4]), torch.tensor([0.1]), 0.5
    win, tie, loss = (float(-one) for one in rao_kupper_log_probabilities(a, b, t))
    assert float(rao_kupper_loss(a, b, torch.tensor([0.5]), t)) == pytest.approx(tie)
    assert float(rao_kupper_loss(a, b, torch.tensor([0.7]), t)) == pytest.approx(0.7 * win + 0.3 * loss)
    assert float(rao_kupper_loss(a, b, torch.tensor([1.0]), t)) == pytest.approx(win)


def test_a_learnt_threshold_finds_the_share_of_ties() -> None:
    # of equal scores, P(tie) = (e^2t - 1) / (1 + e^t)^2 = tanh(t / 2), so a share of 0.4 is t = 2 atanh(0.4)
    free = torch.tensor(inverse_softplus(0.1), dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(10, dtype=torch.float64)
    label = torch.tensor([0.5] * 4 + [1.0] * 3 + [0.0] * 3, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([free], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = rao_kupper_loss(zero, zero, label, softplus(free)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    # where LBFGS stops
    assert float(softplus(free.detach())) == pytest.approx(2 * math.atanh(0.4), abs=1e-6)
    assert float(softplus(torch.tensor(inverse_softplus(0.1), dtype=torch.float64))) == pytest.approx(0.1, rel=1e-12)


# -- scores that are uncertain ----------------------------------------------------------------------------------------------


def test_the_integrals_are_those_of_a_fine_grid() -> None:
    mean = torch.linspace(-12, 12, 25, dtype=torch.float64)
    for sigma in (0.01, 0.5, 2.0, 10.0):
        log_sigma = torch.full_like(mean, math.log(sigma / 2**0.5))
        u = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
        density = torch.exp(-0.5 * u**2) / (2 * math.pi) ** 0.5
        z = mean[:, None] + sigma * u
        probability = torch.trapezoid(torch.sigmoid(z) * density, u, dim=1)
        expected = torch.trapezoid(softplus(-z) * density, u, dim=1)
        ones, zero = torch.ones_like(mean), torch.zeros_like(mean)
        marginal = gaussian_loss(mean, zero, log_sigma, log_sigma, ones, "marginal")
        # what the docstring promises up to a sigma of 10
        torch.testing.assert_close(marginal, -probability.log(), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(
            gaussian_loss(mean, zero, log_sigma, log_sigma, ones, "expected"), expected, atol=1e-6, rtol=1e-6
        )
        thurstone = gaussian_loss(mean[12:], zero[12:], log_sigma[12:], log_sigma[12:], ones[12:], "thurstone")
        step = torch.trapezoid((z[12:] > 0).double() * density, u, dim=1)
        # half a step of the grid, at the density's height
        torch.testing.assert_close((-thurstone).exp(), step, atol=1e-4, rtol=0)


def test_the_expected_form_is_what_published_trainers_draw() -> None:
    """``-logsigmoid(randn * sigma + mean).mean()`` of HPSv3's and EditReward's trainers, in float64 and with many draws."""
    generator = torch.Generator().manual_seed(2)
    draws = torch.randn(1_000_000, generator=generator, dtype=torch.float64)
    for mean, sigma_a, sigma_b in ((0.3, 0.8, 1.5), (-1.2, 0.2, 0.1)):
        z = mean + math.hypot(sigma_a, sigma_b) * draws
        drawn = softplus(-z)
        tensors = [torch.tensor([value], dtype=torch.float64) for value in (mean, 0.0, math.log(sigma_a), math.log(sigma_b), 1.0)]
        exact = float(gaussian_loss(*tensors, "expected"))
        # four standard errors of the draws
        assert exact == pytest.approx(float(drawn.mean()), abs=4 * float(drawn.std()) / 1000)


def test_without_uncertainty_both_integrals_are_bradley_terry(pairs: list[Tensor]) -> None:
    a, b, _, _, label = pairs
    sharp = torch.full_like(a, -20.0)
    for form in ("marginal", "expected"):
        # sigma is 2e-9
        torch.testing.assert_close(
            gaussian_loss(a, b, sharp, sharp, label, form), bradley_terry_loss(a, b, label), atol=1e-8, rtol=0
        )


def _gradient_of_sigma(form: str, mean: float, label: float) -> float:
    free = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    fixed = [torch.tensor([value], dtype=torch.float64) for value in (mean, 0.0)]
    gaussian_loss(*fixed, free, torch.zeros(1, dtype=torch.float64), torch.tensor([label], dtype=torch.float64), form).backward()  # type: ignore[arg-type]
    return float(free.grad)  # type: ignore[arg-type]


def test_only_the_marginal_and_thurstones_form_may_answer_surprise_with_uncertainty() -> None:
    for form in ("marginal", "thurstone"):
        assert _gradient_of_sigma(form, 2.0, 0.0) < 0 < _gradient_of_sigma(form, 2.0, 1.0)
    # a wrong verdict, a right one, a tie: always smaller
    assert all(_gradient_of_sigma("expected", 2.0, label) > 0 for label in (0.0, 0.5, 1.0))


def test_thurstone_has_no_scale(pairs: list[Tensor]) -> None:
    a, b, sa, sb, label = pairs
    doubled = gaussian_loss(2 * a, 2 * b, sa + math.log(2), sb + math.log(2), label, "thurstone")
    torch.testing.assert_close(doubled, gaussian_loss(a, b, sa, sb, label, "thurstone"), atol=1e-9, rtol=1e-9)


def test_an_unknown_form_is_refused() -> None:
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="form is one of marginal, expected, thurstone, got 'probit'"):
        gaussian_loss(one, one, one, one, one, "probit")  # type: ignore[arg-type]
