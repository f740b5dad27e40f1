"""Protocols on the command line: ``python -m rationalrewards.components.protocols list|score|compare|published``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .comparison import Comparison, compare
from .judgements import one_mode, read_judgements
from .named import PROTOCOLS, Protocol, find_protocol
from .published import published_table
from .results import Result, evaluate, markdown, result_from_json
from .ties import Ties, fit_ties


def read_results(path: str | Path) -> list[Result]:
    """The result rows of an ``evaluation.json``.

    Raises:
        ValueError: If the file is missing or holds none.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give an evaluation.json of a run with a protocol")
    try:
        rows = json.loads(path.read_text(encoding="utf-8")).get("results")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{path}: no evaluation.json ({error})") from error
    if not rows:
        raise ValueError(f"{path} holds no result rows; evaluate with model.init_args.protocol")
    try:
        return [result_from_json(row) for row in rows]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _ties(rule: Protocol, judged: str, fitted_on: str | None) -> Ties | None:
    if fitted_on is None:
        return None
    other, mode = read_judgements(fitted_on), one_mode(read_judgements(judged))
    if one_mode(other) != mode:
        raise ValueError(
            f"{fitted_on} holds {one_mode(other)} judgements and {judged} {mode} ones; a threshold holds for one way only"
        )
    return fit_ties(other, fitted_on, half_credit=rule.ties == "half")


def _list() -> str:
    lines = []
    for rule in PROTOCOLS.values():
        rows = "; ".join(f"{name} {' or '.join(rows)}" for name, rows in rule.sets.items()) or "any pairs"
        lines.append(f"{rule.name}\n    {rule.rule}\n    rows: {rows}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, print what it found, and return 0."""
    parser = argparse.ArgumentParser(
        "python -m rationalrewards.components.protocols", description="Count judgements by named protocols."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all protocols and what they count")
    score = commands.add_parser("score", help="count a file of judgements by a protocol")
    score.add_argument("judgements", help="judgements.jsonl of `rationalrewards test`")
    pair = commands.add_parser("compare", help="compare two judges on the same rows")
    pair.add_argument("first", help="judgements.jsonl of the first judge")
    pair.add_argument("second", help="judgements.jsonl of the second judge")
    for command, count in ((score, 1), (pair, 2)):
        command.add_argument("--protocol", required=True, help="full name of the protocol; see `list`")
        command.add_argument(
            "--fit-ties-on",
            nargs=count,
            metavar="FILE",
            default=[None] * count,
            help="judgements of other rows by the same judge, to fit the tie threshold on (default: a tie is exact equality)",
        )
        command.add_argument("--json", action="store_true", help="print JSON instead of text")
    table = commands.add_parser("published", help="the numbers of arXiv 2604.11626, Table 1, marked with their protocols")
    table.add_argument("results", nargs="*", help="evaluation.json files to stand beside them")
    given = parser.parse_args(arguments)
    try:
        print(_answer(given), end="")
    except ValueError as error:
        parser.error(str(error))
    return 0


def _answer(given: argparse.Namespace) -> str:
    if given.command == "list":
        return _list()
    if given.command == "published":
        return published_table([row for path in given.results for row in read_results(path)])
    rule = find_protocol(given.protocol)
    found: Result | Comparison
    if given.command == "score":
        found = evaluate(rule, read_judgements(given.judgements), ties=_ties(rule, given.judgements, given.fit_ties_on[0]))
        text = markdown([found])
    else:
        first, second = read_judgements(given.first), read_judgements(given.second)
        fitted = _ties(rule, given.first, given.fit_ties_on[0]), _ties(rule, given.second, given.fit_ties_on[1])
        found = compare(rule, first, second, fitted)
        text = found.text(given.first, given.second) + "\n"
    return json.dumps(dataclasses.asdict(found), indent=2) + "\n" if given.json else text


if __name__ == "__main__":
    sys.exit(main())
