"""Flow-GRPO's and GRPO-Guard's ratios against torch.distributions, and their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from rationalrewards.components.objectives import clipped_surrogate, grpo_loss, guard_log_ratio, guard_loss, transition_kl
from torch import Tensor
from torch.distributions import Normal, kl_divergence

STD = torch.tensor([0.05, 0.3, 0.7, 1.4], dtype=torch.float64)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _log_probability(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return Normal(mean, std.view(-1, 1, 1)).log_prob(x).mean(dim=(1, 2))


@pytest.fixture
def step() -> dict[str, Tensor]:
    """A sampled step of four pictures, and where another policy would have aimed."""
    mean_old, z = _draw(4, 6, 5), _draw(4, 6, 5, seed=1)
    mean = mean_old + 0.02 * _draw(4, 6, 5, seed=2)
    x_next = mean_old + STD.view(-1, 1, 1) * z
    return {
        "mean": mean,
        "mean_old": mean_old,
        "z": z,
        "x_next": x_next,
        "log_probability": _log_probability(x_next, mean, STD),
        "log_probability_old": _log_probability(x_next, mean_old, STD),
    }


ADVANTAGES = torch.tensor([1.5, -0.7, 0.0, -2.0], dtype=torch.float64)


def test_on_policy_the_gradient_is_the_advantage_times_that_of_the_log_probability(step: dict[str, Tensor]) -> None:
    mean = step["mean_old"].clone().requires_grad_()
    now = _log_probability(step["x_next"], mean, STD)
    (expected,) = torch.autograd.grad((-ADVANTAGES * now).sum(), mean, retain_graph=True)
    loss = grpo_loss(now, step["log_probability_old"], ADVANTAGES, clip_range=1e-5)
    (found,) = torch.autograd.grad(loss.sum(), mean)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)  # one rounding: rho is exactly 1
    assert torch.equal(loss.detach(), -ADVANTAGES)
    # and the log-probability's own gradient is (x - mu) / s^2 per dimension
    closed = -ADVANTAGES.view(-1, 1, 1) * (step["x_next"] - step["mean_old"]) / STD.view(-1, 1, 1) ** 2 / 30
    torch.testing.assert_close(found, closed, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss", "has_gradient"),
    [
        (0.5, 1.0, -1.2, False),  # already far enough up
        (-0.5, 1.0, -math.exp(-0.5), True),  # went the wrong way: pulled back in full
        (0.5, -1.0, math.exp(0.5), True),
        (-0.5, -1.0, 0.8, False),
        (0.1, 1.0, -math.exp(0.1), True),  # inside the range
        (0.1, -1.0, math.exp(0.1), True),
    ],
)
def test_the_clip_stops_what_has_gone_far_enough_and_only_that(
    log_ratio: float, advantage: float, loss: float, has_gradient: bool
) -> None:
    variable = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    found = clipped_surrogate(variable, torch.tensor([advantage], dtype=torch.float64), 0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-15)
    assert variable.grad is not None and bool(variable.grad.any()) == has_gradient


def test_advantages_are_clipped(step: dict[str, Tensor]) -> None:
    arguments = (step["log_probability"], step["log_probability_old"])
    huge = torch.tensor([50.0, -50.0, 0.0, 5.0], dtype=torch.float64)
    clipped = torch.tensor([5.0, -5.0, 0.0, 5.0], dtype=torch.float64)
    assert torch.equal(grpo_loss(*arguments, huge, clip_range=10.0), grpo_loss(*arguments, clipped, clip_range=10.0))


def test_guards_log_ratio_is_the_move_along_the_noise(step: dict[str, Tensor]) -> None:
    found = guard_log_ratio(step["log_probability"], step["log_probability_old"], step["mean"], step["mean_old"], STD)
    expected = ((step["mean"] - step["mean_old"]) * step["z"]).mean(dim=(1, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)  # float64, numbers of order 1 cancel
    # plain GRPO's has the bias that Guard takes away
    plain = step["log_probability"] - step["log_probability_old"]
    bias = -((step["mean"] - step["mean_old"]) ** 2).mean(dim=(1, 2)) / (2 * STD**2)
    torch.testing.assert_close(plain, expected / STD + bias, rtol=0, atol=1e-12)


def test_guard_is_centred_where_grpo_is_biased() -> None:
    """Many draws of one step under a policy that has moved: mean log-ratios against their standard errors."""
    draws, std = 20_000, torch.tensor(0.1, dtype=torch.float64)
    mean_old = _draw(1, 4, 4, seed=3).expand(draws, 4, 4)
    mean = mean_old + 0.05 * _draw(1, 4, 4, seed=4)
    x_next = mean_old + std * _draw(draws, 4, 4, seed=5)
    now, before = _log_probability(x_next, mean, std), _log_probability(x_next, mean_old, std)
    guarded = guard_log_ratio(now, before, mean, mean_old, std)
    plain = now - before

    def deviation(values: Tensor, expected: float) -> float:
        return abs(float(values.mean()) - expected) / float(values.std()) * math.sqrt(draws)

    bias = -float(((mean - mean_old)[0] ** 2).mean() / (2 * std**2))
    assert deviation(guarded, 0.0) < 5 and deviation(plain, bias) < 5  # five standard errors
    assert deviation(plain, 0.0) > 50  # the bias is no matter of luck
    # a mean over D dimensions strays by rms(move) / sqrt(D) (times s for Guard): this is why clip ranges are so small
    rms = float(((mean - mean_old)[0] ** 2).mean().sqrt())
    assert float(guarded.std()) == pytest.approx(rms / 4, rel=5 / math.sqrt(2 * draws))
    assert float(plain.std()) == pytest.approx(rms / 4 / float(std), rel=5 / math.sqrt(2 * draws))


def test_guard_on_policy(step: dict[str, Tensor]) -> None:
    mean = step["mean_old"].clone().requires_grad_()
    now = _log_probability(step["x_next"], mean, STD)
    dt = torch.tensor([0.01, 0.02, 0.1, 0.2], dtype=torch.float64)
    loss = guard_loss(now, step["log_probability_old"], mean, step["mean_old"], STD, dt, ADVANTAGES, clip_range=1e-5)
    torch.testing.assert_close(loss.detach(), -ADVANTAGES / dt, rtol=0, atol=0)  # rho is exactly 1
    loss.sum().backward()
    expected = -(ADVANTAGES / dt).view(-1, 1, 1) * step["z"] / 30
    torch.testing.assert_close(mean.grad, expected, rtol=1e-10, atol=1e-13)


def test_the_kl_is_that_of_two_normals_and_pulls_back(step: dict[str, Tensor]) -> None:
    mean = step["mean"].clone().requires_grad_()
    found = transition_kl(mean, step["mean_old"], STD)
    wide = STD.view(-1, 1, 1)
    expected = kl_divergence(Normal(step["mean"], wide), Normal(step["mean_old"], wide)).mean(dim=(1, 2))
    torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-15)
    found.sum().backward()
    assert mean.grad is not None and mean.grad.abs().max() > 1e-4
    at_rest = step["mean_old"].clone().requires_grad_()
    transition_kl(at_rest, step["mean_old"], STD).sum().backward()
    assert at_rest.grad is not None and not at_rest.grad.any()
