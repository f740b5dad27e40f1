"""Which arms there are, why one stops, and how refinement searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Arm = Literal[
    "base",
    "best_of_n",
    "blind_rewrite",
    "blind_rewrite_best_of_n",
    "refine_always_accept",
    "refine_keep_best",
    "refine_from_best_of_k",
    "refine_scores_only",
    "refine_shuffled",
    "oracle",
]
ARMS: tuple[Arm, ...] = get_args(Arm)
UNWRITTEN: tuple[Arm, ...] = ("base", "best_of_n", "oracle")
"""Arms that rewrite no request, and so need no critic but only something that picks."""

Stop = Literal["accepted", "images", "tokens", "rounds", "no rewrite", "no gain", "failures"]
STOPS: tuple[Stop, ...] = get_args(Stop)
"""Why an arm made no further picture: one was accepted; the budget in pictures or in critic tokens was spent; there were as many rounds as
asked for; no rewrite led to a picture that is not there already; nothing better came for ``patience`` rounds; nothing could be made or
scored for ``max_failures`` rounds."""


@dataclass(frozen=True)
class RefineOptions:
    """How refinement works.

    Args:
        images_per_prompt: Pictures that an arm may make for a request, the first one included.
        threshold: A picture is accepted once every applicable aspect scores at least this, in points of the critic's scale; ``None``
            is two thirds of the way up, as the paper's 3 of 1 to 4.
        seed: Seed of the noise.
        blank: Red, green and blue (0 to 255) of the blank picture that a rewriter is shown which may not see the real one.
        tokens_per_prompt: Tokens that the critic may read and write for a request; no round begins once they are spent. ``None`` has no
            limit. Every arm is charged as if it had run alone, also for what arms share.
        rounds: Rounds of rewriting at most; ``None`` goes on until the pictures are spent.
        breadth: Pictures of a round, which all come from one critique's picture.
        vary: How these differ, the first always being the critic's own rewrite: in the ``rewrite`` (written anew from the same
            critique), in the ``critique`` (asked anew of the same picture), or only in their noise (``seed``).
        seeds: ``changed`` gives every picture other noise, so that a rewrite is also a new draw; ``kept`` begins from the noise of the
            picture that was criticised, as the paper's loop does, so that only the words change.
        parent: Whose critique is rewritten from: the ``latest`` round's best picture, or the ``best`` so far.
        best_of: Pictures of the original request that ``refine_from_best_of_k`` begins with.
        temperature: Sampling temperature of all but the first rewrite or critique of a picture.
        patience: Stop after so many rounds that brought no better picture; ``None`` never does.
        min_gain: How much better a picture must be to count as better for ``patience``, in rewards.
        max_failures: Stop after so many rounds in a row in which no picture could be made and scored.
        pictures_per_call: Pictures of one call of the generator; ``None`` is as many as a batch has requests.

    Raises:
        ValueError: If a number is out of range, or nothing would vary.
    """

    images_per_prompt: int = 4
    threshold: float | None = None
    seed: int = 0
    blank: tuple[int, int, int] = (128, 128, 128)
    tokens_per_prompt: int | None = None
    rounds: int | None = None
    breadth: int = 1
    vary: Literal["rewrite", "critique", "seed"] = "rewrite"
    seeds: Literal["changed", "kept"] = "changed"
    parent: Literal["latest", "best"] = "latest"
    best_of: int = 2
    temperature: float = 0.8
    patience: int | None = None
    min_gain: float = 0.0
    max_failures: int = 3
    pictures_per_call: int | None = None

    def __post_init__(self) -> None:
        for name in ("images_per_prompt", "breadth", "best_of", "max_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tokens_per_prompt", "patience", "pictures_per_call"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or null for none, got {value}")
        if self.rounds is not None and self.rounds < 0:
            raise ValueError(f"rounds must be at least 0, or null for no limit, got {self.rounds}")
        if self.vary == "seed" and self.seeds == "kept" and self.breadth > 1:
            raise ValueError(
                "vary: seed and seeds: kept leave nothing that differs within a round; set breadth: 1, or change one of them"
            )
