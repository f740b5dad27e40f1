"""What saves work changes nothing, or nothing on average; and masked is dropped, for each objective."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rationalrewards.components.objectives import (
    awm_loss,
    dpo_loss,
    grpo_loss,
    kl_loss,
    nft_loss,
    reference_scale,
    same_weights,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

B, TOKENS, WIDTH = 4, 6, 8


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class _Denoiser(nn.Module):
    """A layer of attention that knows its noise level; samples do not mix."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
            self.level = nn.Linear(1, WIDTH)
        self.double()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.layer(x + self.level(sigma.view(-1, 1, 1)))


@pytest.fixture
def denoiser() -> _Denoiser:
    return _Denoiser()


def _gradients(denoiser: _Denoiser, loss: Tensor) -> list[Tensor]:
    return [gradient.clone() for gradient in torch.autograd.grad(loss, list(denoiser.parameters()))]


# -- masked is dropped ---------------------------------------------------------------------------------------------------

X0, EPS, SIGMA = _draw(B, TOKENS, WIDTH, seed=1), _draw(B, TOKENS, WIDTH, seed=2), torch.tensor([0.9, 0.5, 0.3, 0.7]).double()
OLD, OTHER = _draw(B, TOKENS, WIDTH, seed=3), _draw(B, TOKENS, WIDTH, seed=4)
ADVANTAGES = torch.tensor([1.0, -0.5, 0.0, 2.0]).double()  # group_advantages gives an unscored sample 0


def _nft(v: Tensor, x_t: Tensor, rows: list[int]) -> Tensor:
    return nft_loss(v, OLD[rows], x_t, X0[rows], SIGMA[rows], 0.5 + ADVANTAGES[rows] / 10, nft_beta=0.5)


def _awm(v: Tensor, x_t: Tensor, rows: list[int]) -> Tensor:
    return awm_loss(v, OLD[rows], X0[rows], EPS[rows], SIGMA[rows], ADVANTAGES[rows], clip_range=1.0)


def _dpo(v: Tensor, x_t: Tensor, rows: list[int]) -> Tensor:
    return dpo_loss(v, OTHER[rows], OLD[rows], OLD[rows], X0[rows], EPS[rows], EPS[rows], dpo_beta=1.0)


def _grpo(v: Tensor, x_t: Tensor, rows: list[int]) -> Tensor:
    now, before = (-((OTHER[rows] - mean) ** 2).mean(dim=(1, 2)) for mean in (v, OLD[rows]))
    return grpo_loss(now, before, ADVANTAGES[rows], clip_range=10.0)


@pytest.mark.parametrize("objective", [_nft, _awm, _dpo, _grpo])
def test_a_masked_sample_is_a_dropped_one(denoiser: _Denoiser, objective: Callable[..., Tensor]) -> None:
    wide = SIGMA.view(-1, 1, 1)
    x_t = (1 - wide) * X0 + wide * EPS
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    everything, kept = list(range(B)), [0, 1, 3]
    masked = (mask * objective(denoiser(x_t, SIGMA), x_t, everything)).sum() / mask.sum()
    dropped = objective(denoiser(x_t[kept], SIGMA[kept]), x_t[kept], kept).mean()
    unmasked = objective(denoiser(x_t, SIGMA), x_t, everything).mean()
    torch.testing.assert_close(masked, dropped, rtol=1e-12, atol=1e-14)  # float64, other batch shapes
    for first, second in zip(_gradients(denoiser, masked), _gradients(denoiser, dropped), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-13)
    assert abs(float((unmasked - dropped).detach())) > 1e-6  # so the mask did something


# -- the reference every n-th time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_the_reference_every_nth_time_is_unbiased(denoiser: _Denoiser, every: int) -> None:
    """Over all offsets, the mean of the scaled KL gradients is the full one, also where n does not divide the round."""
    batches = 7
    x_t = _draw(batches, TOKENS, WIDTH, seed=7)
    reference = _draw(batches, TOKENS, WIDTH, seed=8)
    parameters = list(denoiser.parameters())

    def gradient(scales: list[float]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for index, scale in enumerate(scales):
            if scale:  # elsewhere no reference forward is needed
                v = denoiser(x_t[index : index + 1], torch.full((1,), 0.5, dtype=torch.float64))
                total = total + scale * kl_loss(v, reference[index : index + 1]).sum()
        if not total.requires_grad:
            return torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])

    full = gradient([1.0] * batches)
    parts = [[reference_scale(index, every, offset) for index in range(batches)] for offset in range(every)]
    mean = torch.stack([gradient(scales) for scales in parts]).mean(dim=0)
    torch.testing.assert_close(mean, full, rtol=1e-10, atol=1e-12)  # float64 sums in another order
    assert full.abs().max() > 1e-3
    runs = sum(scale > 0 for scales in parts for scale in scales)
    assert runs == batches  # one n-th of the forwards on average


def test_the_reference_runs_at_least_sometimes() -> None:
    with pytest.raises(ValueError, match="n at least 1; got 0"):
        reference_scale(3, 0)


# -- the old policy ------------------------------------------------------------------------------------------------------


def test_equal_to_the_last_bit() -> None:
    first = [_draw(3, 4, seed=9), _draw(5, seed=10)]
    second = [tensor.clone() for tensor in first]
    assert same_weights(first, second)
    second[1][2] = torch.nextafter(second[1][2], torch.tensor(9.0, dtype=torch.float64))
    assert not same_weights(first, second)
    with pytest.raises(ValueError, match="zip"):
        same_weights(first, first[:1])


def test_without_the_old_policys_forward_nft_is_the_same(denoiser: _Denoiser) -> None:
    """While old and policy are equal: the same losses and gradients bit for bit, for one forward less."""
    wide = SIGMA.view(-1, 1, 1)
    x_t = (1 - wide) * X0 + wide * EPS
    r = 0.5 + ADVANTAGES / 10
    results, flops = [], []
    for skip in (False, True):
        counter = FlopCounterMode(display=False)
        with counter:
            v = denoiser(x_t, SIGMA)
            if skip:
                v_old = v.detach()
            else:
                with torch.no_grad():
                    v_old = denoiser(x_t, SIGMA)
            loss = nft_loss(v, v_old, x_t, X0, SIGMA, r, nft_beta=1.0).sum()
        flops.append(counter.get_total_flops())
        results.append([loss.detach(), *_gradients(denoiser, loss)])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
    assert flops[0] == 2 * flops[1] > 0
