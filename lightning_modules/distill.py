"""Distillation: a student learns to critique without the label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from rationalrewards.components.backbone import add_lora, checkpoint_gradients, freeze, shard
from rationalrewards.components.chat import ChatRequest, TransformersChat
from rationalrewards.components.chat.transformers_chat import load_processor
from rationalrewards.components.checkpoints import resolve
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat, save_fingerprint
from rationalrewards.components.distillation import AnswerLoss, Row, answer_tokens, encode_rows, picture_key
from rationalrewards.components.distillation.compiling import compile_blocks, eager
from rationalrewards.components.distillation.loss import LOGIT_BYTES
from rationalrewards.components.distillation.steps import StepTokens
from rationalrewards.components.memory import explain_out_of_memory
from rationalrewards.components.records import Preference, Unscored, open_pictures
from rationalrewards.components.split_weights import whole_weights
from rationalrewards.datamodules.batches import StepBatch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from .base import LESS_AT_ONCE, RewardsModule


class RationaleDistillModule(RewardsModule):
    """Token cross-entropy on the critique, given the request without the label (arXiv 2604.11626, phase 3).

    The loss of an optimizer step is the mean over all its answer tokens, whichever way its rows are split into micro-batches and
    processes, given the batches of :class:`~rationalrewards.datamodules.RationaleDataModule`. What is left out of its computation is in
    :class:`~rationalrewards.components.distillation.AnswerLoss`.

    Args:
        path: Folder or hub id of the student, e.g. ``Qwen/Qwen3-VL-8B-Instruct``.
        format: Format that the student learns, and is asked in from then on; the default rubric if omitted.
        optimizer: Optimizer, given the parameters that train.
        scheduler: Learning-rate scheduler, stepped every optimizer step.
        freeze_vision: Freeze the vision tower (the paper does).
        freeze_projector: Freeze the projector between vision and text (the paper does).
        lora_rank: Train a LoRA of this rank on the language model's linear layers instead of its weights; vision tower and projector
            then stay frozen whatever the two above say.
        lora_alpha: Scale of the LoRA.
        dtype: Weight type.
        gradient_checkpointing: Trade compute for memory.
        attention: Attention implementation as transformers names it, e.g. ``"flash_attention_2"``.
        max_pixels: Larger pictures are brought down to this many pixels, in training and in the exported critic.
        max_length: Longest row in tokens; a longer one is an error that names it, since cutting would drop picture tokens.
        packing: Put the rows of a batch into one sequence, without padding; else they are padded to the longest.
        picture_bytes: Memory for the features of pictures on the CPU, in bytes: what a frozen vision tower has seen in a picture is used
            again in other rows and epochs. A picture of n tokens takes n times the language model's width, once and again for each deep
            layer (Qwen3-VL-8B in bfloat16: 32 kB a token). 0 keeps nothing. A vision tower that trains looks at every picture anew.
        logit_bytes: Memory for logits at a time, in bytes.
        compile: Compile the language model's layers with ``torch.compile``.
        val_max_tokens: Most tokens of a critique in validation.
        val_constrained: Force critiques in validation into the form that can be read.
        val_expected: Score them by expected scores, which leaves hardly a tie; not of a model that is split over processes.
    """

    def __init__(
        self,
        path: str,
        format: CritiqueFormat | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        freeze_vision: bool = True,
        freeze_projector: bool = True,
        lora_rank: int | None = None,
        lora_alpha: int = 32,
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
        attention: str = "sdpa",
        max_pixels: int | None = None,
        max_length: int = 32768,
        packing: bool = True,
        picture_bytes: int = 2**30,
        logit_bytes: int = LOGIT_BYTES,
        compile: bool = False,
        val_max_tokens: int = 2048,
        val_constrained: bool = False,
        val_expected: bool = False,
    ) -> None:
        super().__init__()
        self.path = path
        self.format = format or CritiqueFormat()
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.freeze_vision = freeze_vision
        self.freeze_projector = freeze_projector
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.dtype_name = dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.attention = attention
        self.max_pixels = max_pixels
        self.max_length = max_length
        self.packing = packing
        self.picture_bytes = picture_bytes
        self.logit_bytes = logit_bytes
        self.compile_student = compile
        self.val_max_tokens = val_max_tokens
        self.val_constrained = val_constrained
        self.val_expected = val_expected
        self.student: Any = None
        self.processor: Any = None
        self._zero3: Any = None
        self._answers: AnswerLoss | None = None
        self._step = StepTokens()
        # a checkpoint may hold what trains only (a LoRA; DeepSpeed's exclude_frozen_parameters); on_load_checkpoint checks that
        self.strict_loading = False
        self._correct: list[float] = []
        self._unscored = 0

    def configure_model(self) -> None:
        """Load the student (once), freeze what does not train, add the LoRA if there is one; split it under ZeRO-3 and FSDP2."""
        if self.student is not None:
            return
        if self._trainer is not None and getattr(self.trainer.strategy, "zero_stage_3", False):
            from transformers.integrations import HfDeepSpeedConfig

            # transformers then splits weights while it loads them; it holds a weak reference only
            self._zero3 = HfDeepSpeedConfig(self.trainer.strategy.config)  # type: ignore[attr-defined]
        self.processor = load_processor(self.path, self.max_pixels)
        student = self._load()
        if self.gradient_checkpointing:
            checkpoint_gradients(student)
        if self.lora_rank is None:
            freeze(student, self.freeze_vision, self.freeze_projector)
        student.train()
        if self.compile_student:
            compile_blocks(student)
        if self.device_mesh is not None:
            shard(student, self.device_mesh["data_parallel"])
        self.student = student

    def _load(self) -> Any:
        student = AutoModelForImageTextToText.from_pretrained(
            resolve(self.path), dtype=getattr(torch, self.dtype_name), attn_implementation=self.attention
        )
        return student if self.lora_rank is None else add_lora(student, self.lora_rank, self.lora_alpha, self.path)

    def configure_optimizers(self) -> Any:
        """The given optimizer over what trains."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def encode(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """See :func:`~rationalrewards.components.distillation.encode_rows`."""
        return encode_rows(TransformersChat(self.path).attach(self.student, self.processor), rows, self.max_length)

    def _loss(self, rows: Sequence[Row]) -> tuple[Tensor, int]:
        """The sum over the rows' answer tokens, and their number."""
        if self._answers is None:
            self._answers = AnswerLoss(self.student, self.packing, self.picture_bytes, self.logit_bytes)
        pictures = [picture_key(image) for messages, _ in rows for image in ChatRequest(messages).images()]
        encoded = {name: tensor.to(self.device) for name, tensor in self.encode(rows).items()}
        labels = encoded["labels"]
        with explain_out_of_memory(f"{len(rows)} rows of up to {labels.shape[1]} tokens at once", LESS_AT_ONCE):
            return self._answers(encoded, pictures), int((labels != -100).sum())

    def training_step(self, batch: StepBatch[Row] | Sequence[Row], batch_idx: int) -> Tensor:
        """The batch's share of the mean cross-entropy over the optimizer step's answer tokens."""
        rows = list(batch)
        loss, tokens = self._loss(rows)
        later = batch.later if isinstance(batch, StepBatch) else ()
        if later is not None or not self._step.total:
            if not isinstance(batch, StepBatch) and self.trainer.accumulate_grad_batches > 1:
                rank_zero_warn(
                    "these batches do not know their step: its micro-batches count alike, however many tokens they have"
                )
            self._step.begin(
                tokens + sum(len(answer_tokens(self.processor.tokenizer, answer)) for answer in later or ()), self.device
            )
        # Lightning divides by the number of micro-batches, and DeepSpeed once more; a mean of means wants the one and not the other
        several, twice = self.trainer.accumulate_grad_batches, self.trainer.strategy.handles_gradient_accumulation
        loss = self._step.share(loss, tokens, several ** (twice + isinstance(batch, StepBatch)))
        self.log("train/loss", self._step.mean, prog_bar=True, batch_size=len(rows))
        self.log("train/answer_tokens", float(tokens), batch_size=len(rows))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's pairs."""
        self._correct, self._unscored = [], 0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Teacher-forced loss on rationales, or generated pair accuracy on preference pairs."""
        if isinstance(batch[0], Preference):
            self._judge(batch)
            return
        loss, tokens = self._loss(list(batch))
        # weighted by tokens, as in training
        self.log("val/loss", loss / tokens, batch_size=tokens, sync_dist=True, add_dataloader_idx=False)

    def _judge(self, pairs: Sequence[Preference]) -> None:
        chat = TransformersChat(self.path, batch_size=2 * len(pairs)).attach(self.student, self.processor)
        critic = Critic(
            chat, self.format, self.val_max_tokens, reasks=0, constrained=self.val_constrained, expected=self.val_expected
        )
        requests = []
        for pair in pairs:
            sources = open_pictures(pair, pair.sources)
            requests += [
                CritiqueRequest(pair.task, pair.prompt, image, sources) for image in open_pictures(pair, pair.candidates)
            ]
        with eager():
            rewards = [critique.reward() for critique in critic.critique(requests, refinement=False)]
        for pair, a, b in zip(pairs, rewards[::2], rewards[1::2], strict=True):
            if pair.winner == "tie":
                continue
            if isinstance(a, Unscored) or isinstance(b, Unscored):
                self._unscored += 1
                self._correct.append(0.0)
            else:
                self._correct.append(float((a > b) == (pair.winner == "A") and a != b))

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy on decided pairs of all processes; unscored pairs count as wrong."""
        counts = torch.tensor([len(self._correct), sum(self._correct), self._unscored], dtype=torch.float64, device=self.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(counts)
        n, correct, unscored = counts.tolist()
        if n:
            self.log("val/pair_accuracy", correct / n, prog_bar=True, sync_dist=True)
            self.log("val/unscored_rate", unscored / n, sync_dist=True)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """With a LoRA, only the LoRA: the base is named by ``path``."""
        state = super().state_dict(*args, **kwargs)
        return state if self.lora_rank is None else {key: value for key, value in state.items() if "lora_" in key}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Check that a checkpoint holds every weight that this module keeps there (DeepSpeed and FSDP2 load weights on their own).

        Raises:
            ValueError: If weights are missing.
        """
        if self.student is None or "state_dict" not in checkpoint:
            return
        self._answers = None  # what was remembered of pictures is of the weights before
        missing = [name for name in self.state_dict() if name not in checkpoint["state_dict"]]
        if missing:
            kind = "weights" if self.lora_rank is None else "LoRA weights"
            raise ValueError(f"the checkpoint lacks {len(missing)} {kind}, first {missing[0]!r}; is it of another rank or base?")

    def export(self, folder: str) -> None:
        """Write the critic as a plain transformers folder, LoRA merged, with its format's fingerprint.

        Of several processes all have to call this, since split weights are gathered; the first one writes.
        """
        weights: Any = whole_weights(self.student, self.global_rank == 0, "" if self.lora_rank is None else "lora_")
        if self.global_rank > 0:
            return
        student = self.student
        if self.lora_rank is not None:
            self._zero3 = None  # or transformers would split this copy too
            student = self._load()
            student.load_state_dict(weights, strict=False)
            student, weights = student.merge_and_unload(), None
        student.save_pretrained(folder, state_dict=weights)
        self.processor.tokenizer.padding_side = "left"
        self.processor.save_pretrained(folder)
        save_fingerprint(folder, self.format)
