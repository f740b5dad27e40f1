"""Whether two sets share pictures or requests, so that what was trained on one would be judged too well on the other.

``python -m rationalrewards.datamodules.leakage A B`` compares two files or public sets and leaves with status 1 if they share anything.

Pictures are the same if their RGB pixels are (:func:`rationalrewards.components.pictures.picture_digest`), in whatever file, archive or
lossless encoding: a JPEG of a PNG, or a resized copy, has other pixels. ``near`` finds such copies too, by a hash of what is left of a
picture at 9 by 8 grey pixels; it may take two pictures for one where little is left of either, as of a small thing on a plain ground.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
import yaml
from PIL import Image
from rationalrewards.components.pictures import open_picture, pixel_digest
from rationalrewards.components.records import Preference, PromptRecord, Rationale, read_jsonl
from tqdm import tqdm

from .readers import PROMPT_SETS, PreferenceSet, PromptSet, iter_preferences, read_prompts
from .splits import normalised

Record = Preference | PromptRecord
KINDS = ("prompts", "candidates", "sources")


@dataclass
class Shared:
    """What two sets share of one kind.

    Args:
        what: What is the same.
        keys: Digests of the different ones.
        rows: Rows of the second set with at least one of them.
        examples: Ids of a row in the first set and of one in the second.
    """

    what: str
    keys: set[bytes] = field(default_factory=set)
    rows: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Leakage:
    """What two sets share; falsy if nothing.

    Args:
        shared: By kind: ``prompts``, ``candidates`` and ``sources``; ``roles`` for pictures that are a candidate in one set and a source
            in the other; ``near`` for pictures that only look the same.
        rows: Rows of the first and of the second set.
        unreadable: Pictures that could not be read, and so were not compared.
    """

    shared: dict[str, Shared]
    rows: tuple[int, int] = (0, 0)
    unreadable: int = 0

    def __bool__(self) -> bool:
        return any(found.keys for found in self.shared.values())

    def __str__(self) -> str:
        lines = [f"{self.rows[0]} rows against {self.rows[1]}"]
        for found in self.shared.values():
            lines.append(f"{found.what}: {f'{len(found.keys)}, in {found.rows} rows' if found.keys else 'none'}")
            lines += [f"    {first}  =  {second}" for first, second in found.examples]
        if self.unreadable:
            lines.append(f"{self.unreadable} pictures cannot be read and were not compared")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Item:
    """A request or picture of a row: its digest (``None`` for a picture that cannot be read), and how it looks, if asked for."""

    kind: str
    key: bytes | None
    look: int | None = None


def leakage(
    first: Iterable[Record], second: Iterable[Record], kinds: Collection[str] = KINDS, near: int | None = None, examples: int = 5
) -> Leakage:
    """Compare two sets.

    Args:
        first: The smaller set, of which a digest of 16 bytes and the id of a row are kept for each picture and request.
        second: The other one, of which only what is shared is kept.
        kinds: What to compare, of ``prompts`` (see :func:`~rationalrewards.datamodules.splits.normalised`), ``candidates`` and
            ``sources``. Without pictures none is read.
        near: Also find pictures whose :func:`difference_hash` differs in at most so many of its 64 bits.
        examples: How many pairs of rows to name for each kind.

    Raises:
        ValueError: If a kind is unknown.
    """
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"unknown kind {unknown[0]!r}; known: {', '.join(KINDS)}")
    shared = {kind: Shared(f"shared {kind}") for kind in KINDS if kind in kinds}
    if {"candidates", "sources"} <= shared.keys():
        shared["roles"] = Shared("pictures that are a candidate here and a source there")
    if near is not None:
        shared["near"] = Shared(f"pictures that look the same (but for at most {near} of 64 bits)")
    known: dict[str, dict[bytes, str]] = {kind: {} for kind in KINDS}
    looks: dict[int, str] = {}
    rows, unreadable = [0, 0], 0
    for record in first:
        rows[0] += 1
        for item in _items(record, kinds, near is not None):
            if item.key is None:
                unreadable += 1
                continue
            known[item.kind].setdefault(item.key, record.id)
            if item.look is not None:
                looks.setdefault(item.look, record.id)
    field_of_looks = np.fromiter(looks, np.uint64, len(looks))

    def found(item: _Item) -> tuple[str, str] | None:
        """The kind of what is shared, and the id in the first set."""
        assert item.key is not None
        for kind, place in (
            (item.kind, item.kind),
            ("roles", {"candidates": "sources", "sources": "candidates"}.get(item.kind, "")),
        ):
            if kind in shared and (id := known.get(place, {}).get(item.key)) is not None:
                return kind, id
        if near is not None and item.look is not None and looks:
            distances = np.bitwise_count(field_of_looks ^ np.uint64(item.look))
            closest = int(distances.argmin())
            if distances[closest] <= near:
                return "near", looks[int(field_of_looks[closest])]
        return None

    for record in second:
        rows[1] += 1
        touched = set()
        for item in _items(record, kinds, near is not None):
            if item.key is None:
                unreadable += 1
            elif (hit := found(item)) is not None:
                kind, id = hit
                if item.key not in shared[kind].keys and len(shared[kind].examples) < examples:
                    shared[kind].examples.append((id, record.id))
                shared[kind].keys.add(item.key)
                touched.add(kind)
        for kind in touched:
            shared[kind].rows += 1
    return Leakage(shared, (rows[0], rows[1]), unreadable)


def _items(record: Record, kinds: Collection[str], look: bool) -> Iterator[_Item]:
    if "prompts" in kinds:
        yield _Item("prompts", hashlib.sha256(normalised(record.prompt).encode()).digest()[:16])
    candidates = record.candidates if isinstance(record, Preference) else ()
    for kind, names in (("candidates", candidates), ("sources", record.sources)):
        for name in names if kind in kinds else ():
            try:
                image = open_picture(name)
            except ValueError:
                yield _Item(kind, None)
            else:
                yield _Item(kind, bytes.fromhex(pixel_digest(image))[:16], difference_hash(image) if look else None)


def difference_hash(image: Image.Image) -> int:
    """64 bits of how a picture looks: whether each of 9 by 8 grey pixels is darker than the one to its right (a "dHash").

    Of 14 photographs and paintings, a JPEG of quality 60 differed from the original in at most 2 bits, a copy of half the width and
    height in 4, one that lost a fiftieth on two sides in 7, and another picture in 31 (median); an edit may differ from its source
    in few.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes(), "big")


def read_records(source: str) -> Iterator[Record]:
    """Records of a file of pairs, requests or rationales, or of a public set.

    Args:
        source: The file, or the set as a config writes it: ``{id: yuvalkirstain/pickapic_v2, root: /data/pickapic, split: test}``.

    Raises:
        ValueError: If it cannot be read, or is neither.
    """
    if source.lstrip().startswith("{"):
        try:
            fields: dict[str, Any] = yaml.safe_load(source)
            kind = PromptSet if fields.get("id") in PROMPT_SETS else PreferenceSet
            return kind(**fields).read()
        except (yaml.YAMLError, TypeError) as error:
            raise ValueError(f"{source} is no set ({error}); write it like {{id: owner/name, root: FOLDER}}") from error
    first_error = None
    for read in (iter_preferences, read_prompts, _rationalized):
        try:
            records: Iterator[Record] = iter(read(source))
            return chain(list(islice(records, 1)), records)  # the first row tells whether it is such a file
        except ValueError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _rationalized(source: str) -> list[Preference]:
    return [rationale.pair for rationale in read_jsonl(source, Rationale)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two sets, print what they share, and return 1 if they share anything, else 0."""
    parser = argparse.ArgumentParser("python -m rationalrewards.datamodules.leakage", description=__doc__.splitlines()[0])
    form = "file of pairs, requests or rationales, or a public set as a config writes it: '{id: owner/name, root: FOLDER}'"
    parser.add_argument("first", help=f"the smaller set, which is kept in memory: {form}")
    parser.add_argument("second", help="the other set, likewise")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what to compare (default: all)")
    parser.add_argument("--near", type=int, help="also find pictures that look the same but for so many of 64 bits, e.g. 4")
    parser.add_argument("--examples", type=int, default=5, help="pairs of rows to name for each kind (default: 5)")
    given = parser.parse_args(arguments)
    try:
        first, second = (tqdm(read_records(side), disable=None, unit=" rows") for side in (given.first, given.second))
        result = leakage(first, second, given.kinds, given.near, given.examples)
    except ValueError as error:
        parser.error(str(error))
    print(result)
    return int(bool(result))


if __name__ == "__main__":
    sys.exit(main())
