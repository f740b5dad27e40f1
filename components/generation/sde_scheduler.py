"""Stochastic steps in an unmodified diffusers flow pipeline, recorded for Flow-GRPO.

Inside ``with stochastic_steps(pipe, keys, window) as scheduler:`` the pipeline runs with a scheduler of ours. Steps in the window are
draws from a normal distribution and are recorded; all others are the original's to the last bit. The pipeline keeps its own
scheduler otherwise, so that nothing of this is in what it saves.

Convention: ``x_t = (1 - sigma) x0 + sigma eps``, ``v = eps - x0``; a step goes from ``sigma`` to a smaller ``next_sigma``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor

from .noise import generator_for, normal

Key = tuple[int | str, ...]
SDEForm = Literal["flow", "cps"]
SDE_FORMS: tuple[SDEForm, ...] = get_args(SDEForm)


def sde_transition(
    x: Tensor, v: Tensor, sigma: Tensor | float, next_sigma: Tensor | float, *, eta: float, form: SDEForm = "flow"
) -> tuple[Tensor, Tensor]:
    r"""Mean and standard deviation of one stochastic step.

    ``flow`` (Flow-GRPO, arXiv 2505.05470)
        One Euler-Maruyama step of the SDE that has the ODE's marginals. With ``g = eta sqrt(sigma / (1 - sigma))`` and
        ``dt = next_sigma - sigma < 0``: ``mean = x (1 + g^2 dt / (2 sigma)) + v (1 + g^2 (1 - sigma) / (2 sigma)) dt`` and
        ``std = g sqrt(-dt)``. At sigma = 1, where g is infinite, next_sigma stands in its denominator. The marginals are right in the
        limit of small steps only: near sigma = 1 noise is added faster than few steps can take it away.
    ``cps`` (coefficient-preserving sampling, arXiv 2509.05952)
        ``std = next_sigma sin(eta pi / 2)`` and ``mean = (1 - next_sigma) x0 + sqrt(next_sigma^2 - std^2) eps`` with the predicted
        ``x0 = x - sigma v`` and ``eps = x + (1 - sigma) v``: of the noise of the next level, a part is drawn anew. Signal and noise
        have the right amount at every step size. Where the prediction of x0 is only an average, a little spread is lost.

    Args:
        x: Latents at ``sigma`` ``[B, ...]``.
        v: Velocity there; gradients flow through it.
        sigma: Noise level in (0, 1], one number or ``[B]``.
        next_sigma: Smaller than ``sigma`` and above 0, likewise.
        eta: How much noise; 0.7 or 0.8 in Flow-GRPO. For ``cps`` in [0, 1].
        form: Which of the two.

    Returns:
        Mean in the shape of ``x`` and standard deviation ``[B]`` or ``[]``, both in single precision, or double if ``x`` is.

    Raises:
        ValueError: If there is no such form.
    """
    x, v = _single(x), _single(v)
    sigma, next_sigma = (torch.as_tensor(level, dtype=x.dtype, device=x.device) for level in (sigma, next_sigma))
    at, to = _wide(sigma, x), _wide(next_sigma, x)
    if form == "flow":
        squared = eta**2 * sigma / (1.0 - torch.where(sigma == 1.0, next_sigma, sigma))
        ratio = _wide(squared, x) / (2.0 * at)
        mean = x * (1.0 + ratio * (to - at)) + v * (1.0 + ratio * (1.0 - at)) * (to - at)
        return mean, torch.sqrt(squared * (sigma - next_sigma))
    if form == "cps":
        std = next_sigma * math.sin(eta * math.pi / 2.0)
        kept = next_sigma * math.cos(eta * math.pi / 2.0)
        return (1.0 - to) * (x - at * v) + _wide(kept, x) * (x + (1.0 - at) * v), std
    raise ValueError(f"form is one of {', '.join(SDE_FORMS)}, got {form!r}")


def log_probability(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Logarithm of a transition's normal density at ``x_next``, averaged over the latent dimensions as in Flow-GRPO's code.

    The average, and not the sum, is what its clip ranges of 1e-4 to 1e-5 are made for; see ``components/objectives/grpo.py``. For CPS
    that code leaves out the constants *and* the factor ``1 / (2 std^2)``; here both forms have the true density.

    Args:
        x_next: Latents after the step ``[B, ...]``.
        mean: Of the transition; gradients flow through it.
        std: Its standard deviation, ``[]`` or ``[B]``.

    Returns:
        ``float64 [B]``. Squares are taken in at least single precision and summed up in double: with clip ranges of 1e-5 the rounding of
        a single-precision sum would be seen.
    """
    squares = (_single(x_next) - _single(mean)).square().flatten(1).mean(dim=1, dtype=torch.float64)
    std = std.double()
    return -squares / (2.0 * std**2) - torch.log(std) - 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class SDEStep:
    """One stochastic step of a batch.

    Args:
        index: Which step of the sampler.
        sigma: Noise level before the step, ``float32 []`` (of joined steps ``[B]``, as the next two).
        next_sigma: Noise level after it.
        x_t: Latents before the step ``[B, ...]``, as the denoiser saw them.
        x_next: Latents after it, as the pipeline went on with them.
        mean: Mean of the transition when it was sampled, ``float32``.
        std: Its standard deviation ``[]``.
        log_probability: Of ``x_next`` when it was sampled, ``float64 [B]``.
        eta: Amount of noise.
        form: Which transition.
    """

    index: int
    sigma: Tensor
    next_sigma: Tensor
    x_t: Tensor
    x_next: Tensor
    mean: Tensor
    std: Tensor
    log_probability: Tensor
    eta: float
    form: SDEForm

    def select(self, rows: Sequence[int]) -> SDEStep:
        """The step of some samples of the batch; see :meth:`Recording.select`."""
        at = list(rows)
        sigma, next_sigma, std = (level[at] if level.ndim else level for level in (self.sigma, self.next_sigma, self.std))
        return replace(
            self,
            sigma=sigma,
            next_sigma=next_sigma,
            x_t=self.x_t[at],
            x_next=self.x_next[at],
            mean=self.mean[at],
            std=std,
            log_probability=self.log_probability[at],
        )

    @property
    def dt(self) -> Tensor:
        """Length of the step in sigma, positive ``[]``."""
        return self.sigma - self.next_sigma

    def transition(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[B, ...]`` and standard deviation ``[]`` under another velocity at ``x_t``."""
        return sde_transition(self.x_t, v, self.sigma, self.next_sigma, eta=self.eta, form=self.form)

    def log_probability_of(self, v: Tensor) -> Tensor:
        """Log-probability ``[B]`` that a policy with velocity ``v`` at ``x_t`` would have taken the recorded step; gradients flow."""
        mean, std = self.transition(v)
        return log_probability(self.x_next, mean, std)


def join_steps(steps: Sequence[SDEStep]) -> SDEStep:
    """Several steps as one batch, one after the other; its ``index`` is the first's.

    Raises:
        ValueError: If they were drawn with different settings.
    """
    if len({(step.eta, step.form) for step in steps}) != 1:
        raise ValueError("only steps of one form and amount of noise make a batch")

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(step, name).expand(len(step.x_t), *getattr(step, name).shape[1:]) for step in steps])

    return replace(
        steps[0],
        sigma=joined("sigma"),
        next_sigma=joined("next_sigma"),
        x_t=joined("x_t"),
        x_next=joined("x_next"),
        mean=joined("mean"),
        std=joined("std"),
        log_probability=joined("log_probability"),
    )


class FlowMatchSDEScheduler(FlowMatchEulerDiscreteScheduler):
    """Flow matching with stochastic steps; made by :func:`stochastic_steps`.

    :attr:`recorded` holds the steps of the last sampling run.
    """

    keys: Sequence[Key] = ()
    window: Sequence[int] = ()
    eta: float = 0.7
    form: SDEForm = "flow"
    recorded: list[SDEStep]

    def set_timesteps(  # pipelines read this signature, so it is the original's
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """The original's; then checks the window and forgets the last run's steps.

        Raises:
            ValueError: If the window is not among the steps, the last one excepted.
        """
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        steps = len(self.timesteps)
        outside = sorted(index for index in self.window if not 0 <= index < steps - 1)
        if outside:
            raise ValueError(
                f"step {outside[0]} cannot be stochastic in a run of {steps} steps: the window lies in 0 to {steps - 2}, because the noise "
                "of the last step would stay in the picture"
            )
        self.recorded = []

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """One step; stochastic and recorded inside the window, else the original's.

        Raises:
            ValueError: If the batch is not as large as there are keys, or tokens have times of their own.
        """
        if self.step_index is None:
            self._init_step_index(timestep)
        index = self.step_index
        if index not in self.window:
            return super().step(model_output, timestep, sample, *args, return_dict=return_dict, **kwargs)
        if kwargs.get("per_token_timesteps") is not None:
            raise ValueError("steps with a time per token cannot be made stochastic")
        if len(sample) != len(self.keys):
            raise ValueError(
                f"the pipeline steps {len(sample)} samples, but there are {len(self.keys)} keys; give one key per picture"
            )
        sigma, next_sigma = (self.sigmas[at].to(sample.device) for at in (index, index + 1))
        mean, std = sde_transition(sample, model_output, sigma, next_sigma, eta=self.eta, form=self.form)
        noise = normal(mean, [(*key, "sde", index) for key in self.keys])
        # rounded first, so that the recorded probability is that of the latents with which the pipeline goes on
        x_next = (mean + std * noise).to(model_output.dtype)
        probability = log_probability(x_next, mean, std)
        self.recorded.append(SDEStep(index, sigma, next_sigma, sample, x_next, mean, std, probability, self.eta, self.form))
        self._step_index = index + 1
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=x_next) if return_dict else (x_next,)


@contextmanager
def stochastic_steps(
    pipe: Any, keys: Sequence[Key], window: Sequence[int], *, eta: float = 0.7, form: SDEForm = "flow"
) -> Iterator[FlowMatchSDEScheduler]:
    """Run a diffusers flow pipeline with stochastic steps inside the ``with`` block.

    Args:
        pipe: A pipeline with a ``FlowMatchEulerDiscreteScheduler``. Guidance by a second denoiser call is to be off, as in training.
        keys: One per picture of the batch, e.g. ``(seed, epoch, request, copy)``. The noise of a step is a function of key and step
            alone, so that neither batching nor the number of processes changes a picture.
        window: Numbers of the steps to draw, e.g. of :func:`draw_window`.
        eta: How much noise; see :func:`sde_transition`. With 0 there is no density to train on.
        form: Which transition.

    Yields:
        The scheduler; after the pipeline's call its ``recorded`` holds one :class:`SDEStep` per step of the window.

    Raises:
        ValueError: If the pipeline's scheduler is another one or runs backwards, or ``eta`` or ``form`` is out of range.
    """
    original = pipe.scheduler
    if form not in SDE_FORMS:
        raise ValueError(f"form is one of {', '.join(SDE_FORMS)}, got {form!r}")
    if not eta > 0 or (form == "cps" and eta > 1):
        raise ValueError(f"eta is the amount of noise, above 0 (and for cps at most 1); got {eta:g}")
    if type(original) is not FlowMatchEulerDiscreteScheduler:
        raise ValueError(
            f"stochastic steps are made from a FlowMatchEulerDiscreteScheduler, but {type(pipe).__name__} has a "
            f"{type(original).__name__}; set pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config) if it "
            "is trained as a flow, or use an objective that needs no stochastic steps"
        )
    if original.config.stochastic_sampling or original.config.invert_sigmas:
        raise ValueError(
            "a scheduler with stochastic_sampling or invert_sigmas has no steps along v that could be made stochastic"
        )
    scheduler = FlowMatchSDEScheduler.from_config(original.config)
    scheduler.set_shift(original.shift)
    scheduler.keys, scheduler.window, scheduler.eta, scheduler.form = list(keys), sorted(set(window)), eta, form
    scheduler.recorded = []
    pipe.scheduler = scheduler
    try:
        yield scheduler
    finally:
        pipe.scheduler = original


def draw_window(size: int, first: int, last: int, *key: int | str) -> range:
    """A window of ``size`` successive steps, placed at random between ``first`` and ``last``, both included.

    Flow-GRPO-Fast trains on such windows (``sde_window_size`` 3 within the first half of 10 steps, in its configs without guidance).
    Draw it for a whole round, not for a picture: members of a group are to differ by what was drawn, not by when.

    Args:
        size: Steps in the window, at least 1.
        first: First step allowed.
        last: Last step allowed; at most the sampler's last but one.
        *key: What the place is a function of, e.g. seed and epoch.

    Raises:
        ValueError: If the window does not fit.
    """
    places = last - first + 2 - size
    if size < 1 or first < 0 or places < 1:
        raise ValueError(f"no window of {size} steps fits between step {first} and step {last}")
    start = first + int(torch.randint(places, (), generator=generator_for(*key, "sde window")))
    return range(start, start + size)


def _single(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *([1] * (like.ndim - 1))) if values.ndim else values
