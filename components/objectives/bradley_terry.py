"""How likely people are to prefer one picture to another, given a score of each: losses for scalar reward models.

All take a pair's scores ``[n]`` and the probability ``label [n]`` that the first one is preferred (0.5 for a tie), and give one
non-negative loss per pair ``[n]`` in the precision of the scores. All stay the same when the pictures and the label change places.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

GaussianForm = Literal["marginal", "expected", "thurstone"]
GAUSSIAN_FORMS: tuple[GaussianForm, ...] = get_args(GaussianForm)

_NODES, _REACH = 129, 8.5
"""Points, and standard deviations to either side, at which integrals over a normal variable are summed up."""


def bradley_terry_loss(first: Tensor, second: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of ``P(A > B) = sigmoid(a - b)`` (Bradley and Terry, Biometrika 39, 1952) against a soft label.

    With votes for labels this is the likelihood of the votes, so a pair that split people pulls the scores to a finite distance,
    ``log(p / (1 - p))``, where a hard label pulls them apart for ever.

    Args:
        first: Scores of the first pictures ``[n]``, any scale.
        second: Scores of the second pictures ``[n]``.
        label: Probability that the first is preferred ``[n]``.

    Returns:
        Loss per pair ``[n]``; its gradient with respect to ``first`` is ``sigmoid(a - b) - label``.
    """
    difference = first - second
    return -label * logsigmoid(difference) - (1.0 - label) * logsigmoid(-difference)


def rao_kupper_log_probabilities(first: Tensor, second: Tensor, threshold: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of "the first is better", "a tie" and "the second is better" (Rao and Kupper, JASA 62, 1967).

    With ``t`` the threshold, ``P(A > B) = sigmoid(a - b - t)``, ``P(B > A) = sigmoid(b - a - t)``, and what is left is the tie:
    ``(exp(2 t) - 1) P(A > B) P(B > A)``. A judge whose noise is logistic calls a tie below a difference of ``t``. Of the two classic
    extensions this one, and not Davidson's (JASA 65, 1970), because the code of HPSv3 and EditReward trains with it (``btt`` in their
    trainers, with ``exp(t) = 5``), and because its parameter is a difference of scores, as the tie threshold of an evaluation is.

    Args:
        first: Scores ``[n]``.
        second: Scores ``[n]``.
        threshold: ``t > 0``, in units of the scores.

    Returns:
        Three tensors ``[n]``; their exponentials add up to 1.
    """
    threshold = torch.as_tensor(threshold, dtype=first.dtype, device=first.device)
    difference = first - second
    better, worse = logsigmoid(difference - threshold), logsigmoid(-difference - threshold)
    return better, better + worse + torch.log(torch.expm1(2.0 * threshold)), worse


def rao_kupper_loss(first: Tensor, second: Tensor, label: Tensor, threshold: Tensor | float) -> Tensor:
    """Negative log-likelihood with ties; see :func:`rao_kupper_log_probabilities`.

    A label of exactly 0.5 is a tie, as everywhere in this library. Any other label weighs the two decided outcomes: 7 of 10 votes
    for A are 7 wins and 3 losses, and no tie.

    Args:
        first: Scores ``[n]``.
        second: Scores ``[n]``.
        label: Probability that the first is preferred ``[n]``.
        threshold: See there; a tensor that trains learns how close two pictures are when people call them equal.
    """
    better, tie, worse = rao_kupper_log_probabilities(first, second, threshold)
    return torch.where(label == 0.5, -tie, -label * better - (1.0 - label) * worse)


def gaussian_loss(
    first: Tensor,
    second: Tensor,
    first_log_sigma: Tensor,
    second_log_sigma: Tensor,
    label: Tensor,
    form: GaussianForm = "marginal",
) -> Tensor:
    r"""Cross-entropy where each score is a normal variable, so that the difference is ``z ~ N(a - b, sa^2 + sb^2)``.

    ==============  =====================================================================================================
    ``marginal``    ``P(A > B) = E[sigmoid(z)]``, as PURM (arXiv 2503.22480): a pair on which people split can be had by a large
                    sigma as well as by close means.
    ``expected``    The mean of Bradley-Terry's loss over ``z``: what the code of HPSv3 (arXiv 2508.03789) and EditReward (arXiv
                    2509.26346) computes, there from 1,000 draws in float16. That loss is convex in ``z``, so a larger sigma
                    never lowers it: trained long enough, sigma vanishes whatever the labels are, and plain Bradley-Terry is left.
    ``thurstone``   ``P(A > B) = Phi((a - b) / sqrt(sa^2 + sb^2))`` (Thurstone, Psychological Review 34, 1927). Means and sigmas have
                    no scale of their own: doubling all of them changes nothing.
    ==============  =====================================================================================================

    The two integrals are summed over 129 equal steps of ``z``, which leaves an error below 1e-6 for sigmas of the difference up to 10
    and no noise in the gradient.

    Args:
        first: Means of the first pictures' scores ``[n]``.
        second: Means of the second ones' ``[n]``.
        first_log_sigma: Logarithms of their standard deviations ``[n]``.
        second_log_sigma: Likewise ``[n]``.
        label: Probability that the first is preferred ``[n]``.
        form: Which of the three.

    Raises:
        ValueError: If there is no such form.
    """
    if form not in GAUSSIAN_FORMS:
        raise ValueError(f"form is one of {', '.join(GAUSSIAN_FORMS)}, got {form!r}")
    mean = first - second
    # log of sqrt(sa^2 + sb^2), without squares that overflow
    log_sigma = 0.5 * torch.logaddexp(2.0 * first_log_sigma, 2.0 * second_log_sigma)
    if form == "thurstone":
        scaled = mean * torch.exp(-log_sigma)
        return -label * torch.special.log_ndtr(scaled) - (1.0 - label) * torch.special.log_ndtr(-scaled)
    nodes = torch.linspace(-_REACH, _REACH, _NODES, dtype=mean.dtype, device=mean.device)
    log_weights = -0.5 * nodes**2
    log_weights = log_weights - torch.logsumexp(log_weights, dim=0)
    z = mean[:, None] + torch.exp(log_sigma)[:, None] * nodes
    if form == "expected":
        losses = bradley_terry_loss(z, torch.zeros_like(z), label[:, None])
        return (losses * log_weights.exp()).sum(dim=1)
    better = torch.logsumexp(log_weights + logsigmoid(z), dim=1)
    worse = torch.logsumexp(log_weights + logsigmoid(-z), dim=1)
    return -label * better - (1.0 - label) * worse


def inverse_softplus(value: float) -> float:
    """The number whose softplus is ``value > 0``: where a learnt positive parameter starts."""
    return value + math.log(-math.expm1(-value))
