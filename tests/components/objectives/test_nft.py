"""DiffusionNFT against an independent transcription in NumPy, and its closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rationalrewards.components.objectives import NFT, kl_loss, nft_loss, optimality
from torch import Tensor

SHAPES = [(3, 16, 8), (2, 4, 6, 6), (4, 5)]


def _batch(shape: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    x0, eps, v = draw(*shape), draw(*shape), draw(*shape)
    v_old = v + 0.3 * draw(*shape)
    sigma = torch.rand(shape[0], generator=generator, dtype=torch.float64) * 0.98 + 0.01
    wide = sigma.view(-1, *([1] * (len(shape) - 1)))
    r = torch.rand(shape[0], generator=generator, dtype=torch.float64)
    return {"v": v, "v_old": v_old, "x_t": (1 - wide) * x0 + wide * eps, "x0": x0, "sigma": sigma, "r": r}


def _reference(batch: dict[str, Tensor], beta: float, a_max: float) -> np.ndarray:
    """The loss of RationalRewards' code, sample by sample in NumPy: in x0 space, each error divided by its own size."""
    arrays = {name: value.numpy() for name, value in batch.items()}
    losses = []
    for b in range(len(arrays["x0"])):
        v, v_old, x_t, x0 = (arrays[name][b].ravel() for name in ("v", "v_old", "x_t", "x0"))
        t, r = arrays["sigma"][b], arrays["r"][b]
        errors = []
        for implicit in ((1 - beta) * v_old + beta * v, (1 + beta) * v_old - beta * v):
            predicted = x_t - t * implicit
            size = max(np.mean(np.abs(predicted - x0)), 1e-5)
            errors.append(np.mean((predicted - x0) ** 2 / size))
        losses.append((r * errors[0] + (1 - r) * errors[1]) / beta * a_max)
    return np.array(losses)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("a_max", [5.0, 1.0])
def test_against_the_transcription(shape: tuple[int, ...], beta: float, a_max: float) -> None:
    batch = _batch(shape)
    loss = nft_loss(**batch, nft_beta=beta, adv_clip_max=a_max)
    # float64 sums of some hundred terms, in another order
    np.testing.assert_allclose(loss.numpy(), _reference(batch, beta, a_max), rtol=1e-10, atol=1e-10)


def test_single_precision_agrees_to_its_own_accuracy() -> None:
    batch = _batch((2, 16, 8))
    single = nft_loss(**{name: value.float() for name, value in batch.items()}, nft_beta=0.5)
    np.testing.assert_allclose(single.numpy(), _reference(batch, 0.5, 5.0), rtol=1e-5)


def _gradient(batch: dict[str, Tensor], beta: float) -> Tensor:
    v = batch["v"].clone().requires_grad_()
    nft_loss(**{**batch, "v": v}, nft_beta=beta).sum().backward()
    assert v.grad is not None
    return v.grad


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_no_advantage_on_policy_is_no_gradient(beta: float) -> None:
    batch = _batch((3, 16, 8))
    batch |= {"v_old": batch["v"].clone(), "r": torch.full((3,), 0.5, dtype=torch.float64)}
    nothing = _gradient(batch, beta)
    something = _gradient({**batch, "r": torch.ones(3, dtype=torch.float64)}, beta)
    # (1 + b) v - b v differs from v by rounding alone
    assert nothing.abs().max() < 1e-12 < 1e-3 < something.abs().max()


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_on_policy_the_gradient_is_2r_minus_1(beta: float) -> None:
    batch = _batch((1, 16, 8))
    batch["v_old"] = batch["v"].clone()
    full = _gradient({**batch, "r": torch.ones(1, dtype=torch.float64)}, beta)
    for r in (0.0, 0.25, 0.9):
        part = _gradient({**batch, "r": torch.full((1,), r, dtype=torch.float64)}, beta)
        assert torch.allclose(part, (2 * r - 1) * full, atol=1e-12)
    # and it is that of the self-normalised error with the normaliser held fixed (r = 1)
    sigma = batch["sigma"].view(-1, 1, 1)
    difference = batch["x_t"] - sigma * batch["v"] - batch["x0"]
    expected = -2 * 5.0 * sigma * difference / difference.abs().mean() / difference.numel()
    assert torch.allclose(full, expected, atol=1e-12)


def test_a_step_along_the_gradient_moves_towards_good_and_away_from_bad_pictures() -> None:
    batch = _batch((1, 16, 8))
    batch["v_old"] = batch["v"].clone()
    sigma = batch["sigma"].view(-1, 1, 1)

    def error(v: Tensor) -> float:
        return float((batch["x_t"] - sigma * v - batch["x0"]).abs().mean())

    for r, sign in ((1.0, -1), (0.0, 1)):
        stepped = batch["v"] - 0.1 * _gradient({**batch, "r": torch.tensor([r], dtype=torch.float64)}, 1.0)
        assert sign * (error(stepped) - error(batch["v"])) > 0


def test_at_beta_1_the_positive_policy_is_the_policy() -> None:
    batch = _batch((2, 16, 8))
    batch["r"] = torch.ones(2, dtype=torch.float64)
    loss = nft_loss(**batch, nft_beta=1.0)
    elsewhere = nft_loss(**{**batch, "v_old": batch["v_old"] + 7.0}, nft_beta=1.0)
    assert torch.equal(loss, elsewhere)  # v+ = v whatever the old policy says
    assert not torch.equal(nft_loss(**batch, nft_beta=0.5), nft_loss(**{**batch, "v_old": batch["v_old"] + 7.0}, nft_beta=0.5))


def test_samples_do_not_mix() -> None:
    batch = _batch((3, 16, 8))
    alone = [nft_loss(**{name: value[i : i + 1] for name, value in batch.items()}, nft_beta=0.5) for i in range(3)]
    assert torch.allclose(nft_loss(**batch, nft_beta=0.5), torch.cat(alone), atol=1e-14)


def test_the_normaliser_has_a_floor() -> None:
    """Errors far below 1e-5 are divided by 1e-5, so that they do not blow up to order 1."""
    batch = _batch((2, 8, 8))
    sigma = batch["sigma"].view(-1, 1, 1)
    perfect = (batch["x_t"] - batch["x0"]) / sigma
    batch |= {"v": perfect + 1e-7 / sigma, "v_old": perfect}  # the prediction of x0 is off by 1e-7 everywhere
    loss = nft_loss(**batch, nft_beta=1.0)
    # x0 - x0_predicted loses about 9 of 16 digits to cancellation
    np.testing.assert_allclose(loss.numpy(), [5 * 1e-14 / 1e-5] * 2, rtol=1e-5)


def test_a_perfect_prediction_is_finite() -> None:
    batch = _batch((1, 4, 4))
    sigma = batch["sigma"].view(-1, 1, 1)
    batch |= {"v": (batch["x_t"] - batch["x0"]) / sigma}
    batch["v_old"] = batch["v"].clone()
    assert nft_loss(**batch, nft_beta=1.0).abs() < 1e-20  # (rounding error)^2 over the floor of 1e-5
    assert _gradient(batch, 1.0).isfinite().all()


# -- the KL term -------------------------------------------------------------------------------------------------------


def test_kl_pulls_back_to_the_reference_and_only_there_rests() -> None:
    batch = _batch((2, 4, 6))
    v = batch["v"].clone().requires_grad_()
    loss = kl_loss(v, batch["v_old"])
    assert loss.shape == (2,)
    loss.sum().backward()
    assert v.grad is not None and v.grad.abs().max() > 1e-3
    assert torch.allclose(v.grad, 2 * (batch["v"] - batch["v_old"]) / 24)
    at_reference = batch["v_old"].clone().requires_grad_()
    kl_loss(at_reference, batch["v_old"]).sum().backward()
    assert at_reference.grad is not None and not at_reference.grad.any()


# -- the schedule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "r"), [(0.0, 0.5), (5.0, 1.0), (-5.0, 0.0), (2.5, 0.75), (-1.0, 0.4), (50.0, 1.0), (-50.0, 0.0)]
)
def test_optimality(advantage: float, r: float) -> None:
    assert optimality(torch.tensor([advantage], dtype=torch.float64)).item() == pytest.approx(r, abs=1e-15)
    assert optimality(torch.tensor([advantage / 5], dtype=torch.float64), adv_clip_max=1.0).item() == pytest.approx(r, abs=1e-15)


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0.0), (1, 0.001), (100, 0.1), (499, 0.499), (500, 0.5), (501, 0.5), (10**6, 0.5)]
)
def test_old_policy_decay_is_type_1(step: int, decay: float) -> None:
    assert NFT().old_decay(step) == pytest.approx(decay, abs=1e-15)


def test_old_policy_decay_can_be_set() -> None:
    assert [NFT(old_decay_rate=0.25, old_decay_max=0.6).old_decay(step) for step in range(4)] == [0.0, 0.25, 0.5, 0.6]
