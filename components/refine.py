"""Generate, critique, rewrite, generate again: better pictures without training (arXiv 2604.11626), and the arms to compare with.

Every picture is scored on the *original* request. Arms share their pictures: picture i of a request starts from the same noise in
every arm. An unscored picture never wins over a scored one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from PIL import Image

from .critic import Critic, CritiqueRequest
from .generation import FlowGenerator
from .generation.noise import seed_for
from .records import Critique, PromptRecord, Unscored, open_pictures
from .rewards import RewardModel

Arm = Literal["base", "best_of_n", "blind_rewrite", "refine_always_accept", "refine_keep_best"]
ARMS: tuple[Arm, ...] = get_args(Arm)
UNWRITTEN: tuple[Arm, ...] = ("base", "best_of_n")
"""Arms that rewrite no request, and so need no critic but only something that picks."""


@dataclass(frozen=True)
class RefineOptions:
    """How refinement works.

    Args:
        images_per_prompt: Pictures that an arm may make for a request, the first one included.
        threshold: A picture is accepted once every applicable aspect scores at least this, in points of the critic's scale; ``None``
            is two thirds of the way up, as the paper's 3 of 1 to 4.
        seed: Seed of the noise.
        blank: Red, green and blue (0 to 255) of the blank picture that the blind rewriter is shown.
    """

    images_per_prompt: int = 4
    threshold: float | None = None
    seed: int = 0
    blank: tuple[int, int, int] = (128, 128, 128)

    def __post_init__(self) -> None:
        if self.images_per_prompt < 1:
            raise ValueError(f"images_per_prompt must be at least 1, got {self.images_per_prompt}")


@dataclass(frozen=True)
class Made:
    """A picture and its critique on the original request, and what another reward model than the critic says of it."""

    round: int
    request: str
    image: Image.Image
    critique: Critique
    judged: float | Unscored | None = None

    @property
    def score(self) -> float | Unscored:
        """What picks: the other reward model's score where there is one, else the critique's reward in [0, 1]."""
        return self.critique.reward() if self.judged is None else self.judged

    @property
    def reward(self) -> float | None:
        """The score; ``None`` if unscored."""
        score = self.score
        return None if isinstance(score, Unscored) else score


@dataclass
class Trace:
    """The way of one request through one arm."""

    record: PromptRecord
    arm: Arm
    made: list[Made] = field(default_factory=list)
    chosen: int = 0
    stop: str = ""


class Studio:
    """Makes and judges pictures for a batch of requests, each picture once.

    Args:
        generator: A loaded generator.
        critic: A loaded critic; ``None`` for arms that rewrite nothing, where ``reward`` picks.
        seed: Seed of the noise.
        blank: Red, green and blue of the blank picture that the blind rewriter is shown.
        reward: A loaded reward model that picks instead of the critic.
    """

    def __init__(
        self,
        generator: FlowGenerator,
        critic: Critic | None,
        seed: int,
        blank: tuple[int, int, int] = (128, 128, 128),
        reward: RewardModel | None = None,
    ) -> None:
        self.generator = generator
        self.critic = critic
        self.seed = seed
        self.blank = blank
        self.reward = reward
        self._sources: dict[str, tuple[Image.Image, ...]] = {}
        self._made: dict[tuple[str, str, int], tuple[Image.Image, Critique, float | Unscored | None]] = {}

    def sources(self, record: PromptRecord) -> tuple[Image.Image, ...]:
        """A request's source pictures."""
        if record.id not in self._sources:
            self._sources[record.id] = open_pictures(record, record.sources)
        return self._sources[record.id]

    def make(
        self, wanted: Sequence[tuple[PromptRecord, str, int]]
    ) -> list[tuple[Image.Image, Critique, float | Unscored | None]]:
        """Pictures, critiques and scores (see :class:`Made`) for ``(record, request, copy)``; those made before are not made again."""
        new = [key for key in dict.fromkeys((r.id, request, copy) for r, request, copy in wanted) if key not in self._made]
        records = {record.id: record for record, _, _ in wanted}
        images: dict[tuple[str, str, int], Image.Image] = {}
        calls: dict[str, list[tuple[str, str, int]]] = {}
        for key in new:  # a pipeline call takes one set of source pictures
            calls.setdefault(key[0] if records[key[0]].sources else "", []).append(key)
        for keys in calls.values():
            seeds = [seed_for(self.seed, "refine", record, copy) for record, _, copy in keys]
            made = self.generator.sample([request for _, request, _ in keys], self.sources(records[keys[0][0]]), seeds)
            images.update(zip(keys, made, strict=True))
        asks = [
            CritiqueRequest(records[key[0]].task, records[key[0]].prompt, images[key], self.sources(records[key[0]]))
            for key in new
        ]
        if asks:
            critiques = [Critique({}) for _ in asks] if self.critic is None else self.critic.critique(asks)
            for key, critique, judged in zip(new, critiques, self._judged(asks), strict=True):
                self._made[key] = (images[key], critique, judged)
        return [self._made[record.id, request, copy] for record, request, copy in wanted]

    def _judged(self, asks: Sequence[CritiqueRequest]) -> list[float | Unscored | None]:
        if self.reward is None:
            return [None] * len(asks)
        rewards = self.reward.score(asks)
        return [
            value if valid else Unscored(reason)
            for value, valid, reason in zip(rewards.total.tolist(), rewards.valid.tolist(), rewards.reasons, strict=True)
        ]

    def rewrite_blind(self, records: Sequence[PromptRecord]) -> list[str]:
        """Requests rewritten by the same critic without seeing any result: it is shown a blank picture.

        Returns:
            One request per record; the original where the critic gave none.
        """
        assert self.critic is not None
        blank = Image.new("RGB", (32, 32), self.blank)
        asks = [CritiqueRequest(r.task, r.prompt, blank, self.sources(r)) for r in records]
        return [
            critique.refined_request or record.prompt
            for record, critique in zip(records, self.critic.critique(asks), strict=True)
        ]


def accepted(critique: Critique, threshold: float | None = None) -> bool:
    """Whether every applicable aspect scores at least ``threshold`` (see :class:`RefineOptions`); an unscored aspect never accepts.

    It is the written scores that accept: an expected one comes near the best score but hardly ever to it.
    """
    if threshold is None:
        threshold = critique.scale.low + 2.0 * (critique.scale.high - critique.scale.low) / 3.0
    scores = [critique.score(key) for key in critique.aspects]
    if any(isinstance(score, Unscored) for score in scores):
        return False
    numbers = [score for score in scores if isinstance(score, float)]
    return bool(numbers) and min(numbers) >= threshold


def best(made: Sequence[Made]) -> int:
    """Index of the picture with the highest reward, the first of equals; 0 if none is scored."""
    scored = [(reward, -index) for index, one in enumerate(made) if (reward := one.reward) is not None]
    return -max(scored)[1] if scored else 0


def run_arm(arm: Arm, records: Sequence[PromptRecord], studio: Studio, options: RefineOptions) -> list[Trace]:
    """Take a batch of requests through one arm.

    ``base`` makes one picture. ``best_of_n`` makes all from the original request, ``blind_rewrite`` all from a request that was
    rewritten without seeing a result; the critic picks. The two others rewrite from the critique until a picture is accepted or the
    budget is spent: ``refine_always_accept`` takes the last picture (with two pictures, the paper's loop), ``refine_keep_best`` the
    best.

    Where the studio has a ``reward``, that picks; the critic still rewrites, and accepts.

    Raises:
        ValueError: If there is no such arm, it needs a critic and there is none, or the threshold is not on the critic's scale.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r}; known: {', '.join(ARMS)}")
    if studio.critic is None:
        if arm not in UNWRITTEN:
            raise ValueError(
                f"arm {arm!r} rewrites requests, which takes a critic; without one there are: {', '.join(UNWRITTEN)}"
            )
    elif options.threshold is not None and not (scale := studio.critic.format.rules.scale).contains(options.threshold):
        raise ValueError(f"threshold {options.threshold:g} is not on the critic's scale, {scale}; give one that is, or null")
    traces = [Trace(record, arm) for record in records]
    if arm in ("base", "best_of_n", "blind_rewrite"):
        requests = studio.rewrite_blind(records) if arm == "blind_rewrite" else [record.prompt for record in records]
        copies = 1 if arm == "base" else options.images_per_prompt
        wanted = [(record, request, copy) for record, request in zip(records, requests, strict=True) for copy in range(copies)]
        results = iter(studio.make(wanted))
        for trace, request in zip(traces, requests, strict=True):
            trace.made = [Made(0, request, *next(results)) for _ in range(copies)]
            trace.chosen, trace.stop = best(trace.made), "budget"
        return traces
    going = list(traces)
    for number in range(options.images_per_prompt):
        wanted = [(trace.record, _next_request(trace), number) for trace in going]
        for trace, (_, request, _), made in zip(going, wanted, studio.make(wanted), strict=True):
            trace.made.append(Made(number, request, *made))
            if accepted(trace.made[-1].critique, options.threshold):
                trace.stop = "accepted"
        going = [trace for trace in going if not trace.stop]
    for trace in traces:
        trace.stop = trace.stop or "budget"
        trace.chosen = best(trace.made) if arm == "refine_keep_best" else len(trace.made) - 1
    return traces


def _next_request(trace: Trace) -> str:
    """The request rewritten from the latest critique that has one; the original before there is any."""
    for made in reversed(trace.made):
        if made.critique.refined_request:
            return made.critique.refined_request
    return trace.record.prompt
