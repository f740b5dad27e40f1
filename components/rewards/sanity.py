"""Does a critic look at the picture and read the request? Asked before anything is optimised against it.

A critic can load without an error and still score every picture alike: an adapter that was saved untrained, pictures that never reach
the model, a rubric it was never taught. Pictures that match their requests must score higher than the same pictures under other
requests, and than black ones.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor

from ..critic import CritiqueRequest
from ..pictures import open_picture
from ..records import PromptRecord, Task, read_jsonl
from ..shapes.drawing import SIZE, draw
from ..shapes.scenes import Scene, random_scene
from .base import Rewards

GO_ON = (
    "Check the critic's weights and rubric, give probes of the kind it knows (`sanity: {pictures: FILE}`; `{side: 32}` for a critic of the "
    "shapes world), or pass `sanity: null`"
)


class SanityError(RuntimeError):
    """A critic whose scores do not depend on the picture, or not on the request; optimising against it would be for nothing."""


@dataclass(frozen=True)
class Probe:
    """A request and a picture that meets it.

    Args:
        prompt: The request.
        image: Path of the picture.
        task: ``"t2i"`` or ``"edit"``.
        sources: Paths of the source pictures of an edit.
    """

    prompt: str
    image: str
    task: Task = "t2i"
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        PromptRecord("probe", self.task, self.prompt, self.sources)  # the same rules for a request


@dataclass(frozen=True)
class SanityReport:
    """What a gate found. Means are over the pictures that could be scored, NaN without any.

    Args:
        matched: Mean reward of pictures that meet their request.
        shuffled: Mean reward of the same pictures under other requests.
        black: Mean reward of black pictures under the requests.
        scored: How many of each could be scored.
        probes: How many of each there were.
        failure: Why the critic is refused; empty if it passed.
    """

    matched: float
    shuffled: float
    black: float
    scored: tuple[int, int, int]
    probes: int
    failure: str = ""

    def __str__(self) -> str:
        means = zip(("matching", "shuffled", "black"), (self.matched, self.shuffled, self.black), self.scored, strict=True)
        return ", ".join(f"{name} {mean:.2f} ({n} of {self.probes} scored)" for name, mean, n in means)


@dataclass(frozen=True)
class SanityGate:
    """Asks a reward about a few pictures that match, do not match, or show nothing, and refuses one that sees no difference.

    A difference is one of at least ``margin`` on average and of more than two standard errors, over the probes that are scored both
    ways; what cannot be scored counts for neither side, and too much of it is a refusal of its own.

    Without ``pictures`` the probes are text-to-image requests for coloured shapes, drawn by us: plain things that a critic of
    photographs and paintings knows too. A critic that judges edits only, or something of its own as under an own rubric, needs
    ``pictures``.

    Args:
        probes: How many requests; three times as many pictures are scored. At least 4.
        margin: Least mean difference of rewards, which are in [0, 1].
        side: Side of the drawn pictures in pixels, a multiple of 32. 256 is the least that the processors of real models leave as it
            is; the tiny critics of the shapes world know 32 only.
        pictures: JSONL of requests with a picture that meets each: ``prompt``, ``image``, and for an edit ``task`` and ``sources``;
            its first ``probes`` rows are used.
    """

    probes: int = 8
    margin: float = 0.1
    side: int = 256
    pictures: str | None = None

    def __post_init__(self) -> None:
        if self.probes < 4 or not 0.0 < self.margin < 1.0 or self.side < SIZE or self.side % SIZE:
            raise ValueError(
                "sanity: probes is at least 4, margin between 0 and 1, side a multiple of "
                f"{SIZE}; got {self.probes}, {self.margin:g}, {self.side}"
            )

    def requests(self) -> list[CritiqueRequest]:
        """The probes, each with its own picture.

        Raises:
            ValueError: If the file of pictures is wrong or too short.
        """
        if self.pictures is None:
            return _drawn(self.probes, self.side)
        rows = read_jsonl(self.pictures, Probe)[: self.probes]
        if len(rows) < 4:
            raise ValueError(f"{self.pictures}: {len(rows)} rows; give at least 4 requests with pictures")
        return [
            CritiqueRequest(row.task, row.prompt, open_picture(row.image), tuple(map(open_picture, row.sources))) for row in rows
        ]

    def report(self, score: Callable[[Sequence[CritiqueRequest]], Rewards]) -> SanityReport:
        """Score the probes in one call and compare.

        Args:
            score: As :meth:`RewardModel.score`.
        """
        matched = self.requests()
        shuffled = [replace(request, prompt=_another(matched, index)) for index, request in enumerate(matched)]
        black = [replace(request, image=Image.new("RGB", request.image.size)) for request in matched]
        rewards = score([*matched, *shuffled, *black])
        totals = rewards.total.detach().cpu().double().reshape(3, len(matched))
        own, others, nothing = (float(row.nanmean()) for row in totals)
        scored = [int((~row.isnan()).sum()) for row in totals]
        report = SanityReport(own, others, nothing, (scored[0], scored[1], scored[2]), len(matched))
        faults = []
        for other, words in ((totals[1], "with another request than their own"), (totals[2], "where they are black")):
            fault = self._fault(totals[0] - other, words)
            faults += [fault] if fault else []
        if not faults:
            return report
        reasons = Counter(reason for reason in rewards.reasons if reason)
        why = f". Unscored: {'; '.join(f'{reason} ({n})' for reason, n in reasons.most_common(3))}" if reasons else ""
        return replace(
            report, failure=f"{'; '.join(faults)}. Mean rewards: {report}{why}. {GO_ON} to go on with this critic all the same"
        )

    def check(self, score: Callable[[Sequence[CritiqueRequest]], Rewards]) -> SanityReport:
        """As :meth:`report`.

        Raises:
            SanityError: If the reward is refused; the message has the numbers.
        """
        report = self.report(score)
        if report.failure:
            raise SanityError(f"the critic fails the sanity gate: {report.failure}")
        return report

    def _fault(self, gaps: Tensor, words: str) -> str:
        known = gaps[~gaps.isnan()]
        if len(known) < max(2, -(-len(gaps) // 2)):
            return f"only {len(known)} of {len(gaps)} pictures could be scored both as they are and {words}"
        mean, error = float(known.mean()), float(known.std()) / len(known) ** 0.5
        # beyond rounding of float32 rewards; constant gaps have no error
        if mean >= self.margin - 1e-6 and mean > 2.0 * error:
            return ""
        return f"pictures score only {mean:+.2f} higher than {words} (standard error {error:.2f}, margin {self.margin:g})"


def _drawn(count: int, side: int) -> list[CritiqueRequest]:
    """Scenes of shapes, no two alike, each with its request and its drawing; the same every time."""
    rng = random.Random(0)
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = random_scene(rng, letter_rate=0.0)
        scenes[scene.request("detailed")] = scene
    size = (side, side)
    # whole pixels, so that edges stay as sharp as they were drawn
    return [
        CritiqueRequest("t2i", prompt, draw(scene).resize(size, Image.Resampling.NEAREST)) for prompt, scene in scenes.items()
    ]


def _another(requests: Sequence[CritiqueRequest], index: int) -> str:
    """The next request of the same task that says something else."""
    own = requests[index]
    for step in range(1, len(requests)):
        other = requests[(index + step) % len(requests)]
        if other.task == own.task and other.prompt != own.prompt:
            return other.prompt
    raise ValueError(f"sanity: no other {own.task} request than {own.prompt!r} among the pictures; give different ones")
