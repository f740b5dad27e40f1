"""Stochastic steps: their formulas, their marginals on Gaussians with known answers, and unmodified pipelines around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from rationalrewards.components.generation import (
    FlowMatchSDEScheduler,
    PipelineTape,
    draw_window,
    log_probability,
    sde_transition,
    stochastic_steps,
)
from rationalrewards.components.generation.sde_scheduler import SDE_FORMS, SDEForm
from rationalrewards.components.objectives import grpo_loss, guard_log_ratio
from torch import Tensor, nn

Velocity = Callable[[Tensor, Tensor], Tensor]


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _keys(count: int) -> list[tuple[int | str, ...]]:
    return [(0, 3, "request", copy) for copy in range(count)]


# -- one step ------------------------------------------------------------------------------------------------------------


def _flow_reference(x: float, v: float, sigma: float, to: float, eta: float) -> tuple[float, float]:
    dt = to - sigma
    s = eta * math.sqrt(sigma / (1 - (to if sigma == 1 else sigma)))
    mean = x * (1 + s**2 / (2 * sigma) * dt) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
    return mean, s * math.sqrt(-dt)


def _cps_reference(x: float, v: float, sigma: float, to: float, eta: float) -> tuple[float, float]:
    s = to * math.sin(eta * math.pi / 2)
    return (x - sigma * v) * (1 - to) + (x + v * (1 - sigma)) * math.sqrt(to**2 - s**2), s


@pytest.mark.parametrize(("form", "reference"), [("flow", _flow_reference), ("cps", _cps_reference)])
@pytest.mark.parametrize(("sigma", "to"), [(1.0, 0.93), (0.7, 0.55), (0.2, 0.01)])
@pytest.mark.parametrize("eta", [0.1, 0.7, 1.0])
def test_a_step_is_the_sources(
    form: SDEForm, reference: Callable[..., tuple[float, float]], sigma: float, to: float, eta: float
) -> None:
    x, v = _draw(2, 3, 4), _draw(2, 3, 4, seed=1)
    mean, std = sde_transition(x, v, sigma, to, eta=eta, form=form)
    expected = [reference(a, b, sigma, to, eta) for a, b in zip(x.flatten().tolist(), v.flatten().tolist(), strict=True)]
    np.testing.assert_allclose(mean.flatten().numpy(), [pair[0] for pair in expected], rtol=1e-12, atol=1e-14)  # float64 rounding
    assert float(std) == pytest.approx(expected[0][1], rel=1e-12)


@pytest.mark.parametrize("form", SDE_FORMS)
def test_levels_may_differ_per_sample(form: SDEForm) -> None:
    x, v = _draw(3, 4, 5), _draw(3, 4, 5, seed=1)
    sigma, to = torch.tensor([1.0, 0.6, 0.3]).double(), torch.tensor([0.9, 0.5, 0.1]).double()
    mean, std = sde_transition(x, v, sigma, to, eta=0.7, form=form)
    for row in range(3):
        one = sde_transition(x[row : row + 1], v[row : row + 1], float(sigma[row]), float(to[row]), eta=0.7, form=form)
        torch.testing.assert_close((mean[row : row + 1], std[row]), one, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("form", SDE_FORMS)
def test_without_noise_a_step_is_eulers(form: SDEForm) -> None:
    x, v = _draw(2, 6), _draw(2, 6, seed=1)
    mean, std = sde_transition(x, v, 0.6, 0.45, eta=0.0, form=form)
    torch.testing.assert_close(mean, x - 0.15 * v, rtol=1e-13, atol=1e-15)
    assert float(std) == 0.0


def test_the_log_probability_is_the_normals_mean_over_dimensions() -> None:
    x_next, mean = _draw(3, 4, 5), _draw(3, 4, 5, seed=1)
    for std in (torch.tensor(0.3).double(), torch.tensor([0.1, 0.5, 2.0]).double()):
        wide = std.view(-1, 1, 1) if std.ndim else std
        expected = torch.distributions.Normal(mean, wide).log_prob(x_next).mean(dim=(1, 2))
        torch.testing.assert_close(log_probability(x_next, mean, std), expected, rtol=1e-13, atol=1e-13)


def test_half_precision_is_raised_before_anything_is_computed() -> None:
    x, v = _draw(2, 6).bfloat16(), _draw(2, 6, seed=1).bfloat16()
    mean, std = sde_transition(x, v, 0.6, 0.45, eta=0.7)
    assert mean.dtype == std.dtype == torch.float32
    exact, _ = sde_transition(x.double(), v.double(), 0.6, 0.45, eta=0.7)
    torch.testing.assert_close(mean.double(), exact, rtol=1e-6, atol=1e-6)  # float32 rounding; bfloat16 has 4e-3
    assert log_probability(mean.bfloat16(), mean, std).dtype == torch.float64


# -- marginals, where everything is known -----------------------------------------------------------------------------------

MEAN = torch.tensor([0.0, 1.0, -0.5, 2.0], dtype=torch.float64)
SPREAD = torch.tensor([1.0, 0.3, 2.0, 0.0], dtype=torch.float64)
"""Data are independent normal variables; the last one is a single point."""


def _marginal(sigma: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_t."""
    return (1 - sigma) * MEAN, (1 - sigma) ** 2 * SPREAD**2 + sigma**2


def _velocity(x: Tensor, sigma: float) -> Tensor:
    """E[eps - x0 | x_t = x]: linear, because everything is jointly normal."""
    mean, variance = _marginal(sigma)
    centred = (x.double() - mean) / variance
    return (sigma * centred - (MEAN + (1 - sigma) * SPREAD**2 * centred)).to(x.dtype)


def _follow(sigmas: Sequence[float], eta: float, form: SDEForm, start: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance after the steps, without drawing: a step is an affine map with added noise, read off at two points."""
    mean, variance = start
    for sigma, to in pairwise(sigmas):
        points = torch.stack([torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)])
        images, std = sde_transition(points, _velocity(points, sigma), sigma, to, eta=eta, form=form)
        slope = images[1] - images[0]
        mean, variance = images[0] + slope * mean, slope**2 * variance + std**2
    return mean, variance


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_the_sde_has_the_odes_marginals_in_the_limit(eta: float) -> None:
    """Euler-Maruyama's error is of first order: from level 0.9 to 0.1 it halves with the step, for every amount of noise."""
    errors = []
    true_mean, true_variance = _marginal(0.1)
    for steps in (200, 400, 800):
        mean, variance = _follow(np.linspace(0.9, 0.1, steps + 1).tolist(), eta, "flow", _marginal(0.9))
        # means are right at every step size: float64 rounding
        torch.testing.assert_close(mean, true_mean, rtol=1e-12, atol=1e-13)
        errors.append(((variance - true_variance) / true_variance).abs())
    assert float(errors[-1].max()) < 1e-2
    for coarse, fine in pairwise(errors):
        seen = coarse > 1e-12  # the ODE carries a single point without error
        assert int(seen.sum()) >= 3
        assert float(((coarse / fine)[seen] - 2).abs().max()) < 0.1  # the second-order term's share: at most 0.052 here


def _run(pipe: Any, x: Tensor, steps: int) -> Tensor:
    """What a pipeline does with its scheduler."""
    pipe.scheduler.set_timesteps(steps)
    for index, time in enumerate(pipe.scheduler.timesteps):
        v = _velocity(x, float(pipe.scheduler.sigmas[index]))
        (x,) = pipe.scheduler.step(v, time, x, return_dict=False)
    return x


@pytest.mark.parametrize(("form", "window"), [("flow", range(60, 240)), ("cps", range(100, 103))])
def test_sampled_marginals_match_the_odes(form: SDEForm, window: range) -> None:
    """The scheduler itself, from noise to data, with and without a stochastic window, 16,384 samples of each variable."""
    pipe = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000))
    pictures, per_picture, steps = 32, 512, 300
    noise = _draw(pictures, per_picture, 4).float()
    ode = _run(pipe, noise, steps).flatten(0, 1).double()
    with stochastic_steps(pipe, _keys(pictures), window, eta=0.7, form=form) as scheduler:
        sde = _run(pipe, noise, steps).flatten(0, 1).double()
        assert [step.index for step in scheduler.recorded] == list(window)
    n = len(sde)
    sigmas = pipe.scheduler.sigmas.tolist()
    start = _marginal(1.0)
    start = _follow(sigmas[: window.start + 1], 0.0, form, start)
    start = _follow(sigmas[window.start : window.stop + 1], 0.7, form, start)
    mean, variance = _follow(sigmas[window.stop : -1], 0.0, form, start)
    # the last step, to level 0, ends at the predicted x0
    points = torch.stack([torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)])
    images = points - sigmas[-2] * _velocity(points, sigmas[-2])
    mean, variance = images[0] + (images[1] - images[0]) * mean, (images[1] - images[0]) ** 2 * variance
    # first against what these very steps must give, then against the ODE's samples; five standard errors of each.
    # 1e-6: float32 where the spread is 0
    error_mean, error_variance = 5 * (variance / n).sqrt() + 1e-6, 5 * variance * math.sqrt(2 / n) + 1e-6
    assert bool(((sde.mean(dim=0) - mean).abs() < error_mean).all())
    assert bool(((sde.var(dim=0) - variance).abs() < error_variance).all())
    # the steps' own error is below one standard error for `flow`; CPS keeps the variance of a single point, see below
    assert bool(((sde.mean(dim=0) - ode.mean(dim=0)).abs() < 1.5 * error_mean).all())
    same = (sde.var(dim=0) - ode.var(dim=0)).abs() < 1.5 * error_variance
    assert bool(same.all() if form == "flow" else same[3])
    # and it is no ODE: the same noise led elsewhere
    assert float((sde - ode)[:, 0].std()) > 0.1


def test_the_flow_form_adds_too_much_noise_at_the_start_and_cps_does_not() -> None:
    """The first step from pure noise, towards a single point: the right variance afterwards is next_sigma^2."""
    for to in (0.9, 0.99):
        point = 3
        _, flow = _follow([1.0, to], 0.7, "flow", _marginal(1.0))
        _, cps = _follow([1.0, to], 0.7, "cps", _marginal(1.0))
        # (to - eta^2 / 2)^2 + eta^2, so that the excess tends to eta^4 / 4, 6 %, however small the step
        assert float(flow[point]) == pytest.approx((to - 0.245) ** 2 + 0.49, rel=1e-12)
        assert float(cps[point]) == pytest.approx(to**2, rel=1e-12)


def test_cps_is_exact_where_x0_is_known_and_loses_a_little_spread_elsewhere() -> None:
    sigma, to, eta = 0.6, 0.6, 0.7
    before = _marginal(sigma)
    mean, variance = _follow([sigma, to], eta, "cps", before)
    torch.testing.assert_close(mean, before[0], rtol=1e-12, atol=1e-14)
    signal, noise = (1 - sigma) ** 2 * SPREAD**2, torch.tensor(sigma**2, dtype=torch.float64)
    # renewing noise at one level takes A S (1 - cos)^2 / (A + S) of the variance, with A the signal's and S the noise's
    lost = signal * noise * (1 - math.cos(eta * math.pi / 2)) ** 2 / (signal + noise)
    torch.testing.assert_close(before[1] - variance, lost, rtol=1e-10, atol=1e-14)
    assert float(lost[3]) == 0.0 < float(lost[0])


# -- the scheduler -------------------------------------------------------------------------------------------------------


class _Denoiser(nn.Module):
    """Attention in single precision, whose sums depend on the batch's shape as those of real denoisers do."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("form", SDE_FORMS)
def test_on_policy_the_ratio_is_one_in_every_batch(form: SDEForm) -> None:
    """Sampled four at a time, trained on in batches of 4, 2 and 1, and sampled again in those batches."""
    denoiser = _Denoiser()
    x = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0))
    runs = []
    for size in (4, 2, 1):
        pipe = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
        parts = []
        for first in range(0, 4, size):
            with torch.no_grad(), stochastic_steps(pipe, _keys(4)[first : first + size], [2, 3], form=form) as scheduler:
                pipe.scheduler.set_timesteps(6)
                state = x[first : first + size]
                for time in pipe.scheduler.timesteps:
                    state = pipe.scheduler.step(denoiser(state), time, state).prev_sample
            parts.append(scheduler.recorded)
        runs.append(parts)
    recorded = runs[0][0]
    for position, step in enumerate(recorded):
        for size, parts in zip((4, 2, 1), runs, strict=True):
            again = torch.cat([denoiser(rows) for rows in step.x_t.split(size)])
            ratio = torch.exp(step.log_probability_of(again) - step.log_probability)
            if size == 4:
                assert torch.equal(ratio, torch.ones(4, dtype=torch.float64))  # the same arithmetic, so bit for bit
            # velocities of other batch shapes differ by 1e-6; averaged over 4,096 dimensions that is a hundredth of the smallest clip range
            assert float((ratio.detach() - 1).abs().max()) < 1e-7
            mean, std = step.transition(again)
            guarded = guard_log_ratio(step.log_probability_of(again), step.log_probability, mean, step.mean, std)
            assert float(guarded.detach().abs().max()) < 1e-7
            # the picture does not depend on its batch either: single precision over some steps
            x_next = torch.cat([part[position].x_next for part in parts])
            torch.testing.assert_close(x_next, step.x_next, rtol=0, atol=2e-5)
    # and given one velocity, a sample's log-probability has the same bits in every batch
    step = recorded[0]
    v = denoiser(step.x_t)
    mean, std = step.transition(v)
    alone = [log_probability(step.x_next[row : row + 1], mean[row : row + 1], std) for row in range(4)]
    assert torch.equal(torch.cat(alone), step.log_probability_of(v))


def test_a_moved_policy_has_another_ratio_and_its_gradient_reaches_the_weights() -> None:
    denoiser = _Denoiser()
    pipe = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler())
    x = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), stochastic_steps(pipe, _keys(2), [1]) as scheduler:
        pipe.scheduler.set_timesteps(3)
        for time in pipe.scheduler.timesteps:
            (x,) = pipe.scheduler.step(denoiser(x), time, x, return_dict=False)
    (step,) = scheduler.recorded
    advantages = torch.tensor([1.0, -1.0])
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=1e-3)
    grpo_loss(step.log_probability_of(denoiser(step.x_t)), step.log_probability, advantages, clip_range=1e-4).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in denoiser.parameters())
    optimizer.step()
    moved = (step.log_probability_of(denoiser(step.x_t)) - step.log_probability) * advantages
    assert bool((moved > 0).all())  # the good step has become likelier, the bad one less


def test_half_precision_latents_are_scored_as_they_are_used() -> None:
    pipe = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler())
    x, v = _draw(2, 32).bfloat16(), _draw(2, 32, seed=1).bfloat16()
    with stochastic_steps(pipe, _keys(2), [0]) as scheduler:
        scheduler.set_timesteps(4)
        x_next = scheduler.step(v, scheduler.timesteps[0], x).prev_sample
    (step,) = scheduler.recorded
    assert x_next.dtype == torch.bfloat16 and step.mean.dtype == torch.float32
    assert torch.equal(step.x_next, x_next)
    assert torch.equal(step.log_probability_of(v), step.log_probability)


def test_the_noise_is_a_function_of_key_and_step() -> None:
    x, v = _draw(3, 16).float(), _draw(3, 16, seed=1).float()

    def sample(rows: list[int], window: Sequence[int], epoch: int = 3) -> list[Tensor]:
        pipe = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler())
        with stochastic_steps(pipe, [(0, epoch, "request", row) for row in rows], window) as scheduler:
            scheduler.set_timesteps(5)
            for time in scheduler.timesteps:
                scheduler.step(v[rows], time, x[rows])
        return [(step.x_next - step.mean) / step.std for step in scheduler.recorded]

    torch.manual_seed(0)
    together = sample([0, 1, 2], [1, 2])
    torch.manual_seed(1)  # the global state is nothing to it
    for index, noise in enumerate(sample([2, 0], [1, 2])):
        torch.testing.assert_close(noise, together[index][[2, 0]], rtol=0, atol=1e-5)  # mean + std z - mean, in single precision
    torch.testing.assert_close(sample([0, 1, 2], [2])[0], together[1], rtol=0, atol=1e-5)  # whatever else is in the window
    for other in (together[1], sample([0, 1, 2], [1], epoch=4)[0], together[0][[1, 2, 0]]):
        assert float((other - together[0]).abs().min(dim=1).values.max()) > 1e-4


def test_a_second_run_forgets_the_first() -> None:
    pipe = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler())
    with stochastic_steps(pipe, _keys(1), [0]) as scheduler:
        for _ in range(2):
            scheduler.set_timesteps(3)
            scheduler.step(torch.ones(1, 4), scheduler.timesteps[0], torch.ones(1, 4))
            assert len(scheduler.recorded) == 1


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        (FlowMatchHeunDiscreteScheduler(), {}, "SimpleNamespace has a FlowMatchHeunDiscreteScheduler"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), {}, "stochastic_sampling or invert_sigmas"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), {}, "stochastic_sampling or invert_sigmas"),
        (FlowMatchEulerDiscreteScheduler(), {"eta": 0.0}, "above 0 .* got 0"),
        (FlowMatchEulerDiscreteScheduler(), {"eta": 1.2, "form": "cps"}, "at most 1"),
        (FlowMatchEulerDiscreteScheduler(), {"form": "dance"}, "form is one of flow, cps, got 'dance'"),
    ],
)
def test_what_cannot_be_made_stochastic_is_refused(scheduler: Any, options: dict[str, Any], message: str) -> None:
    pipe = SimpleNamespace(scheduler=scheduler)
    with pytest.raises(ValueError, match=message), stochastic_steps(pipe, _keys(1), [0], **options):
        pass
    assert pipe.scheduler is scheduler


def test_a_window_with_the_last_step_or_a_batch_without_keys_is_refused_and_the_pipeline_is_as_before() -> None:
    original = FlowMatchEulerDiscreteScheduler()
    pipe = SimpleNamespace(scheduler=original)
    last = pytest.raises(ValueError, match="step 3 cannot be stochastic in a run of 4 steps: the window lies in 0 to 2")
    with last, stochastic_steps(pipe, _keys(1), [2, 3]) as scheduler:
        scheduler.set_timesteps(4)
    fewer = pytest.raises(ValueError, match="steps 2 samples, but there are 1 keys")
    with fewer, stochastic_steps(pipe, _keys(1), [0]) as scheduler:
        scheduler.set_timesteps(4)
        scheduler.step(torch.ones(2, 4), scheduler.timesteps[0], torch.ones(2, 4))
    assert pipe.scheduler is original


def test_windows() -> None:
    drawn = {draw_window(3, 0, 4, 0, epoch) for epoch in range(60)}
    assert drawn == {range(0, 3), range(1, 4), range(2, 5)}  # every place, each about 20 times in 60
    assert draw_window(3, 0, 4, 0, 7) == draw_window(3, 0, 4, 0, 7)
    assert draw_window(2, 5, 6) == range(5, 7)
    with pytest.raises(ValueError, match="no window of 3 steps fits between step 0 and step 1"):
        draw_window(3, 0, 1)


# -- real pipelines ------------------------------------------------------------------------------------------------------


def _arguments(prompts: list[str], steps: int = 4) -> dict[str, Any]:
    return {
        "prompt": prompts,
        "height": 16,
        "width": 16,
        "num_inference_steps": steps,
        "guidance_scale": 1.0,
        "output_type": "pil",
        "generator": [torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
    }


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_an_unmodified_pipeline(build: Callable[[str], Any], name: str) -> None:
    pipe = build(name)
    original, saved = pipe.scheduler, dict(pipe.config)
    prompts = ["a red circle", "two stars"]
    states: dict[str, list[Tensor]] = {}

    def keep(into: str) -> Callable[..., dict[str, Any]]:
        states[into] = []

        def callback(pipe: Any, index: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            states[into].append(kwargs["latents"].clone())
            return kwargs

        return callback

    pipe(**_arguments(prompts), callback_on_step_end=keep("ode"))
    with stochastic_steps(pipe, _keys(2), []) as scheduler:
        pipe(**_arguments(prompts), callback_on_step_end=keep("nothing stochastic"))
        assert isinstance(pipe.scheduler, FlowMatchSDEScheduler) and scheduler.recorded == []
    assert all(torch.equal(a, b) for a, b in zip(states["ode"], states["nothing stochastic"], strict=True))
    with stochastic_steps(pipe, _keys(2), [2]) as scheduler:
        pipe(**_arguments(prompts), callback_on_step_end=keep("window"))
    (step,) = scheduler.recorded
    assert all(torch.equal(states["ode"][index], states["window"][index]) for index in (0, 1))  # the steps before are the ODE's
    assert torch.equal(step.x_t, states["ode"][1]) and torch.equal(step.x_next, states["window"][2])
    assert float((states["window"][2] - states["ode"][2]).abs().max()) > 0.01
    assert pipe.scheduler is original and dict(pipe.config) == saved


@pytest.mark.parametrize("form", SDE_FORMS)
def test_with_the_tape_the_ratio_is_one_on_policy(build: Callable[[str], Any], form: SDEForm) -> None:
    """Sampling and training meet: the recording's velocity at the recorded latents gives back the recorded probability."""
    pipe = build("sd3")
    prompts = ["a red circle", "two stars"]
    tape = PipelineTape(pipe)
    with stochastic_steps(pipe, _keys(2), [0, 1, 2], form=form) as scheduler:
        recording = tape.record(**_arguments(prompts, steps=5))
    assert recording.prove() == 0.0
    for step in scheduler.recorded:
        v = recording.velocity(step.x_t, step.sigma)
        assert torch.equal(step.log_probability_of(v), step.log_probability)
        assert step.log_probability.isfinite().all()
