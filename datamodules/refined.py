"""Refinements as data for the next round, checked against what is evaluated on.

``python -m rationalrewards.datamodules.refined REFINEMENTS --out FOLDER --against FILE…`` writes ``prompts.jsonl`` (refined requests, which
RL reads), ``sft.jsonl`` (requests, refined requests and kept pictures) and ``preferences.jsonl`` with ``critiques.jsonl`` (the kept picture
against the first, which PARROT reads). It writes nothing and leaves with status 1 if any request, as it stood or refined, or any picture is
also in a set given as ``--against``; with ``--drop`` such rows are left out. A refined request is not the words of the request that it came
from: a check that only saw what is written would miss that one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rationalrewards.components.records import Refinement, read_jsonl, write_jsonl
from rationalrewards.components.refine.export import Export, ExportOptions, export

from .leakage import Leakage, Record, leakage, read_records


def shared_with(found: Export, against: str, near: int | None = None) -> Leakage:
    """What an export shares with a set: original and refined requests, the pictures of its pairs, and their sources.

    Args:
        found: The export.
        against: A file or a public set, as :func:`.leakage.read_records` takes it.
        near: As in :func:`.leakage.leakage`.
    """
    rows: list[Record] = [*found.pairs, *found.prompts]
    return leakage(rows, read_records(against), near=near, examples=len(rows))


def without_shared(found: Export, against: str, near: int | None = None) -> Export:
    """An export without the rows that share anything with a set; see :func:`shared_with`."""
    while shared := shared_with(found, against, near):
        # each finding names one row: those that share the same picture come up in the next round
        found = found.without(first for what in shared.shared.values() for first, _ in what.examples)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is worth keeping of some refinements; returns 1 if it must not be used as it is."""
    parser = argparse.ArgumentParser("python -m rationalrewards.datamodules.refined", description=__doc__.splitlines()[0])
    parser.add_argument("refinements", type=Path, help="refinements.jsonl of a refine run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    checked = parser.add_mutually_exclusive_group(required=True)
    checked.add_argument("--against", nargs="+", help="what is evaluated on: files of pairs or requests, or public sets")
    checked.add_argument("--unchecked", action="store_true", help="write without comparing with anything")
    parser.add_argument("--drop", action="store_true", help="leave out what is shared, instead of writing nothing")
    parser.add_argument("--near", type=int, help="also find pictures that look the same but for so many of 64 bits, e.g. 4")
    parser.add_argument("--arm", default="refine_keep_best")
    parser.add_argument("--min-gain", type=float, default=0.05, help="in rewards (default: 0.05)")
    parser.add_argument("--min-kept", type=float, default=0.5, help="share of the request's words (default: 0.5)")
    parser.add_argument("--critic", default="critic", help="who criticised, for the rows' origins")
    given = parser.parse_args(arguments)
    try:
        options = ExportOptions(given.arm, given.min_gain, given.min_kept, given.critic)
        found = export(read_jsonl(given.refinements, Refinement), options)
        for against in given.against or ():
            shared = shared_with(found, against, given.near)
            print(f"{against}:\n{shared}")
            if shared and not given.drop:
                print("nothing was written; --drop leaves out what is shared")
                return 1
            found = without_shared(found, against, given.near)
    except ValueError as error:
        parser.error(str(error))
    for name, rows in (
        ("prompts", found.prompts),
        ("sft", found.examples),
        ("preferences", found.pairs),
        ("critiques", found.critiques),
    ):
        write_jsonl(given.out / f"{name}.jsonl", rows)
    left = ", ".join(f"{reason} {count}" for reason, count in found.left_out.items()) or "none"
    print(f"{given.out}: {len(found.kept)} requests; left out: {left}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
