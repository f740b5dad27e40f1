"""PARROT on a Ray cluster: a recipe of ``rationalrewards predict``, with the actors of a Ray Data pipeline in place of a Trainer.

    pip install 'rationalrewards[ray]'
    python examples/ray_parrot.py -c configs/rationalize/qwen3vl_32b_server.yaml --out outputs/rationalize --actors 8

On one machine this starts a local Ray. On a cluster (``ray start --head`` on one machine, ``ray start --address=HEAD:6379`` on the
others) add ``--address auto`` and run it on any of them. Of the recipe ``model`` and ``data`` are used: which teacher, format, options
and price, and which pairs in batches of which size. Where it reads the environment (a teacher's URL), this process' counts; keys are
read where the actors run, so set them before ``ray start``.

All machines need this package, the pictures under the same paths, and ``--out`` on a file system that they share and that locks files
across machines (NFS does). This process reads the pairs, half a kilobyte each, and hands them out; it opens no picture. Each actor
takes batches through all stages, and keeps a ledger of its own in ``--out``, which it alone writes and all read. So a lost machine, a
restarted actor or a second start of this program asks nothing again that was answered. While it runs it has the folder for itself: a
second one, or ``predict``, is refused there.

Which actor runs where, restarts and retries are Ray's business. What this leaves behind is what ``predict`` leaves behind, and either
can go on with what the other began: ``ledger*.db``, ``rationales.jsonl`` and ``summary.json``. Teachers behind servers are shared by
all actors, each with its own ``concurrency``; with ``--gpus-per-actor 1`` a teacher in the actor's own process has a GPU to itself.

First it says what all pairs will take: calls and pictures, and tokens, hours and cost at the rate of what is on file in ``--out`` from
an earlier start or, without that, of ``--trial`` pairs that one actor takes through the stages before the others start.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from jsonargparse import auto_cli
from omegaconf import OmegaConf
from rationalrewards.components.parrot import FileInUseError, Ledger, RunLock, merged, read_ledgers, write_rationales
from rationalrewards.components.parrot.audit import summarise
from rationalrewards.components.parrot.estimate import Forecast, Plan, planned_calls, total_of, usage_of
from rationalrewards.components.records import Preference, from_json, to_json
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.lightning_modules import RationalizeModule


def sections(recipe: str) -> dict[str, Any]:
    """The sections ``model`` and ``data`` of a recipe, with the values of this process' environment filled in."""
    whole: Any = OmegaConf.load(recipe)
    return {name: OmegaConf.to_container(whole[name], resolve=True) for name in ("model", "data")}


def build_module(section: dict[str, Any]) -> RationalizeModule:
    """The module of a recipe; its teacher is not loaded yet."""

    def given(model: RationalizeModule) -> RationalizeModule:
        return model

    module: RationalizeModule = auto_cli(given, as_positional=False, args=[f"--model={json.dumps(section)}"])
    module.setup("predict")  # refuses a format that teacher and student cannot share
    return module


def build_data(section: dict[str, Any]) -> PreferenceDataModule:
    """The pairs of a recipe; all files were looked through."""

    def given(data: PreferenceDataModule) -> PreferenceDataModule:
        return data

    data: PreferenceDataModule = auto_cli(given, as_positional=False, args=[f"--data={json.dumps(section)}"])
    data.setup("predict")
    return data


def rows(data: PreferenceDataModule) -> Iterator[dict[str, str]]:
    """The pairs as rows of the pipeline: as JSON, with paths that hold from any folder."""
    for pair in data.pairs:
        first, second = map(os.path.abspath, pair.candidates)
        whole = replace(pair, candidates=(first, second), sources=tuple(map(os.path.abspath, pair.sources)))
        yield {"pair": json.dumps(to_json(whole))}


class Rationalizer:
    """An actor: takes batches of pairs through all stages, with a teacher and a ledger of its own.

    Args:
        model: A recipe's ``model`` section.
        folder: Where the ledgers are.
        run: What all actors of this run have in common, and no other run has.
        device: Where a teacher in this process runs.
    """

    def __init__(self, model: dict[str, Any], folder: str, run: str, device: str | None = None) -> None:
        self.module = build_module(model)
        self.module.teacher.load(device)
        self.folder = Path(folder)
        self.run = run
        self.ledger: Ledger | None = None
        self.known: set[Path] = set()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """The outcomes of a batch, as JSON."""
        pairs = [from_json(Preference, json.loads(row)) for row in batch["pair"]]
        # not in __init__: Ray calls this in another thread, and SQLite stays in one. Again when there are more ledgers: the batch of
        # an actor that is gone may come here, and with it what that one was answered.
        there = {path for path in self.folder.glob("ledger*.db") if path.stat().st_size}
        if self.ledger is None or there != self.known:
            if self.ledger is not None:
                self.ledger.close()
            self.ledger = self.module.ledger = open_ledger(self.folder, self.run)
            self.known = there | {path for path in (self.ledger.path,) if path is not None}
        return {"outcome": [json.dumps(outcome.as_json()) for outcome in self.module.predict_step(pairs, 0)]}


def open_ledger(folder: Path, run: str) -> Ledger:
    """The first of ``ledger.ray0.db``, ``ledger.ray1.db`` and so on that no other actor writes to; it reads all others of the folder.

    An actor that died over a batch gets the same batch when Ray has restarted it, and so finds what it was answered before.

    Raises:
        FolderInUseError: If another run has the folder.
    """
    for number in count():
        path = folder / f"ledger.ray{number}.db"
        try:
            return Ledger(path, [other for other in sorted(folder.glob("ledger*.db")) if other != path], run)
        except FileInUseError:  # by another actor
            continue
    raise AssertionError("unreachable: there is always a further number")


def forecast(module: RationalizeModule, plan: Plan, folder: Path, actors: int) -> str | None:
    """What all pairs will take, at the rate of what is on file under the recipe's plan; ``None`` if nothing is."""
    with Ledger() as empty:
        name = empty.begin(module.teacher, module.format.fingerprint, module.options)["plan"]
    if not list(folder.glob("ledger*.db")):
        return None
    with read_ledgers(folder) as ledgers:
        calls = ledgers.latest(name)
    usage = usage_of(calls)
    if not calls or total_of(usage, "failures") == len(calls):
        return None
    currency = module.price.currency if module.price is not None else ""
    return str(Forecast(plan, usage, len({call["pair"] for call in calls}), actors, currency))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Take all pairs through the stages; returns the summary."""
    recipe = sections(args.config)
    module = build_module(recipe["model"])  # what is wrong with it is to be known before anything starts
    data = build_data(recipe["data"])
    pairs = list(rows(data))
    plan = planned_calls((from_json(Preference, json.loads(row["pair"])) for row in pairs), module.options)
    print(plan, flush=True)
    folder = Path(args.out).absolute()
    with RunLock(folder) as lock:  # refuses a second run before anything starts; the actors join this one

        def measured() -> str | None:
            return forecast(module, plan, folder, args.actors)

        take(args, recipe["model"], data, pairs, folder, lock.run, measured)
        with read_ledgers(folder) as ledgers:
            write_rationales(ledgers, folder / "rationales.jsonl")
            summary = summarise(merged(ledgers))
        (folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    return summary


def take(
    args: argparse.Namespace,
    model: dict[str, Any],
    data: PreferenceDataModule,
    pairs: list[dict[str, str]],
    folder: Path,
    run: str,
    measured: Callable[[], str | None],
) -> None:
    """Have Ray's actors take all pairs through the stages, and say what that takes and how far they are."""
    ray.init(address=args.address)

    def outcomes(given: list[dict[str, str]], actors: int) -> Iterator[dict[str, Any]]:
        # a block is a batch: what Ray hands out, and hands out again when an actor is lost
        blocks = ray.data.from_items(given, override_num_blocks=-(-len(given) // data.batch_size))
        done = blocks.map_batches(
            Rationalizer,
            fn_constructor_kwargs={
                "model": model,
                "folder": str(folder),
                "run": run,
                "device": "cuda" if args.gpus_per_actor else None,
            },
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=args.cpus_per_actor,
            num_gpus=args.gpus_per_actor or None,
        )
        for row in done.iter_rows():
            yield json.loads(row["outcome"])

    try:
        if (known := measured()) is None and args.trial:
            list(outcomes(pairs[: args.trial], 1))  # their answers are on file from then on, so nothing is asked twice
            known = measured()
        print(known or "no call was answered yet: no estimate of tokens and hours", flush=True)
        kept = 0
        for done, outcome in enumerate(outcomes(pairs, args.actors), start=1):
            kept += outcome["kept"]
            if done % data.batch_size == 0 or done == len(pairs):
                print(f"{done} of {len(pairs)} pairs, {kept} kept", flush=True)
    finally:
        ray.shutdown()


def main() -> None:
    """Read the command line, run, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True, help="a recipe such as those in configs/rationalize")
    parser.add_argument("--out", required=True, help="folder for ledgers, rationales.jsonl and summary.json")
    parser.add_argument("--actors", type=int, default=2, help="actors, each with a teacher of its own")
    parser.add_argument(
        "--trial", type=int, default=4, help="pairs that one actor takes first, to measure for the estimate; 0: none"
    )
    parser.add_argument("--cpus-per-actor", type=float, default=1.0, help="an actor that asks a server needs less")
    parser.add_argument("--gpus-per-actor", type=float, default=0.0, help="for a teacher that runs in the actor itself")
    parser.add_argument("--address", help="of a running cluster (auto: the one of this machine); starts a local Ray if omitted")
    args = parser.parse_args()
    summary = run(args)
    print(f"{summary['pairs']} pairs, {summary['kept']} kept, {summary['unanswered']} without an answer; see {args.out}")


if __name__ == "__main__":
    main()
