"""Agreement: of scores with people's ranks, and of a judge with itself when the pictures change places."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .groups import group_index, group_sums
from .intervals import clustered_bootstrap, resampled_interval
from .rows import RowMetric, check_finite, check_label, check_verdict, mean, right


class KendallTauB(RowMetric):
    r"""Kendall's rank correlation with ties between a judge's scores and people's, among pictures of one group.

    .. math::
        \tau_b = \frac{C - D}{\sqrt{(C + D + T_{prediction}) (C + D + T_{target})}}

    with C pairs in the same order, D in the opposite order, and T tied in the one but not in the other. Only pictures of the same
    group (prompt, sources) are compared. ``tau_b`` adds C, D and T up over all groups, which also holds for groups of two;
    ``tau_b_mean`` is the mean of the groups' own coefficients, where defined. With one group for everything both are the textbook's.

    A picture without a score takes part in no pair, and its share is told.

    As input to ``update`` the metric accepts:

    - ``prediction`` (``[n]``): the judge's scores, NaN where unscored.
    - ``target`` (``[n]``): people's scores, higher is better (minus the rank, say), NaN where there is none.
    - ``group`` (``int64 [n]``): identity of the picture's (prompt, sources).

    As output of ``compute`` it returns a dict of scalars: ``tau_b`` in [-1, 1] with its 95 % interval over groups (``_low``,
    ``_high``; NaN for a single group), ``tau_b_mean``, ``n_pairs`` compared, ``n_groups`` with any, and ``unscored_rate`` (of the
    pictures that have a target). NaN where either side has nothing but ties.

    Source: M. G. Kendall, The treatment of ties in ranking problems, Biometrika 33 (1945), 239-251.

    Args:
        kwargs: Of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import KendallTauB
        >>> metric = KendallTauB()
        >>> metric.update(torch.tensor([3.5, 3.0, 3.0, 1.0]), torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.zeros(4, dtype=torch.long))
        >>> round(float(metric.compute()["tau_b"]), 3)
        0.913
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__({"group": torch.int64, "prediction": torch.float64, "target": torch.float64}, **kwargs)

    def update(self, prediction: Tensor, target: Tensor, group: Tensor) -> None:
        """Add pictures, all ``[n]``."""
        check_finite("prediction", prediction)
        check_finite("target", target)
        self._add(prediction=prediction, target=target, group=group)

    def compute(self) -> dict[str, Tensor]:
        """The figures so far."""
        group, prediction, target = self._rows()  # in the order of the groups
        known = ~target.isnan()
        scored = known & ~prediction.isnan()
        index, count = group_index(group[scored])
        counts = _order_counts(prediction[scored], target[scored], index, count)
        members = index.bincount(minlength=count).double()
        compared = members * (members - 1) / 2
        counts, compared = counts[compared > 0], compared[compared > 0]
        taus = _tau_b(counts)
        total = counts.sum(dim=0, keepdim=True)
        low, high = resampled_interval(counts, _tau_b) if len(counts) > 1 else (float("nan"), float("nan"))
        return self._figures(
            tau_b=float(_tau_b(total)),
            tau_b_low=low,
            tau_b_high=high,
            tau_b_mean=mean(taus[~taus.isnan()]),
            n_pairs=float(compared.sum()),
            n_groups=len(counts),
            unscored_rate=mean(prediction[known].isnan()),
        )


class OrderConsistency(RowMetric):
    """What a judge of pairs owes to the order in which it was shown them.

    With f and s the verdicts "A is better" with A first and with B first, over the pairs that were scored in both orders:

    - ``order_consistency = mean(f == s)``;
    - ``net_position_bias = mean(f - s)``, which is the share of verdicts for the first slot minus that for the second, in [-1, 1]:
      +1 for a judge that always says "the first", 0 for one whose slips cancel;
    - ``first_slot_rate``: of the inconsistent pairs, the share that leans to the first slot (``f > s``); 0.5 without bias;
    - ``consistent_accuracy``: accuracy on the pairs that people decided and the judge judged the same way twice; twice a tie is
      wrong.

    As input to ``update`` the metric accepts ``label``, ``forward_order``, ``swapped_order`` and ``group``, all ``[n]``, as
    :class:`PairAccuracy` does, so that both fit into one :class:`torchmetrics.MetricCollection`. Pairs without a label: 0.5.

    As output of ``compute`` it returns a dict of scalars: the four above, the first two with their clustered 95 % intervals
    (``_low``, ``_high``), ``n_pairs`` scored in both orders, ``n_consistent`` behind ``consistent_accuracy``, and
    ``unscored_rate`` (pairs that lack either verdict).

    Source: L. Zheng et al., Judging LLM-as-a-judge, NeurIPS 2023 (arXiv 2306.05685), 3.3, for consistency and the first-slot rate.

    Args:
        kwargs: Of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from rationalrewards.components.metrics import OrderConsistency
        >>> metric = OrderConsistency()
        >>> forward, swapped = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, float("nan")])
        >>> metric.update(torch.tensor([1.0, 1.0, 0.0, 0.0]), forward, swapped, torch.arange(4))
        >>> {name: round(float(value), 2) for name, value in metric.compute().items() if not name.endswith(("low", "high"))}
        ... # doctest: +NORMALIZE_WHITESPACE
        {'order_consistency': 0.67, 'net_position_bias': 0.33, 'first_slot_rate': 1.0, 'consistent_accuracy': 0.5, 'n_pairs': 3.0,
         'n_consistent': 2.0, 'unscored_rate': 0.25}
    """

    def __init__(self, **kwargs: Any) -> None:
        doubles = dict.fromkeys(("label", "forward_order", "swapped_order"), torch.float64)
        super().__init__({**doubles, "group": torch.int64}, **kwargs)

    def update(self, label: Tensor, forward_order: Tensor, swapped_order: Tensor, group: Tensor) -> None:
        """Add pairs, all ``[n]``."""
        check_label(label)
        check_verdict("forward_order", forward_order)
        check_verdict("swapped_order", swapped_order)
        self._add(label=label, forward_order=forward_order, swapped_order=swapped_order, group=group)

    def compute(self) -> dict[str, Tensor]:
        """The figures so far."""
        label, first, second, group = self._rows()
        both = ~(first.isnan() | second.isnan())
        unscored = mean(~both)
        label, first, second, group = label[both], first[both], second[both], group[both]
        same, lean = first == second, first - second
        settled = same & (label != 0.5)
        low, high = clustered_bootstrap(same.double(), group)
        bias_low, bias_high = clustered_bootstrap(lean, group)
        return self._figures(
            order_consistency=mean(same),
            order_consistency_low=low,
            order_consistency_high=high,
            net_position_bias=mean(lean),
            net_position_bias_low=bias_low,
            net_position_bias_high=bias_high,
            first_slot_rate=mean(lean[~same] > 0),
            consistent_accuracy=mean(right(first, label)[settled]),
            n_pairs=len(label),
            n_consistent=int(settled.sum()),
            unscored_rate=unscored,
        )


def _order_counts(prediction: Tensor, target: Tensor, index: Tensor, count: int) -> Tensor:
    """Pairs inside each group ``[count, 4]``: C - D, C + D, tied in the prediction only, tied in the target only.

    In O(n log^2 n): W. R. Knight, J. Am. Stat. Assoc. 61 (1966), 436-439.

    Args:
        prediction: ``[n]``.
        target: ``[n]``.
        index: The group of each row ``[n]``.
        count: Number of groups.
    """
    x, y = (values.unique(return_inverse=True)[1] for values in (prediction, target))
    order = torch.from_numpy(np.lexsort([y.numpy(), x.numpy(), index.numpy()]))
    x, y, index = x[order], y[order], index[order]
    members = index.bincount(minlength=count)

    def pairs(*keys: Tensor) -> Tensor:
        """Pairs of a group that agree in these keys."""
        names, sizes = torch.stack([index, *keys], dim=1).unique(dim=0, return_counts=True)
        return group_sums(sizes * (sizes - 1) / 2, names[:, 0], count)

    tied_x, tied_y, tied_both = pairs(x), pairs(y), pairs(x, y)
    opposite = _inversions(y, index, members)
    ordered = pairs() - tied_x - tied_y + tied_both
    return torch.stack([ordered - 2 * opposite, ordered, tied_x - tied_both, tied_y - tied_both], dim=1)


def _inversions(ranks: Tensor, index: Tensor, members: Tensor) -> Tensor:
    """How many pairs of rows of each group have the larger rank first, ``float64 [groups]``.

    Args:
        ranks: ``int64 [n]``.
        index: The group of each row ``[n]``, in rising order.
        members: Rows of each group.
    """
    place = torch.arange(len(index)) - (members.cumsum(0) - members)[index]
    found = torch.zeros(len(members), dtype=torch.float64)
    half = 1
    while half < int(members.max() if len(members) else 0):  # rows of the right half of a block against those of the left
        block, is_right = place // (2 * half), place // half % 2
        order = torch.from_numpy(np.lexsort([is_right.numpy(), ranks.numpy(), block.numpy(), index.numpy()]))
        left = 1 - is_right[order]
        key = torch.stack([index, block], dim=1)[order]
        starts = torch.cat([torch.ones(1, dtype=torch.bool), (key[1:] != key[:-1]).any(dim=1)])
        of_block = starts.cumsum(0) - 1
        lefts = torch.zeros(int(starts.sum()), dtype=torch.int64).index_add_(0, of_block, left)
        no_larger = left.cumsum(0) - (lefts.cumsum(0) - lefts)[of_block]
        larger = (lefts[of_block] - no_larger) * (1 - left)
        found += group_sums(larger, index[order], len(members))
        half *= 2
    return found


def _tau_b(counts: Tensor) -> Tensor:
    """Tau-b ``[s]`` of counts ``[s, 4]``; NaN where one side is all ties."""
    net, ordered, tied_prediction, tied_target = counts.unbind(dim=1)
    scale = ((ordered + tied_prediction) * (ordered + tied_target)).sqrt()
    return torch.where(scale > 0, net / scale, torch.nan)
