"""Splits in which no request and no source picture is on two sides, decided row by row."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from rationalrewards.components.records import Preference, PromptRecord, group_id
from rationalrewards.components.seeds import seed_for

PARTS = ("train", "val", "test")


def normalised(prompt: str) -> str:
    """A prompt without what makes no other request of it: case, kind and number of spaces, compatible forms of letters, a last stop."""
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split()).rstrip(".").rstrip()


@dataclass(frozen=True)
class Fold:
    """One part of a set, so that what belongs together is in one part only, whichever files and sets it stands in.

    A pair's part is a function of its key and the seed: the key's hash, as a number in [0, 1), falls into the parts' shares, laid out
    in the order train, val, test. Nothing is counted or kept in memory, so a part's size meets its share up to chance. Pairs whose
    source pictures cannot be read go by their prompt: whatever reads the pictures later will say so.

    Args:
        part: The part to take.
        shares: Shares of the key's values for train, val and test; they add up to 1.
        by: ``"group"``: the key is the request (see :func:`normalised`) with the RGB pixels of its source pictures; equal
            instructions on different sources may part. ``"sources"``: the pixels of the source pictures alone, in their order, so
            that no set of sources is in two parts; a request without sources goes by its text.
        seed: Another seed is another split.

    Raises:
        ValueError: If the part is unknown or empty, or the shares do not add up to 1.
    """

    part: Literal["train", "val", "test"]
    shares: tuple[float, float, float] = (0.9, 0.05, 0.05)
    by: Literal["group", "sources"] = "group"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.part not in PARTS or self.by not in ("group", "sources"):
            raise ValueError(
                f"fold: part must be one of {', '.join(PARTS)} and by group or sources, got {self.part!r} and {self.by!r}"
            )
        if len(self.shares) != len(PARTS) or min(self.shares) < 0 or not math.isclose(sum(self.shares), 1.0):
            raise ValueError(f"fold: shares are those of {', '.join(PARTS)} and add up to 1, got {self.shares}")
        if self.shares[PARTS.index(self.part)] == 0:
            raise ValueError(f"fold: the share of {self.part} is 0, so there is nothing in it")

    def holds(self, record: Preference | PromptRecord) -> bool:
        """Whether a pair or request is in this part; reads its source pictures."""
        request = "" if record.sources and self.by == "sources" else normalised(record.prompt)
        try:
            key = group_id(request, record.sources)
        except ValueError:
            key = group_id(normalised(record.prompt), ())
        place = seed_for(self.seed, "fold", key) / 2**63
        index = PARTS.index(self.part)
        ends = [0.0, *accumulate(self.shares)]
        return ends[index] <= place and (place < ends[index + 1] or not any(self.shares[index + 1 :]))
