"""What all modules share."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from rationalrewards.components.memory import explain_out_of_memory
from torch import Tensor

LESS_AT_ONCE = (
    "lower the data module's batch_size and raise accumulate_grad_batches, set gradient_checkpointing, or lower max_pixels"
)


class RewardsModule(LightningModule):
    """Base of the library's modules: gives ``rationalrewards --help`` a short list of what can be run.

    Modules are given recipes (light, typed objects); networks come to life in ``configure_model``. They do no I/O of their own:
    data modules read, callbacks write.
    """

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's, with a message that says what to change if memory runs out."""
        with explain_out_of_memory("the backward pass", LESS_AT_ONCE):
            super().backward(loss, *args, **kwargs)
