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
restarted actor or a second start of this program asks nothing again that was answered.

Which actor runs where, restarts and retries are Ray's business. What this leaves behind is what ``predict`` leaves behind, and either
can go on with what the other began: ``ledger*.db``, ``rationales.jsonl`` and ``summary.json``. Teachers behind servers are shared by
all actors, each with its own ``concurrency``; with ``--gpus-per-actor 1`` a teacher in the actor's own process has a GPU to itself.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from jsonargparse import auto_cli
from omegaconf import OmegaConf
from rationalrewards.components.parrot import Ledger, merged, read_ledgers, write_rationales
from rationalrewards.components.parrot.audit import summarise
from rationalrewards.components.records import Preference, from_json, to_json
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.lightning_modules import RationalizeModule


def sections(recipe: str) -> dict[str, Any]:
    """The sections ``model`` and ``data`` of a recipe, with the values of this process' environment filled in."""
    whole = OmegaConf.load(recipe)
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
        device: Where a teacher in this process runs.
    """

    def __init__(self, model: dict[str, Any], folder: str, device: str | None = None) -> None:
        self.module = build_module(model)
        self.module.teacher.load(device)
        self.folder = Path(folder)
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
            self.ledger = self.module.ledger = open_ledger(self.folder)
            self.known = there | {path for path in (self.ledger.path,) if path is not None}
        return {"outcome": [json.dumps(outcome.as_json()) for outcome in self.module.predict_step(pairs, 0)]}


def open_ledger(folder: Path) -> Ledger:
    """The first of ``ledger.ray0.db``, ``ledger.ray1.db`` and so on that nobody writes to; it reads all others of the folder.

    An actor that died over a batch gets the same batch when Ray has restarted it, and so finds what it was answered before.
    """
    for number in count():
        path = folder / f"ledger.ray{number}.db"
        try:
            return Ledger(path, [other for other in sorted(folder.glob("ledger*.db")) if other != path])
        except RuntimeError:  # in use by another actor
            continue
    raise AssertionError("unreachable: there is always a further number")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Take all pairs through the stages; returns the summary."""
    recipe = sections(args.config)
    build_module(recipe["model"])  # what is wrong with it is to be known before anything starts
    data = build_data(recipe["data"])
    pairs = list(rows(data))
    folder = Path(args.out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    ray.init(address=args.address)
    try:
        # a block is a batch: what Ray hands out, and hands out again when an actor is lost
        blocks = ray.data.from_items(pairs, override_num_blocks=-(-len(pairs) // data.batch_size))
        outcomes = blocks.map_batches(
            Rationalizer,
            fn_constructor_kwargs={
                "model": recipe["model"],
                "folder": str(folder),
                "device": "cuda" if args.gpus_per_actor else None,
            },
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=args.actors),
            num_cpus=args.cpus_per_actor,
            num_gpus=args.gpus_per_actor or None,
        )
        kept = 0
        for done, row in enumerate(outcomes.iter_rows(), start=1):
            kept += json.loads(row["outcome"])["kept"]
            if done % data.batch_size == 0 or done == len(pairs):
                print(f"{done} of {len(pairs)} pairs, {kept} kept", flush=True)
    finally:
        ray.shutdown()
    with read_ledgers(folder) as ledgers:
        write_rationales(ledgers, folder / "rationales.jsonl")
        summary = summarise(merged(ledgers))
    (folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    return summary


def main() -> None:
    """Read the command line, run, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True, help="a recipe such as those in configs/rationalize")
    parser.add_argument("--out", required=True, help="folder for ledgers, rationales.jsonl and summary.json")
    parser.add_argument("--actors", type=int, default=2, help="actors, each with a teacher of its own")
    parser.add_argument("--cpus-per-actor", type=float, default=1.0, help="an actor that asks a server needs less")
    parser.add_argument("--gpus-per-actor", type=float, default=0.0, help="for a teacher that runs in the actor itself")
    parser.add_argument("--address", help="of a running cluster (auto: the one of this machine); starts a local Ray if omitted")
    args = parser.parse_args()
    summary = run(args)
    print(f"{summary['pairs']} pairs, {summary['kept']} kept, {summary['unanswered']} without an answer; see {args.out}")


if __name__ == "__main__":
    main()
