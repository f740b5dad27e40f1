"""PARROT: from preference pairs to rationales that predict the preference (arXiv 2604.11626, section 2.1).

Anchor: the teacher writes a comparison knowing the label. Check: without the label, does the comparison lead to it? Project: each
picture is critiqued alone, and the two totals must order the pair as the label does. Refine: the request is rewritten from each
critique. Pairs fall out on the way; every one of them is accounted for with its stage and reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from rationalrewards import __version__

from ..chat import ChatModel, ChatRequest
from ..critique import CritiqueFormat
from ..critique.teacher import (
    anchor_messages,
    check_messages,
    label_echo,
    mask_comment,
    merge_refinement,
    project_messages,
    read_verdict,
    refine_messages,
)
from ..generation.noise import seed_for
from ..records import Preference, Rationale, Unscored, Verdict, open_pictures
from .ledger import Job, Ledger

Show = Literal["justifications", "scores", "all"]
STAGES = ("anchor", "check", "project", "refine")


@dataclass(frozen=True)
class ParrotOptions:
    """How the stages work.

    Args:
        check_images: Show the pictures to the consistency check. Without them it only re-reads the comment.
        check_show: What of the comment the check sees. Scores and winners all but give the label away.
        check_votes: Votes of the check; more than one are sampled at ``temperature``.
        check_threshold: Share of votes for the label that a comment needs.
        order_margin: By how much the preferred picture's projected reward (0...1) must be higher.
        control_share: Share of decided pairs that are run a second time with the *wrong* label, as a control of the check.
        temperature: Sampling temperature of the teacher where it writes; the check is greedy unless it votes.
        max_tokens: Most tokens of a teacher's answer.
        seed: Seed of all sampling and of the choice of control pairs.
    """

    check_images: bool = True
    check_show: Show = "justifications"
    check_votes: int = 1
    check_threshold: float = 0.5
    order_margin: float = 0.0
    control_share: float = 0.1
    temperature: float = 0.7
    max_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if self.check_show not in ("justifications", "scores", "all"):
            raise ValueError(f"check_show must be justifications, scores or all, got {self.check_show!r}")
        if self.check_votes < 1:
            raise ValueError(f"check_votes must be at least 1, got {self.check_votes}")
        for name in ("check_threshold", "control_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")


@dataclass
class Outcome:
    """What became of a pair.

    Args:
        pair: The pair.
        stage: Last stage that it reached.
        reason: Why it fell out there; empty if it was kept.
        rationale: The rationale, if it was kept.
        wrong_label_passed: Whether a comparison written for the wrong label passed the check; ``None`` if the pair is no
            control pair or the control got no answer.
    """

    pair: Preference
    stage: str = "anchor"
    reason: str = ""
    rationale: Rationale | None = None
    wrong_label_passed: bool | None = None
    _texts: dict[str, str] = field(default_factory=dict, repr=False)

    def as_json(self) -> dict[str, Any]:
        """What the ledger keeps of it."""
        return {
            "kept": self.rationale is not None,
            "last_stage": self.stage,
            "reason": self.reason,
            "wrong_label_passed": self.wrong_label_passed,
            "origin": self.pair.origin,
        }


@dataclass(frozen=True)
class _Pictures:
    sources: tuple[Image.Image, ...]
    candidates: tuple[Image.Image, Image.Image]


def rationalize(
    pairs: Sequence[Preference],
    teacher: ChatModel,
    format: CritiqueFormat,
    options: ParrotOptions,
    ledger: Ledger,
) -> list[Outcome]:
    """Take a batch of pairs through all stages.

    Args:
        pairs: The pairs; their pictures are read here.
        teacher: Any chat model.
        format: The student's format, in which rationales are written.
        options: How the stages work.
        ledger: Answers every question that was answered before, and keeps the new answers.

    Returns:
        One outcome per pair, in order. A teacher's failure drops the pair with its reason; it does not raise.
    """
    outcomes = [Outcome(pair) for pair in pairs]
    pictures = {pair.id: _Pictures(open_pictures(pair, pair.sources), _two(pair)) for pair in pairs}
    passed = _anchored(outcomes, {o.pair.id: o.pair.winner for o in outcomes}, "", pictures, teacher, format, options, ledger)
    _project(passed, pictures, teacher, format, options, ledger)
    _refine([o for o in passed if not o.reason], pictures, teacher, format, options, ledger)
    _control(outcomes, pictures, teacher, format, options, ledger)
    return outcomes


def _two(pair: Preference) -> tuple[Image.Image, Image.Image]:
    first, second = open_pictures(pair, pair.candidates)
    return first, second


def _request(messages: Sequence[dict[str, Any]], options: ParrotOptions, temperature: float, *key: str | int) -> ChatRequest:
    return ChatRequest(messages, options.max_tokens, temperature, seed=seed_for(options.seed, *key) % 2**31)


def _anchored(
    outcomes: Sequence[Outcome],
    labels: Mapping[str, Verdict],
    prefix: str,
    pictures: Mapping[str, _Pictures],
    teacher: ChatModel,
    format: CritiqueFormat,
    options: ParrotOptions,
    ledger: Ledger,
) -> list[Outcome]:
    """Anchor and check; returns those that passed. ``prefix`` names the control's stages."""
    jobs = []
    for outcome in outcomes:
        pair, seen = outcome.pair, pictures[outcome.pair.id]
        messages = anchor_messages(format, pair.task, pair.prompt, seen.sources, seen.candidates, labels[pair.id])
        jobs.append(
            Job(
                pair.id,
                f"{prefix}anchor",
                0,
                _request(messages, options, options.temperature, pair.id, prefix, "anchor"),
            )
        )
    anchored = []
    for outcome, reply in zip(outcomes, ledger.ask(teacher, jobs), strict=True):
        outcome.reason = _anchor_fault(outcome, reply.text, reply.failure, format)
        if not outcome.reason:
            outcome._texts[f"{prefix}pair"] = reply.text
            anchored.append(outcome)
    jobs = []
    for outcome in anchored:
        pair, seen = outcome.pair, pictures[outcome.pair.id]
        outcome.stage = "check"
        comment = mask_comment(format, outcome._texts[f"{prefix}pair"], pair.task, options.check_show)
        shown = seen.candidates if options.check_images else None
        messages = check_messages(pair.task, pair.prompt, seen.sources, shown, comment)
        temperature = 0.0 if options.check_votes == 1 else options.temperature
        for vote in range(options.check_votes):
            request = _request(messages, options, temperature, pair.id, prefix, "check", vote)
            jobs.append(Job(pair.id, f"{prefix}check", vote, request))
    replies = iter(ledger.ask(teacher, jobs))
    passed = []
    for outcome in anchored:
        votes = [next(replies) for _ in range(options.check_votes)]
        verdicts = [read_verdict(vote.text) for vote in votes if not vote.failure]
        label = labels[outcome.pair.id]
        if not verdicts:
            outcome.reason = f"no answer: {votes[0].failure}"
        elif all(verdict is None for verdict in verdicts):
            outcome.reason = "unreadable verdict"
        elif verdicts.count(label) / len(votes) <= options.check_threshold and verdicts.count(label) < len(votes):
            outcome.reason = "does not predict the label"
        else:
            passed.append(outcome)
    return passed


def _anchor_fault(outcome: Outcome, text: str, failure: str, format: CritiqueFormat) -> str:
    if failure:
        return f"no answer: {failure}"
    verdict = format.parse_pair(text, outcome.pair.task).verdict()
    if isinstance(verdict, Unscored):
        return f"unreadable: {verdict.reason}"
    echo = label_echo(text)
    return f"label echo: {echo!r}" if echo else ""


def _project(
    outcomes: Sequence[Outcome],
    pictures: Mapping[str, _Pictures],
    teacher: ChatModel,
    format: CritiqueFormat,
    options: ParrotOptions,
    ledger: Ledger,
) -> None:
    jobs = []
    for outcome in outcomes:
        pair, seen = outcome.pair, pictures[outcome.pair.id]
        outcome.stage = "project"
        for index, which in enumerate("AB"):
            messages = project_messages(
                format, pair.task, pair.prompt, seen.sources, seen.candidates[index], outcome._texts["pair"], which
            )
            jobs.append(
                Job(
                    pair.id,
                    "project",
                    index,
                    _request(messages, options, options.temperature, pair.id, "project", index),
                )
            )
    replies = iter(ledger.ask(teacher, jobs))
    for outcome in outcomes:
        rewards: list[float] = []
        for which, reply in zip("AB", [next(replies), next(replies)], strict=True):
            critique = format.parse(reply.text, outcome.pair.task)
            reward = Unscored(reply.failure) if reply.failure else critique.reward()
            echo = label_echo(reply.text, single=True)
            if isinstance(reward, Unscored):
                outcome.reason = outcome.reason or f"unreadable: {reward.reason}"
            elif echo:
                outcome.reason = outcome.reason or f"label echo: {echo!r}"
            else:
                rewards.append(reward)
            outcome._texts[which] = reply.text
        if not outcome.reason and not _ordered(rewards[0] - rewards[1], outcome.pair.winner, options.order_margin):
            outcome.reason = "projected scores do not order the pair as the label does"


def _ordered(difference: float, label: Verdict, margin: float) -> bool:
    if label == "tie":  # a tie asks for closeness, not for equality to the last digit
        return abs(difference) <= max(margin, 0.1)
    return difference > margin if label == "A" else -difference > margin


def _refine(
    outcomes: Sequence[Outcome],
    pictures: Mapping[str, _Pictures],
    teacher: ChatModel,
    format: CritiqueFormat,
    options: ParrotOptions,
    ledger: Ledger,
) -> None:
    jobs = []
    for outcome in outcomes:
        pair, seen = outcome.pair, pictures[outcome.pair.id]
        outcome.stage = "refine"
        for index, which in enumerate("AB"):
            messages = refine_messages(pair.task, pair.prompt, seen.sources, seen.candidates[index], outcome._texts[which])
            jobs.append(Job(pair.id, "refine", index, _request(messages, options, options.temperature, pair.id, "refine", index)))
    replies = iter(ledger.ask(teacher, jobs))
    for outcome in outcomes:
        texts = []
        for which, reply in zip("AB", [next(replies), next(replies)], strict=True):
            critique = merge_refinement(format.parse(outcome._texts[which], outcome.pair.task), reply.text)
            if reply.failure or not critique.refined_request:
                outcome.reason = outcome.reason or (f"no answer: {reply.failure}" if reply.failure else "no refined request")
            texts.append(format.render(critique, outcome.pair.task))
        if not outcome.reason:
            pair_text = format.render_pair(format.parse_pair(outcome._texts["pair"], outcome.pair.task), outcome.pair.task)
            provenance = {
                "teacher": teacher.identity,
                "temperature": options.temperature,
                "seed": options.seed,
                "check_images": options.check_images,
                "check_show": options.check_show,
                "check_votes": options.check_votes,
                "check_threshold": options.check_threshold,
                "order_margin": options.order_margin,
                "version": __version__,
            }
            outcome.rationale = Rationale(outcome.pair, pair_text, (texts[0], texts[1]), format.fingerprint, provenance)


def _control(
    outcomes: Sequence[Outcome],
    pictures: Mapping[str, _Pictures],
    teacher: ChatModel,
    format: CritiqueFormat,
    options: ParrotOptions,
    ledger: Ledger,
) -> None:
    """Run a slice with the wrong label: a check that passes it as often as the right one selects nothing."""
    chosen = [
        outcome
        for outcome in outcomes
        if outcome.pair.winner != "tie"
        and seed_for(options.seed, "control", outcome.pair.id) % 10**6 < options.control_share * 10**6
    ]
    wrong: dict[str, Verdict] = {o.pair.id: "B" if o.pair.winner == "A" else "A" for o in chosen}
    twins = [Outcome(outcome.pair) for outcome in chosen]
    passed = {o.pair.id for o in _anchored(twins, wrong, "control-", pictures, teacher, format, options, ledger)}
    for outcome, twin in zip(chosen, twins, strict=True):
        if not twin.reason.startswith("no answer"):
            outcome.wrong_label_passed = outcome.pair.id in passed


def summarise(outcomes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over outcomes as :meth:`Outcome.as_json` gives them.

    Returns:
        ``pairs``, ``anchored`` (got past the anchor stage), ``kept``, ``kept_rate``, ``stages`` (of each stage, how many pairs went
        ``in`` and how many came ``out``), ``reasons`` (``"stage: reason"`` to count) and the control, over the pairs whose checks
        with both labels got an answer: ``control_pairs`` (their number, the n of both rates), ``right_label_pass_rate`` and
        ``wrong_label_pass_rate`` (``None`` without such pairs).
    """
    rows = list(outcomes)
    reasons = Counter(f"{row['last_stage']}: {row['reason'].split(':')[0]}" for row in rows if row["reason"])
    reached = [sum(STAGES.index(row["last_stage"]) >= index for row in rows) for index in range(len(STAGES))]
    kept = sum(1 for row in rows if row["kept"])
    control = [row for row in rows if row["wrong_label_passed"] is not None and (_checked(row) or not _unanswered(row))]
    return {
        "pairs": len(rows),
        "anchored": reached[1],
        "kept": kept,
        "kept_rate": kept / len(rows) if rows else None,
        "stages": {stage: {"in": n, "out": out} for stage, n, out in zip(STAGES, reached, [*reached[1:], kept], strict=True)},
        "reasons": dict(reasons.most_common()),
        "control_pairs": len(control),
        "right_label_pass_rate": sum(_checked(row) for row in control) / len(control) if control else None,
        "wrong_label_pass_rate": sum(row["wrong_label_passed"] for row in control) / len(control) if control else None,
    }


def _checked(row: Mapping[str, Any]) -> bool:
    """Whether a pair passed the check."""
    return row["last_stage"] in ("project", "refine")


def _unanswered(row: Mapping[str, Any]) -> bool:
    return row["reason"].startswith("no answer")
