"""Flow-GRPO (arXiv 2505.05470) and GRPO-Guard (arXiv 2510.22319): clipped ratios of stochastic sampling steps.

Both train on steps that :class:`~rationalrewards.components.generation.FlowMatchSDEScheduler` has recorded; there lie the transition's
mean, its standard deviation and its log-probability. Nothing here asks for a second, unguided forward: training runs without
classifier-free guidance, as the sampling does.

A log-probability is the **mean** over the latent dimensions, not their sum (``sd3_sde_with_logprob.py`` of Flow-GRPO). A ratio then
strays from 1 by about ``rms(mean - mean_old) / (std sqrt(D))``, with D in the tens of thousands: hence clip ranges of 1e-4 to 1e-5
where language models use 0.2, and hence log-probabilities in at least single precision. With half precision the ratio is noise.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .base import NoisedBatch, Objective, StochasticSteps, Velocities


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """PPO's clipped objective (arXiv 1707.06347) as a loss: ``max(-A rho, -A clip(rho, 1 - c, 1 + c))``.

    Args:
        log_ratio: ``log rho`` ``[B]``; the gradient flows through it.
        advantages: ``A`` ``[B]``.
        clip_range: c; a sample whose ratio has already moved further than this in its good direction has no gradient.

    Returns:
        Loss per sample ``[B]``.
    """
    ratio = torch.exp(log_ratio)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - clip_range, 1.0 + clip_range))


def grpo_loss(
    log_probability: Tensor,
    log_probability_old: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    adv_clip_max: float = 5.0,
) -> Tensor:
    """Flow-GRPO's policy loss of one recorded step per sample.

    Args:
        log_probability: Of the recorded step under the trained policy ``[B]``; see ``SDEStep.log_probability_of``.
        log_probability_old: Of the same step when it was sampled ``[B]``, no gradient.
        advantages: ``[B]``; clipped to ``[-adv_clip_max, adv_clip_max]``.
        clip_range: Of the ratio; 1e-4 to 1e-5 in the source, see the module's text.
        adv_clip_max: Largest advantage.

    Returns:
        Loss per sample ``[B]``. On policy its gradient is ``-A`` times the log-probability's.
    """
    return clipped_surrogate(log_probability - log_probability_old, advantages.clamp(-adv_clip_max, adv_clip_max), clip_range)


def guard_log_ratio(
    log_probability: Tensor, log_probability_old: Tensor, mean: Tensor, mean_old: Tensor, std: Tensor | float
) -> Tensor:
    r"""GRPO-Guard's log-ratio ``(log p - log p_old) s + mean((mu - mu_old)^2) / (2 s)``, with s the transition's standard deviation.

    For a step that was sampled as ``mu_old + s z`` this is ``mean((mu - mu_old) z)``: its expectation is 0 where plain GRPO's is
    ``-mean((mu - mu_old)^2) / (2 s^2)``, so that clipping treats good and bad samples alike, and its spread does not depend on the
    step's noise.

    Args:
        log_probability: Under the trained policy ``[B]``.
        log_probability_old: When it was sampled ``[B]``.
        mean: Of the transition under the trained policy ``[B, ...]``.
        mean_old: When it was sampled.
        std: Standard deviation of the transition, one number or ``[B]``.
    """
    moved = (mean - mean_old).square().flatten(1).mean(dim=1, dtype=torch.float64)
    return (log_probability - log_probability_old) * std + moved / (2.0 * std)


def guard_loss(
    log_probability: Tensor,
    log_probability_old: Tensor,
    mean: Tensor,
    mean_old: Tensor,
    std: Tensor | float,
    dt: Tensor | float,
    advantages: Tensor,
    *,
    clip_range: float,
    adv_clip_max: float = 5.0,
) -> Tensor:
    """GRPO-Guard's policy loss of one recorded step per sample: the clipped surrogate of :func:`guard_log_ratio`, divided by ``dt``.

    A mean moves with the velocity times ``dt``, so that the division gives long and short steps the same weight (the Guard branch of
    Flow-GRPO's trainers). Defined for the Flow-SDE form of the transition.

    Args:
        log_probability: Under the trained policy ``[B]``.
        log_probability_old: When it was sampled ``[B]``.
        mean: Of the transition under the trained policy ``[B, ...]``.
        mean_old: When it was sampled.
        std: Standard deviation of the transition, one number or ``[B]``.
        dt: Length of the step in sigma, positive; one number or ``[B]``.
        advantages: ``[B]``.
        clip_range: Of the ratio. Guard's log-ratio is s times plain GRPO's: a range taken from there means less here.
        adv_clip_max: Largest advantage.
    """
    log_ratio = guard_log_ratio(log_probability, log_probability_old, mean, mean_old, std)
    return clipped_surrogate(log_ratio, advantages.clamp(-adv_clip_max, adv_clip_max), clip_range) / dt


def transition_kl(mean: Tensor, mean_reference: Tensor, std: Tensor | float) -> Tensor:
    """KL divergence of two transitions of the same standard deviation, ``mean((mu - mu_ref)^2) / (2 s^2)``, per latent dimension.

    Flow-GRPO's code divides by ``s^2 / dt`` and so has ``dt`` times this; a weight from there is to be multiplied by ``dt``. The distance
    of velocities, :func:`~rationalrewards.components.objectives.kl_loss`, works too and does not depend on the step.

    Args:
        mean: Under the trained policy ``[B, ...]``.
        mean_reference: Under the reference.
        std: One number or ``[B]``.

    Returns:
        ``[B]``, not negative.
    """
    return (mean - mean_reference).square().flatten(1).mean(dim=1, dtype=torch.float64) / (2.0 * std**2)


class FlowGRPO(Objective):
    """Flow-GRPO on a window of stochastic steps, plain or with GRPO-Guard's ratio; the policy that is trained also samples.

    Args:
        clip_range: Of the ratio; 1e-5 to 1e-3 in Flow-GRPO's code, see :mod:`~rationalrewards.components.objectives.grpo`.
        guard: Take :func:`guard_loss` instead of :func:`grpo_loss`; needs ``form: flow``.
        window_size: Stochastic steps per round; set the data module's ``visits`` to the same number.
        window_first: First step that may be stochastic.
        window_last: Last one; ``None`` is the sampler's last but one.
        eta: Amount of noise.
        form: ``"flow"`` or ``"cps"``, see ``sde_transition``.
        kl_weight: See :class:`Objective`.
        adv_clip_max: Largest advantage.
    """

    def __init__(
        self,
        clip_range: float,
        guard: bool = False,
        window_size: int = 2,
        window_first: int = 0,
        window_last: int | None = None,
        eta: float = 0.7,
        form: Literal["flow", "cps"] = "flow",
        kl_weight: float = 0.0,
        adv_clip_max: float = 5.0,
    ) -> None:
        super().__init__(kl_weight, adv_clip_max)
        if not clip_range > 0:
            raise ValueError(f"clip_range must be above 0, got {clip_range:g}")
        if guard and form != "flow":
            raise ValueError(f"GRPO-Guard is defined for form 'flow', got {form!r}")
        if window_size < 1:
            raise ValueError(f"window_size must be at least 1, got {window_size}")
        self.clip_range = clip_range
        self.guard = guard
        self.window = StochasticSteps(window_size, window_first, window_last, eta, form)

    @property
    def stochastic(self) -> StochasticSteps | None:
        """The window."""
        return self.window

    def policy_loss(self, batch: NoisedBatch, v: Velocities) -> Tensor:
        """``[B]``."""
        step = batch.step
        assert step is not None
        log_probability = step.log_probability_of(v.policy)
        clips: dict[str, float] = {"clip_range": self.clip_range, "adv_clip_max": self.adv_clip_max}
        if not self.guard:
            return grpo_loss(log_probability, step.log_probability, batch.advantages, **clips)
        mean, std = step.transition(v.policy)
        return guard_loss(log_probability, step.log_probability, mean, step.mean, std, step.dt, batch.advantages, **clips)

    @torch.no_grad()
    def diagnostics(self, batch: NoisedBatch, v: Velocities) -> dict[str, Tensor]:
        """``ratio`` (its mean below 1 is what Guard is for) and ``clipped`` (1 where it is out of range)."""
        step = batch.step
        assert step is not None
        log_ratio = step.log_probability_of(v.policy) - step.log_probability
        if self.guard:
            mean, std = step.transition(v.policy)
            log_ratio = guard_log_ratio(step.log_probability_of(v.policy), step.log_probability, mean, step.mean, std)
        ratio = log_ratio.exp()
        return {"ratio": ratio, "clipped": ((ratio - 1).abs() > self.clip_range).double()}
