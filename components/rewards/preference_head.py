"""A number from a vision-language model: a linear head on the last token of the request that a critic is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..backbone import load_backbone, whole_new_weights
from ..chat import ChatRequest, TransformersChat
from ..chat.transformers_chat import load_processor
from ..checkpoints import resolve
from ..critic import CritiqueRequest
from ..critique import CritiqueFormat, check_fingerprint, save_fingerprint
from ..memory import explain_out_of_memory
from .base import RewardModel, Rewards
from .batching import Scored, score_in_batches

HEAD_FILE = "preference_head.safetensors"


class PreferenceHead(torch.nn.Module):
    """A model's hidden state at the last token, and a linear head on it.

    The head starts with weights of ``N(0, 1 / width)``. A bias of the mean would be lost in differences and stays at zero.

    Args:
        backbone: What gives hidden states; see :func:`~rationalrewards.components.backbone.load_backbone`.
        width: Width of the hidden states.
        outputs: 1 for a score, 2 for the mean of a score and the logarithm of its standard deviation.
        seed: Seed of the head's first weights, whatever random numbers were drawn before.
    """

    def __init__(self, backbone: Any, width: int, outputs: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        with whole_new_weights():
            self.head = torch.nn.Linear(width, outputs)
            # from a generator of its own: alike on all processes, whatever random numbers they have used
            weight = torch.randn((outputs, width), generator=torch.Generator().manual_seed(seed)) * width**-0.5
            self.head.load_state_dict({"weight": weight, "bias": torch.zeros(outputs)})

    def forward(self, **inputs: Tensor) -> Tensor:
        """Outputs ``[n, outputs]`` in float32, of left-padded inputs."""
        hidden = self.backbone(**inputs, use_cache=False).last_hidden_state[:, -1]
        # the head is float32, unless a strategy has made everything bfloat16
        return self.head(hidden.to(self.head.weight.dtype)).float()


def hidden_width(backbone: Any) -> int:
    """Width of a backbone's hidden states."""
    return int(backbone.config.get_text_config().hidden_size)


def messages_of(format: CritiqueFormat, request: CritiqueRequest) -> ChatRequest:
    """What a critic would be asked about this picture."""
    return ChatRequest(format.pointwise_messages(request.task, request.prompt, request.sources, request.image))


def save_head(folder: str | Path, weights: dict[str, Tensor], format: CritiqueFormat, about: dict[str, Any]) -> None:
    """Write a head beside its backbone.

    Args:
        folder: Where backbone and processor are.
        weights: ``weight`` and ``bias`` of the head.
        format: How the requests are worded.
        about: What else is worth knowing, as JSON.
    """
    content = {name: value.float().contiguous() for name, value in weights.items()}
    save_file(content, str(Path(folder) / HEAD_FILE), {"about": json.dumps(about)})
    save_fingerprint(folder, format)


def load_head(folder: str | Path) -> dict[str, Tensor]:
    """The weights of a folder's head.

    Raises:
        ValueError: If there is none; the message says what the folder may be.
    """
    path = Path(folder) / HEAD_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {HEAD_FILE}: give a folder that PreferenceRewardModule exported (a critic is for CritiqueReward)"
        )
    with safe_open(str(path), framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if set(weights) != {"weight", "bias"} or weights["weight"].shape[0] not in (1, 2):
        shapes = {name: list(value.shape) for name, value in weights.items()}
        raise ValueError(f"{path} holds no head of 1 or 2 outputs but {shapes}; export it again")
    return weights


class PreferenceHeadReward(RewardModel):
    """The score of a preference head that :class:`~rationalrewards.lightning_modules.PreferenceRewardModule` trained.

    ``values`` has the column ``score``, or ``mean`` and ``sigma`` for a head that was trained with uncertainty. Totals have no bounds
    and no zero: only differences between pictures mean something, in units of log-odds for all losses but Thurstone's.

    Args:
        path: Folder of the head.
        format: Format that it was trained in; the default rubric if omitted. Another one is refused when it is loaded.
        batch_size: Pictures per forward.
        dtype: Type of the backbone's weights; ``"auto"`` takes the one in the folder. The head is float32.
        attention: Attention implementation as transformers names it.
        max_pixels: Larger pictures are brought down to this many pixels; the limit of the training is stored with the processor.
        pessimism: How many sigmas are taken off the mean, of a head with uncertainty.

    Raises:
        ValueError: If ``pessimism`` is negative.
    """

    def __init__(
        self,
        path: str,
        format: CritiqueFormat | None = None,
        batch_size: int = 16,
        dtype: str = "auto",
        attention: str = "sdpa",
        max_pixels: int | None = None,
        pessimism: float = 0.0,
    ) -> None:
        if pessimism < 0:
            raise ValueError(f"pessimism is the number of sigmas taken off the mean, at least 0, got {pessimism:g}")
        self.path = path
        self.format = format or CritiqueFormat()
        self.batch_size = batch_size
        self.dtype = dtype
        self.attention = attention
        self.max_pixels = max_pixels
        self.pessimism = pessimism
        self.model: PreferenceHead | None = None
        self._chat: TransformersChat | None = None

    def load(self, device: Any = None) -> None:
        """Load backbone, head and processor, and move them to ``device``.

        Raises:
            ValueError: If the folder has no head, or one of another format, or ``pessimism`` is asked of one without uncertainty.
        """
        if self.model is None:
            folder = resolve(self.path)
            head = load_head(folder)
            check_fingerprint(folder, self.format)
            outputs, width = head["weight"].shape
            if outputs == 1 and self.pessimism:
                raise ValueError(f"the head in {self.path} knows no uncertainty; leave out pessimism")
            model = PreferenceHead(load_backbone(self.path, self.dtype, self.attention), width, outputs)
            model.head.load_state_dict(head)
            model.requires_grad_(False).eval()
            self.attach(model, load_processor(self.path, self.max_pixels))
        if device is not None and self.model is not None:
            self.model.to(device)

    def attach(self, model: PreferenceHead, processor: Any) -> PreferenceHeadReward:
        """Use a head that is loaded already, e.g. one in training; returns itself."""
        self.model = model
        self._chat = TransformersChat(self.path, max_pixels=self.max_pixels).attach(model.backbone, processor)
        return self

    def encode(self, requests: Sequence[CritiqueRequest]) -> dict[str, Tensor]:
        """The model's inputs for requests, left-padded, on the CPU."""
        assert self._chat is not None
        return dict(self._chat.encode([messages_of(self.format, request) for request in requests]))

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        self.load()
        assert self.model is not None
        outputs = self.model.head.out_features
        return score_in_batches(requests, self.batch_size, ("score",) if outputs == 1 else ("mean", "sigma"), self._forward)

    @torch.no_grad()
    def _forward(self, batch: Sequence[CritiqueRequest]) -> Scored:
        assert self.model is not None
        device = self.model.head.weight.device
        inputs = {name: tensor.to(device) for name, tensor in self.encode(batch).items()}
        with explain_out_of_memory(f"{len(batch)} pictures at once", "lower batch_size or max_pixels of the reward"):
            outputs = self.model(**inputs)
        if outputs.shape[1] == 1:
            return outputs[:, 0], outputs
        values = torch.stack([outputs[:, 0], outputs[:, 1].exp()], dim=1)
        return values[:, 0] - self.pessimism * values[:, 1], values
