"""What became of pairs, on file and as rationales."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..records import PairCritique, Preference, Rationale, Unscored, relative_to, to_json
from .ledger import Ledger

STAGES = ("screen", "anchor", "check", "project", "refine")


@dataclass
class Outcome:
    """What became of a pair.

    Args:
        pair: The pair.
        provenance: Who was asked and how, as :meth:`.Ledger.begin` gives it.
        stage: Last stage that it reached.
        reason: Why it fell out there, ``"kind: detail"``; empty if it was kept.
        texts: What the teacher wrote of it: ``"pair"`` and, for each picture, ``"A"`` and ``"B"``.
        comparison: The comparison that went on.
        label_probability: Share of the check's votes, or their probability, for the label.
        votes: The check's votes: which candidate was shown first (``"AB"`` or ``"BA"``), and whether the vote is for the ``"first"``,
            the ``"second"``, a ``"tie"`` or cannot be read (``None``).
        point_rewards: The projected rewards of both pictures, 0 to 1.
        sentiment: Emitted scores, and those that a blind reader takes from the justifications, of the audited slice.
        wrong_label_passed: Whether a comparison written for the wrong label passed the check; ``None`` if the pair is no control pair
            or the control got no answer.
        digest: Identity of the pair by request and pixels.
        on_file: What the ledger had of it, where nothing was asked anew.
    """

    pair: Preference
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    stage: str = "screen"
    reason: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    comparison: PairCritique | None = None
    label_probability: float | None = None
    votes: list[tuple[str, str | None]] = field(default_factory=list)
    point_rewards: tuple[float, float] | None = None
    sentiment: list[tuple[float, float]] = field(default_factory=list)
    wrong_label_passed: bool | None = None
    digest: str = ""
    on_file: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def kept(self) -> bool:
        """Whether the pair has a rationale."""
        return not self.reason

    @property
    def rationale(self) -> Rationale | None:
        """The rationale, if the pair was kept."""
        return as_rationale(self.as_json(), self.provenance) if self.kept else None

    def as_json(self) -> dict[str, Any]:
        """What the ledger keeps of it."""
        if self.on_file is not None:
            return dict(self.on_file)
        pair = to_json(self.pair)
        name = pair.pop("id")
        verdict = self.comparison.verdict() if self.comparison is not None else None
        return {
            "pair": name,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in pair.items()},
            "kept": self.kept,
            "last_stage": self.stage,
            "reason": self.reason,
            "verdict": None if isinstance(verdict, Unscored) else verdict,
            "winners": _winners(self.comparison) if self.comparison is not None else None,
            "p_label": self.label_probability,
            "votes": [list(vote) for vote in self.votes] or None,
            "point_rewards": list(self.point_rewards) if self.point_rewards is not None else None,
            "words": {key: len(text.split()) for key, text in self.texts.items()},
            "sentiment": [list(scores) for scores in self.sentiment] or None,
            "wrong_label_passed": self.wrong_label_passed,
            "digest": self.digest,
            "plan": self.provenance.get("plan", ""),
            "texts": self.texts if self.kept else None,
        }


def _winners(comparison: PairCritique) -> list[int]:
    """In how many aspects the written winner is the one with the higher written score, and of how many with all three."""
    agree = total = 0
    for judged in comparison.aspects.values():
        if isinstance(judged.score_a, float) and isinstance(judged.score_b, float) and isinstance(judged.winner, str):
            higher = "tie" if judged.score_a == judged.score_b else ("A" if judged.score_a > judged.score_b else "B")
            total += 1
            agree += judged.winner == higher
    return [agree, total]


def merged(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """The outcomes of all files of a ledger; of pairs that are alike in request and pixels only the first counts.

    Within a process duplicates never come so far; two processes cannot know of each other's.
    """
    seen: set[bytes] = set()
    for outcome in ledger.outcomes():
        if outcome["digest"] and not outcome["reason"].startswith(("duplicate", "no answer")):
            digest = bytes.fromhex(outcome["digest"])
            if digest in seen:
                outcome |= {
                    "kept": False,
                    "last_stage": "screen",
                    "reason": "duplicate: of a pair of another process",
                    "texts": None,
                }
            seen.add(digest)
        yield outcome


def write_rationales(ledger: Ledger, path: str | Path) -> int:
    """Write the rationales of all kept pairs, one :class:`.Rationale` a line, atomically; returns how many."""
    path = Path(path)
    part = path.with_suffix(".part")
    count = 0
    provenance: dict[str, dict[str, Any]] = {}
    with part.open("w", encoding="utf-8") as file:
        for outcome in merged(ledger):
            if outcome["kept"]:
                plan = outcome["plan"]
                if plan not in provenance:
                    provenance[plan] = ledger.provenance(plan)
                record = relative_to(as_rationale(outcome, provenance[plan]), path.parent)
                file.write(json.dumps(to_json(record), ensure_ascii=False) + "\n")
                count += 1
    part.replace(path)
    return count


def as_rationale(outcome: Mapping[str, Any], provenance: Mapping[str, Any]) -> Rationale:
    """The rationale of a kept pair, from its outcome as :meth:`Outcome.as_json` gives it and :meth:`.Ledger.provenance`."""
    pair = Preference(
        outcome["pair"],
        outcome["task"],
        outcome["prompt"],
        tuple(outcome["candidates"]),
        outcome["label"],
        tuple(outcome["sources"]),
        outcome["origin"],
    )
    texts = outcome["texts"]
    return Rationale(pair, texts["pair"], (texts["A"], texts["B"]), provenance["format"], provenance)
