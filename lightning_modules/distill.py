"""Distillation: a student learns to critique without the label."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from rationalrewards.components.chat import ChatRequest, TransformersChat
from rationalrewards.components.chat.transformers_chat import load_processor
from rationalrewards.components.checkpoints import resolve
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat, save_fingerprint
from rationalrewards.components.critique.formats import Message
from rationalrewards.components.memory import explain_out_of_memory
from rationalrewards.components.records import Preference, Unscored, open_pictures
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageTextToText

from .base import LESS_AT_ONCE, RewardsModule

Row = tuple[list[Message], str]


class RationaleDistillModule(RewardsModule):
    """Token cross-entropy on the critique, given the request without the label (arXiv 2604.11626, phase 3).

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
        val_max_tokens: Most tokens of a critique in validation.
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
        val_max_tokens: int = 2048,
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
        self.val_max_tokens = val_max_tokens
        self.student: Any = None
        self.processor: Any = None
        self._zero3: Any = None
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
            # the first name is the one of transformers 5.23 and later, which warns of the second
            enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            student.enable_input_require_grads()
        if self.lora_rank is None:
            for name, parameter in student.named_parameters():
                if _is_projector(name):
                    parameter.requires_grad_(not self.freeze_projector)
                elif _is_vision(name):
                    parameter.requires_grad_(not self.freeze_vision)
        student.train()
        if self.device_mesh is not None:
            _shard(student, self.device_mesh["data_parallel"])
        self.student = student

    def _load(self) -> Any:
        student = AutoModelForImageTextToText.from_pretrained(
            resolve(self.path), dtype=getattr(torch, self.dtype_name), attn_implementation=self.attention
        )
        if self.lora_rank is None:
            return student
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=self.lora_rank, lora_alpha=self.lora_alpha, target_modules=self._language_linears(student))
        with _whole_new_weights():
            return get_peft_model(student, config)

    def _language_linears(self, student: Any) -> list[str]:
        found = [
            name
            for name, module in student.named_modules()
            if isinstance(module, torch.nn.Linear) and not _is_vision(name) and not _is_projector(name) and "lm_head" not in name
        ]
        if not found:
            raise ValueError(f"{self.path}: found no linear layer of the language model to put a LoRA on")
        return found

    def configure_optimizers(self) -> Any:
        """The given optimizer over what trains."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def encode(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Model inputs of rows: request, answer and end of turn, with ``labels`` on the answer's tokens only.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` ``[B, L]`` (right-padded), and the pictures' tensors.

        Raises:
            ValueError: If a row is longer than ``max_length``.
        """
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"
        chat = TransformersChat(self.path).attach(self.student, self.processor)
        inputs = dict(chat.encode([ChatRequest(messages) for messages, _ in rows]))
        mask = inputs["attention_mask"].bool()
        # tokenised apart from the request, exactly as generation continues from it
        answers = [tokenizer(f"{answer}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"] for _, answer in rows]
        lengths = [int(mask[i].sum()) + len(answer) for i, answer in enumerate(answers)]
        if max(lengths) > self.max_length:
            request = next(
                part["text"] for part in reversed(rows[lengths.index(max(lengths))][0][-1]["content"]) if "text" in part
            )
            raise ValueError(
                f"a row has {max(lengths)} tokens, more than max_length {self.max_length}: {request[:80]!r}; raise max_length or use "
                "smaller pictures"
            )
        encoded: dict[str, Tensor] = {}
        for name, tensor in inputs.items():
            if not (isinstance(tensor, Tensor) and tensor.shape == mask.shape):
                encoded[name] = tensor
                continue
            fill = tokenizer.pad_token_id if name == "input_ids" else 0
            padded = torch.full((len(rows), max(lengths)), fill, dtype=tensor.dtype)
            for i, answer in enumerate(answers):
                prompt = tensor[i][mask[i]]
                padded[i, : len(prompt)] = prompt
                if name in ("input_ids", "attention_mask"):
                    tail = torch.tensor(answer) if name == "input_ids" else torch.ones(len(answer))
                    padded[i, len(prompt) : len(prompt) + len(answer)] = tail
            encoded[name] = padded
        labels = torch.full((len(rows), max(lengths)), -100)
        for i, answer in enumerate(answers):
            labels[i, lengths[i] - len(answer) : lengths[i]] = torch.tensor(answer)
        encoded["labels"] = labels
        return encoded

    def _loss(self, rows: Sequence[Row]) -> tuple[Tensor, int]:
        encoded = {name: tensor.to(self.device) for name, tensor in self.encode(rows).items()}
        labels = encoded.pop("labels")
        # logits from the first answer on: over a large vocabulary those of requests and pictures would take most of the memory
        first = int((labels != -100).int().argmax(dim=1).min())
        targets = labels[:, first:]
        with explain_out_of_memory(f"{len(rows)} rows of up to {labels.shape[1]} tokens at once", LESS_AT_ONCE):
            logits = self.student(**encoded, logits_to_keep=labels.shape[1] - first + 1).logits[:, :-1]
            loss = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
        return loss, int((targets != -100).sum())

    def training_step(self, batch: Sequence[Row], batch_idx: int) -> Tensor:
        """Mean cross-entropy over the batch's answer tokens."""
        loss, tokens = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        self.log("train/answer_tokens", float(tokens), batch_size=len(batch))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's pairs."""
        self._correct, self._unscored = [], 0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Teacher-forced loss on rationales, or generated pair accuracy on preference pairs."""
        if isinstance(batch[0], Preference):
            self._judge(batch)
            return
        loss, _ = self._loss(batch)
        self.log("val/loss", loss, batch_size=len(batch), sync_dist=True, add_dataloader_idx=False)

    def _judge(self, pairs: Sequence[Preference]) -> None:
        chat = TransformersChat(self.path, batch_size=2 * len(pairs)).attach(self.student, self.processor)
        critic = Critic(chat, self.format, self.val_max_tokens, reasks=0, expected=False)  # alike under every strategy
        requests = []
        for pair in pairs:
            sources = open_pictures(pair, pair.sources)
            requests += [
                CritiqueRequest(pair.task, pair.prompt, image, sources) for image in open_pictures(pair, pair.candidates)
            ]
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
        missing = [name for name in self.state_dict() if name not in checkpoint["state_dict"]]
        if missing:
            kind = "weights" if self.lora_rank is None else "LoRA weights"
            raise ValueError(f"the checkpoint lacks {len(missing)} {kind}, first {missing[0]!r}; is it of another rank or base?")

    def export(self, folder: str) -> None:
        """Write the critic as a plain transformers folder, LoRA merged, with its format's fingerprint.

        Of several processes all have to call this, since split weights are gathered; the first one writes.
        """
        weights = self._whole_weights()
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

    def _whole_weights(self) -> dict[str, Tensor] | None:
        """The student's weights on the CPU, of a LoRA student the LoRA only; nothing but on the first process."""
        whole: dict[str, Tensor] = {}
        first: dict[int, str] = {}
        for name, value in self.student.state_dict(keep_vars=True).items():
            if self.lora_rank is not None and "lora_" not in name:
                continue
            if id(value) in first:  # tied weights stay one, and are gathered once
                if self.global_rank == 0:
                    whole[name] = whole[first[id(value)]]
                continue
            first[id(value)] = name
            gathered = _gathered(value)
            if self.global_rank == 0:
                whole[name] = gathered.cpu()
        return whole


def _gathered(value: Tensor) -> Tensor:
    """A weight, whole, however a strategy has split it; all processes take part."""
    if hasattr(value, "ds_id"):
        import deepspeed  # `deepspeed.zero` is an attribute, no module of its own

        with deepspeed.zero.GatheredParameters([value]):
            return value.detach().clone()
    if isinstance(value, DTensor):
        whole: Tensor = value.full_tensor()
        return whole.detach()
    return value.detach()


def _shard(student: Any, mesh: DeviceMesh) -> None:
    """Split a student's weights with FSDP2: each block, the vision tower (which generation also runs by itself), and the rest."""
    from torch.distributed.fsdp import fully_shard

    blocks = set(student._no_split_modules or [])  # names of the classes of its repeated blocks
    for name, module in reversed(list(student.named_modules())):  # inner ones first
        if type(module).__name__ in blocks or name.endswith(("visual", "vision_tower")):
            fully_shard(module, mesh=mesh)
    fully_shard(student, mesh=mesh)
    student._is_fsdp_managed_module = True  # `generate` then keeps processes in step whose answers differ in length


@contextmanager
def _whole_new_weights() -> Iterator[None]:
    """Under ZeRO-3, leave new weights whole until the strategy splits them: PEFT cannot initialise the parts."""
    partition = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    if partition is not None:
        partition.shutdown_init_context()
    try:
        yield
    finally:
        if partition is not None:
            partition.restore_init_context()


def _is_projector(name: str) -> bool:
    return "merger" in name or "multi_modal_projector" in name


def _is_vision(name: str) -> bool:
    return "visual." in name or "vision_tower" in name
