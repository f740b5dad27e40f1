"""The loss of an optimizer step, however its rows are split."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor


class StepTokens:
    """Counts the tokens of an optimizer step before its first gradient, over all its micro-batches and processes.

    The loss of a step is the sum over its tokens divided by their number. Each micro-batch gives its own sum divided by the whole number;
    a mean of means, which trainers take by default, weighs a token by how many others happen to be in its micro-batch.
    """

    def __init__(self) -> None:
        self.total = 0
        """Tokens of the step that is under way, over all processes; 0 before the first."""
        self._sum: Tensor | float = 0.0
        self._seen = 0

    def begin(self, tokens: int, device: torch.device) -> None:
        """Begin a step; all processes take part.

        Args:
            tokens: Tokens of this process's rows of the step.
            device: Where to add them up with those of other processes.
        """
        self._sum, self._seen, self.total = 0.0, 0, tokens
        if _processes() > 1:
            count = torch.tensor(tokens, device=device)
            torch.distributed.all_reduce(count)
            self.total = int(count)

    def share(self, loss: Tensor, tokens: int, divided: int) -> Tensor:
        """A micro-batch's part of the step's loss, made up for what it is divided by on its way to the gradients.

        Args:
            loss: The sum over the micro-batch's tokens.
            tokens: Their number.
            divided: What trainer and strategy divide it by because a step has several micro-batches. The mean over processes is known.
        """
        self._sum, self._seen = self._sum + loss.detach(), self._seen + tokens
        return loss * (divided * _processes() / self.total)

    @property
    def mean(self) -> Tensor | float:
        """Mean over this process's tokens of the step so far."""
        return self._sum / self._seen


def _processes() -> int:
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialised else 1
