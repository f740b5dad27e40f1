"""What a run of PARROT did with its pairs: counts, rates with intervals, and how far the teacher agrees with itself.

A figure is ``{"value", "ci95", "n"}``: a number, its 95 % interval and the number of cases behind it. What was not measured is ``None``,
never a number.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..metrics import wilson_interval
from ..records import Verdict
from .outcomes import STAGES

UNNAMED = "source not recorded"
"""Stands for the data set of pairs without an origin."""

_BINS = 20
_Z = 1.959963984540054


def source_of(origin: str) -> str:
    """The data set that an origin names: what stands before its first comma."""
    return origin.split(",", 1)[0].strip() or UNNAMED


def kind_of(reason: str) -> str:
    """The kind of a reason: what stands before its first colon."""
    return reason.split(":", 1)[0].strip()


def summarise(outcomes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts, rates and agreement over outcomes, in one pass and without opening a picture.

    Args:
        outcomes: What :meth:`.Outcome.as_json` gives, or the ledger's rows. Of what a row does not hold nothing is measured.

    Returns:
        Only what JSON can hold. Of all pairs: ``pairs``, ``anchored`` (got past the anchor stage), ``unanswered`` (dropped without an
        answer of the teacher), ``kept``, ``kept_rate``, ``stages`` (of each stage, how many pairs went ``in`` and how many came
        ``out``), ``reasons`` (``"stage: kind"`` to count, most frequent first), and of each source (:func:`source_of`), task and kind
        of label (``decided``: 0 or 1; ``soft``; ``tie``: 0.5) the same counts: ``sources``, ``tasks``, ``labels``. ``plans`` counts
        pairs by the fingerprint of what made them: more than one means that the figures mix runs.

        The control, over the pairs whose checks with both labels got an answer: ``control_pairs``, ``right_label_pass_rate`` and
        ``wrong_label_pass_rate`` (``None`` without such pairs). Beside these rates and ``kept_rate`` stand their Wilson intervals
        (``..._ci95``) and numbers of cases (``..._n``).

        ``position_bias``: ``label_gap`` (pass rate of the check for pairs whose label is A less that for B, over pairs whose check
        got an answer; Newcombe's interval; the two rates as ``A`` and ``B``), ``first_share`` (of the check's votes that contradict
        the label and name a picture, the share for the picture shown first) and ``order_agreement`` (of pairs with votes in both
        orders, the share whose votes lean to the same side).

        ``agreement``: ``winner_scores`` (share of aspects whose written winner is what their written scores say), ``verdict_label``
        (share of comparisons whose own scores give the label) and ``sentiment`` (Spearman rank correlation of the written scores
        with those that a blind reader gives to the justifications alone).

        ``lengths``: for texts about the ``pair`` and about one picture (``point``), of ``kept`` and ``dropped`` pairs, ``n``,
        ``median``, ``deciles`` (nine) in words, and a ``histogram`` of both (``low``, ``width``, counts ``kept`` and ``dropped``).

    Raises:
        ValueError: If a row names a stage that there is not.
    """
    tally = _Tally()
    for row in outcomes:
        tally.add(row)
    return tally.summary()


def examples(outcomes: Iterable[Mapping[str, Any]], per_reason: int = 4) -> dict[str, list[Mapping[str, Any]]]:
    """Some outcomes of every kind to look at, chosen by chance but always the same ones.

    Args:
        outcomes: As for :func:`summarise`; one pass, and no more than the chosen ones are remembered.
        per_reason: Most of one kind.

    Returns:
        ``"kept"``, then ``"stage: kind"``, the most frequent first, to outcomes.
    """
    counts: Counter[str] = Counter()
    chosen: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for row in outcomes:
        key = "kept" if row["kept"] else f"{row['last_stage']}: {kind_of(row['reason'])}"
        counts[key] += 1
        # the first ones of a file would all be of one data set
        rank = hashlib.sha256(str(row["pair"]).encode()).hexdigest()
        rows = chosen.setdefault(key, [])
        if len(rows) < per_reason or (rows and rank < rows[-1][0]):
            rows[per_reason - 1 :] = []
            bisect.insort(rows, (rank, row), key=lambda found: found[0])
    order = sorted(chosen, key=lambda key: (key != "kept", -counts[key], key))
    return {key: [row for _, row in chosen[key]] for key in order if chosen[key]}


# -- figures


def rate(count: float, n: int, clusters: int | None = None) -> dict[str, Any]:
    """A share as a figure, with its Wilson interval.

    Args:
        count: Cases that count.
        n: All cases.
        clusters: Number of independent pairs behind the cases, if several may come from one. The interval is that of so many cases:
            as wide as if all cases of a pair were one, so never too narrow.
    """
    if n == 0:
        return {"value": None, "ci95": None, "n": 0}
    of = n if clusters is None else clusters
    return {"value": count / n, "ci95": list(wilson_interval(count / n * of, of)), "n": n}


def rate_difference(first: tuple[int, int], second: tuple[int, int]) -> dict[str, Any]:
    """First share less the second, each ``(cases that count, all cases)``, as a figure.

    The interval is the square-and-add one of R. G. Newcombe (Statistics in Medicine 17, 1998, 873-890, method 10).
    """
    n = first[1] + second[1]
    if not first[1] or not second[1]:
        return {"value": None, "ci95": None, "n": n}
    p, q = first[0] / first[1], second[0] / second[1]
    (p_low, p_high), (q_low, q_high) = wilson_interval(*first), wilson_interval(*second)
    low = p - q - math.hypot(p - p_low, q_high - q)
    high = p - q + math.hypot(p_high - p, q - q_low)
    return {"value": p - q, "ci95": [low, high], "n": n}


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman rank correlation; equal values share the mean of their ranks. ``None`` where one side does not vary."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    if len(ranks[0]) < 2 or any(len(np.unique(side)) < 2 for side in ranks):
        return None
    a, b = (side - side.mean() for side in ranks)
    return float(np.clip((a @ b) / math.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


def _correlation(pairs: Sequence[tuple[float, float]], clusters: int) -> dict[str, Any]:
    """Spearman's as a figure; the interval is Bonett's and Wright's (Psychometrika 65, 2000, 23-28) for so many independent cases."""
    value = spearman([a for a, _ in pairs], [b for _, b in pairs])
    bounds = None
    if value is not None and abs(value) < 1 and clusters > 3:
        spread = _Z * math.sqrt((1 + value**2 / 2) / (clusters - 3))
        bounds = [math.tanh(math.atanh(value) - spread), math.tanh(math.atanh(value) + spread)]
    return {"value": value, "ci95": bounds, "n": len(pairs)}


# -- one pass


@dataclass
class _Group:
    """Counts of some of the pairs."""

    pairs: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any]) -> None:
        self.pairs += 1
        self.kept += bool(row["kept"])
        if row["reason"]:
            self.reasons[f"{row['last_stage']}: {kind_of(row['reason'])}"] += 1

    def as_json(self) -> dict[str, Any]:
        found = {"pairs": self.pairs, "kept": self.kept, "kept_rate": rate(self.kept, self.pairs)}
        return {**found, "reasons": dict(self.reasons.most_common())}


@dataclass
class _Tally:
    """What :func:`summarise` remembers of the rows; it grows with the audited pairs only."""

    all: _Group = field(default_factory=_Group)
    sources: dict[str, _Group] = field(default_factory=lambda: defaultdict(_Group))
    tasks: dict[str, _Group] = field(default_factory=lambda: defaultdict(_Group))
    labels: dict[str, _Group] = field(default_factory=lambda: defaultdict(_Group))
    plans: Counter[str] = field(default_factory=Counter)
    last: Counter[str] = field(default_factory=Counter)
    control: Counter[str] = field(default_factory=Counter)
    checked: Counter[tuple[str, bool]] = field(default_factory=Counter)
    contradicting: Counter[str] = field(default_factory=Counter)
    orders: Counter[bool] = field(default_factory=Counter)
    winners: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[bool] = field(default_factory=Counter)
    sentiment: list[tuple[float, float]] = field(default_factory=list)
    read_pairs: int = 0
    words: Counter[tuple[str, bool, int]] = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any]) -> None:
        if row["last_stage"] not in STAGES:
            raise ValueError(f"pair {row.get('pair')!r} ended at stage {row['last_stage']!r}; stages are {', '.join(STAGES)}")
        self.all.add(row)
        self.last[row["last_stage"]] += 1
        self.sources[source_of(row.get("origin") or "")].add(row)
        if row.get("task"):
            self.tasks[row["task"]].add(row)
        if row.get("plan"):
            self.plans[row["plan"]] += 1
        label = row.get("label")
        if label is not None:
            kind = "tie" if label == 0.5 else "decided" if label in (0.0, 1.0) else "soft"
            self.labels[kind].add(row)
        if row["last_stage"] == "screen":
            return  # what was asked about a pair that turned out to be another's duplicate counts there
        unanswered = kind_of(row["reason"]) == "no answer"
        passed = STAGES.index(row["last_stage"]) > STAGES.index("check")
        if row.get("wrong_label_passed") is not None and (passed or not unanswered):
            self.control["pairs"] += 1
            self.control["right"] += passed
            self.control["wrong"] += bool(row["wrong_label_passed"])
        if label is not None:
            winner: Verdict = "tie" if label == 0.5 else "A" if label > 0.5 else "B"
            if winner != "tie" and (passed or (row["last_stage"] == "check" and not unanswered)):
                self.checked[winner, passed] += 1
            self._add_votes(row.get("votes") or (), winner)
            if row.get("verdict") is not None:
                self.verdicts[row["verdict"] == winner] += 1
        if row.get("winners") is not None and row["winners"][1]:
            agree, total = row["winners"]
            self.winners.update({"agree": agree, "total": total, "pairs": 1})
        if row.get("sentiment"):
            self.sentiment += [(float(emitted), float(read)) for emitted, read in row["sentiment"]]
            self.read_pairs += 1
        for name, count in (row.get("words") or {}).items():
            self.words["pair" if name == "pair" else "point", bool(row["kept"]), count] += 1

    def _add_votes(self, votes: Iterable[Sequence[str | None]], winner: Verdict) -> None:
        leaning: dict[str, float] = {}
        against = 0
        for shown, said in votes:
            if shown is None or said is None:  # no readable vote
                continue
            named = {"first": shown[0], "second": shown[1], "tie": "tie"}[said]
            leaning[shown] = leaning.get(shown, 0.0) + {"A": 1.0, "tie": 0.0, "B": -1.0}[named]
            if said != "tie" and named != winner:
                against += 1
                self.contradicting["first"] += said == "first"
        if against:
            self.contradicting.update({"votes": against, "pairs": 1})
        if len(leaning) == 2:
            one, other = leaning.values()
            self.orders[one * other > 0 or one == other == 0] += 1

    def summary(self) -> dict[str, Any]:
        pairs, kept, control = self.all.pairs, self.all.kept, self.control["pairs"]
        reached = [sum(self.last[later] for later in STAGES[index:]) for index in range(len(STAGES))]
        shares = {"kept_rate": (kept, pairs), "right_label_pass_rate": (self.control["right"], control)}
        shares["wrong_label_pass_rate"] = (self.control["wrong"], control)
        flat: dict[str, Any] = {}
        for name, (count, n) in shares.items():
            figure = rate(count, n)
            flat |= {name: figure["value"], f"{name}_ci95": figure["ci95"], f"{name}_n": n}
        sides = {side: (self.checked[side, True], self.checked[side, True] + self.checked[side, False]) for side in ("A", "B")}
        votes = self.contradicting
        return {
            "pairs": pairs,
            "anchored": sum(self.last[stage] for stage in STAGES[STAGES.index("anchor") + 1 :]),
            "unanswered": sum(count for reason, count in self.all.reasons.items() if reason.endswith(": no answer")),
            "kept": kept,
            "stages": {stage: {"in": n, "out": out} for stage, n, out in zip(STAGES, reached, [*reached[1:], kept], strict=True)},
            "reasons": dict(self.all.reasons.most_common()),
            "control_pairs": control,
            **flat,
            "sources": {name: group.as_json() for name, group in sorted(self.sources.items(), key=lambda item: -item[1].pairs)},
            "tasks": {name: group.as_json() for name, group in sorted(self.tasks.items())},
            "labels": {name: group.as_json() for name, group in sorted(self.labels.items())},
            "plans": dict(self.plans.most_common()),
            "position_bias": {
                "label_gap": {**rate_difference(sides["A"], sides["B"]), **{side: rate(*found) for side, found in sides.items()}},
                "first_share": rate(votes["first"], votes["votes"], votes["pairs"]),
                "order_agreement": rate(self.orders[True], self.orders.total()),
            },
            "agreement": {
                "winner_scores": rate(self.winners["agree"], self.winners["total"], self.winners["pairs"]),
                "verdict_label": rate(self.verdicts[True], self.verdicts.total()),
                "sentiment": _correlation(self.sentiment, self.read_pairs),
            },
            "lengths": {name: self._lengths(name) for name in ("pair", "point")},
        }

    def _lengths(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        counts: dict[str, Counter[int]] = {"kept": Counter(), "dropped": Counter()}
        for (which, kept, words), count in self.words.items():
            if which == name:
                counts["kept" if kept else "dropped"][words] += count
        for fate, words_of in counts.items():
            values = np.repeat(list(words_of), list(words_of.values())) if words_of else np.zeros(0)
            deciles = [float(value) for value in np.quantile(values, np.arange(1, 10) / 10)] if len(values) else None
            found[fate] = {"n": len(values), "median": deciles[4] if deciles else None, "deciles": deciles}
        most = max((words for words_of in counts.values() for words in words_of), default=None)
        if most is None:
            return {**found, "histogram": None}
        least = min(words for words_of in counts.values() for words in words_of)
        width = max(1, math.ceil((most - least + 1) / _BINS))
        bins = {fate: [0] * math.ceil((most - least + 1) / width) for fate in counts}
        for fate, words_of in counts.items():
            for words, count in words_of.items():
                bins[fate][(words - least) // width] += count
        return {**found, "histogram": {"low": least, "width": width, **bins}}
