"""Public sets in miniature (``public_sets.py``) and what is read of them: for all tests of the readers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import public_sets as sets
import pytest
from rationalrewards.components.records import Preference
from rationalrewards.datamodules.readers import PreferenceSet

PAIRS = 300
"""Pairs of each set."""

EVERY = pytest.mark.parametrize("name", [str(case) for case in sets.CASES])


@dataclass(frozen=True)
class Read:
    """A set in miniature, what was put into it, and what was read."""

    case: sets.Case
    root: Path
    gallery: sets.Gallery
    made: list[Any]
    pairs: list[Preference]


def case_set(case: sets.Case, root: Path) -> PreferenceSet:
    """The set of a case, in a folder."""
    return PreferenceSet(case.id, root=str(root), split=case.split, subset=case.subset)


def draws(gallery: sets.Gallery, better: sets.Side = "first", source: bool = False) -> sets.Choice:
    """Two new pictures of which one is better, or a tie."""
    first, second = {"first": (2, 1), "second": (1, 2), "tie": (1, 1)}[better]
    return sets.Choice("a red cube", gallery.draw(first), gallery.draw(second), better, gallery.draw(0) if source else None)


def wins(pairs: list[Preference], gallery: sets.Gallery) -> list[float]:
    """Of each pair, the probability that the picture of higher quality is preferred."""
    return [
        pair.label if gallery.of(pair.candidates[0]) >= gallery.of(pair.candidates[1]) else 1.0 - pair.label for pair in pairs
    ]
