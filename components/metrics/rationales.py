"""Whether rationales carry the judgement: what a reader can tell from them, and what they add to the pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .intervals import clustered_bootstrap, paired_bootstrap
from .rows import RowMetric, check_label, check_verdict, mean, right


class RationaleSufficiency(RowMetric):
    """Accuracy of a reader that sees the rationale and nothing else: is the reason enough?

    The reader is any judge that is shown the justifications without scores, verdict or pictures and says which picture is better.
    ``sufficiency = mean(right)`` over the pairs that people decided. A reader that cannot tell (0.5) or was not understood is wrong.
    Chance is 0.5. A rationale that names the winner passes too: mask verdicts first.

    As input to ``update`` the metric accepts:

    - ``label`` (``[n]`` in [0, 1]): probability that A is preferred, 0.5 for a tie.
    - ``text_only`` (``[n]``): the reader's verdict or probability that A is better, NaN if unscored.
    - ``group`` (``int64 [n]``): identity of the pair's (prompt, sources), for the interval.

    As output of ``compute`` it returns a dict of scalars: ``sufficiency`` with its clustered 95 % interval (``_low``, ``_high``),
    ``n_pairs``, ``tie_rate`` (of the reader's answers) and ``unscored_rate``.

    Source: P. Hase et al., Leakage-adjusted simulatability, Findings of EMNLP 2020 (arXiv 2010.04119), without its adjustment.

    Args:
        kwargs: Of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import RationaleSufficiency
        >>> metric = RationaleSufficiency()
        >>> metric.update(torch.tensor([1.0, 0.0, 1.0, 0.5]), torch.tensor([0.9, 0.3, float("nan"), 0.8]), torch.arange(4))
        >>> figures = metric.compute()
        >>> round(float(figures["sufficiency"]), 2), round(float(figures["unscored_rate"]), 2)
        (0.67, 0.33)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__({"label": torch.float64, "text_only": torch.float64, "group": torch.int64}, **kwargs)

    def update(self, label: Tensor, text_only: Tensor, group: Tensor) -> None:
        """Add pairs, all ``[n]``."""
        check_label(label)
        check_verdict("text_only", text_only)
        self._add(label=label, text_only=text_only, group=group)

    def compute(self) -> dict[str, Tensor]:
        """The figures so far."""
        label, verdict, group = self._rows()
        decided = label != 0.5
        label, verdict, group = label[decided], verdict[decided], group[decided]
        correct = right(verdict, label).double()
        low, high = clustered_bootstrap(correct, group)
        return self._figures(
            sufficiency=mean(correct),
            sufficiency_low=low,
            sufficiency_high=high,
            n_pairs=len(label),
            tie_rate=mean(verdict[~verdict.isnan()] == 0.5),
            unscored_rate=mean(verdict.isnan()),
        )


class GroundingGain(RowMetric):
    """What rationales add to seeing the pictures: accuracy of a reader with both minus that of the same reader with pictures alone.

    ``grounding_gain = mean(right_both) - mean(right_images)`` over the pairs that people decided, in [-1, 1]. A reader that cannot
    tell (0.5) or was not understood is wrong, on either side. Below 0, rationales mislead. Ask both of the same pairs: the interval
    is a paired one.

    As input to ``update`` the metric accepts:

    - ``label`` (``[n]`` in [0, 1]): probability that A is preferred, 0.5 for a tie.
    - ``images_only`` (``[n]``): verdict or probability that A is better of the reader with the pictures, NaN if unscored.
    - ``images_and_text`` (``[n]``): the same of the reader with pictures and rationale.
    - ``group`` (``int64 [n]``): identity of the pair's (prompt, sources), for the interval.

    As output of ``compute`` it returns a dict of scalars: ``grounding_gain`` with its paired, clustered 95 % interval (``_low``,
    ``_high``), ``images_accuracy``, ``both_accuracy``, ``n_pairs``, ``images_unscored_rate`` and ``both_unscored_rate``.

    Source: the simulatability of P. Hase et al. 2020 (arXiv 2010.04119), with the pictures as the input that explanations add to.

    Args:
        kwargs: Of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import GroundingGain
        >>> metric = GroundingGain()
        >>> label = torch.tensor([1.0, 0.0, 1.0, 0.0])
        >>> metric.update(label, torch.tensor([0.8, 0.6, 0.5, 0.1]), torch.tensor([0.9, 0.2, 0.7, float("nan")]), torch.arange(4))
        >>> figures = metric.compute()
        >>> float(figures["images_accuracy"]), float(figures["both_accuracy"]), float(figures["grounding_gain"])
        (0.5, 0.75, 0.25)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        doubles = dict.fromkeys(("label", "images_only", "images_and_text"), torch.float64)
        super().__init__({**doubles, "group": torch.int64}, **kwargs)

    def update(self, label: Tensor, images_only: Tensor, images_and_text: Tensor, group: Tensor) -> None:
        """Add pairs, all ``[n]``."""
        check_label(label)
        check_verdict("images_only", images_only)
        check_verdict("images_and_text", images_and_text)
        self._add(label=label, images_only=images_only, images_and_text=images_and_text, group=group)

    def compute(self) -> dict[str, Tensor]:
        """The figures so far."""
        label, images, both, group = self._rows()
        decided = label != 0.5
        label, images, both, group = label[decided], images[decided], both[decided], group[decided]
        without, with_text = right(images, label).double(), right(both, label).double()
        low, high = paired_bootstrap(with_text, without, group)
        return self._figures(
            grounding_gain=mean(with_text - without),
            grounding_gain_low=low,
            grounding_gain_high=high,
            images_accuracy=mean(without),
            both_accuracy=mean(with_text),
            n_pairs=len(label),
            images_unscored_rate=mean(images.isnan()),
            both_unscored_rate=mean(both.isnan()),
        )
