"""The baseline of reasoning rewards: a scalar head on the same model, the same request and the same pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from rationalrewards.components.backbone import (
    add_lora,
    checkpoint_gradients,
    freeze,
    load_backbone,
    shard,
    whole_new_weights,
)
from rationalrewards.components.chat.transformers_chat import load_processor
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.memory import explain_out_of_memory
from rationalrewards.components.objectives import bradley_terry_loss, gaussian_loss, rao_kupper_loss
from rationalrewards.components.objectives.bradley_terry import inverse_softplus
from rationalrewards.components.rewards import PreferenceHeadReward
from rationalrewards.components.rewards.preference_head import PreferenceHead, hidden_width, save_head
from rationalrewards.components.split_weights import whole_weights
from rationalrewards.datamodules.preferences import ShownPair
from torch import Tensor
from torch.nn.functional import softplus

from .base import LESS_AT_ONCE, RewardsModule

PreferenceLoss = Literal["bradley_terry", "ties", "gaussian", "gaussian_expected", "thurstone"]
_GAUSSIAN: dict[str, Any] = {"gaussian": "marginal", "gaussian_expected": "expected", "thurstone": "thurstone"}


class TieThreshold(torch.nn.Module):
    """A threshold above 0: a module of its own, so that strategies that split weights put it together when it is asked for.

    Args:
        start: Its value at first.
        learn: Whether it trains.
    """

    def __init__(self, start: float, learn: bool) -> None:
        super().__init__()
        with whole_new_weights():
            # one number in a vector: FSDP2 splits no scalars
            self.free = torch.nn.Parameter(torch.tensor([inverse_softplus(start)]), learn)

    def forward(self) -> Tensor:
        """The threshold ``[1]`` in float32."""
        return softplus(self.free.float())


class PreferenceRewardModule(RewardsModule):
    """Learns a score of single pictures from preference pairs; a head on the last token of the request that a critic is asked.

    Labels are probabilities: votes are learnt as such. Validation pairs that are no ties give ``val/pair_accuracy``, each once however
    many processes there are; a pair whose scores are equal or no numbers is wrong.

    Args:
        path: Folder or hub id of the backbone, any that ``AutoModelForImageTextToText`` loads, e.g. ``Qwen/Qwen3-VL-8B-Instruct``.
        format: Format whose request for one picture is read, and has to be from then on; the default rubric if omitted.
        loss: ``"bradley_terry"``, where a tie is a label of 0.5; ``"ties"``, where it is an outcome of its own (Rao and Kupper); or one
            with a second output for the score's uncertainty: ``"gaussian"``, ``"gaussian_expected"`` (what HPSv3 and EditReward train
            with) or ``"thurstone"``. See :mod:`rationalrewards.components.objectives.bradley_terry`.
        tie_threshold: Difference of scores below which a picture counts as no better, of ``"ties"``. It is learnt from this start ...
        learn_tie_threshold: ... unless this is off. HPSv3's and EditReward's trainers fix it at ``log(5)``, which is 1.61.
        optimizer: Optimizer, given the parameters that train.
        scheduler: Learning-rate scheduler, stepped every optimizer step.
        freeze_vision: Freeze the vision tower.
        freeze_projector: Freeze the projector between vision and text.
        lora_rank: Train a LoRA of this rank on the language model's linear layers instead of its weights; vision tower and projector
            then stay frozen whatever the two above say.
        lora_alpha: Scale of the LoRA.
        dtype: Weight type of the backbone; the head is float32.
        gradient_checkpointing: Trade compute for memory.
        attention: Attention implementation as transformers names it, e.g. ``"flash_attention_2"``.
        max_pixels: Larger pictures are brought down to this many pixels, in training and in the exported reward.
        max_length: Longest request in tokens; a longer one is an error that names it, since cutting would drop picture tokens.
        seed: Seed of the head's first weights.

    Raises:
        ValueError: If there is no such loss, or the threshold is not above 0.
    """

    def __init__(
        self,
        path: str,
        format: CritiqueFormat | None = None,
        loss: PreferenceLoss = "bradley_terry",
        tie_threshold: float = 0.5,
        learn_tie_threshold: bool = True,
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
        seed: int = 0,
    ) -> None:
        super().__init__()
        if loss not in get_args(PreferenceLoss):
            raise ValueError(f"loss is one of {', '.join(get_args(PreferenceLoss))}, got {loss!r}")
        if tie_threshold <= 0:
            raise ValueError(f"tie_threshold is a difference of scores above 0, got {tie_threshold:g}")
        self.path = path
        self.format = format or CritiqueFormat()
        self.loss_name = loss
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
        self.seed = seed
        self.model: PreferenceHead | None = None
        self.processor: Any = None
        self.tie_start = tie_threshold
        self.learn_tie_threshold = learn_tie_threshold
        self.tie: TieThreshold | None = None
        self._reward = PreferenceHeadReward(path, self.format, max_pixels=max_pixels)
        self._zero3: Any = None
        # a checkpoint may hold what trains only (a LoRA; DeepSpeed's exclude_frozen_parameters); on_load_checkpoint checks that
        self.strict_loading = False
        self._seen: list[tuple[Any, float, float | None]] = []

    @property
    def outputs(self) -> int:
        """Numbers per picture: 2 where a score has an uncertainty."""
        return 2 if self.loss_name in _GAUSSIAN else 1

    def configure_model(self) -> None:
        """Load the backbone (once), freeze what does not train, add head and LoRA; split it under ZeRO-3 and FSDP2."""
        if self.model is not None:
            return
        if self._trainer is not None and getattr(self.trainer.strategy, "zero_stage_3", False):
            from transformers.integrations import HfDeepSpeedConfig

            # transformers then splits weights while it loads them; it holds a weak reference only
            self._zero3 = HfDeepSpeedConfig(self.trainer.strategy.config)  # type: ignore[attr-defined]
        self.processor = load_processor(self.path, self.max_pixels)
        backbone = self._load()
        if self.gradient_checkpointing:
            checkpoint_gradients(backbone)
        if self.lora_rank is None:
            freeze(backbone, self.freeze_vision, self.freeze_projector)
        model = PreferenceHead(backbone, hidden_width(backbone), self.outputs, self.seed)
        model.train()
        tie = TieThreshold(self.tie_start, self.learn_tie_threshold) if self.loss_name == "ties" else None
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            shard(model.head, mesh)  # by itself: what is split together has to be of one type
            shard(model, mesh)
            if tie is not None:
                shard(tie, mesh)
        self.model, self.tie = model, tie
        self._reward.attach(model, self.processor)

    def _load(self) -> Any:
        backbone = load_backbone(self.path, self.dtype_name, self.attention)
        return backbone if self.lora_rank is None else add_lora(backbone, self.lora_rank, self.lora_alpha, self.path)

    def configure_optimizers(self) -> Any:
        """The given optimizer over what trains."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def forward(self, pairs: Sequence[ShownPair]) -> tuple[Tensor, Tensor]:
        """Outputs for the first and the second pictures ``[n, outputs]``; a picture that several pairs have is looked at once.

        Raises:
            ValueError: If a request is longer than ``max_length``.
        """
        assert self.model is not None
        requests: dict[tuple[Any, ...], CritiqueRequest] = {}
        places = []
        for shown in pairs:
            for image in shown.images:
                key = (shown.pair.task, shown.pair.prompt, id(image), *map(id, shown.sources))
                requests.setdefault(key, CritiqueRequest(shown.pair.task, shown.pair.prompt, image, shown.sources))
                places.append(key)
        inputs = self._reward.encode(list(requests.values()))
        lengths = inputs["attention_mask"].sum(dim=1)
        if int(lengths.max()) > self.max_length:
            prompt = list(requests.values())[int(lengths.argmax())].prompt
            raise ValueError(
                f"a request has {int(lengths.max())} tokens, more than max_length {self.max_length}: {prompt[:80]!r}; raise max_length or "
                "use smaller pictures"
            )
        with explain_out_of_memory(f"{len(requests)} pictures of up to {int(lengths.max())} tokens at once", LESS_AT_ONCE):
            outputs = self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()})
        order = {key: index for index, key in enumerate(requests)}
        found = outputs[torch.tensor([order[key] for key in places], device=outputs.device)]
        return found[::2], found[1::2]

    def losses(self, first: Tensor, second: Tensor, label: Tensor) -> Tensor:
        """Loss per pair ``[n]``.

        Args:
            first: Outputs for the first pictures ``[n, outputs]``.
            second: Outputs for the second pictures.
            label: Probability that the first is preferred ``[n]``.
        """
        if self.loss_name in _GAUSSIAN:
            return gaussian_loss(first[:, 0], second[:, 0], first[:, 1], second[:, 1], label, _GAUSSIAN[self.loss_name])
        if self.tie is not None:
            return rao_kupper_loss(first[:, 0], second[:, 0], label, self.tie())
        return bradley_terry_loss(first[:, 0], second[:, 0], label)

    def _label(self, batch: Sequence[ShownPair]) -> Tensor:
        return torch.tensor([shown.pair.label for shown in batch], device=self.device, dtype=torch.float32)

    def training_step(self, batch: Sequence[ShownPair], batch_idx: int) -> Tensor:
        """Mean loss over the batch's pairs."""
        first, second = self(batch)
        loss = self.losses(first, second, self._label(batch)).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        if self.tie is not None:
            self.log("train/tie_threshold", self.tie().detach(), batch_size=len(batch))
        if self.outputs == 2:
            sigma = torch.cat([first, second])[:, 1].detach().exp().mean()
            self.log("train/sigma", sigma, batch_size=len(batch))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's pairs."""
        self._seen = []

    def validation_step(self, batch: Sequence[ShownPair], batch_idx: int) -> None:
        """Loss and verdict on a batch of pairs."""
        first, second = self(batch)
        losses = self.losses(first, second, self._label(batch)).tolist()
        for shown, loss, a, b in zip(batch, losses, first[:, 0].tolist(), second[:, 0].tolist(), strict=True):
            pair = shown.pair
            right = None if pair.winner == "tie" else float((a > b) if pair.winner == "A" else (b > a))
            self._seen.append(((pair.id, pair.candidates), loss, right))

    def on_validation_epoch_end(self) -> None:
        """Log mean loss and accuracy over the pairs of all processes."""
        seen = self._seen
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, seen)
            seen = [one for part in gathered for one in part]
        whole = {key: (loss, right) for key, loss, right in seen}  # Lightning's sampler gives some pairs to two processes
        if not whole:
            return
        decided = [right for _, right in whole.values() if right is not None]
        self.log("val/loss", sum(loss for loss, _ in whole.values()) / len(whole), rank_zero_only=False)
        if decided:
            self.log("val/pair_accuracy", sum(decided) / len(decided), prog_bar=True, rank_zero_only=False)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """With a LoRA, only LoRA, head and threshold: the base is named by ``path``."""
        state = super().state_dict(*args, **kwargs)
        if self.lora_rank is None:
            return state
        return {key: value for key, value in state.items() if "lora_" in key or not key.startswith("model.backbone.")}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Check that a checkpoint holds every weight that this module keeps there (DeepSpeed and FSDP2 load weights on their own).

        Raises:
            ValueError: If weights are missing.
        """
        if self.model is None or "state_dict" not in checkpoint:
            return
        missing = [name for name in self.state_dict() if name not in checkpoint["state_dict"]]
        if missing:
            raise ValueError(
                f"the checkpoint lacks {len(missing)} weights, first {missing[0]!r}; is it of another rank, base or loss?"
            )

    def export(self, folder: str) -> None:
        """Write a folder for :class:`~rationalrewards.components.rewards.PreferenceHeadReward`.

        It is the backbone as transformers writes it, LoRA merged, with the head and the format's fingerprint beside it. Of several
        processes all have to call this, since split weights are gathered; the first one writes.
        """
        assert self.model is not None
        keep = self.global_rank == 0
        head = whole_weights(self.model.head, keep)
        tie = {} if self.tie is None else whole_weights(self.tie, keep)
        weights: dict[str, Tensor] | None
        weights = whole_weights(self.model.backbone, keep, "" if self.lora_rank is None else "lora_")
        if not keep:
            return
        backbone = self.model.backbone
        if self.lora_rank is not None:
            self._zero3 = None  # or transformers would split this copy too
            backbone = self._load()
            backbone.load_state_dict(weights, strict=False)
            backbone, weights = backbone.merge_and_unload(), None
        backbone.save_pretrained(folder, state_dict=weights)
        self.processor.tokenizer.padding_side = "left"
        self.processor.save_pretrained(folder)
        about: dict[str, Any] = {"loss": self.loss_name, "base": self.path}
        if tie:
            about["tie_threshold"] = float(softplus(tie["free"].float()))
        save_head(folder, head, self.format, about)
