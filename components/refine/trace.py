"""What an arm made of a request, and which picture it chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..pictures import open_picture
from ..records import Critique, PromptRecord, Unscored
from .options import Arm


@dataclass(frozen=True)
class Made:
    """A picture and its critique on the original request, and what other reward models than the critic say of it.

    Args:
        round: 0 for what was made before any critique was there.
        request: What it was made for.
        picture: The picture, its path in the folder where it is kept, or why it could not be made.
        critique: The critic's, always for the original request.
        judged: The score of a reward model that picks instead of the critic; ``None`` if there is none.
        held_out: The score of a judge that has no part in the loop; ``None`` if there is none.
        copy: Which noise of the request's it began from.
        parent: Number of the picture whose critique led to its request.
        tokens: Tokens that the critic read and wrote for its request and for its critique.
    """

    round: int
    request: str
    picture: Image.Image | Path | Unscored
    critique: Critique
    judged: float | Unscored | None = None
    held_out: float | Unscored | None = None
    copy: int = 0
    parent: int | None = None
    tokens: int = 0

    @property
    def image(self) -> Image.Image:
        """The picture itself.

        Raises:
            ValueError: If it could not be made.
        """
        if isinstance(self.picture, Unscored):
            raise ValueError(f"there is no picture: {self.picture.reason}")
        return self.picture if isinstance(self.picture, Image.Image) else open_picture(self.picture)

    @property
    def score(self) -> float | Unscored:
        """What picks: the other reward model's score where there is one, else the critique's reward in [0, 1]."""
        if isinstance(self.picture, Unscored):
            return self.picture
        return self.critique.reward() if self.judged is None else self.judged

    @property
    def reward(self) -> float | None:
        """The score; ``None`` if unscored."""
        return _number(self.score)


def _number(score: float | Unscored | None) -> float | None:
    return None if isinstance(score, Unscored) else score


@dataclass(eq=False)
class Trace:
    """The way of one request through one arm.

    Args:
        record: The request.
        arm: The arm.
        made: The pictures, in order.
        chosen: Number of the one that was chosen.
        stop: Why no further picture was made, one of :data:`~.options.STOPS`.
        lost_tokens: Tokens of rewrites that led to no picture.
    """

    record: PromptRecord
    arm: Arm
    made: list[Made] = field(default_factory=list)
    chosen: int = 0
    stop: str = ""
    lost_tokens: int = 0

    @property
    def best(self) -> Made:
        """The chosen picture with all that is known of it."""
        return self.made[self.chosen]

    @property
    def image(self) -> Image.Image:
        """The chosen picture; raises :class:`ValueError` if none could be made."""
        return self.best.image

    @property
    def request(self) -> str:
        """The request that the chosen picture was made for."""
        return self.best.request

    @property
    def gain(self) -> float | None:
        """How much better the chosen picture scores than the first; ``None`` where one of them is unscored."""
        first, last = self.made[0].reward, self.best.reward
        return None if first is None or last is None else last - first

    @property
    def tokens(self) -> int:
        """Tokens that the critic read and wrote for this arm."""
        return sum(made.tokens for made in self.made) + self.lost_tokens


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
    """Number of the picture with the highest score, the first of equals.

    If none is scored, the first that could be made; 0 if none could.
    """
    return best_number([one.reward for one in made], [not isinstance(one.picture, Unscored) for one in made])


def best_number(scores: Sequence[float | None], there: Sequence[bool]) -> int:
    """:func:`best` of scores, ``None`` where there is none, and of which pictures could be made."""
    scored = [(score, -index) for index, score in enumerate(scores) if score is not None]
    return -max(scored)[1] if scored else next((index for index, one in enumerate(there) if one), 0)
