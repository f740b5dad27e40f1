"""Advantage Weighted Matching: an independent transcription in NumPy, its closed forms, and what it shares with NFT."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rationalrewards.components.objectives import awm_loss, matching_log_probability, nft_loss, optimality
from rationalrewards.components.objectives.awm import MATCHING_WEIGHTS, MatchingWeight
from torch import Tensor

SHAPES = [(3, 16, 8), (2, 4, 6, 6), (4, 5)]


def _batch(shape: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    x0, eps, v = draw(*shape), draw(*shape), draw(*shape)
    sigma = torch.rand(shape[0], generator=generator, dtype=torch.float64) * 0.98 + 0.01
    return {"v": v, "v_old": v + 0.05 * draw(*shape), "x0": x0, "eps": eps, "sigma": sigma, "advantages": 2 * draw(shape[0])}


def _reference(batch: dict[str, Tensor], weight: str, clip: float) -> np.ndarray:
    """Sample by sample, in the order of the authors' operations."""
    a = {name: value.numpy() for name, value in batch.items()}
    losses = []
    for b in range(len(a["x0"])):
        logs = []
        for name in ("v", "v_old"):
            e, t = np.mean((a[name][b] - a["eps"][b] + a["x0"][b]) ** 2), a["sigma"][b]
            logs.append(
                {
                    "uniform": -e,
                    "sigma": -e * t,
                    "sigma_squared": -e * t * t,
                    "huber": -t * (np.sqrt(e + 1e-10) - 1e-5),
                    "general_huber": -t * ((e + 1e-10) ** 0.25 - 1e-10**0.25) / 0.25,
                }[weight]
            )
        ratio, advantage = np.exp(logs[0] - logs[1]), np.clip(a["advantages"][b], -5, 5)
        losses.append(max(-advantage * ratio, -advantage * np.clip(ratio, 1 - clip, 1 + clip)))
    return np.array(losses)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", MATCHING_WEIGHTS)
@pytest.mark.parametrize("clip", [1e-3, 0.05, 1.0])
def test_against_the_transcription(shape: tuple[int, ...], weight: MatchingWeight, clip: float) -> None:
    batch = _batch(shape)
    found = awm_loss(**batch, clip_range=clip, weight=weight)
    np.testing.assert_allclose(
        found.numpy(), _reference(batch, weight, clip), rtol=1e-10, atol=1e-12
    )  # float64 sums in another order


def test_there_is_no_other_weight() -> None:
    batch = _batch((2, 4))
    with pytest.raises(ValueError, match="weight is one of uniform, .* got 't'"):
        awm_loss(**batch, clip_range=1.0, weight="t")  # type: ignore[arg-type]


def test_a_perfect_velocity_is_most_probable() -> None:
    batch = _batch((3, 16, 8))
    target = batch["eps"] - batch["x0"]
    for weight in MATCHING_WEIGHTS:
        best = matching_log_probability(target, batch["x0"], batch["eps"], batch["sigma"], weight)
        other = matching_log_probability(batch["v"], batch["x0"], batch["eps"], batch["sigma"], weight)
        assert best.abs().max() < 1e-15 and bool((other < -1e-4).all())  # huber's two offsets of 1e-5 cancel to rounding


def _gradient(batch: dict[str, Tensor], **options: object) -> Tensor:
    v = batch["v"].clone().requires_grad_()
    awm_loss(**{**batch, "v": v}, **options).sum().backward()  # type: ignore[arg-type]
    assert v.grad is not None
    return v.grad


def test_no_advantage_is_no_gradient() -> None:
    batch = _batch((3, 16, 8))
    assert _gradient(batch, clip_range=1.0).abs().max() > 1e-4
    batch["advantages"] = torch.zeros(3, dtype=torch.float64)
    assert not _gradient(batch, clip_range=1.0).any()


@pytest.mark.parametrize("weight", MATCHING_WEIGHTS)
def test_on_policy_the_ratio_is_one_and_the_gradient_that_of_the_log_probability(weight: MatchingWeight) -> None:
    batch = _batch((3, 16, 8))
    batch["v_old"] = batch["v"].clone()
    loss = awm_loss(**batch, clip_range=1e-4, weight=weight)
    assert torch.equal(loss, -batch["advantages"])
    v = batch["v"].clone().requires_grad_()
    log_probability = matching_log_probability(v, batch["x0"], batch["eps"], batch["sigma"], weight)
    (expected,) = torch.autograd.grad((-batch["advantages"] * log_probability).sum(), v)
    torch.testing.assert_close(_gradient(batch, clip_range=1e-4, weight=weight), expected, rtol=1e-12, atol=1e-16)


def test_without_the_old_policys_forward_nothing_changes_while_the_two_are_equal() -> None:
    batch = _batch((3, 16, 8))
    batch["v_old"] = batch["v"].clone()
    saved: dict[str, Tensor] = {**batch, "v_old": None}  # type: ignore[dict-item]
    assert torch.equal(awm_loss(**batch, clip_range=0.2), awm_loss(**saved, clip_range=0.2))
    assert torch.equal(_gradient(batch, clip_range=0.2), _gradient(saved, clip_range=0.2))


def test_the_old_policy_has_no_gradient() -> None:
    batch = _batch((2, 4, 4))
    v_old = batch["v_old"].clone().requires_grad_()
    v = batch["v"].clone().requires_grad_()
    awm_loss(**{**batch, "v": v, "v_old": v_old}, clip_range=1.0).sum().backward()
    assert v_old.grad is None


def test_on_policy_nft_is_awm_in_x0_divided_by_the_error() -> None:
    """With r from the same advantage, NFT's gradient is AWM's (weight sigma^2) over its own normaliser, whatever its beta."""
    batch = _batch((3, 16, 8))
    batch["v_old"] = batch["v"].clone()
    sigma = batch["sigma"].view(-1, 1, 1)
    x_t = (1 - sigma) * batch["x0"] + sigma * batch["eps"]
    size = (x_t - sigma * batch["v"] - batch["x0"]).abs().mean(dim=(1, 2), keepdim=True)
    for nft_beta in (0.1, 1.0):
        v = batch["v"].clone().requires_grad_()
        r = optimality(batch["advantages"])
        nft_loss(v, batch["v_old"], x_t, batch["x0"], batch["sigma"], r, nft_beta=nft_beta).sum().backward()
        expected = _gradient(batch, clip_range=1.0, weight="sigma_squared") / size
        torch.testing.assert_close(
            v.grad, expected, rtol=1e-9, atol=1e-14
        )  # x0 is predicted by subtraction in one, not in the other


def test_single_precision_keeps_the_ratio() -> None:
    """Two velocities that differ by 1e-4: their log-ratio from float32 inputs has three digits."""
    batch = _batch((2, 64, 32))
    single = {name: value.float() for name, value in batch.items()}
    single["v_old"] = single["v"] + 1e-4
    exact = {name: value.double() for name, value in single.items()}
    first = awm_loss(**single, clip_range=1.0) + single["advantages"]
    second = awm_loss(**exact, clip_range=1.0) + exact["advantages"]
    torch.testing.assert_close(first, second, rtol=1e-3, atol=0)
