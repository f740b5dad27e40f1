"""CLIP models as reward models: CLIPScore and PickScore."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from transformers import AutoModel, AutoProcessor

from ..checkpoints import resolve
from ..critic import CritiqueRequest
from ..memory import explain_out_of_memory
from .base import RewardModel, Rewards
from .batching import Scored, score_in_batches

log = logging.getLogger(__name__)

CLIPKind = Literal["clipscore", "torchmetrics", "pickscore"]
CLIP_KINDS: tuple[CLIPKind, ...] = get_args(CLIPKind)
PREFIX: dict[CLIPKind, str] = {"clipscore": "A photo depicts ", "torchmetrics": "", "pickscore": ""}
"""What the authors of each score put before a text."""


class CLIPReward(RewardModel):
    """The similarity of a picture and its request under a CLIP model of transformers.

    It is one of these:

    ================  =====================================================================================================
    ``clipscore``     ``2.5 max(cos, 0)`` with ``A photo depicts`` before the text (Hessel et al., arXiv 2104.08718, Section 3; of a
                      ``openai/clip-vit-base-patch32``).
    ``torchmetrics``  ``100 max(cos, 0)`` of the text alone, as ``torchmetrics.multimodal.CLIPScore`` of one picture.
    ``pickscore``     ``exp(logit_scale) cos`` (Kirstain et al., arXiv 2305.01569; ``yuvalkirstain/PickScore_v1`` with the processor of
                      ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``). About 15 to 25; a difference is a log-odds.
    ================  =====================================================================================================

    ``values`` has the columns ``score`` and ``cosine``. What a CLIP model is not shown: source pictures (of an edit, only result and
    instruction are compared, and a warning says so), what its processor crops off a picture that is not square, and all of a text
    beyond the model's positions (77 for the models above). A text that is too long is cut, counted in ``cut`` and warned about, or
    left unscored.

    Args:
        path: Folder or hub id of the model.
        score: Which of the three.
        processor: Folder or hub id of tokenizer and image processor, if it is not in ``path``.
        prefix: What to put before each text, instead of what the score's authors do.
        overlong: ``"cut"`` a text that is too long at its end, or leave it ``"unscored"``.
        batch_size: Pictures per forward.
        dtype: Weight type; ``"auto"`` takes the one in the checkpoint.
        revision: Hub revision of the model to pin.

    Raises:
        ValueError: If there is no such score or treatment of long texts.
    """

    def __init__(
        self,
        path: str,
        score: CLIPKind,
        processor: str | None = None,
        prefix: str | None = None,
        overlong: Literal["cut", "unscored"] = "cut",
        batch_size: int = 32,
        dtype: str = "auto",
        revision: str | None = None,
    ) -> None:
        if score not in CLIP_KINDS or overlong not in ("cut", "unscored"):
            raise ValueError(
                f"score is one of {', '.join(CLIP_KINDS)} and overlong cut or unscored, got {score!r} and {overlong!r}"
            )
        self.path = path
        self.kind: CLIPKind = score
        self.processor_path = processor
        self.prefix = PREFIX[score] if prefix is None else prefix
        self.overlong = overlong
        self.batch_size = batch_size
        self.dtype = dtype
        self.revision = revision
        self.model: Any = None
        self.processor: Any = None
        self.cut = 0
        """Texts that were cut so far."""
        self._warned_of_sources = False

    def load(self, device: Any = None) -> None:
        """Load model and processor, and move the model to ``device``.

        Raises:
            ValueError: If the model is no CLIP: one that gives an embedding of a text and one of a picture.
        """
        if self.model is None:
            self.processor = AutoProcessor.from_pretrained(
                resolve(self.processor_path or self.path), revision=None if self.processor_path else self.revision
            )
            model = AutoModel.from_pretrained(resolve(self.path), dtype=self.dtype, revision=self.revision)
            if not hasattr(model, "logit_scale") or not hasattr(model.config, "text_config"):
                raise ValueError(
                    f"{self.path} is a {type(model).__name__}, no CLIP model; give one with a text and a vision tower"
                )
            self.model = model.requires_grad_(False).eval()
        if device is not None:
            self.model.to(device)

    @property
    def positions(self) -> int:
        """Most tokens of a text, of which two open and close it."""
        return int(self.model.config.text_config.max_position_embeddings)

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        self.load()
        texts = [self.prefix + request.prompt for request in requests]
        lengths = self.lengths(texts)
        long = [index for index, length in enumerate(lengths) if length > self.positions]
        if any(request.sources for request in requests) and not self._warned_of_sources:
            self._warned_of_sources = True
            log.warning("%s sees no source pictures: of edits it compares the instruction with the result", self.path)
        rewards = score_in_batches(requests, self.batch_size, ("score", "cosine"), self._forward)
        if not long:
            return rewards
        if self.overlong == "unscored":
            for index in long:
                rewards.total[index] = float("nan")
                rewards.values[index] = float("nan")
                rewards.reasons[index] = (
                    f"the text has {lengths[index]} tokens, more than the {self.positions} that the model reads"
                )
            return rewards
        self.cut += len(long)
        log.warning(
            "%s reads %d tokens: %d of %d texts are longer and were cut, the longest has %d (%d texts so far)",
            self.path,
            self.positions,
            len(long),
            len(texts),
            max(lengths),
            self.cut,
        )
        return rewards

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, opening and closing ones included, uncut."""
        self.load()
        tokenizer = self.processor.tokenizer
        # `verbose`: a tokenizer warns by itself that such a text is too long for the model, which is what is asked here
        return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]] if texts else []

    @torch.no_grad()
    def _forward(self, batch: Sequence[CritiqueRequest]) -> Scored:
        inputs = self.processor(
            text=[self.prefix + request.prompt for request in batch],
            images=[request.image.convert("RGB") for request in batch],
            padding=True,
            truncation=True,
            max_length=self.positions,
            return_tensors="pt",
        )
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with explain_out_of_memory(f"{len(batch)} pictures at once", "lower batch_size of the reward"):
            found = self.model(**inputs)
        # each picture with its own text, never with its neighbours'; normalised again, since half precision leaves a rest
        text, image = (torch.nn.functional.normalize(one.float(), dim=-1) for one in (found.text_embeds, found.image_embeds))
        cosine = (text * image).sum(dim=-1)
        if self.kind == "pickscore":
            scores = self.model.logit_scale.float().exp() * cosine
        else:
            scores = (2.5 if self.kind == "clipscore" else 100.0) * cosine.clamp(min=0.0)
        return scores, torch.stack([scores, cosine], dim=1)
