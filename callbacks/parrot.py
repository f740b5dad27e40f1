"""A PARROT run while it goes on and when it is over: what it will take, how far it is, and the report."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from rationalrewards.components.pages.parrot_examples import Example
from rationalrewards.components.pages.parrot_page import parrot_page
from rationalrewards.components.parrot import Ledger, Outcome, ParrotOptions, merged, read_ledgers
from rationalrewards.components.parrot.audit import examples, summarise
from rationalrewards.components.parrot.estimate import (
    RETENTION,
    Estimate,
    Forecast,
    Load,
    Usage,
    added,
    planned_calls,
    total_of,
    usage_of,
)
from rationalrewards.components.parrot.screen import read_pair
from rationalrewards.components.records import Preference
from rationalrewards.datamodules.batches import world
from rationalrewards.datamodules.preferences import PairLoader
from torch.utils.data import DataLoader, IterableDataset

from .mlflow import mlflow_run
from .writers import RationaleWriter, writable_folder

REPORT = "report.html"

_SOURCES = 20
"""Most data sets with a metric of their own."""

_SAMPLE = 64
"""Pairs that are looked at for their source pictures where all of them would take too long."""


_LOOK = 8
"""How many times as many pairs are looked at for a trial's as it takes: some have pictures that cannot be read."""

_UNKNOWN = 1000
"""Pairs to plan for where nobody knows how many there are."""


@dataclass
class _Trial:
    """What a process measured before the run."""

    pairs: int = 0
    seconds: float = 0.0
    usage: dict[str, dict[str, float | None]] = field(default_factory=dict)
    failure: str = ""


class RationaleProgress(Callback):
    """Says what a run will take before it starts and once its first batch has been measured, and shows how far it is.

    Before: the calls and pictures of all pairs, if everything passes and at the given share; then their tokens, hours and cost, at the
    rate of what an earlier run of the same teacher, format and options has on file in the folder or, without one, of ``trial`` pairs
    that every process takes through the stages first. Their answers are on file from then on, so nothing is asked twice. After the
    first batch: calls, pictures, tokens, hours and cost of all pairs once more, at its rate, and how many will be kept. From then on the
    progress bar shows the share kept, pairs without an answer, calls and cost so far, and every batch is logged to the Trainer's loggers:
    ``parrot/live/pairs``, ``kept_rate``, ``unanswered``, ``calls``, and ``cost`` where the module has a price and the teacher counts
    tokens. What was asked in the folder under other options, or of another teacher, is not in these figures.

    On several processes, bar and logs show the first one's share of the pairs; the estimates are for all. Pairs that an earlier run
    settled count with what they took then.

    Args:
        passing: Share of comparisons taken to pass the check before anything is measured; by default the paper's.
        trial: Pairs that each process takes through the stages before the run, all at once. With fewer than a batch, servers have less to
            do than they will, so that the run takes fewer hours than is said at first. 0 measures nothing before the first batch.

    Raises:
        ValueError: If ``passing`` is no share, or ``trial`` is negative.
    """

    def __init__(self, passing: float = RETENTION, trial: int = 4) -> None:
        if not 0.0 <= passing <= 1.0:
            raise ValueError(f"passing is a share between 0 and 1, got {passing}")
        if trial < 0:
            raise ValueError(f"trial is a number of pairs, got {trial}")
        self.passing = passing
        self.trial = trial
        self.forecast: Forecast | None = None
        """What all pairs will take, as it was said before the run; ``None`` where nothing was measured for it, and on other processes."""
        self.estimate: Estimate | None = None
        """What all pairs will take, by all batches so far; ``None`` before the first, and where the number of pairs is not known."""
        self._load: Load | None = None
        self._done = self._kept = self._unanswered = 0
        self._usage: Usage = {}
        self._seconds = self._began = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is planned."""
        options: ParrotOptions = pl_module.options  # type: ignore[assignment]
        self.forecast, self.estimate, self._usage = None, None, {}
        self._done = self._kept = self._unanswered = 0
        self._seconds = 0.0
        if not trainer.is_global_zero:
            return
        self._load = _load_of(trainer, options)
        if self._load is not None:
            rank_zero_info(f"PARROT: {planned_calls(self._load, options, self.passing)}")
        else:
            rank_zero_info(
                f"PARROT: how many pairs there are is not known before they are read. Of {_UNKNOWN:,}: "
                f"{planned_calls(Load.of_size(_UNKNOWN, options), options, self.passing)}"
            )

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, and say what the run will take; by now the ledger is open and the teacher is where it works."""
        if not self.trial:
            return
        ledger: Ledger = pl_module.ledger  # type: ignore[assignment]
        options: ParrotOptions = pl_module.options  # type: ignore[assignment]
        price = getattr(pl_module, "price", None)
        plan = ledger.begin(pl_module.teacher, pl_module.format.fingerprint, options, price)["plan"]  # type: ignore[union-attr, arg-type]
        on_file = ledger.latest(plan) if trainer.is_global_zero else []
        known = len({call["pair"] for call in on_file})
        # one process may see more ledgers than another: all do as the first
        if trainer.strategy.broadcast(known >= self.trial):
            trials = [_Trial(known, usage=usage_of(on_file))]
            overhead = 0.0
        else:
            trials = _of_all_processes(self._measured(trainer, pl_module, plan))
            waited = sum(total_of(trial.usage, "seconds") or 0.0 for trial in trials)
            pairs = sum(trial.pairs for trial in trials)
            overhead = max(0.0, sum(trial.seconds for trial in trials) - waited) / max(1, pairs)
        if not trainer.is_global_zero:
            return
        usage, measured = added([trial.usage for trial in trials]), sum(trial.pairs for trial in trials)
        calls, failures = total_of(usage, "calls") or 0, total_of(usage, "failures") or 0
        if calls == failures:
            why = next((f": {trial.failure}" for trial in trials if trial.failure), "")
            rank_zero_info(f"PARROT: {measured} pairs were tried and none of {calls:.0f} calls was answered{why}; no estimate")
            return
        load = self._load or Load.of_size(_UNKNOWN, options)
        currency = price.currency if price is not None else ""
        self.forecast = Forecast(
            planned_calls(load, options, self.passing), usage, measured, trainer.world_size, currency, overhead
        )
        rank_zero_info(f"PARROT: {self.forecast}")

    def _measured(self, trainer: Trainer, pl_module: LightningModule, plan: str) -> _Trial:
        """Take a few of this process's pairs through the stages: the first ones whose pictures can be read."""
        first = islice(_first_pairs(trainer), _LOOK * self.trial)
        pairs = list(islice(filter(_readable, first), self.trial))
        if not pairs:
            return _Trial()
        began = time.monotonic()
        with trainer.precision_plugin.predict_step_context():
            pl_module.predict_step(pairs, 0)
        seconds = time.monotonic() - began
        ledger: Ledger = pl_module.ledger  # type: ignore[assignment]
        under = [call for pair in pairs for call in ledger.calls(pair.id, plan)]
        # of a stage whose questions were all answered under another plan, that is all there is to go by
        usage = {**usage_of(call for pair in pairs for call in ledger.calls(pair.id)), **usage_of(under)}
        failure = next((call["failure"] for call in under if call["failure"]), "")
        return _Trial(len(pairs), max(seconds, total_of(usage, "seconds") or 0.0), usage, failure)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the clock."""
        self._began = time.monotonic()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[Outcome],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count, show and log."""
        if not trainer.is_global_zero:
            return
        ledger: Ledger = pl_module.ledger  # type: ignore[assignment]
        price = getattr(pl_module, "price", None)
        currency = price.currency if price is not None else ""
        first = self._done == 0
        self._done += len(outputs)
        self._kept += sum(outcome.kept for outcome in outputs)
        self._unanswered += sum(outcome.reason.startswith("no answer") for outcome in outputs)
        usage = usage_of(call for outcome in outputs for call in ledger.calls(outcome.pair.id, outcome.provenance["plan"]))
        self._usage = added([self._usage, usage])
        # what an earlier run waited for the teacher counts where this one found the answers on file
        self._seconds += max(time.monotonic() - self._began, total_of(usage, "seconds") or 0.0)
        if self._load is not None:
            pairs = max(self._load.pairs, self._done)
            self.estimate = Estimate(pairs, self._done, self._kept, self._usage, trainer.world_size, currency, self._seconds)
            if first:
                rank_zero_info(f"PARROT: {self.estimate}")
        calls, cost = total_of(self._usage, "calls") or 0, total_of(self._usage, "cost")
        shown = f"kept {100 * self._kept / self._done:.0f} %, unanswered {self._unanswered}, calls {calls:,.0f}"
        _show(trainer, shown + (f", {cost:,.2f} {currency}".rstrip() if cost is not None else ""))
        metrics = {"pairs": self._done, "kept_rate": self._kept / self._done, "unanswered": self._unanswered, "calls": calls}
        if cost is not None:
            metrics["cost"] = cost
        for logger in trainer.loggers:
            logger.log_metrics({f"parrot/live/{name}": float(value) for name, value in metrics.items()}, step=self._done)


def _first_pairs(trainer: Trainer) -> Iterable[Preference]:
    """The pairs that this process will get, in their order."""
    loaders = trainer.predict_dataloaders
    loader = loaders[0] if isinstance(loaders, list) else loaders
    if isinstance(loader, PairLoader):  # without its workers, which would read a whole batch each
        rank, processes = world()
        return islice(loader.pairs, rank, None, processes)
    if isinstance(loader, DataLoader):
        # not through the loader: Lightning's batch sampler has one position, which is the run's
        dataset = loader.dataset
        if isinstance(dataset, IterableDataset):
            return _again(dataset)
        sampler = loader.sampler if loader.batch_sampler is None else getattr(loader.batch_sampler, "sampler", loader.sampler)
        return (dataset[index] for index in sampler)
    return (pair for batch in _again(loader) for pair in batch)


def _again(items: Any) -> Iterable[Any]:
    """What can be gone through more than once; nothing if it cannot, as it is the run's."""
    found = iter(items)
    return () if found is items else found


def _readable(pair: Preference) -> bool:
    try:
        read_pair(pair)
    except ValueError:
        return False
    return True


def _of_all_processes(trial: _Trial) -> list[_Trial]:
    """Every process's, on every process."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [trial]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, trial)
    return found


def _load_of(trainer: Trainer, options: ParrotOptions) -> Load | None:
    """The pairs that the Trainer is going to take through the stages; ``None`` if a loader does not know how many it has."""
    loaders = trainer.predict_dataloaders
    loads = []
    for loader, batches in zip(loaders if isinstance(loaders, list) else [loaders], trainer.num_predict_batches, strict=True):
        pairs: Iterable[Preference]
        size: int | None
        if isinstance(loader, PairLoader):
            pairs, count, size = loader.pairs, loader.count, loader.batch_size
            # a public set may be long and far away, and a fold opens pictures
            cheap = not loader.pairs.sets and loader.pairs.fold is None
        else:
            pairs = getattr(loader, "dataset", iter(()))
            cheap, count = isinstance(pairs, Sequence), len(pairs) if isinstance(pairs, Sized) else None
            size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
        if count is None or (size is None and batches < len(loader)):
            return None
        if size is not None and batches < len(loader):  # `limit_predict_batches` leaves some out
            count = min(count, int(batches) * size * trainer.world_size)
        if cheap:
            loads.append(Load.counted(islice(pairs, count), options))
        else:
            first = [len(pair.sources) for pair in islice(pairs, min(_SAMPLE, count))]
            loads.append(Load.of_size(count, options, sum(first) / max(1, len(first))))
    return Load.of_all(loads)


def _show(trainer: Trainer, text: str) -> None:
    """Put text beside the Trainer's progress bar, if there is one. Lightning shows metrics there in fit only."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar):
        bar.predict_progress_bar.set_postfix_str(text)
    elif isinstance(bar, RichProgressBar) and bar.progress is not None and bar.predict_progress_bar_id is not None:
        bar.progress.update(bar.predict_progress_bar_id, description=text)
        bar.refresh()


class RationaleReport(Callback):
    """Writes ``report.html`` beside the rationales when all of them are made, and logs its numbers.

    Every number goes to the Trainer's loggers as ``parrot/...``; with an ``MLFlowLogger`` the page becomes an artefact. The ledgers of
    all processes and of earlier runs in the folder are read.

    Args:
        output_dir: The folder of the ``RationaleWriter``.
        examples: Most pairs that are shown of each kind of outcome, with their pictures and what the teacher wrote.
        notes: Plain sentences that a reader of the page must know, e.g. that the teacher is simulated.
        max_side: Larger pictures are reduced to this many pixels a side.

    Raises:
        ValueError: If ``examples`` is negative or ``max_side`` is no size.
    """

    def __init__(self, output_dir: str, examples: int = 4, notes: Sequence[str] = (), max_side: int = 320) -> None:
        if examples < 0 or max_side < 1:
            raise ValueError(f"examples must not be negative and max_side at least 1, got {examples} and {max_side}")
        if isinstance(notes, str):
            raise ValueError(f"notes must be a list, got the text {notes!r}")
        self.output_dir = output_dir
        self.examples = examples
        self.notes = list(notes)
        self.max_side = max_side

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there will be something to report on, before the teacher is asked.

        Raises:
            ValueError: If no ``RationaleWriter`` writes to the same folder.
        """
        writable_folder(self.output_dir)
        writers = [callback for callback in trainer.callbacks if isinstance(callback, RationaleWriter)]  # type: ignore[attr-defined]
        if not any(Path(writer.output_dir).resolve() == Path(self.output_dir).resolve() for writer in writers):
            raise ValueError(
                f"RationaleReport reads the ledgers that a RationaleWriter leaves in {self.output_dir}; add one with that output_dir"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the page: by then all processes have closed their ledgers. Not called after an error."""
        if stage != TrainerFn.PREDICTING or not trainer.is_global_zero:
            return
        price = getattr(pl_module, "price", None)
        currency = price.currency if price is not None else ""
        path = Path(self.output_dir) / REPORT
        with read_ledgers(self.output_dir) as ledgers:
            summary, usage = summarise(merged(ledgers)), ledgers.usage()
            chosen = {
                kind: [_example(row, ledgers) for row in rows] for kind, rows in examples(merged(ledgers), self.examples).items()
            }
            settings = _settings(ledgers, summary["plans"])
        page = parrot_page(summary, usage, chosen, self.notes, settings, currency, max_side=self.max_side)
        part = path.with_suffix(".part")
        part.write_text(page, encoding="utf-8")
        part.replace(path)
        rank_zero_info(f"PARROT: {summary['kept']:,} of {summary['pairs']:,} pairs kept; see {path}")
        metrics = report_metrics(summary, usage)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=summary["pairs"])
        run = mlflow_run(trainer, self)
        if run is not None:
            client, run_id = run
            client.log_artifact(run_id, str(path))


def _settings(ledgers: Ledger, plans: Iterable[str]) -> dict[str, Any]:
    """Who was asked and how; of several plans, all of them."""
    found = [ledgers.provenance(plan) for plan in plans]
    teachers = list(dict.fromkeys(one["teacher"] for one in found))
    return {"teacher": ", ".join(teachers), "plans": found}


_HEADINGS = {
    "anchor": "Comparison",
    "check": "Check",
    "check-swapped": "Check in the other order",
    "project": "Critique",
    "refine": "Refined request",
    "audit": "Blind reader",
}


def _example(row: Mapping[str, Any], ledgers: Ledger) -> Example:
    texts = row["texts"]
    if texts:
        said = [("Comparison", texts["pair"]), ("Critique of A", texts["A"]), ("Critique of B", texts["B"])]
    else:
        said = [_said(call) for call in ledgers.calls(row["pair"])]
    rewards, (first, second) = row["point_rewards"], row["candidates"]
    return Example(
        row["pair"],
        row["prompt"],
        (first, second),
        row["label"],
        tuple(row["sources"]),
        row["origin"],
        row["last_stage"],
        row["reason"],
        said,
        row["p_label"],
        (rewards[0], rewards[1]) if rewards else None,
    )


def _said(call: Mapping[str, Any]) -> tuple[str, str]:
    stage, sample = call["stage"], call["sample"]
    control = stage.startswith("control-")
    stage = stage.removeprefix("control-")
    heading = _HEADINGS.get(stage, stage)
    if stage in ("project", "refine", "audit"):
        heading += f" of {'AB'[sample]}"
    elif sample:
        heading += f" {sample + 1}"
    if call["attempt"] > 1:
        heading += f", attempt {call['attempt']}"
    if control:
        heading = f"For the wrong label: {heading[:1].lower()}{heading[1:]}"
    return heading, call["answer"] if not call["failure"] else f"no answer: {call['failure']}"


def report_metrics(summary: Mapping[str, Any], usage: Usage) -> dict[str, float]:
    """The numbers of a report for a logger: those that were measured.

    Returns:
        ``parrot/<name>`` to number; also ``parrot/dropped/<stage>/<kind>`` and, of up to 20 data sets, the largest first,
        ``parrot/source/<name>/pairs`` and ``kept_rate``, in names that MLflow takes.
    """
    found: dict[str, Any] = {
        key: summary[key]
        for key in ("pairs", "kept", "unanswered", "control_pairs", "kept_rate", "right_label_pass_rate", "wrong_label_pass_rate")
    }
    for section in ("position_bias", "agreement"):
        found |= {key: figure["value"] for key, figure in summary[section].items()}
    for name, lengths in summary["lengths"].items():
        found |= {f"words/{name}/{fate}": lengths[fate]["median"] for fate in ("kept", "dropped")}
    for reason, count in summary["reasons"].items():
        stage, _, kind = reason.partition(": ")
        found[f"dropped/{stage}/{_named(kind)}"] = count
    for name, group in list(summary["sources"].items())[:_SOURCES]:
        found |= {f"source/{_named(name)}/pairs": group["pairs"], f"source/{_named(name)}/kept_rate": group["kept_rate"]["value"]}
    for name in ("calls", "failures", "images", "prompt_tokens", "completion_tokens", "seconds", "cost"):
        found[name] = total_of(usage, name)
    return {f"parrot/{name}": float(value) for name, value in found.items() if value is not None}


def _named(text: str) -> str:
    """A text as part of a metric's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.")[:100] or "unnamed"
