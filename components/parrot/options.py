"""How PARROT's stages work, and what their calls cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..seeds import seed_for

Show = Literal["justifications", "scores", "all"]


@dataclass(frozen=True)
class ScreenOptions:
    """What a pair's pictures must be before a teacher sees them.

    Args:
        min_side: Least length of every side, pixels.
        max_aspect: Most that one side may be longer than the other, as a factor.
        min_contrast: Least standard deviation of the grey values (0 to 255); a picture of one colour has 0.
        duplicates: Whether a pair whose request and pictures (in either order) came before is left out.

    Raises:
        ValueError: If a limit is one that every picture passes by mistake, or none can.
    """

    min_side: int = 16
    max_aspect: float = 8.0
    min_contrast: float = 1.0
    duplicates: bool = True

    def __post_init__(self) -> None:
        for name, least in (("min_side", 1), ("max_aspect", 1), ("min_contrast", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"screen: {name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class ParrotOptions:
    """How the stages work. Why the defaults are what they are, with figures: ``docs/parrot.md``.

    Args:
        hint: Tell the teacher the label when it writes a comparison (anchored generation). Without it this is plain distillation, or
            rejection sampling where the check stays on.
        anchors: Comparisons that the teacher writes for each pair; of those that pass the check the surest goes on.
        attempts: How often an answer that cannot be read, or that gives away the label, is asked for in all, each time with another
            seed.
        constrained: Force answers into the form of the format, where the teacher's backend can.
        check_images: Show the pictures to the consistency check. Without them it only re-reads the comparison.
        check_show: What of the comparison the check sees. Scores and winners all but give the label away.
        check_votes: Votes of the check; more than one are sampled at ``temperature``, a single one is greedy. With 0 there is no check.
        check_orders: 2 asks every vote twice, the second time with the pictures and the comparison in the other order.
        check_weigh: Take the probability of each verdict from the teacher's own weights (:meth:`.ChatModel.weigh`) in place of the
            verdict that it writes. Not for every backend, and one vote is all that this needs.
        check_threshold: A comparison passes with a larger share of the votes (or a larger probability) for the label than this; all
            votes always pass.
        project_reference: Show the comparison to the teacher when it judges each picture alone.
        order_agreement: Drop pairs whose two projected rewards do not order the pictures as the label does.
        order_margin: By how much the preferred picture's projected reward (0...1) must be higher.
        refine_recall: Share of the request's content words that a rewritten request must still have; numbers and quoted text must
            all be there (:func:`rationalrewards.components.entities.lost_entities`). 0 checks nothing.
        control_share: Share of decided pairs whose comparison is written a second time for the *wrong* label, as a control.
        audit_share: Share of pairs whose projected critiques are read by the teacher without pictures and scores, for the agreement
            of justifications with scores.
        screen: What pictures must be.
        temperature: Sampling temperature of the teacher where it writes.
        max_tokens: Most tokens of a teacher's answer.
        seed: Seed of all sampling and of the choice of slices.

    Raises:
        ValueError: If a number is out of its range, or options contradict each other; the message names them.
    """

    hint: bool = True
    anchors: int = 1
    attempts: int = 2
    constrained: bool = False
    check_images: bool = True
    check_show: Show = "justifications"
    check_votes: int = 1
    check_orders: int = 1
    check_weigh: bool = False
    check_threshold: float = 0.5
    project_reference: bool = True
    order_agreement: bool = True
    order_margin: float = 0.0
    refine_recall: float = 0.5
    control_share: float = 0.1
    audit_share: float = 0.05
    screen: ScreenOptions = field(default_factory=ScreenOptions)
    temperature: float = 0.7
    max_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if self.check_show not in ("justifications", "scores", "all"):
            raise ValueError(f"check_show must be justifications, scores or all, got {self.check_show!r}")
        for name, least in (("anchors", 1), ("attempts", 1), ("check_votes", 0), ("max_tokens", 1), ("temperature", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.check_votes > 9:
            raise ValueError(f"check_votes must be at most 9, got {self.check_votes}")
        if self.check_orders not in (1, 2):
            raise ValueError(f"check_orders must be 1 or 2, got {self.check_orders}")
        if self.check_weigh and self.check_votes != 1:
            raise ValueError(
                f"check_weigh is exact, so that further votes say the same; set check_votes to 1, not {self.check_votes}"
            )
        for name in ("anchors", "check_votes"):
            if self.temperature == 0 and getattr(self, name) > 1:
                raise ValueError(
                    f"at temperature 0 the {name} of a pair would all be the same; set {name} to 1 or a higher temperature"
                )
        for name in ("check_threshold", "control_share", "audit_share", "refine_recall", "order_margin"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")

    def in_slice(self, name: Literal["control", "audit"], pair: str) -> bool:
        """Whether the pair with this id is in a slice of the set: a function of id and seed."""
        share = self.control_share if name == "control" else self.audit_share
        return seed_for(self.seed, name, pair) % 10**6 < share * 10**6


@dataclass(frozen=True)
class Price:
    """What a teacher's tokens cost.

    Args:
        prompt: For a million tokens of requests, pictures included.
        completion: For a million tokens of answers.
        currency: Of both.
        stated: Where and when the price was read.
    """

    prompt: float
    completion: float
    currency: str = "USD"
    stated: str = ""

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6
