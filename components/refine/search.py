"""Generate, critique, rewrite, generate again: better pictures without training (arXiv 2604.11626), and the arms to compare with.

Every picture is scored on the *original* request. Arms share their pictures: picture i of a request starts from the same noise in
every arm, unless refinement is told to keep the noise of what it refines. An unscored picture never wins over a scored one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..records import Critique, PromptRecord, Unscored
from .options import ARMS, UNWRITTEN, Arm, RefineOptions, Stop
from .rewriting import Feedback, told
from .studio import Shot, Studio, Wanted
from .trace import Made, Trace, accepted, best, best_number

_NO_CRITIQUE = Critique({})
_FEEDBACK: dict[str, Feedback] = {"refine_scores_only": "scores", "refine_shuffled": "another's"}


def check_arms(arms: Sequence[str], has_critic: bool, has_judge: bool) -> None:
    """Refuse what cannot be run.

    Raises:
        ValueError: If there is no such arm, it needs a critic and there is none, or it picks by a judge and there is none.
    """
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ValueError(f"unknown arm {unknown[0]!r}; known: {', '.join(ARMS)}")
    if not has_critic and (writing := [arm for arm in arms if arm not in UNWRITTEN]):
        raise ValueError(f"arm {writing[0]!r} rewrites requests: give `critic`; without one there are: {', '.join(UNWRITTEN)}")
    if not has_judge and "oracle" in arms:
        raise ValueError("arm 'oracle' picks by the held-out judge: give `judge`")


def run_arm(arm: Arm, records: Sequence[PromptRecord], studio: Studio, options: RefineOptions) -> list[Trace]:
    """Take a batch of requests through one arm; see :func:`run_arms`."""
    return run_arms([arm], records, studio, options)


def run_arms(arms: Sequence[Arm], records: Sequence[PromptRecord], studio: Studio, options: RefineOptions) -> list[Trace]:
    """Take a batch of requests through some arms, all of them round by round together.

    - ``base`` makes one picture, ``best_of_n`` all from the original request; the critic picks. ``oracle`` has the pictures of
      ``best_of_n``, and the held-out judge picks: no way to pick among them could do better by that judge.
    - ``blind_rewrite`` and ``blind_rewrite_best_of_n``: the same from a request that was rewritten without seeing a result.
    - ``refine_always_accept`` rewrites from the critique until a picture is accepted or the budget is spent, and takes the last picture
      (with two pictures, the paper's loop); ``refine_keep_best`` takes the best. ``refine_from_best_of_k`` begins with the best of
      ``options.best_of`` pictures.
    - ``refine_scores_only`` and ``refine_shuffled`` are ``refine_keep_best`` with less to rewrite from: the scores without words or
      picture, and the critique of the batch's next request of the same task (a request alone with its task is drawn again as it is).

    Where the studio has a ``reward``, that picks; the critic still rewrites, and accepts.

    Returns:
        All traces of the first arm, then those of the next.

    Raises:
        ValueError: If an arm cannot be run (see :func:`check_arms`), or the threshold is not on the critic's scale.
    """
    check_arms(arms, studio.critic is not None, studio.judge is not None)
    if studio.critic is not None and options.threshold is not None:
        scale = studio.critic.format.rules.scale
        if not scale.contains(options.threshold):
            raise ValueError(f"threshold {options.threshold:g} is not on the critic's scale, {scale}; give one that is, or null")
    blind = studio.rewrite_blind(records) if any(arm.startswith("blind") for arm in arms) else []
    traces, planned = [], []
    for arm in arms:
        firsts = _first_pictures(arm, options)
        requests = blind if arm.startswith("blind") else [(record.prompt, 0) for record in records]
        for record, (request, tokens) in zip(records, requests, strict=True):
            traces.append(Trace(record, arm))
            planned += [
                (traces[-1], Made(0, request, Unscored(""), _NO_CRITIQUE, copy=copy, tokens=0 if copy else tokens))
                for copy in range(firsts)
            ]
    _add(studio, planned)
    _refine([trace for trace in traces if trace.arm.startswith("refine")], studio, options)
    for trace in traces:
        trace.stop = trace.stop or "images"
        trace.chosen = _choice(trace)
    return traces


def _first_pictures(arm: Arm, options: RefineOptions) -> int:
    """Pictures that an arm makes before any critique is there."""
    if arm in ("base", "blind_rewrite"):
        return 1
    if arm == "refine_from_best_of_k":
        return min(options.best_of, options.images_per_prompt)
    return 1 if arm.startswith("refine") else options.images_per_prompt


def _choice(trace: Trace) -> int:
    if trace.arm == "refine_always_accept":
        return len(trace.made) - 1
    if trace.arm == "oracle":
        scores = [None if isinstance(made.held_out, Unscored) else made.held_out for made in trace.made]
        return best_number(scores, [not isinstance(made.picture, Unscored) for made in trace.made])
    return best(trace.made)


def _add(studio: Studio, planned: Sequence[tuple[Trace, Made]]) -> None:
    """Make what is planned, and write down with it what was said of it."""
    wanted: list[Wanted] = [(trace.record, made.request, made.copy) for trace, made in planned]
    for (trace, made), shot in zip(planned, studio.make(wanted), strict=True):
        trace.made.append(
            replace(
                made,
                picture=shot.picture,
                critique=shot.critique,
                judged=shot.judged,
                held_out=shot.held_out,
                tokens=made.tokens + shot.critique.tokens,
            )
        )


def _refine(traces: Sequence[Trace], studio: Studio, options: RefineOptions) -> None:
    number = 0
    while True:
        for trace in traces:
            trace.stop = trace.stop or _stop(trace, options, number) or ""
        going = [trace for trace in traces if not trace.stop]
        if not going:
            return
        number += 1
        parents = {id(trace): _parent(trace, options) for trace in traces}
        asked = [(trace, index) for trace in going for index in range(_room(trace, options))]
        rewritten = _rewritten(asked, traces, parents, studio, options)
        planned: list[tuple[Trace, Made]] = []
        for (trace, index), (request, tokens) in zip(asked, rewritten, strict=True):
            parent = parents[id(trace)]
            before = trace.made[parent]
            copy = before.copy if options.seeds == "kept" else len(trace.made) + index
            request = request or before.request  # no rewrite, but perhaps other noise
            there = [(one.request, one.copy) for one in trace.made]
            there += [(one.request, one.copy) for other, one in planned if other is trace]
            if (request, copy) in there:
                trace.lost_tokens += tokens
            else:
                planned.append(
                    (trace, Made(number, request, Unscored(""), _NO_CRITIQUE, copy=copy, parent=parent, tokens=tokens))
                )
        having = {id(trace) for trace, _ in planned}
        for trace in going:
            if id(trace) not in having:
                trace.stop = "no rewrite"
        _add(studio, planned)


def _room(trace: Trace, options: RefineOptions) -> int:
    return min(options.breadth, options.images_per_prompt - len(trace.made))


def _stop(trace: Trace, options: RefineOptions, rounds: int) -> Stop | None:
    """Why a trace makes no further round; the first reason that holds."""
    if any(accepted(made.critique, options.threshold) for made in trace.made):
        return "accepted"
    if len(trace.made) >= options.images_per_prompt:
        return "images"
    if options.tokens_per_prompt is not None and trace.tokens >= options.tokens_per_prompt:
        return "tokens"
    if options.rounds is not None and rounds >= options.rounds:
        return "rounds"
    by_round = [[made.reward for made in trace.made if made.round == number] for number in range(rounds + 1)]
    tops = [max((reward for reward in rewards if reward is not None), default=None) for rewards in by_round]
    if len(tops) >= options.max_failures and all(top is None for top in tops[-options.max_failures :]):
        return "failures"
    if options.patience is not None and len(tops) > options.patience:
        before = max((top for top in tops[: -options.patience] if top is not None), default=None)
        since = [top for top in tops[-options.patience :] if top is not None]
        if before is not None and not any(top > before + options.min_gain for top in since):
            return "no gain"
    return None


def _parent(trace: Trace, options: RefineOptions) -> int:
    """The picture to go on from: the best of the latest round, or of all."""
    if options.parent == "best":
        return best(trace.made)
    latest = [index for index, made in enumerate(trace.made) if made.round == trace.made[-1].round]
    return latest[best([trace.made[index] for index in latest])]


def _rewritten(
    asked: Sequence[tuple[Trace, int]],
    traces: Sequence[Trace],
    parents: dict[int, int],
    studio: Studio,
    options: RefineOptions,
) -> list[tuple[str, int]]:
    """The rewritten request of every wanted picture, empty where there is none, and the tokens that it took."""
    assert studio.critic is not None
    format = studio.critic.format
    found: dict[int, tuple[str, int]] = {}
    anew: dict[int, tuple[PromptRecord, Shot, int]] = {}
    going_on: dict[int, tuple[PromptRecord, Shot, str, bool, int]] = {}
    for position, (trace, index) in enumerate(asked):
        made = trace.made[parents[id(trace)]]
        # a picture that was refined before is not refined in the same words again
        number = 0 if options.vary == "seed" else index + sum(one.parent == parents[id(trace)] for one in trace.made)
        feedback = _FEEDBACK.get(trace.arm, "own")
        shot = studio.make([(trace.record, made.request, made.copy)])[0]
        if feedback == "own" and number == 0:
            found[position] = (made.critique.refined_request, 0)
        elif isinstance(made.picture, Unscored):
            found[position] = ("", 0)
        elif feedback == "own" and options.vary == "critique":
            anew[position] = (trace.record, shot, number)
        else:
            critique = made.critique
            if feedback == "another's":
                partner = _next_alike(trace, traces)
                critique = _NO_CRITIQUE if partner is trace else partner.made[parents[id(partner)]].critique
            said = told(critique, format, trace.record.task, words=feedback != "scores")
            going_on[position] = (trace.record, shot, said, feedback != "scores", number)
    found |= zip(anew, studio.rewrite_anew(list(anew.values()), options.temperature), strict=True)
    found |= zip(going_on, studio.rewrite_from(list(going_on.values()), options.temperature), strict=True)
    return [found[position] for position in range(len(asked))]


def _next_alike(trace: Trace, traces: Sequence[Trace]) -> Trace:
    """The next request of the same arm and task in the batch, the first after the last; itself if there is no other."""
    alike = [other for other in traces if (other.arm, other.record.task) == (trace.arm, trace.record.task)]
    return alike[(alike.index(trace) + 1) % len(alike)]
