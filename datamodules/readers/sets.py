"""Public sets by their owner-qualified ids: what can be read, and the pairs, requests and conversations in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rationalrewards.components.conversations import Conversation
from rationalrewards.components.records import Preference, PromptRecord

from ..batches import world
from . import (
    editreward,
    editreward_bench,
    editscore,
    genai_bench,
    hpdv2,
    imagerewarddb,
    mmrb2,
    pickapic,
    preferred_first,
    rapidata,
    rationalrewards,
)
from .files import HubFiles, LocalFiles
from .reading import Reading, SetFormat
from .rows import table_length

_PICKAPIC_SPLITS = ("train", "validation", "test", "validation_unique", "test_unique")
_IMAGEREWARD_SPLITS = ("train", "validation", "test")
_UPSTREAM = "licences of its three sources"

PREFERENCE_SETS: dict[str, SetFormat] = {
    format.id: format
    for format in (
        SetFormat("yuvalkirstain/pickapic_v2", "no licence stated", pickapic.read, _PICKAPIC_SPLITS),
        SetFormat(
            "ymhao/HPDv2",
            "Apache-2.0",
            hpdv2.read,
            ("train", "test"),
            subsets=("ranks", "votes"),
            by_row=False,
            no_hub=hpdv2.NO_HUB,
        ),
        SetFormat(
            "MizzenAI/HPDv3",
            "MIT",
            preferred_first.read,
            ("train", "test", "all"),
            by_row=False,
            no_hub=preferred_first.HPDV3_NO_HUB,
        ),
        SetFormat("zai-org/ImageRewardDB", "Apache-2.0", imagerewarddb.read, _IMAGEREWARD_SPLITS, by_row=False),
        SetFormat("TIGER-Lab/EditReward-Data", "CC-BY-NC", editreward.read, ("train", "test")),
        SetFormat(
            "TIGER-Lab/GenAI-Bench",
            "CC-BY-4.0",
            genai_bench.read,
            ("test_v1", "test"),
            subsets=("image_generation", "image_edition"),
            folders=True,
        ),
        SetFormat(
            "facebookresearch/MMRB2",
            "CC-BY-NC-4.0; for evaluation only",
            mmrb2.read_json,
            ("test",),
            subsets=("t2i", "edit"),
            by_row=False,
            no_hub=mmrb2.NO_HUB,
        ),
        SetFormat(
            "rl-research/multimodal-rewardbench-2",
            "CC-BY-NC-4.0; for evaluation only",
            mmrb2.read_hub,
            ("test",),
            subsets=("t2i", "edit"),
            folders=True,
        ),
        SetFormat(
            "TIGER-Lab/EditReward-Bench",
            "Apache-2.0",
            editreward_bench.read,
            ("train",),
            subsets=("2pair", "3pair", "4pair"),
            folders=True,
            by_row=False,
        ),
        SetFormat("EditScore/EditReward-Bench", "Apache-2.0", editscore.read, ("train",), editscore.DIMENSIONS, by_row=False),
        SetFormat(
            "TIGER-Lab/RationalRewards-EvalData-GenAIBench-MMRB2-ERBench",
            _UPSTREAM,
            rationalrewards.read,
            ("test",),
            subsets=rationalrewards.EVALUATION,
            by_row=False,
        ),
    )
}
"""What :class:`PreferenceSet` reads, beside the sets of Rapidata."""

PROMPT_SETS: dict[str, SetFormat] = {
    format.id: format
    for format in (
        SetFormat(
            "TIGER-Lab/RationalRewards_DiffusionNFT_TrainData",
            "MIT",
            rationalrewards.read_requests,
            ("train", "test"),
            subsets=("edit", "t2i"),
            by_row=False,
        ),
    )
}
"""What :class:`PromptSet` reads."""

CONVERSATION_SETS: dict[str, SetFormat] = {
    format.id: format
    for format in (
        SetFormat(
            "TIGER-Lab/RationalRewards-SFTData",
            "MIT",
            rationalrewards.read_rationales,
            ("train",),
            subsets=rationalrewards.RATIONALES,
        ),
    )
}
"""What :class:`ConversationSet` reads."""

_RAPIDATA = SetFormat(
    f"{rapidata.OWNER}/*", "see its card", rapidata.read, ("train",), subsets=("preference", "coherence", "alignment")
)
_RATINGS = "holds ratings of single pictures and no pairs"
_OTHERS = {
    "BaiqiL/GenAI-Bench": f"{_RATINGS}; the set of pairs with that name is TIGER-Lab/GenAI-Bench",
    "THUDM/ImageRewardDB": "has moved to zai-org/ImageRewardDB",
}

_reported: set[Any] = set()
"""What this process has said was left out of which set."""


@dataclass(frozen=True)
class _PublicSet(ABC):
    id: str
    root: str | None = None
    split: str | None = None
    subset: str | None = None
    revision: str | None = None

    @property
    @abstractmethod
    def format(self) -> SetFormat:
        """What is known of the set."""

    def __post_init__(self) -> None:
        format = self.format
        _one_of(self.id, "split", self.split, format.splits)
        _one_of(self.id, "subset", self.subset, format.subsets)
        if (self.root is None) == (self.revision is None):
            raise ValueError(
                f"{self.id}: give either root (a folder that holds the files) or revision (a commit, to read from the hub)"
                + ("" if self.root is None else ", not both")
            )
        if self.revision is not None:
            if format.no_hub:
                raise ValueError(f"{self.id} cannot be read from the hub: {format.no_hub}")
            HubFiles(self.id, self.revision)  # which knows what a pinned revision is

    def _reading(self) -> Reading:
        split, subset = self.split or self.format.splits[0], self.subset or self.format.subsets[0]
        if self.root is not None:
            root = Path(self.root).expanduser()
            return Reading(self.format, LocalFiles(root), root, split, subset, "local")
        revision = str(self.revision)
        return Reading(self.format, HubFiles(self.id, revision), None, split, subset, revision[:7])

    def _stream(self, report: bool) -> Iterator[Any]:
        reading = self._reading()
        yield from self.format.read(reading)
        # only who has read to the end knows, and many may read the same rows, some of them often
        said = (self, tuple(sorted(reading.left_out.items())))
        if report and world()[0] == 0 and said not in _reported:
            _reported.add(said)
            reading.report()

    def count(self) -> int | None:
        """Rows, from the files' own metadata, and so records at most; ``None`` where that is unknown without reading or downloading."""
        if self.root is None or not self.format.by_row:
            return None
        reading = self._reading()
        tables = reading.tables(required=False)
        return sum(table_length(reading.files.path(name)) for name in tables) if tables else None


@dataclass(frozen=True)
class PreferenceSet(_PublicSet):
    """A public set of preference pairs.

    Args:
        id: Owner and name, e.g. ``MizzenAI/HPDv3``. See ``docs/data.md`` for all.
        root: Folder that holds the set's files, as downloaded (and unpacked where they are gzipped).
        split: The set's first split by default.
        subset: The set's first subset by default, if it has subsets.
        revision: Commit on the hub, instead of ``root``: files are downloaded as they come up.

    Raises:
        ValueError: If the id, split or subset is unknown or ambiguous, or not exactly one of root and a pinned revision is given.
    """

    @property
    def format(self) -> SetFormat:
        """What is known of the set."""
        return _find(self.id, "PreferenceSet")

    def read(self, report: bool = True) -> Iterator[Preference]:
        """Stream the pairs; what cannot be used is left out, and told once with counts and reasons when all have been read.

        Args:
            report: Whether to tell it. The first process does, and what was told is not told again; a worker process cannot know whose
                worker it is.

        Raises:
            ValueError: If a file is missing, or not in the set's schema; the message names file, row and column.
        """
        yield from self._stream(report)


@dataclass(frozen=True)
class PromptSet(_PublicSet):
    """A public set of requests to generate from; arguments and errors as of :class:`PreferenceSet`."""

    @property
    def format(self) -> SetFormat:
        """What is known of the set."""
        return _find(self.id, "PromptSet")

    def read(self, report: bool = True) -> Iterator[PromptRecord]:
        """Stream the requests, as :meth:`PreferenceSet.read` does pairs."""
        yield from self._stream(report)


@dataclass(frozen=True)
class ConversationSet(_PublicSet):
    """A public set of conversations to learn judging from; arguments and errors as of :class:`PreferenceSet`."""

    @property
    def format(self) -> SetFormat:
        """What is known of the set."""
        return _find(self.id, "ConversationSet")

    def read(self, report: bool = True) -> Iterator[Conversation]:
        """Stream the conversations, as :meth:`PreferenceSet.read` does pairs. Their pictures are found, and not opened."""
        yield from self._stream(report)


def is_named_like(path: str, sets: Iterable[str]) -> bool:
    """Whether a path that leads nowhere is the name of a public set, with its owner or without."""
    names = {name.casefold() for id in sets for name in (id, id.partition("/")[2])}
    return path.casefold() in names and not Path(path).exists()


_KINDS: dict[str, tuple[str, dict[str, SetFormat]]] = {
    "PreferenceSet": ("pairs", PREFERENCE_SETS),
    "PromptSet": ("requests", PROMPT_SETS),
    "ConversationSet": ("conversations", CONVERSATION_SETS),
}
"""Classes that read sets, what is in them, and the sets."""


def _find(id: str, kind: str) -> SetFormat:
    """The format of a set by its full id."""
    wanted, known = _KINDS[kind]
    owner, _, name = id.partition("/")
    for reader, (holds, sets) in _KINDS.items():
        rapidatas = sets is PREFERENCE_SETS and owner == rapidata.OWNER and name
        if id in sets or rapidatas:
            if reader != kind:
                raise ValueError(f"{id} holds {holds} and no {wanted}: read it with {reader}")
            return replace(_RAPIDATA, id=id) if rapidatas else sets[id]
    if id in _OTHERS:
        raise ValueError(f"{id} {_OTHERS[id]}")
    everything = [*(other for _, sets in _KINDS.values() for other in sets), *_OTHERS]
    meant = [other for other in everything if id.casefold() in (other.casefold(), other.partition("/")[2].casefold())]
    if len(meant) > 1:
        raise ValueError(f"{id!r} may be {' or '.join(meant)}, which are different sets: give the id with its owner")
    if meant:
        raise ValueError(f"{id!r} is no full id; did you mean {meant[0]!r}?")
    votes = f", {rapidata.OWNER}/<any set of votes on pairs>" if known is PREFERENCE_SETS else ""
    raise ValueError(f"no reader for {id!r}; known sets: {', '.join(known)}{votes}")


def _one_of(id: str, what: str, value: str | None, legal: Iterable[str]) -> None:
    names = [name for name in legal if name]
    if value is not None and value not in names:
        raise ValueError(f"{id}: no {what} {value!r}; " + (f"it has: {', '.join(names)}" if names else f"it has no {what}s"))
