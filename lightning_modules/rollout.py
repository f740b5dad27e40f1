"""One round of reward RL: what was sampled, its rewards as they come in, and what each picture is worth."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from PIL import Image
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.generation import Recording, SDEStep
from rationalrewards.components.records import PromptRecord
from rationalrewards.components.rewards import (
    AdvantageOptions,
    Advantages,
    RewardModel,
    Rewards,
    joined,
    reward_advantages,
)


@dataclass
class Rollout:
    """One round of this rank: what was made, how it was scored, what it is worth."""

    epoch: int
    records: list[PromptRecord]
    copies: list[int]
    groups: list[str]
    images: list[Image.Image]
    rewards: Rewards
    witness: Rewards | None
    advantages: Advantages

    @property
    def prompts(self) -> list[str]:
        """The request of every picture."""
        return [record.prompt for record in self.records]


@dataclass(frozen=True)
class Call:
    """One call of the pipeline.

    Args:
        samples: Request and number within its group of every picture.
        requests: What to ask the reward about each.
        recording: What the call recorded.
        steps: Its stochastic steps, if any.
    """

    samples: list[tuple[PromptRecord, int]]
    requests: list[CritiqueRequest]
    recording: Recording
    steps: list[SDEStep] = field(default_factory=list)

    @property
    def groups(self) -> list[str]:
        """Group of every picture."""
        return [record.group for record, _ in self.samples]


class Round:
    """Scores calls as they are added, in the background if there is one, and compares the pictures of a group once all are scored.

    What a picture is worth depends on its group alone, so that training on the first calls can begin while later ones are being scored,
    and comes to the same bits as if it had waited.

    Args:
        epoch: Number of the round.
        reward: What trains.
        witness: What only watches.
        options: How rewards become advantages.
        noise: Noise of one score by column, see :func:`reward_advantages`.
        background: Threads that score; ``None`` scores all calls at once, in this thread, when the first rewards are wanted.
    """

    def __init__(
        self,
        epoch: int,
        reward: RewardModel,
        witness: RewardModel | None,
        options: AdvantageOptions,
        noise: Mapping[str, float],
        background: Executor | None,
    ) -> None:
        self.epoch = epoch
        self.calls: list[Call] = []
        self._reward, self._witness = reward, witness
        self._options, self._noise = options, noise
        self._background = background
        self._scored: list[Future[Rewards]] = []
        self._watched: list[Future[Rewards]] = []
        self._worth: dict[int, Advantages] = {}

    def add(self, call: Call) -> None:
        """Take up a call; its pictures leave for the background at once."""
        self.calls.append(call)
        if self._background is not None:
            self._scored.append(self._background.submit(self._reward.score, call.requests))
            # a witness in this process is asked once and in this thread: it need not be safe in several
            if self._witness is not None and self._witness.remote:
                self._watched.append(self._background.submit(self._witness.score, call.requests))

    def rewards(self, index: int) -> Rewards:
        """Rewards of a call; waits for them.

        Raises:
            Exception: What the reward model raised.
        """
        if not self._scored:
            self._scored = self._at_once(self._reward)
        return self._scored[index].result()

    def advantages(self, index: int) -> Advantages:
        """What the pictures of a call are worth; waits for the rewards of all calls that share a group with it."""
        if index not in self._worth:
            group = set(self.calls[index].groups)
            sharing = [number for number, call in enumerate(self.calls) if group & set(call.groups)]
            groups = [name for number in sharing for name in self.calls[number].groups]
            together = self._compared(joined([self.rewards(number) for number in sharing]), groups)
            start = 0
            for number in sharing:
                stop = start + len(self.calls[number].samples)
                self._worth[number] = together.select(range(start, stop))
                start = stop
        return self._worth[index]

    def rollout(self) -> Rollout:
        """The whole round; waits for all of it."""
        rewards = joined([self.rewards(index) for index in range(len(self.calls))])
        if self._witness is not None and not self._watched:
            self._watched = self._at_once(self._witness)
        samples = [sample for call in self.calls for sample in call.samples]
        groups = [name for call in self.calls for name in call.groups]
        return Rollout(
            self.epoch,
            [record for record, _ in samples],
            [copy for _, copy in samples],
            groups,
            [image for call in self.calls for image in call.recording.images],
            rewards,
            joined([watched.result() for watched in self._watched]) if self._witness is not None else None,
            self._compared(rewards, groups),
        )

    def _compared(self, rewards: Rewards, groups: list[str]) -> Advantages:
        return reward_advantages(rewards, groups, self._options, self._noise)

    def _at_once(self, model: RewardModel) -> list[Future[Rewards]]:
        """Everything in one go, for a model in this process: large batches are what it is fast with."""
        rewards, start = model.score([request for call in self.calls for request in call.requests]), 0
        scored = []
        for call in self.calls:
            stop = start + len(call.requests)
            scored.append(Future[Rewards]())
            scored[-1].set_result(rewards.select(range(start, stop)))
            start = stop
        return scored
