"""Requests to generate from: groups for RL, plain batches for validation and refinement."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from rationalrewards.components.records import PromptRecord
from rationalrewards.components.rewards import PromptCurriculum
from rationalrewards.components.seeds import seed_for
from torch.utils.data import DataLoader

from .batches import Batch, BatchPlan, PlannedLoader
from .readers import PromptSet, read_prompts


class RolloutBatch(Batch[PromptRecord]):
    """Pictures to sample together, and which visits to them this is.

    Args:
        epoch: Rollout round.
        index: Number of the micro-batch within this rank's round.
        visits: Of 0 to ``visits - 1``: every visit trains on another noise level of the same pictures.
        records: One request per picture.
        copies: Number of the picture within its group.
    """

    def __init__(
        self, epoch: int, index: int, visits: Iterable[int], records: Iterable[PromptRecord], copies: Iterable[int]
    ) -> None:
        super().__init__(records)
        self.epoch = epoch
        self.index = index
        self.visits = tuple(visits)
        self.copies = tuple(copies)


class PromptDataModule(LightningDataModule):
    """Requests in groups for RL, and plain batches of them for validation and prediction.

    A group is one (request, source pictures) with ``group_size`` pictures; whole groups stay on one rank.

    Args:
        train: Requests for RL: a file, as ``read_prompts`` reads it, or a public set.
        val: Fixed requests for validation, likewise.
        predict: Requests for refinement, likewise.
        groups_per_epoch: Groups in one rollout round, over all ranks.
        group_size: Pictures per group.
        batch_size: Pictures per pipeline call and training step: a multiple or a divisor of ``group_size``. Edits need at most
            ``group_size``, since a diffusers pipeline takes one set of source pictures per call.
        visits: How often each picture is trained on in a round, each time at another noise level.
        visits_at_once: Visits that share a forward: as many FLOPs in fewer, larger kernels, for that many times the memory. A divisor
            of ``visits``; a round then has that many times fewer training batches.
        eval_batch_size: Requests per batch in validation and prediction.
        limit: Take only the first so many requests for validation and prediction.
        seed: Seed of the order of requests.
        curriculum: Chooses each round's requests by how they scored before; ``None`` takes all in turn.
    """

    def __init__(
        self,
        train: str | PromptSet | None = None,
        val: str | PromptSet | None = None,
        predict: str | PromptSet | None = None,
        groups_per_epoch: int = 64,
        group_size: int = 8,
        batch_size: int = 8,
        visits: int = 4,
        visits_at_once: int = 1,
        eval_batch_size: int = 16,
        limit: int | None = None,
        seed: int = 0,
        curriculum: PromptCurriculum | None = None,
    ) -> None:
        super().__init__()
        if group_size < 2:
            raise ValueError(f"group_size must be at least 2 to compare pictures, got {group_size}")
        if batch_size % group_size and group_size % batch_size:
            nearest = max(group_size, round(batch_size / group_size) * group_size)
            raise ValueError(
                f"batch_size {batch_size} must be a multiple or a divisor of group_size {group_size}; nearest multiple: {nearest}"
            )
        if groups_per_epoch * group_size % batch_size:
            raise ValueError(
                f"groups_per_epoch * group_size = {groups_per_epoch * group_size} pictures do not divide into batches of {batch_size}"
            )
        if visits < 1 or visits_at_once < 1 or visits % visits_at_once:
            raise ValueError(f"visits_at_once {visits_at_once} must divide visits {visits}")
        self.train_path = train
        self.val_path = val
        self.predict_path = predict
        self.groups_per_epoch = groups_per_epoch
        self.group_size = group_size
        self.batch_size = batch_size
        self.visits = visits
        self.visits_at_once = visits_at_once
        self.eval_batch_size = eval_batch_size
        self.limit = limit
        self.seed = seed
        self.curriculum = curriculum
        self.prompts: list[PromptRecord] = []

    def setup(self, stage: str) -> None:
        """Read and check the training requests."""
        if stage != "fit" or self.prompts:
            return
        if self.train_path is None:
            raise ValueError("give `data.train`: a file of requests for RL, or a public set")
        self.prompts = _requests(self.train_path)
        if len(self.prompts) < self.groups_per_epoch:
            raise ValueError(
                f"{self.train_path} has {len(self.prompts)} requests, fewer than groups_per_epoch = {self.groups_per_epoch}"
            )
        if self.batch_size > self.group_size and any(prompt.sources for prompt in self.prompts):
            raise ValueError(
                f"{self.train_path} holds edits: a pipeline call takes one set of source pictures, so batch_size must be at most "
                f"group_size = {self.group_size}, got {self.batch_size}"
            )

    def batches(self, epoch: int, rank: int, processes: int) -> list[RolloutBatch]:
        """This rank's batches of a round: a function of (seed, epoch) and the rank's share of the groups."""
        self._check_processes(processes)
        chosen = self._round(epoch)
        share = self.groups_per_epoch // processes
        samples = [(record, copy) for record in chosen[rank * share : (rank + 1) * share] for copy in range(self.group_size)]
        batches = []
        # all visits of a call before the next call's: training on it can begin while later ones are being scored
        for index, start in enumerate(range(0, len(samples), self.batch_size)):
            records, copies = zip(*samples[start : start + self.batch_size], strict=True)
            for first in range(0, self.visits, self.visits_at_once):
                batches.append(RolloutBatch(epoch, index, range(first, first + self.visits_at_once), records, copies))
        return batches

    def _round(self, epoch: int) -> list[PromptRecord]:
        if self.curriculum is not None:
            groups = [prompt.group for prompt in self.prompts]
            return [self.prompts[i] for i in self.curriculum.choose(groups, self.groups_per_epoch, epoch, self.seed)]
        order = list(range(len(self.prompts)))
        sweep, part = divmod(epoch, len(order) // self.groups_per_epoch)
        random.Random(seed_for(self.seed, "prompt order", sweep)).shuffle(order)
        return [self.prompts[i] for i in order[part * self.groups_per_epoch : (part + 1) * self.groups_per_epoch]]

    def state_dict(self) -> dict[str, Any]:
        """What the curriculum has seen."""
        return {} if self.curriculum is None else self.curriculum.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it; a run that had no curriculum begins one."""
        if self.curriculum is not None and state_dict:
            self.curriculum.load_state_dict(state_dict)

    def _check_processes(self, processes: int) -> None:
        pictures = self.groups_per_epoch // processes * self.group_size
        if self.groups_per_epoch % processes or pictures % self.batch_size:
            unit = processes * max(1, self.batch_size // self.group_size)  # whole batches for every process
            raise ValueError(
                f"groups_per_epoch {self.groups_per_epoch} does not divide into whole groups and batches of {self.batch_size} on "
                f"{processes} processes; nearest legal: {max(1, round(self.groups_per_epoch / unit)) * unit}"
            )

    def train_dataloader(self) -> PlannedLoader:
        """Every rank's :class:`RolloutBatch` es of a round."""

        def count(processes: int) -> int:
            return self.groups_per_epoch // processes * self.group_size // self.batch_size * self.visits // self.visits_at_once

        return PlannedLoader(BatchPlan(self.batches, count), lambda batch: batch)

    def _plain(self, path: str | PromptSet | None, name: str) -> DataLoader[Any]:
        if path is None:
            raise ValueError(f"give `data.{name}`: a file of requests")
        records = _requests(path)[: self.limit]
        return DataLoader(records, batch_size=self.eval_batch_size, collate_fn=Batch)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Fixed requests; none if no file was given."""
        return self._plain(self.val_path, "val") if self.val_path is not None else []

    def predict_dataloader(self) -> DataLoader[Any]:
        """Requests to refine."""
        return self._plain(self.predict_path, "predict")


def _requests(source: str | PromptSet) -> list[PromptRecord]:
    return list(source.read()) if isinstance(source, PromptSet) else read_prompts(Path(source))
