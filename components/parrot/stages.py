"""PARROT: from preference pairs to rationales that predict the preference (arXiv 2604.11626, section 2.1).

Anchor: the teacher writes a comparison knowing the label. Check: without the label, does the comparison lead to it? Project: each
picture is critiqued alone, and the two totals must order the pair as the label does. Refine: the request is rewritten from each
critique. Pairs fall out on the way; every one of them is accounted for with its stage and reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..answer_form import AnswerForm
from ..chat import ChatModel, ChatReply, ChatRequest, Place
from ..conversations import Kind
from ..critique import CritiqueFormat, swap_pair
from ..critique.formats import Message
from ..critique.teacher import (
    VERDICTS,
    anchor_messages,
    check_messages,
    mask_comment,
    merge_refinement,
    project_messages,
    read_messages,
    read_scores,
    read_verdict,
    refine_messages,
)
from ..entities import lost_entities
from ..records import Critique, Preference, Unscored, Verdict
from ..seeds import seed_for
from .ledger import Job, Ledger
from .linter import findings
from .options import ParrotOptions, Price
from .outcomes import Outcome
from .screen import Pictures, read_pair, unusable

_NOT_FINAL = ("no answer", "picture cannot be read")
"""Reasons that another run may do away with."""
_OTHER: dict[Verdict, Verdict] = {"A": "B", "B": "A", "tie": "tie"}


@dataclass(frozen=True)
class _Run:
    """What a batch is taken through the stages with."""

    teacher: ChatModel
    format: CritiqueFormat
    options: ParrotOptions
    ledger: Ledger
    pictures: Mapping[str, Pictures]

    def request(self, messages: Sequence[Message], temperature: float, form: AnswerForm | None, *key: str | int) -> ChatRequest:
        seed = seed_for(self.options.seed, *key) % 2**31
        return ChatRequest(messages, self.options.max_tokens, temperature, seed=seed, form=form)


@dataclass
class _Ask:
    """One thing for the teacher to write, and how to tell that it cannot be used."""

    outcome: Outcome
    stage: str
    sample: int
    messages: Sequence[Message]
    fault_of: Callable[[str], str]
    form: AnswerForm | None = None
    text: str = ""
    fault: str = ""


def rationalize(
    pairs: Sequence[Preference],
    teacher: ChatModel,
    format: CritiqueFormat,
    options: ParrotOptions,
    ledger: Ledger,
    price: Price | None = None,
) -> list[Outcome]:
    """Take a batch of pairs through all stages, and file what became of them.

    Args:
        pairs: The pairs; their pictures are read here.
        teacher: Any chat model.
        format: The student's format, in which rationales are written.
        options: How the stages work.
        ledger: Answers every question that was answered before, and keeps the new answers. A pair that it has closed for the same
            teacher, format and options is not looked at again, unless one of its questions is still without an answer.
        price: What the teacher's tokens cost, for the ledger.

    Returns:
        One outcome per pair, in order. A teacher's failure, or a picture that cannot be read, drops the pair with its reason.

    Raises:
        ValueError: If no pair of the batch has pictures that can be read: then something else is wrong.
    """
    provenance = ledger.begin(teacher, format.fingerprint, options, price)
    outcomes = [_settled(pair, provenance, ledger) or Outcome(pair, provenance) for pair in pairs]
    fresh = [outcome for outcome in outcomes if outcome.on_file is None]
    run = _Run(teacher, format, options, ledger, _screen(fresh, options, ledger))
    todo = [outcome for outcome in fresh if not outcome.reason]
    passed = _anchor_and_check(run, todo, {outcome.pair.id: outcome.pair.winner for outcome in todo})
    _project(run, passed)
    _refine(run, [outcome for outcome in passed if not outcome.reason])
    _control(run, todo)
    _audit(run, [outcome for outcome in todo if {"A", "B"} <= outcome.texts.keys()])
    ledger.close_pairs(outcome.as_json() for outcome in fresh)
    return outcomes


def _settled(pair: Preference, provenance: Mapping[str, Any], ledger: Ledger) -> Outcome | None:
    """A pair's outcome where it is on file for the same plan, and asking again could not change it."""
    known = ledger.outcome(pair.id)
    plan = provenance["plan"]
    if known is None or known["plan"] != plan or known["reason"].startswith(_NOT_FINAL) or ledger.unanswered(pair.id, plan):
        return None
    paths = [os.path.abspath(path) for path in (*pair.candidates, *pair.sources)]
    if paths != [*known["candidates"], *known["sources"]] or any(
        getattr(pair, key) != known[key] for key in ("task", "prompt", "label")
    ):
        return None
    rewards = known["point_rewards"]
    return Outcome(
        pair,
        provenance,
        known["last_stage"],
        known["reason"],
        known["texts"] or {},
        label_probability=known["p_label"],
        votes=[(shown, said) for shown, said in known["votes"] or ()],
        point_rewards=(rewards[0], rewards[1]) if rewards else None,
        sentiment=[(emitted, read) for emitted, read in known["sentiment"] or ()],
        wrong_label_passed=known["wrong_label_passed"],
        digest=known["digest"],
        on_file=known,
    )


def _screen(outcomes: Sequence[Outcome], options: ParrotOptions, ledger: Ledger) -> dict[str, Pictures]:
    found = {}
    for outcome in outcomes:
        pair = outcome.pair
        try:
            pictures = read_pair(pair)
        except ValueError as error:
            outcome.reason = f"picture cannot be read: {error}"
            continue
        outcome.reason = unusable(pictures, options.screen)
        if not outcome.reason and options.screen.duplicates:
            outcome.digest = pictures.digest(pair.prompt)
            first = ledger.claim(outcome.digest, pair.id)
            outcome.reason = f"duplicate: of {first}" if first != pair.id else ""
        if not outcome.reason:
            found[pair.id] = pictures
            outcome.stage = "anchor"
    unread = [outcome.reason for outcome in outcomes if outcome.reason.startswith("picture cannot be read")]
    if len(unread) == len(outcomes) > 1:
        raise ValueError(f"none of {len(unread)} pairs has pictures that can be read; the first: {unread[0]}")
    return found


def _asked(run: _Run, asks: Sequence[_Ask]) -> None:
    """Have everything written; what cannot be used is asked for again with another seed, as often as the options allow."""
    todo = list(asks)
    for attempt in range(run.options.attempts):
        jobs = []
        for ask in todo:
            key = (ask.outcome.pair.id, ask.stage, ask.sample, attempt)
            jobs.append(Job(*key[:3], run.request(ask.messages, run.options.temperature, ask.form, *key)))
        for ask, reply in zip(todo, run.ledger.ask(run.teacher.stream, jobs), strict=True):
            ask.text = reply.text
            ask.fault = f"no answer: {reply.failure}" if reply.failure else ask.fault_of(reply.text)
        # what the backend could not get it has tried often enough itself; an answer that was cut off may end with another seed
        todo = [ask for ask in todo if ask.fault and (ask.text or not ask.fault.startswith("no answer"))]


def _anchor_and_check(run: _Run, outcomes: Sequence[Outcome], labels: Mapping[str, Verdict], prefix: str = "") -> list[Outcome]:
    """Returns those that passed. ``prefix`` names the stages of the control."""
    asks = []
    for outcome in outcomes:
        pair, seen = outcome.pair, run.pictures[outcome.pair.id]
        label = labels[pair.id] if run.options.hint else None
        messages = anchor_messages(run.format, pair.task, pair.prompt, seen.sources, seen.candidates, label)
        form = run.format.pairwise_form(pair.task) if run.options.constrained else None
        for sample in range(run.options.anchors):
            asks.append(_Ask(outcome, f"{prefix}anchor", sample, messages, _anchor_fault(run, outcome), form))
    _asked(run, asks)
    written = [ask for ask in asks if not ask.fault]
    checked = dict(zip(map(id, written), _check(run, written, labels, prefix), strict=True))
    passed = []
    for outcome in outcomes:
        own = [ask for ask in asks if ask.outcome is outcome]
        tried = [(ask, checked[id(ask)]) for ask in own if not ask.fault]
        if not tried:
            outcome.reason = own[0].fault
            continue
        outcome.stage = "check"
        ask, best = max(tried, key=lambda found: -1.0 if found[1].probability is None else found[1].probability)
        outcome.texts["pair"] = ask.text
        outcome.comparison = run.format.parse_pair(ask.text, outcome.pair.task)
        outcome.label_probability, outcome.votes = best.probability, best.votes
        outcome.reason = best.fault
        if not outcome.reason:
            passed.append(outcome)
    return passed


def _anchor_fault(run: _Run, outcome: Outcome) -> Callable[[str], str]:
    def fault(text: str) -> str:
        verdict = run.format.parse_pair(text, outcome.pair.task).verdict()
        if isinstance(verdict, Unscored):
            return f"unreadable: {verdict.reason}"
        return _linted(text, outcome, "pair")

    return fault


def _linted(text: str, outcome: Outcome, kind: Kind) -> str:
    found = findings(text, outcome.pair.prompt, kind)
    return str(found[0]) if found else ""


@dataclass
class _Checked:
    """What the check found about one comparison."""

    probability: float | None
    votes: list[tuple[str, str | None]]
    fault: str


def _check(run: _Run, written: Sequence[_Ask], labels: Mapping[str, Verdict], prefix: str) -> list[_Checked]:
    options = run.options
    if not options.check_votes:
        return [_Checked(None, [], "")] * len(written)
    orders = ("AB", "BA")[: options.check_orders]
    jobs = []
    for ask in written:
        pair, seen = ask.outcome.pair, run.pictures[ask.outcome.pair.id]
        comparison = run.format.parse_pair(ask.text, pair.task)
        for order in orders:
            told = comparison if order == "AB" else swap_pair(comparison)
            shown = seen.candidates if order == "AB" else (seen.candidates[1], seen.candidates[0])
            comment = mask_comment(run.format, told, pair.task, options.check_show)
            messages = check_messages(pair.task, pair.prompt, seen.sources, shown if options.check_images else None, comment)
            for vote in range(options.check_votes):
                stage = f"{prefix}check" if order == "AB" else f"{prefix}check-swapped"
                number = ask.sample * options.check_votes + vote
                temperature = 0.0 if options.check_votes == 1 else options.temperature
                jobs.append(Job(pair.id, stage, number, run.request(messages, temperature, None, pair.id, stage, number)))
    replies = iter(run.ledger.ask(_weighing(run.teacher) if options.check_weigh else run.teacher.stream, jobs))
    return [
        _counted(
            [(order, next(replies)) for order in orders for _ in range(options.check_votes)],
            labels[ask.outcome.pair.id],
            options,
        )
        for ask in written
    ]


def _weighing(teacher: ChatModel) -> Callable[[Sequence[ChatRequest]], Iterable[list[tuple[int, ChatReply]]]]:
    """Answers a check with the probability of each verdict, as JSON."""

    def answering(requests: Sequence[ChatRequest]) -> Iterable[list[tuple[int, ChatReply]]]:
        options = tuple(VERDICTS)
        for part in teacher.stream_weights(requests, [options[0]] * len(requests), [[Place(0, options)]] * len(requests)):
            yield [
                (
                    index,
                    ChatReply(
                        json.dumps(dict(weights.options)) if not weights.failure else "",
                        failure=weights.failure,
                        prompt_tokens=weights.prompt_tokens,
                        completion_tokens=weights.completion_tokens,
                        attempts=max(1, weights.requests),
                    ),
                )
                for index, (weights,) in part
            ]

    return answering


def _counted(replies: Sequence[tuple[str, ChatReply]], label: Verdict, options: ParrotOptions) -> _Checked:
    shares: list[float] = []
    votes: list[tuple[str, str | None]] = []
    for order, reply in replies:
        if reply.failure:
            continue
        wanted = label if order == "AB" else _OTHER[label]
        said: Verdict | None
        if options.check_weigh:
            weights: dict[Verdict, float] = {VERDICTS[text]: weight for text, weight in json.loads(reply.text).items()}
            total, likeliest = sum(weights.values()), max(weights, key=weights.__getitem__)
            said = likeliest if total > 0 else None
            shares.append(weights[wanted] / total if total > 0 else 0.0)
        else:
            said = read_verdict(reply.text)
            shares.append(float(said == wanted))
        votes.append((order, None if said is None else {"A": "first", "B": "second", "tie": "tie"}[said]))
    if not votes:
        return _Checked(None, [], f"no answer: {replies[0][1].failure}")
    if all(said is None for _, said in votes):
        return _Checked(None, votes, "unreadable verdict")
    probability = sum(shares) / len(replies)  # a vote that did not come is none for the label
    passes = probability > options.check_threshold or probability == 1.0
    return _Checked(probability, votes, "" if passes else "does not predict the label")


def _project(run: _Run, outcomes: Sequence[Outcome]) -> None:
    asks = []
    for outcome in outcomes:
        pair, seen = outcome.pair, run.pictures[outcome.pair.id]
        outcome.stage = "project"
        comment = outcome.texts["pair"] if run.options.project_reference else None
        form = run.format.pointwise_form(pair.task, refinement=False) if run.options.constrained else None
        for index, which in enumerate("AB"):
            messages = project_messages(run.format, pair.task, pair.prompt, seen.sources, seen.candidates[index], comment, which)
            asks.append(_Ask(outcome, "project", index, messages, _point_fault(run, outcome), form))
    _asked(run, asks)
    for outcome, both in zip(outcomes, _by_two(asks), strict=True):
        outcome.reason = next((ask.fault for ask in both if ask.fault), "")
        outcome.texts |= {which: ask.text for which, ask in zip("AB", both, strict=True) if ask.text}
        if not outcome.reason:
            rewards = [run.format.parse(ask.text, outcome.pair.task).reward() for ask in both]
            outcome.point_rewards = (_number(rewards[0]), _number(rewards[1]))
            ordered = _ordered(outcome.point_rewards, outcome.pair.winner, run.options.order_margin)
            if run.options.order_agreement and not ordered:
                outcome.reason = "projected scores do not order the pair as the label does"


def _by_two(asks: Sequence[_Ask]) -> list[tuple[_Ask, _Ask]]:
    return list(zip(asks[::2], asks[1::2], strict=True))


def _number(reward: float | Unscored) -> float:
    assert not isinstance(reward, Unscored)  # an answer without a reward has a fault
    return reward


def _point_fault(run: _Run, outcome: Outcome) -> Callable[[str], str]:
    def fault(text: str) -> str:
        reward = run.format.parse(text, outcome.pair.task).reward()
        if isinstance(reward, Unscored):
            return f"unreadable: {reward.reason}"
        return _linted(text, outcome, "point")

    return fault


def _ordered(rewards: tuple[float, float], label: Verdict, margin: float) -> bool:
    difference = rewards[0] - rewards[1]
    if label == "tie":  # a tie asks for closeness, not for equality to the last digit
        return abs(difference) <= max(margin, 0.1)
    return difference > margin if label == "A" else -difference > margin


def _refine(run: _Run, outcomes: Sequence[Outcome]) -> None:
    asks = []
    for outcome in outcomes:
        pair, seen = outcome.pair, run.pictures[outcome.pair.id]
        outcome.stage = "refine"
        for index, which in enumerate("AB"):
            messages = refine_messages(pair.task, pair.prompt, seen.sources, seen.candidates[index], outcome.texts[which])
            asks.append(_Ask(outcome, "refine", index, messages, _refinement_fault(run, outcome, which)))
    _asked(run, asks)
    for outcome, both in zip(outcomes, _by_two(asks), strict=True):
        outcome.reason = next((ask.fault for ask in both if ask.fault), "")
        if not outcome.reason:
            task = outcome.pair.task
            for which, ask in zip("AB", both, strict=True):
                outcome.texts[which] = run.format.render(_refined(run, outcome, which, ask.text), task)
            outcome.texts["pair"] = run.format.render_pair(run.format.parse_pair(outcome.texts["pair"], task), task)


def _refined(run: _Run, outcome: Outcome, which: str, answer: str) -> Critique:
    return merge_refinement(run.format.parse(outcome.texts[which], outcome.pair.task), answer)


def _refinement_fault(run: _Run, outcome: Outcome, which: str) -> Callable[[str], str]:
    def fault(text: str) -> str:
        refined = _refined(run, outcome, which, text)
        if not refined.refined_request:
            return "no refined request"
        lost, share = lost_entities(outcome.pair.prompt, refined.refined_request)
        if run.options.refine_recall > 0 and lost:
            return f"refined request loses: {', '.join(lost)}"
        if share < run.options.refine_recall:
            return f"refined request loses: {1 - share:.0%} of the words"
        return _linted(f"{refined.refinement_comments}\n{refined.refined_request}", outcome, "point")

    return fault


def _control(run: _Run, outcomes: Sequence[Outcome]) -> None:
    """Run a slice with the wrong label: a check that passes it as often as the right one selects nothing."""
    decided = [outcome for outcome in outcomes if outcome.pair.winner != "tie"]
    chosen = [outcome for outcome in decided if run.options.in_slice("control", outcome.pair.id)]
    twins = [Outcome(outcome.pair) for outcome in chosen]
    _anchor_and_check(run, twins, {outcome.pair.id: _OTHER[outcome.pair.winner] for outcome in chosen}, "control-")
    for outcome, twin in zip(chosen, twins, strict=True):
        if not twin.reason.startswith("no answer"):
            outcome.wrong_label_passed = not twin.reason


def _audit(run: _Run, outcomes: Sequence[Outcome]) -> None:
    """Have a blind reader score the justifications of a slice: do the scores follow from the words?"""
    chosen = [outcome for outcome in outcomes if run.options.in_slice("audit", outcome.pair.id)]
    jobs, critiques = [], []
    for outcome in chosen:
        for index, which in enumerate("AB"):
            critique = run.format.parse(outcome.texts[which], outcome.pair.task)
            request = run.request(read_messages(run.format, critique, outcome.pair.task), 0.0, None)
            jobs.append(Job(outcome.pair.id, "audit", index, request))
            critiques.append((outcome, critique))
    for (outcome, critique), reply in zip(critiques, run.ledger.ask(run.teacher.stream, jobs), strict=True):
        if not reply.failure:
            read = read_scores(run.format, reply.text, outcome.pair.task)
            emitted = {key: critique.score(key) for key in read}
            outcome.sentiment += [(score, read[key]) for key, score in emitted.items() if isinstance(score, float)]
