"""The loss of a student's answers, without work that does not count."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from .loss import LOGIT_BYTES, losses_for_logits
from .packing import attend_by_rows, pack
from .pictures import FeatureStore, frozen, picture_model, seen_once

log = logging.getLogger(__name__)

Ways = frozenset[str]
PACKING, PICTURES, CHUNKS = "packing", "pictures", "chunks"
_WHAT = {
    PACKING: "rows in one sequence",
    PICTURES: "each picture's features computed once",
    CHUNKS: "logits computed in chunks",
}


class AnswerLoss:
    """Summed cross-entropy of a batch's answers, in three ways that save work and change nothing.

    - ``packing``: rows stand in one sequence without padding, their common beginnings once (:func:`pack`);
    - ``pictures``: a picture that is there twice is looked at once, and one that a frozen vision tower has seen before not again
      (:func:`seen_once`);
    - ``chunks``: logits are computed at answers' tokens only, and forgotten chunk by chunk (:func:`losses_for_logits`).

    Whether a model of transformers bears that is not known beforehand, so it is tried: the first batch's loss is computed plainly too, and
    a way that does not lead to the same number is left out with a message.

    Args:
        student: The student: a model of transformers, or a PEFT model of one.
        packing: Whether rows may be packed; else they are padded.
        picture_bytes: Memory for features of pictures, in bytes, on the CPU; 0 keeps none from one batch to the next.
        logit_bytes: Memory for logits at a time.
    """

    def __init__(self, student: Any, packing: bool = True, picture_bytes: int = 0, logit_bytes: int = LOGIT_BYTES) -> None:
        self.student = student
        self.store = FeatureStore(picture_bytes)
        self.logit_bytes = logit_bytes
        self.model: Any = picture_model(student)
        self.head = student.get_output_embeddings()
        self.ways: Ways = frozenset()
        """What is done; what bears it is known after the first batch."""
        self._asked = {PACKING: packing, PICTURES: self.model is not None, CHUNKS: type(self.head).forward is nn.Linear.forward}
        self._proved = False
        self._by_rows = False

    def __call__(self, encoded: dict[str, Tensor], pictures: Sequence[bytes] = ()) -> Tensor:
        """The sum over all answer tokens of their cross-entropy.

        Args:
            encoded: Right-padded inputs with ``labels``, on the student's device.
            pictures: Keys of the batch's pictures (:func:`~.pictures.picture_key`), in order.
        """
        if not self._proved:
            self._prove(encoded, pictures)
        return self._loss(encoded, pictures, self.ways)

    def _loss(self, encoded: dict[str, Tensor], pictures: Sequence[bytes], ways: Ways) -> Tensor:
        inputs: dict[str, Any] = dict(encoded)
        if PACKING in ways:
            inputs, labels = pack(self.model or self.student, inputs, self._by_rows)
        else:
            labels = inputs.pop("labels")
        with ExitStack() as stack:
            if PICTURES in ways and pictures:
                keeps = self.store if frozen(self.model) else None
                stack.enter_context(seen_once(self.model, pictures, keeps))
            if CHUNKS in ways:
                # the state at each position predicts the next token
                following = pad(labels[:, 1:], (0, 1), value=-100).flatten()
                at = (following != -100).nonzero()[:, 0]
                stack.enter_context(losses_for_logits(self.head, at, following[at], self.logit_bytes))
                loss: Tensor = self.student(**inputs, use_cache=False).logits
                return loss
            # logits from the first answer on
            first = int((labels != -100).int().argmax(dim=1).min())
            logits = self.student(**inputs, use_cache=False, logits_to_keep=labels.shape[1] - first + 1).logits[:, :-1]
        logits = logits.flatten(0, 1)
        accurate = logits if logits.dtype == torch.float64 else logits.float()
        return cross_entropy(accurate, labels[:, first:].flatten(), ignore_index=-100, reduction="sum")

    @torch.no_grad()
    def _prove(self, encoded: dict[str, Tensor], pictures: Sequence[bytes]) -> None:
        """Find the ways that lead to the same loss as none of them."""
        if self._asked[PACKING]:
            self._by_rows = attend_by_rows((self.model or self.student).get_decoder())
        asked = [way for way, wanted in self._asked.items() if wanted]
        training = [module for module in self.student.modules() if module.training]
        self.student.eval()  # dropout would make two losses differ
        try:
            plain = float(self._loss(encoded, pictures, frozenset())) if asked else 0.0
            failed = self._failures(encoded, pictures, frozenset(asked), plain) if asked else ""
            ways = [way for way in asked if not failed or not self._failures(encoded, pictures, frozenset({way}), plain)]
            if failed and ways == asked:  # each on its own, but not together
                ways = []
        finally:
            for module in training:
                module.training = True
        self.ways, self._proved = frozenset(ways), True
        for way in asked:
            if way not in self.ways:
                log.warning("left out for %s: %s, as the loss is another (%s)", type(self.student).__name__, _WHAT[way], failed)

    def _failures(self, encoded: dict[str, Tensor], pictures: Sequence[bytes], ways: Ways, plain: float) -> str:
        """Why a batch's loss is another with these ways, on any process; empty if it is the same."""
        device = encoded["labels"].device
        reason = ""
        try:
            # twice: pictures are computed first, then remembered
            losses = [float(self._loss(encoded, pictures, ways)) for _ in range(1 + (PICTURES in ways))]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model says that was not made for it
            reason = f"{type(error).__name__}: {error}"
        else:
            exact = plain_dtype(self.student, device) in (torch.float32, torch.float64)
            far = max(abs(loss - plain) for loss in losses)
            # sums in another order; in half precision each of them is rounded to 2-3 digits
            if not far <= (1e-4 if exact else 2e-2) * abs(plain):
                reason = f"{losses[-1]:.6g} and not {plain:.6g}"
        self.store.clear()
        if torch.distributed.is_initialized():
            wrong = torch.tensor(float(bool(reason)), device=device)
            torch.distributed.all_reduce(wrong, torch.distributed.ReduceOp.MAX)
            reason = reason or ("another process says so" if wrong else "")
        return reason


def plain_dtype(student: nn.Module, device: torch.device) -> torch.dtype:
    """The type in which a student's matrix products are computed."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(student.parameters()).dtype
