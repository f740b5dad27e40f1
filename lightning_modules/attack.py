"""How well a reward model stands attacks that make pictures no better."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.records import Preference, Task, open_pictures
from rationalrewards.components.rewards import RewardModel
from rationalrewards.components.rewards.attacks import ATTACKS, AttackResult, attack_results, attacked, check_attacks
from rationalrewards.components.seeds import seed_for

from .base import RewardsModule

Score = float | str
"""A reward, or why there is none."""


class RewardAttackModule(RewardsModule):
    """Scores both pictures of every pair as they are and under each attack; see :mod:`rationalrewards.components.rewards.attacks`.

    Run with ``test``, preference pairs and an ``AttackWriter``. Logged are ``test/<attack>/delta`` (mean change of the reward),
    ``test/<attack>/beats_better`` (how often the attacked worse picture of a pair beats the clean better one) and
    ``test/<attack>/unscored_rate``, where there is anything to take them over. A picture that is in several pairs is scored once.

    Args:
        reward: Any reward model.
        attacks: Names of the attacks; all if omitted.
        seed: Seed of attacks that take random numbers.
    """

    def __init__(self, reward: RewardModel, attacks: Sequence[str] = tuple(ATTACKS), seed: int = 0) -> None:
        super().__init__()
        self.reward = reward
        self.attacks = check_attacks(attacks)
        self.seed = seed
        self.results: list[AttackResult] = []
        self.rows: list[dict[str, Any]] = []
        self._scores: dict[tuple[str, str, str], Score | None] = {}
        self._prompts: dict[Task, str] = {}

    def configure_model(self) -> None:
        """Load the judge."""
        self.reward.load()

    def on_test_start(self) -> None:
        """Move a judge that runs in this process to this rank's device, and start a new count."""
        self.reward.load(self.device)
        self.results, self.rows, self._scores, self._prompts = [], [], {}, {}

    def test_step(self, batch: Sequence[Preference], batch_idx: int) -> None:
        """Score a batch of pairs, clean and attacked."""
        asked: dict[tuple[str, str, str], CritiqueRequest] = {}
        keys = []
        for index, pair in enumerate(batch):
            sources = open_pictures(pair, pair.sources)
            other = self._other(batch, index)
            group = pair.group
            for name, image in zip(pair.candidates, open_pictures(pair, pair.candidates), strict=True):
                clean = CritiqueRequest(pair.task, pair.prompt, image, sources)
                for attack in ("", *self.attacks):
                    key = (group, name, attack)
                    keys.append(key)
                    if key in self._scores or key in asked:
                        continue
                    rng = random.Random(seed_for(self.seed, attack, pair.prompt, name.rsplit("/", 1)[-1]))
                    request = attacked(attack, clean, other, rng) if attack else clean
                    if request is None:
                        self._scores[key] = None
                    else:
                        asked[key] = request
        self._prompts |= {pair.task: pair.prompt for pair in batch}
        rewards = self.reward.score(list(asked.values()))
        for key, total, reason in zip(asked, rewards.total.tolist(), rewards.reasons, strict=True):
            self._scores[key] = (reason or "no reason given") if math.isnan(total) else total
        for pair, start in zip(batch, range(0, len(keys), 2 * (1 + len(self.attacks))), strict=True):
            half = 1 + len(self.attacks)
            first, second = keys[start : start + half], keys[start + half : start + 2 * half]
            scores = {a[2] or "clean": [self._scores[a], self._scores[b]] for a, b in zip(first, second, strict=True)}
            self.rows.append({"id": pair.id, "group": first[0][0], "label": pair.label, "scores": scores})

    def _other(self, batch: Sequence[Preference], index: int) -> str | None:
        """Another prompt of the same task: the next one in the batch, else the last one of an earlier batch."""
        own = batch[index]
        for step in range(1, len(batch)):
            pair = batch[(index + step) % len(batch)]
            if pair.task == own.task and pair.prompt != own.prompt:
                return pair.prompt
        last = self._prompts.get(own.task)
        return None if last == own.prompt else last

    def on_test_epoch_end(self) -> None:
        """Count over the pairs of all processes, and log."""
        rows = self.rows
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for turn in zip_longest(*gathered) for row in turn if row is not None]
        self.rows = list({row["id"]: row for row in rows}.values())  # in their order, each once
        scores = {name: _numbers(self.rows, name) for name in ("clean", *self.attacks)}
        applies = {
            name: torch.tensor([[one is not None for one in row["scores"][name]] for row in self.rows]).reshape(-1, 2)
            for name in self.attacks
        }
        label = torch.tensor([row["label"] for row in self.rows], dtype=torch.float64)
        group = torch.tensor([int(row["group"], 16) % 2**62 for row in self.rows])
        self.results = attack_results(scores.pop("clean"), scores, applies, label, group)
        for result in self.results:
            if not result.pictures:
                continue
            values = {"delta": result.delta, "beats_better": result.beats}
            values["unscored_rate"] = result.unscored_attacked / result.pictures
            for name, value in values.items():
                if not math.isnan(value):
                    self.log(f"test/{result.attack}/{name}", value, rank_zero_only=False)


def _numbers(rows: Sequence[dict[str, Any]], name: str) -> torch.Tensor:
    """Rewards ``[n, 2]``, NaN where there is none."""
    values = [[one if isinstance(one, float) else math.nan for one in row["scores"][name]] for row in rows]
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 2)
