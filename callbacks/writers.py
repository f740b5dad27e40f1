"""What the predict and test stages leave on disk."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from rationalrewards.components.pages import gallery_page
from rationalrewards.components.parrot import FolderInUseError, Ledger, RunLock, merged, new_run, read_ledgers, write_rationales
from rationalrewards.components.parrot.audit import summarise
from rationalrewards.components.protocols import Result, markdown
from rationalrewards.components.records import (
    Candidate,
    Refinement,
    Unscored,
    read_jsonl,
    relative_to,
    to_json,
    write_jsonl,
)
from rationalrewards.components.refine import Made, Shelf, Trace
from rationalrewards.components.refine.figures import comparison, comparison_markdown


def writable_folder(path: str | Path) -> Path:
    """Create a folder and check that it can be written to.

    Raises:
        PermissionError: If not; the message names the folder.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # a name of its own: several processes may look at the same time
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(f"cannot write to {folder} ({error}); choose another output_dir") from error
    return folder


class RationaleWriter(Callback):
    """Keeps ``ledger.db`` while rationales are made, and writes ``rationales.jsonl`` and ``summary.json`` from it at the end.

    The ledger is all there is to a run: killed at any instant and started again, it goes on where it was. Every process keeps one of
    its own (``ledger.rank1.db`` and so on) and reads those of all. While a run has the folder, another one is refused, however many
    processes either has.

    What is written holds every pair that was ever brought to a result in the folder. A warning says how many of them were not in this
    run, as after a rerun on fewer pairs.

    Args:
        output_dir: Where to.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir
        self._ledger: Ledger | None = None
        self._lock: RunLock | None = None
        self._pairs = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the folder, open the ledger and hand it to the module.

        Raises:
            FolderInUseError: If another run has the folder; on all processes.
        """
        folder = writable_folder(self.output_dir)
        run, refused = new_run(), ""
        if trainer.is_global_zero:
            try:
                self._lock = RunLock(folder, run)
            except FolderInUseError as error:
                refused = str(error)
        run, refused = trainer.strategy.broadcast((run, refused))
        if refused:
            raise FolderInUseError(refused)
        if not trainer.is_global_zero:
            self._lock = RunLock(folder, run)
        own = folder / ("ledger.db" if trainer.global_rank == 0 else f"ledger.rank{trainer.global_rank}.db")
        self._ledger = Ledger(own, [path for path in sorted(folder.glob("ledger*.db")) if path != own], run)
        pl_module.ledger = self._ledger  # type: ignore[assignment]
        self._pairs = 0

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the run's pairs."""
        self._pairs += len(batch)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rationales of all processes and the counts."""
        assert self._ledger is not None
        self._ledger.close()
        # this waits for all processes, and so until all ledgers are closed
        pairs = int(trainer.strategy.reduce(torch.tensor(self._pairs, device=pl_module.device), reduce_op="sum"))
        if not trainer.is_global_zero:
            self._close()
            return
        folder = Path(self.output_dir)
        with read_ledgers(folder) as ledgers:
            write_rationales(ledgers, folder / "rationales.jsonl")
            summary = summarise(merged(ledgers))
        (folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
        self._close()
        if summary["pairs"] > pairs:
            rank_zero_warn(
                f"{folder} holds {summary['pairs']} pairs, and {summary['pairs'] - pairs} of them were not in this run: they are in "
                "rationales.jsonl and summary.json too; give another output_dir to leave them out"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of ledger and folder."""
        self._close()

    def _close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
        if self._lock is not None:
            self._lock.close()


class RefinementWriter(Callback):
    """Writes ``refinements.jsonl``, ``gallery.html``, and the comparison of the arms as ``arms.json`` and ``arms.md``.

    Pictures and the critic's answers are kept in ``pictures/`` and ``answers/`` as they come, each under all that it depends on: a run
    that was killed at any instant and is started again, on however many processes, makes none of them a second time.

    Args:
        output_dir: Where to.
        gallery: Whether to write the gallery page.
    """

    def __init__(self, output_dir: str, gallery: bool = True) -> None:
        self.output_dir = output_dir
        self.gallery = gallery
        self._shelf = Shelf()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder, hand the module its shelf, and begin the records anew: what is on the shelf leads to them again."""
        folder = writable_folder(self.output_dir)
        self._shelf = Shelf(folder)
        pl_module.shelf = self._shelf  # type: ignore[assignment]
        self._path(trainer.global_rank).write_text("", encoding="utf-8")
        if trainer.is_global_zero:
            # left by a killed run on more processes; the other ranks of this run empty their own
            own = {self._path(rank) for rank in range(trainer.world_size)}
            for path in folder.glob("refinements.rank*.jsonl"):
                if path not in own:
                    path.unlink()

    def _path(self, rank: int) -> Path:
        return Path(self.output_dir) / ("refinements.jsonl" if rank == 0 else f"refinements.rank{rank}.jsonl")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[Trace],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch's traces."""
        path = self._path(trainer.global_rank)
        with path.open("a", encoding="utf-8") as file:
            for trace in outputs:
                record = relative_to(self._record(trace), path.parent)
                file.write(json.dumps(to_json(record), ensure_ascii=False) + "\n")

    def _record(self, trace: Trace) -> Refinement:
        record = trace.record
        return Refinement(
            record.id,
            record.task,
            record.prompt,
            trace.arm,
            tuple(map(self._candidate, trace.made)),
            trace.chosen,
            trace.stop,
            record.sources,
            trace.tokens,
        )

    def _candidate(self, made: Made) -> Candidate:
        aspects = {
            key: (score if isinstance(score := made.critique.score(key), float) else None) for key in made.critique.aspects
        }
        reward = made.score
        if isinstance(made.picture, Image.Image):  # a module without a shelf
            name = hashlib.sha256(made.picture.tobytes()).hexdigest()[:24]
            picture: str = str(self._shelf.keep_picture(name, made.picture))
        else:
            picture = "" if isinstance(made.picture, Unscored) else str(made.picture)
        return Candidate(
            made.round,
            made.request,
            picture,
            made.critique.text,
            None if isinstance(reward, Unscored) else reward,
            reward.reason if isinstance(reward, Unscored) else "",
            aspects,
            made.critique.scale,
            None if isinstance(made.held_out, Unscored) else made.held_out,
            made.copy,
            made.parent,
            made.tokens,
        )

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the ranks' files and write gallery and comparison."""
        trainer.strategy.barrier("refinements written")
        if not trainer.is_global_zero:
            return
        folder = Path(self.output_dir)
        parts = [self._path(0), *sorted(folder.glob("refinements.rank*.jsonl"))]
        records = [record for path in parts for record in read_jsonl(path, Refinement)]
        write_jsonl(self._path(0), records)
        for path in parts[1:]:
            path.unlink()
        if records:
            found = comparison([records])
            (folder / "arms.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
            (folder / "arms.md").write_text(comparison_markdown(found), encoding="utf-8")
        if self.gallery:
            (folder / "gallery.html").write_text(gallery_page(records, "Refinement"), encoding="utf-8")


class EvaluationWriter(Callback):
    """Writes ``judgements.jsonl`` (one row per pair, in the order of the pairs) and ``evaluation.json`` (the metrics).

    Where pairs were judged in both ways, there is a file for each: ``judgements.pointwise.jsonl`` and ``judgements.pairwise.jsonl``.
    Where they were counted by protocols, ``evaluation.json`` holds the result rows too (``results``), and ``evaluation.md`` is a table
    of them.

    Args:
        output_dir: Where to.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder, without what an earlier run left in it."""
        folder = writable_folder(self.output_dir)
        if trainer.is_global_zero:
            left = [*folder.glob("judgements.jsonl"), *folder.glob("judgements.*.jsonl"), *folder.glob("evaluation.*")]
            for path in left:
                if path.suffix in (".jsonl", ".json", ".md"):
                    path.unlink(missing_ok=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all files: the first process, whose module has the judgements of all. No process goes on before they are there."""
        if trainer.is_global_zero:
            folder = Path(self.output_dir)
            rows: dict[str, list[dict[str, Any]]] = {}
            for row in pl_module.rows:  # type: ignore[union-attr]
                rows.setdefault(row["mode"], []).append(row)
            for mode, found in rows.items():
                name = "judgements.jsonl" if len(rows) == 1 else f"judgements.{mode}.jsonl"
                (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
            written: dict[str, Any] = {name: float(value) for name, value in trainer.callback_metrics.items()}
            results: list[Result] = pl_module.results  # type: ignore[assignment]
            if results:
                written["results"] = [to_json(result) for result in results]
                (folder / "evaluation.md").write_text(markdown(results), encoding="utf-8")
            (folder / "evaluation.json").write_text(json.dumps(written, indent=2), encoding="utf-8")
        trainer.strategy.barrier("evaluation written")
