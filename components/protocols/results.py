"""Result rows: one number of one protocol, with all that must stand beside it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..metrics import KendallTauB, OrderConsistency, clustered_bootstrap
from ..records import Unscored, Verdict
from .judgements import Judgement, Mode, Place, gap, one_mode, verdict
from .judges import Judge
from .named import Credit, Protocol, find_protocol, four_way
from .ties import EXACT, Ties

MIDDLE = 0.5
"""Where a critique's rewards, in [0, 1], pass from bad to good if nothing was fitted: the middle of the scale."""


@dataclass(frozen=True)
class Result:
    """One protocol's number for one judge.

    Args:
        protocol: Name of the protocol.
        rows: What was counted: data set with its version, and subset and split.
        mode: How pictures were judged: alone (``pointwise``) or together (``pairwise``).
        judge: Who judged.
        value: The number, with every failure counted as wrong.
        interval: Its 95 % interval: bootstrap over requests with their sources.
        of_answered: The same without what was never answered, where anything was.
        of_answered_interval: Its interval.
        equals: Which of the two is the number of the published rule; empty if neither is.
        n: Entries in the denominator of ``value``: judgements (one or two a pair), or groups.
        denominators: How ``n`` comes about.
        coverage: Share of the judgements that ``value`` rests on which came.
        unscored_rate: Share of all requests, in every order and of every pair, that stayed unscored.
        order_consistency: Share of the pairs scored in both orders that have the same verdict in both; ``None`` without orders.
        net_position_bias: Wins of the first place less those of the second, over the same pairs, per judgement; ``None`` likewise.
        model_tie_rate: Share of ties among the verdicts that came.
        tie_threshold: Rewards that differ by no more are a tie.
        tie_fitted_on: Where the threshold is from.
        also: Further numbers of the same rows.
        notes: What a reader of the number should know.
    """

    protocol: str
    rows: str
    mode: Mode
    judge: Judge
    value: float
    interval: tuple[float, float]
    of_answered: float | None
    of_answered_interval: tuple[float, float] | None
    equals: str
    n: int
    denominators: Mapping[str, int]
    coverage: float
    unscored_rate: float
    order_consistency: float | None
    net_position_bias: float | None
    model_tie_rate: float | None
    tie_threshold: float
    tie_fitted_on: str
    also: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def metrics(self) -> dict[str, float]:
        """The numbers of the row by metric name, for a log; what is not there is left out."""
        values = {
            "": self.value,
            "_low": self.interval[0],
            "_high": self.interval[1],
            "_n": float(self.n),
            "_coverage": self.coverage,
            "_of_answered": self.of_answered,
            "_order_consistency": self.order_consistency,
        }
        return {self.protocol + name: value for name, value in values.items() if value is not None}


def result_from_json(data: Mapping[str, Any]) -> Result:
    """A result row from what ``dataclasses.asdict`` and JSON make of it.

    Raises:
        ValueError: If it is none.
    """
    try:
        judge = dict(data["judge"])
        judge["image_tokens"] = tuple(judge["image_tokens"]) if judge.get("image_tokens") else None
        lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        return Result(**{**data, **lists, "judge": Judge(**judge)})
    except (KeyError, TypeError) as error:
        raise ValueError(f"no result row of this version: {error}") from error


def evaluate(
    protocol: str | Protocol, judgements: Sequence[Judgement], judge: Judge | None = None, ties: Ties | None = None
) -> Result:
    """Count judgements by a protocol.

    Args:
        protocol: The protocol or its name.
        judgements: All judgements of one kind of rows, judged in one way.
        judge: Who judged; unknown if omitted.
        ties: The tie threshold; exact equality if omitted.

    Raises:
        ValueError: If pairs are not of the protocol's rows, ids repeat, ways of judging are mixed, nothing is left to count, a threshold is
            given to a protocol without ties, or pairs are counted that it was fitted on.
    """
    rule = find_protocol(protocol) if isinstance(protocol, str) else protocol
    ties = ties or Ties()
    place = _place(rule, judgements)
    if not rule.fits_ties and (ties.value or ties.good_level is not None):
        raise ValueError(f"protocol {rule.name} knows no tie threshold (ties are {rule.ties}); leave it out")
    ties.refuse_overlap([judgement.id for judgement in judgements])
    mode = one_mode(judgements)
    ties, notes = _with_level(rule, judgements, ties)
    credits = counted(rule, judgements, ties)
    if not credits:
        raise ValueError(f"protocol {rule.name}: none of the {len(judgements)} pairs counts; people left all of them tied")
    answered = [credit for credit in credits if credit.scored]
    published = (rule.sizes or {}).get(place.rows)
    if published is not None and published != len(judgements):
        notes.append(f"{len(judgements)} pairs, but {place.rows} of {place.set} has {published}: not the published rows")
    asked = [rewards for judgement in judgements for rewards in judgement.orders]
    told = [said for rewards in asked if not isinstance(said := verdict(rewards, ties.value), Unscored)]
    order = _order_effects(judgements, ties.value)
    return Result(
        protocol=rule.name,
        rows=_described(judgements),
        mode=mode,
        judge=judge or Judge("unknown"),
        value=mean_credit(credits),
        interval=_interval(credits),
        of_answered=mean_credit(answered) if answered else None,
        of_answered_interval=_interval(answered) if answered else None,
        equals=rule.equals,
        n=len(credits),
        denominators={
            "pairs": len(judgements),
            "tied by people": sum(judgement.winner == "tie" for judgement in judgements),
            "counted": len(credits),
            "answered": len(answered),
            "requests": len({credit.cluster for credit in credits}),
        },
        coverage=sum(credit.scored for credit in credits) / sum(credit.asked for credit in credits),
        unscored_rate=1.0 - len(told) / len(asked),
        order_consistency=order.pop("order_consistency", None),
        net_position_bias=order.pop("net_position_bias", None),
        model_tie_rate=told.count("tie") / len(told) if told else None,
        tie_threshold=ties.value,
        tie_fitted_on=ties.fitted_on,
        also=order | _also(rule, judgements, ties),
        notes=tuple(notes),
    )


def counted(rule: Protocol, judgements: Sequence[Judgement], ties: Ties | None = None) -> list[Credit]:
    """What a protocol counts, without the checks of :func:`evaluate`."""
    return rule.count(judgements, _with_level(rule, judgements, ties or Ties())[0])


def mean_credit(credits: Sequence[Credit]) -> float:
    """The mean of what is right."""
    return sum(credit.right for credit in credits) / len(credits)


def _interval(credits: Sequence[Credit]) -> tuple[float, float]:
    clusters = {name: index for index, name in enumerate(dict.fromkeys(credit.cluster for credit in credits))}
    right = torch.tensor([credit.right for credit in credits], dtype=torch.float64)
    return clustered_bootstrap(right, torch.tensor([clusters[credit.cluster] for credit in credits]))


def _place(rule: Protocol, judgements: Sequence[Judgement]) -> Place:
    if not judgements:
        raise ValueError(f"protocol {rule.name}: there are no judgements")
    place = None
    for judgement in judgements:
        place = rule.admit(judgement.id, judgement.origin, place)
    repeated = [id for id, count in Counter(judgement.id for judgement in judgements).items() if count > 1]
    if repeated:
        raise ValueError(f"protocol {rule.name}: id {repeated[0]!r} is there twice; every pair counts once")
    assert place is not None
    return place


def _described(judgements: Sequence[Judgement]) -> str:
    places = dict.fromkeys(
        " ".join(filter(None, (f"{place.set}@{place.version}" if place.set else "", place.rows))) or "own pairs"
        for place in (judgement.place for judgement in judgements)
    )
    return ", ".join(places)


def _with_level(rule: Protocol, judgements: Sequence[Judgement], ties: Ties) -> tuple[Ties, list[str]]:
    """The threshold with a level between both good and both bad, where the protocol needs one, and notes on it."""
    if rule.ties != "kinds":
        return ties, []
    if ties.good_level is not None:
        return ties, [f"tied pictures are both good from a mean reward of {ties.good_level:.4g} on ({ties.fitted_on})"]
    rewards = [value for j in judgements if not isinstance(j.forward, Unscored) for value in j.forward]
    if rewards and min(rewards) >= 0.0 and max(rewards) <= 1.0:
        level = dataclasses.replace(ties, good_level=MIDDLE)
        return level, [f"tied pictures are both good from a mean reward of {MIDDLE} on: the middle of the scale, not fitted"]
    return ties, ["which kind of tie is unknown (the rewards have no known scale and no level was fitted), so every tie is wrong"]


def _order_effects(judgements: Sequence[Judgement], threshold: float) -> dict[str, float]:
    """Consistency, net position bias and accuracy on consistent pairs; nothing of a judge that knows no order."""
    if judgements[0].swapped is None:
        return {}
    metric = OrderConsistency()
    forward, swapped = (torch.tensor([_code(verdict(j.orders[i], threshold)) for j in judgements]) for i in (0, 1))
    label = torch.tensor([_code(j.winner) for j in judgements])
    metric.update(label, forward, swapped, torch.arange(len(judgements)))  # its interval is not used, so any groups do
    found = {name: float(value) for name, value in metric.compute().items()}
    return {name: found[name] for name in _ORDER if found[name] == found[name]}


_ORDER = ("order_consistency", "net_position_bias", "first_slot_rate", "consistent_accuracy")


def _code(said: Verdict | Unscored) -> float:
    return float("nan") if isinstance(said, Unscored) else {"A": 1.0, "B": 0.0, "tie": 0.5}[said]


def _tau_b(judgements: Sequence[Judgement]) -> float:
    """Kendall's tau-b between the judge's gaps and people's votes, over pairs scored in the first order."""
    scored = [(gap(j.forward), j.winner) for j in judgements if not isinstance(j.forward, Unscored)]
    metric = KendallTauB()
    prediction = torch.tensor([value for difference, _ in scored for value in (difference, 0.0)], dtype=torch.float64)
    target = torch.tensor([value for _, winner in scored for value in (_code(winner), 0.5)], dtype=torch.float64)
    metric.update(prediction, target, torch.arange(len(scored)).repeat_interleave(2))
    return float(metric.compute()["tau_b"])


def _also(rule: Protocol, judgements: Sequence[Judgement], ties: Ties) -> dict[str, float]:
    """Further numbers of the same rows, failures counted as wrong."""
    also: dict[str, float] = {}
    if (tau := _tau_b(judgements)) == tau:
        also["tau_b"] = tau
    orders = {"both": lambda j: j.orders, "forward": lambda j: (j.forward,)}[rule.asks]
    if rule.ties != "excluded":
        decided = [verdict(r) == j.winner for j in judgements if j.winner != "tie" for r in orders(j)]
        if decided:
            also["decided"] = sum(decided) / len(decided)
        three = [verdict(r, ties.value) == j.winner for j in judgements for r in orders(j)]
        also["three_way"] = sum(three) / len(three)
    if rule.asks == "forward" and judgements[0].swapped is not None:
        turned = [dataclasses.replace(j, forward=j.swapped, swapped=j.forward) for j in judgements if j.swapped is not None]
        also["other_order"] = mean_credit(rule.count(turned, ties))
    if rule.ties == "kinds":
        votes = Counter(four_way(judgement, ties) for judgement in judgements)
        bare = {"A": "A", "B": "B", "both good": "tie", "both bad": "tie", "tie": "tie"}
        right = sum(count for (voted, said), count in votes.items() if bare[voted] == bare.get(said))
        also["bare_ties_credited"] = right / len(judgements)
        for voted in ("both good", "both bad"):
            for said in ("A", "B", "both good", "both bad", "tie", "unscored"):
                also[f"voted {voted}, judged {said}"] = float(votes[voted, said])
    if "EditScore/EditReward-Bench" in rule.sets:
        kinds: dict[str, list[float]] = {}
        kind_of = {judgement.id: judgement.place.note for judgement in judgements}
        for credit in rule.count(judgements, ties):
            kinds.setdefault(kind_of[credit.unit], []).append(credit.right)
        if "" not in kinds:
            also["mean_of_kinds"] = sum(sum(rights) / len(rights) for rights in kinds.values()) / len(kinds)
    return also


# -- Markdown -----------------------------------------------------------------------------------------------------------


def percent(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A share in per cent with one decimal, with its interval if given; a dash for ``None``."""
    if value is None or value != value:
        return "-"
    return f"{100 * value:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def markdown(results: Sequence[Result]) -> str:
    """Result rows as a Markdown table, with their notes below."""
    head = (
        "| protocol | rows | judge | mode | accuracy, failures wrong [95 %] | of answered | as published | n | coverage "
        "| order consistency | ties | tie threshold | picture tokens | format |\n"
        "|---|---|---|---|---:|---:|---|---:|---:|---:|---:|---|---|---|"
    )
    lines = [head]
    for one in results:
        threshold = f"{one.tie_threshold:.4g} ({one.tie_fitted_on})" if one.tie_fitted_on != EXACT else "0 (exact equality)"
        tokens = one.judge.image_tokens
        cells = [
            *(one.protocol, one.rows, one.judge.name + (f" ({one.judge.weights})" if one.judge.weights else ""), one.mode),
            *(percent(one.value, one.interval), percent(one.of_answered)),
            {"value": "the first", "of_answered": "the second", "": "neither"}[one.equals],
            *(str(one.n), percent(one.coverage), percent(one.order_consistency), percent(one.model_tie_rate), threshold),
            "unknown" if tokens is None else f"{tokens[0]} to {tokens[2]}, mean {tokens[1]:.0f}",
            one.judge.format or "-",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines.append("")
    for one in results:
        lines += [f"- {one.protocol}, {one.mode}: {note}." for note in one.notes]
        further = ", ".join(f"{name} {_number(name, value)}" for name, value in one.also.items())
        lines += [f"- {one.protocol}, {one.mode}: also {further}."] if further else []
    return "\n".join(lines) + "\n"


def _number(name: str, value: float) -> str:
    if name.startswith("voted "):
        return f"{value:.0f}"
    return f"{value:.3f}" if name == "tau_b" else percent(value)
