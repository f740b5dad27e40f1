"""What the arms are worth: one picture against another by a judge that had no part in the loop, at equal numbers of pictures."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch

from ..entities import lost_entities
from ..metrics import clustered_bootstrap
from ..records import Candidate, Refinement
from .trace import best_number

SIZES = (1, 2, 4, 8)
_EQUAL = 1e-6
"""Scores that differ by no more than this are equal: float32 sums in another order."""

_LABEL = ": "
Interval = tuple[float, float]


@dataclass(frozen=True)
class ArmFigures:
    """An arm, had it been allowed ``images`` pictures a request.

    Every score is the held-out judge's where it was asked, else the picking one's, which flatters what it picked. Intervals are of 95 %,
    resampling whole requests with their source pictures.

    Args:
        arm: The arm.
        images: Pictures that it might make.
        n: Requests.
        compared: Those whose chosen picture and whose first picture have a score; scores, gain and shares are over them.
        score: Mean score of the chosen picture.
        score_ci95: Its interval.
        gain: Mean difference to the first picture of the original request.
        gain_ci95: Its interval.
        better: Share of requests whose chosen picture scores higher than that first one.
        equal: Share of those where both score the same.
        harm: Share of those where the chosen one scores lower.
        harm_ci95: Its interval.
        made: Mean number of pictures that it really made.
        tokens: Mean number of tokens that the critic read and wrote for a request.
        images_per_gain: Further pictures for a gain of 0.01; ``None`` without a gain.
        tokens_per_gain: Tokens for a gain of 0.01; ``None`` without a gain, or where the critic's backend counts none.
        kept: Mean share of the original request's content words that the chosen picture's request still has.
        lost: Share of requests whose chosen picture was made for one that lost a number or a quoted text of the original.
        unscored: Pictures without a score by what picks, those that could not be made included.
        unmade: Pictures that could not be made.
        stops: Why it ended, in requests; of the full budget only.
    """

    arm: str
    images: int
    n: int
    compared: int
    score: float | None
    score_ci95: Interval | None
    gain: float | None
    gain_ci95: Interval | None
    better: float | None
    equal: float | None
    harm: float | None
    harm_ci95: Interval | None
    made: float
    tokens: float
    images_per_gain: float | None
    tokens_per_gain: float | None
    kept: float
    lost: float
    unscored: int
    unmade: int
    stops: Mapping[str, int]


def chosen_at(record: Refinement, images: int) -> int:
    """Which candidate an arm would have chosen, had it been allowed only so many pictures.

    What an arm makes does not depend on how many pictures it has left, so its first pictures are those of a smaller budget. This holds of
    ``refine_from_best_of_k`` too: with no more than k pictures it is best of N.
    """
    made = record.candidates[:images]
    arm = record.arm.rpartition(_LABEL)[2]
    if arm == "refine_always_accept":
        return len(made) - 1
    scores = [one.held_out if arm == "oracle" else one.reward for one in made]
    return best_number(scores, [bool(one.image) for one in made])


def drift(record: Refinement, candidate: Candidate) -> tuple[tuple[str, ...], float]:
    """What a candidate's request lost of the original: see :func:`~rationalrewards.components.entities.lost_entities`."""
    return lost_entities(record.prompt, candidate.request)


def labelled(records: Sequence[Refinement], label: str) -> list[Refinement]:
    """Refinements with a label before their arms, e.g. of another generator: beside those without, they are compared with *their* base."""
    return [replace(record, arm=f"{label}{_LABEL}{record.arm}") for record in records]


def has_held_out(records: Sequence[Refinement]) -> bool:
    """Whether a held-out judge was asked."""
    return any(candidate.held_out is not None for record in records for candidate in record.candidates)


def arm_figures(runs: Sequence[Sequence[Refinement]], sizes: Sequence[int] = SIZES) -> list[ArmFigures]:
    """Figures of every arm at every number of pictures.

    Args:
        runs: Refinements of one run or of several (e.g. of other seeds), of the same arms; a request is compared with itself in its own
            run.
        sizes: Numbers of pictures; those above what any arm made are left out.

    Returns:
        Arm by arm, in the order of the first run.

    Raises:
        ValueError: If there are no refinements.
    """
    everything = [record for run in runs for record in run]
    if not everything:
        raise ValueError("no refinements to compare; give those of a run that has finished")
    held_out = has_held_out(everything)
    most = max(len(record.candidates) for record in everything)
    firsts = [_firsts(run, held_out) for run in runs]
    found = []
    for arm in dict.fromkeys(record.arm for record in everything):
        rows = [(record, first) for run, first in zip(runs, firsts, strict=True) for record in run if record.arm == arm]
        found += [_figures(arm, size, size >= most, rows, held_out) for size in _within(sizes, most)]
    return found


def _within(sizes: Sequence[int], most: int) -> list[int]:
    return sorted({size for size in sizes if size < most} | {most})


def _score(candidate: Candidate, held_out: bool) -> float | None:
    return candidate.held_out if held_out else candidate.reward


def _firsts(run: Sequence[Refinement], held_out: bool) -> dict[str, float | None]:
    """By request the score of the first picture that was made for it as it stands."""
    found: dict[str, float | None] = {}
    for record in run:
        first = record.candidates[0]
        if first.request == record.prompt and found.get(record.id) is None:
            found[record.id] = _score(first, held_out)
    return found


def _figures(
    arm: str, images: int, full: bool, rows: Sequence[tuple[Refinement, Mapping[str, float | None]]], held_out: bool
) -> ArmFigures:
    chosen = [record.candidates[chosen_at(record, images)] for record, _ in rows]
    made = [record.candidates[:images] for record, _ in rows]
    # the rewrites that led to no picture have no place among the pictures: they are counted once all are made
    tokens = fmean(
        record.tokens if full and record.tokens else sum(one.tokens for one in some)
        for (record, _), some in zip(rows, made, strict=True)
    )
    losses = [drift(record, candidate) for (record, _), candidate in zip(rows, chosen, strict=True)]
    pairs = [
        (score, first, _cluster(record))
        for (record, of_run), candidate in zip(rows, chosen, strict=True)
        if (score := _score(candidate, held_out)) is not None and (first := of_run.get(record.id)) is not None
    ]
    clusters = torch.tensor([cluster for _, _, cluster in pairs], dtype=torch.int64)
    score, score_ci95 = _mean([one for one, _, _ in pairs], clusters)
    gains = [one - first for one, first, _ in pairs]
    gain, gain_ci95 = _mean(gains, clusters)
    harm, harm_ci95 = _mean([float(one < -_EQUAL) for one in gains], clusters)
    better, _ = _mean([float(one > _EQUAL) for one in gains], clusters)
    equal, _ = _mean([float(abs(one) <= _EQUAL) for one in gains], clusters)
    pictures = fmean(map(len, made))
    gained = gain is not None and gain > _EQUAL
    assert gain is not None or not gained
    return ArmFigures(
        arm=arm,
        images=images,
        n=len(rows),
        compared=len(pairs),
        score=score,
        score_ci95=score_ci95,
        gain=gain,
        gain_ci95=gain_ci95,
        better=better,
        equal=equal,
        harm=harm,
        harm_ci95=harm_ci95,
        made=pictures,
        tokens=tokens,
        images_per_gain=0.01 * (pictures - 1) / gain if gained and gain is not None else None,
        tokens_per_gain=0.01 * tokens / gain if gained and gain is not None and tokens else None,
        kept=fmean(share for _, share in losses),
        lost=fmean(bool(must) for must, _ in losses),
        unscored=sum(one.reward is None for some in made for one in some),
        unmade=sum(not one.image for some in made for one in some),
        stops=dict(Counter(record.stop for record, _ in rows)) if full else {},
    )


def _cluster(record: Refinement) -> int:
    """The request with its source pictures as a number: what other runs have of the same request is no further request."""
    return int(hashlib.sha256(repr((record.prompt, record.sources)).encode()).hexdigest()[:15], 16)


def _mean(values: Sequence[float], clusters: torch.Tensor) -> tuple[float | None, Interval | None]:
    if not values:
        return None, None
    return fmean(values), clustered_bootstrap(torch.tensor(values, dtype=torch.float64), clusters)


def by_task(runs: Sequence[Sequence[Refinement]]) -> dict[str, list[list[Refinement]]]:
    """Text to image and editing apart: ``t2i`` and ``edit``, those that there are."""
    tasks = dict.fromkeys(record.task for run in runs for record in run)
    return {task: [[record for record in run if record.task == task] for run in runs] for task in tasks}


def comparison(runs: Sequence[Sequence[Refinement]], sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """All figures as plain JSON data.

    Returns:
        ``held_out``: whether a held-out judge was asked; ``tasks``: for each task its rows (see :class:`ArmFigures`).
    """
    return {
        "held_out": has_held_out([record for run in runs for record in run]),
        "tasks": {task: [asdict(row) for row in arm_figures(of_task, sizes)] for task, of_task in by_task(runs).items()},
    }


def comparison_markdown(found: Mapping[str, Any]) -> str:
    """The figures of :func:`comparison` as tables: each task at its full budget, and the curve of every arm."""
    lines = []
    if not found["held_out"]:
        lines += ["No held-out judge was asked: scores are those of what picked, which flatter what it picked.", ""]
    names = {"t2i": "Text to image", "edit": "Editing"}
    for task, rows in found["tasks"].items():
        most = max(row["images"] for row in rows)
        lines += [
            f"## {names.get(task, task)}, up to {most} pictures",
            "",
            "| arm | n | score | gain | better, equal, worse | pictures | critic tokens | pictures, tokens for 0.01 "
            "| words kept | lost a must | unscored, unmade | stopped |",
            "| --- |" + " ---: |" * 10 + " --- |",
        ]
        for row in rows:
            if row["images"] == most:
                lines.append(_row(row))
        sizes = sorted({row["images"] for row in rows})
        lines += ["", "| score of N pictures | " + " | ".join(f"N = {size}" for size in sizes) + " |"]
        lines.append("| --- |" + " ---: |" * len(sizes))
        for arm in dict.fromkeys(row["arm"] for row in rows):
            at = {row["images"]: row for row in rows if row["arm"] == arm}
            cells = [_with_interval(at[size]["score"], at[size]["score_ci95"]) for size in sizes]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _row(row: Mapping[str, Any]) -> str:
    shares = "-" if row["harm"] is None else ", ".join(f"{100 * row[key]:.0f} %" for key in ("better", "equal", "harm"))
    cost = ", ".join("-" if row[key] is None else f"{row[key]:.3g}" for key in ("images_per_gain", "tokens_per_gain"))
    n = str(row["n"]) if row["compared"] == row["n"] else f"{row['compared']} of {row['n']}"
    stops = ", ".join(f"{stop} {count}" for stop, count in sorted(row["stops"].items(), key=lambda item: -item[1]))
    cells = [
        row["arm"],
        n,
        _with_interval(row["score"], row["score_ci95"]),
        _with_interval(row["gain"], row["gain_ci95"], "+.3f"),
        shares,
        f"{row['made']:.2f}",
        f"{row['tokens']:.0f}",
        cost,
        f"{100 * row['kept']:.0f} %",
        f"{100 * row['lost']:.0f} %",
        f"{row['unscored']}, {row['unmade']}",
        stops,
    ]
    return f"| {' | '.join(cells)} |"


def _with_interval(value: float | None, interval: Sequence[float] | None, form: str = ".3f") -> str:
    if value is None or interval is None:
        return "-"
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"
