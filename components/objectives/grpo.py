"""Flow-GRPO (arXiv 2505.05470) and GRPO-Guard (arXiv 2510.22319): clipped ratios of stochastic sampling steps.

Both train on steps that :class:`~rationalrewards.components.generation.FlowMatchSDEScheduler` has recorded; there lie the transition's
mean, its standard deviation and its log-probability. Nothing here asks for a second, unguided forward: training runs without
classifier-free guidance, as the sampling does.

A log-probability is the **mean** over the latent dimensions, not their sum (``sd3_sde_with_logprob.py`` of Flow-GRPO). A ratio then
strays from 1 by about ``rms(mean - mean_old) / (std sqrt(D))``, with D in the tens of thousands: hence clip ranges of 1e-4 to 1e-5
where language models use 0.2, and hence log-probabilities in at least single precision. With half precision the ratio is noise.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
