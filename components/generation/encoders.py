"""Text encoders and the VAE's encoder run once for what they have seen before, in any pipeline and without adapter code.

While sampling, :class:`EncoderMemory` stands before the ``forward`` of every text encoder and the ``encode`` of the VAE. Both are
asked with tensors; the answer is kept in main memory under a digest of those tensors' bytes. A batch of prompts is taken apart, each
prompt is encoded alone and the answers are put together again, so that an embedding is a function of its own prompt: neither the batch
nor what was sampled before changes a bit of it. Whether an encoder may be taken apart is measured on its first batch of different
prompts; one that may not (a VLM whose pictures lie in one long tensor) is remembered call by call.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from transformers import PreTrainedModel

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class EncoderSavings:
    """What remembering saved so far.

    Args:
        text_runs: Passes of one prompt (or, where prompts cannot be taken apart, one batch) through one text encoder.
        text_reused: Such passes that were answered from memory.
        image_runs: Calls of the VAE's encoder.
        image_reused: Such calls that were answered from memory.
        kept_bytes: Main memory that the answers take.
        parked_bytes: Device memory of the encoders' weights that is free between their uses; 0 without parking.
    """

    text_runs: int = 0
    text_reused: int = 0
    image_runs: int = 0
    image_reused: int = 0
    kept_bytes: int = 0
    parked_bytes: int = 0


@dataclass
class _Kept:
    """The answer to one prompt: tensors by their place in the encoder's output. Those that nobody read are dropped."""

    outline: Any
    tensors: dict[Path, Tensor]
    read: set[Path] = field(default_factory=set)
    settled: bool = False

    def settle(self) -> None:
        """Into main memory with what was read; a language model's logits and most of its layers never are."""
        if not self.settled or any(tensor.device.type != "cpu" for tensor in self.tensors.values()):
            # a copy: a slice of a batch would hold the whole batch in memory
            self.tensors = {path: self.tensors[path].to("cpu", copy=True) for path in self.read if path in self.tensors}
            self.settled = True

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class EncoderMemory:
    """Remembers what a pipeline's encoders answered; see the module's text.

    Args:
        pipe: A loaded diffusers pipeline whose encoders do not change any more.
        max_bytes: Main memory for the answers; the ones unused for longest are forgotten first.
    """

    def __init__(self, pipe: Any, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        denoiser = getattr(pipe, "transformer", None)
        self.encoders: dict[str, nn.Module] = {
            name: part
            for name, part in pipe.components.items()
            if isinstance(part, nn.Module)
            and part is not denoiser
            and (name.startswith("text_encoder") or isinstance(part, PreTrainedModel))
        }
        self.vae: nn.Module | None = getattr(pipe, "vae", None)
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._row_wise: dict[str, bool] = {}
        self._runs = {"text": 0, "image": 0}
        self._reused = {"text": 0, "image": 0}
        self._parked: list[Any] = []

    @property
    def parts(self) -> list[nn.Module]:
        """Text encoders and VAE."""
        return [*self.encoders.values(), *([self.vae] if self.vae is not None else [])]

    @property
    def savings(self) -> EncoderSavings:
        """Counts since the pipeline was loaded."""
        parked = [hook.model for hook in self._parked]
        return EncoderSavings(
            text_runs=self._runs["text"],
            text_reused=self._reused["text"],
            image_runs=self._runs["image"],
            image_reused=self._reused["image"],
            kept_bytes=self._kept_bytes(),
            parked_bytes=sum(tensor.nbytes for part in parked for tensor in [*part.parameters(), *part.buffers()]),
        )

    def forget(self) -> None:
        """Drop every answer, e.g. because an encoder's weights changed."""
        self._kept.clear()

    def park(self, device: torch.device) -> None:
        """Keep text encoders and VAE in main memory; each comes to ``device`` when it is needed, until the end of the call."""
        self.unpark()
        self._parked = [cpu_offload_with_hook(part, device)[1] for part in self.parts]

    def unpark(self) -> None:
        """Undo :meth:`park`; the parts stay in main memory."""
        for hook in self._parked:
            remove_hook_from_module(hook.model)
        self._parked = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Answer from memory inside the ``with`` block."""
        with ExitStack() as stack:
            for name, encoder in self.encoders.items():
                stack.enter_context(_replaced(encoder, "forward", self._remembering(name, encoder)))
            if self.vae is not None and hasattr(self.vae, "encode"):
                stack.enter_context(_replaced(self.vae, "encode", self._remembering_encode(self.vae)))
            try:
                yield
            finally:
                self._settle()

    def _settle(self) -> None:
        for kept in self._kept.values():
            if isinstance(kept, _Kept):
                kept.settle()
        total = self._kept_bytes()
        while total > self.max_bytes:
            total -= _kept_size(self._kept.popitem(last=False)[1])
        for hook in self._parked:
            hook.offload()

    def _kept_bytes(self) -> int:
        return sum(_kept_size(kept) for kept in self._kept.values())

    # -- text ----------------------------------------------------------------------------------------------------------

    def _remembering(self, part_name: str, encoder: nn.Module) -> Callable[..., Any]:
        original: Callable[..., Any] = encoder.forward
        signature = inspect.signature(original)
        loose = {p.name for p in signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if encoder.training or torch.is_grad_enabled():
                return original(*args, **kwargs)
            bound = signature.bind(*args, **kwargs).arguments
            arguments = {key: value for key, value in bound.items() if key not in loose}
            for name in loose & bound.keys():
                arguments |= bound[name] if isinstance(bound[name], dict) else {name: bound[name]}
            tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
            others = {key: value for key, value in arguments.items() if not isinstance(value, Tensor)}
            # a cache of keys and values, as `generate` hands on, is changed by the call: nothing to remember
            if not tensors or not all(_plain(value) for value in others.values()):
                return original(*args, **kwargs)
            parts = self._apart(part_name, tensors)
            keys = [_digest(part_name, others, part) for part in parts]
            runs = [functools.partial(original, **part, **others) for part in parts]
            fresh: dict[bytes, Any] = {}
            if len(keys) > 1 and part_name not in self._row_wise:
                fresh = self._try_apart(part_name, original, tensors, others)
            if len(keys) > 1 and not self._row_wise.get(part_name):
                keys, runs = [_digest(part_name, others, tensors)], [functools.partial(original, **tensors, **others)]
            return self._answer(keys, runs, fresh, next(iter(tensors.values())).device)

        return forward

    def _try_apart(
        self, name: str, original: Callable[..., Any], tensors: dict[str, Tensor], others: dict[str, Any]
    ) -> dict[bytes, Any]:
        """Decide on the first batch whether its encoder may be taken apart; returns the outputs of single prompts by their keys."""
        parts = self._apart(name, tensors)
        copies = len({_digest(part) for part in parts}) == 1
        if copies:  # beside them a prompt that differs, its tokens moved on
            tensors = {key: torch.cat([tensor[:1], tensor[:1].roll(1, dims=-1)]) for key, tensor in tensors.items()}
            parts = self._apart(name, tensors)
        keys = [_digest(name, others, part) for part in parts]
        if len(set(keys)) == 1:
            return {}  # nothing to tell apart by; the next batch may have
        outputs = {key: original(**part, **others) for key, part in dict(zip(keys, parts, strict=True)).items()}
        self._row_wise[name] = _same(original(**tensors, **others), [outputs[key] for key in keys])
        wanted = 0 if not self._row_wise[name] else 1 if copies else len(outputs)  # those are counted when they answer
        self._runs["text"] += 1 + len(outputs) - wanted
        return outputs

    def _apart(self, name: str, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The call's tensors prompt by prompt, unless this encoder may not be taken apart."""
        sizes = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors.values()}
        size = sizes.pop()
        if sizes or size < 2 or self._row_wise.get(name) is False:
            return [tensors]
        return [{key: tensor[i : i + 1] for key, tensor in tensors.items()} for i in range(size)]

    def _answer(
        self, keys: Sequence[bytes], runs: Sequence[Callable[[], Any]], fresh: dict[bytes, Any], device: torch.device
    ) -> Any:
        kept: list[_Kept] = []
        for key, run in zip(keys, runs, strict=True):
            found = self._kept.get(key)
            if found is None:
                self._runs["text"] += 1
                output = fresh[key] if key in fresh else run()
                found = self._kept[key] = _Kept(_outline(output), _leaves(output))
            else:
                self._reused["text"] += 1
                self._kept.move_to_end(key)
            kept.append(found)

        def read(path: Path) -> Tensor:
            pieces = []
            for run, answer in zip(runs, kept, strict=True):
                if path not in answer.tensors:  # forgotten, because nobody had read it before
                    self._runs["text"] += 1
                    answer.tensors[path] = _leaves(run())[path]
                answer.read.add(path)
                pieces.append(answer.tensors[path].to(device))
            return torch.cat(pieces)  # a copy, which the pipeline may change in place

        return _rebuild(kept[0].outline, (), read)

    # -- pictures ------------------------------------------------------------------------------------------------------

    def _remembering_encode(self, vae: Any) -> Callable[..., Any]:
        original = vae.encode

        @functools.wraps(original)
        def encode(*args: Any, **kwargs: Any) -> Any:
            given = [*args, *kwargs.values()]
            tensors = [value for value in given if isinstance(value, Tensor)]
            others = [value for value in given if not isinstance(value, Tensor)]
            if vae.training or torch.is_grad_enabled() or not tensors or not all(_plain(value) for value in others):
                return original(*args, **kwargs)
            key = _digest("vae", args, kwargs)
            if key in self._kept:
                self._reused["image"] += 1
                self._kept.move_to_end(key)
            else:
                self._runs["image"] += 1
                self._kept[key] = _moved(original(*args, **kwargs), torch.device("cpu"))
            return _moved(self._kept[key], tensors[0].device)

        return encode


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of the instance, and take it away again: an offloading hook may have set one of its own before."""
    missing = object()
    before = vars(owner).get(name, missing)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if before is missing:
            del vars(owner)[name]
        else:
            vars(owner)[name] = before


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _digest(*values: Any) -> bytes:
    """Of plain values and tensors: their type, shape and bytes."""
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
            flat = value.detach().contiguous().cpu().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        elif isinstance(value, dict):
            add(sorted(value.items()))
        elif isinstance(value, (list, tuple)):
            digest.update(f"sequence {len(value)} ".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{type(value).__name__} {value!r} ".encode())

    add(values)
    return digest.digest()


class _Lost:
    """Stands for what is no tensor, the keys and values of a language model, say."""


@dataclass(frozen=True)
class _Outline:
    """An output without its tensors: fields by name (a ``ModelOutput``) or number (a tuple), each ``None`` (a tensor) or an outline."""

    names: tuple[str | int, ...]
    parts: tuple[Any, ...]
    named: bool


def _outline(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, dict):  # a ModelOutput is one
        return _Outline(tuple(value.keys()), tuple(_outline(part) for part in value.values()), True)
    if isinstance(value, (list, tuple)):
        return _Outline(tuple(range(len(value))), tuple(_outline(part) for part in value), False)
    return _Lost()


def _leaves(value: Any, path: Path = ()) -> dict[Path, Tensor]:
    if isinstance(value, Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {key: leaf for name, part in items for key, leaf in _leaves(part, (*path, name)).items()}


def _rebuild(outline: Any, path: Path, read: Callable[[Path], Tensor]) -> Any:
    if outline is None:
        return read(path)
    if isinstance(outline, _Lost):
        raise TypeError(f"the encoder's output {path} is no tensor and was not remembered; set encoder_cache_gib: 0")
    return _Answer(outline, path, read)


class _Answer(Sequence[Any]):
    """Stands for an encoder's output: reads a tensor when it is asked for, by name, number or slice."""

    def __init__(self, outline: _Outline, path: Path, read: Callable[[Path], Tensor]) -> None:
        self._outline, self._path, self._read = outline, path, read

    def _part(self, index: int) -> Any:
        name = self._outline.names[index]
        return _rebuild(self._outline.parts[index], (*self._path, name), self._read)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not self._outline.named:
            raise AttributeError(name)
        # as a ModelOutput, whose fields are None where the model did not fill them
        return self._part(self._outline.names.index(name)) if name in self._outline.names else None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._part(self._outline.names.index(key))
        indices = range(len(self._outline.names))[key]
        return self._part(indices) if isinstance(indices, int) else tuple(self._part(index) for index in indices)

    def __len__(self) -> int:
        return len(self._outline.names)


def _same(whole: Any, parts: Sequence[Any]) -> bool:
    """Whether a batch's output is its prompts' outputs one after the other, up to the arithmetic of another batch size."""
    together, alone = _leaves(whole), [_leaves(part) for part in parts]
    for path, tensor in together.items():
        if any(path not in leaves or leaves[path].shape[1:] != tensor.shape[1:] for leaves in alone):
            return False
        joined = torch.cat([leaves[path] for leaves in alone])
        if joined.shape != tensor.shape:
            return False
        # a prompt that looks at its neighbours is off by its own size; half precision over dozens of layers by a hundredth
        allowed = 1e-3 if tensor.dtype in (torch.float32, torch.float64) else 5e-2
        if not bool((joined.double() - tensor.double()).norm() <= allowed * tensor.double().norm()):
            return False
    return True


def _moved(value: Any, device: torch.device) -> Any:
    """A copy of a VAE's output, with every tensor in it on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)  # the pipeline may change it in place
    if isinstance(value, dict):  # diffusers' BaseOutput keeps attributes and items in step
        clone = copy.copy(value)
        for name, part in value.items():
            clone[name] = _moved(part, device)
        return clone
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(part, device) for part in value)
    if hasattr(value, "__dict__"):  # a distribution
        clone = copy.copy(value)
        vars(clone).update({name: _moved(part, device) for name, part in vars(value).items()})
        return clone
    return value


def _kept_size(kept: Any) -> int:
    return kept.bytes if isinstance(kept, _Kept) else _size(kept)


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_size(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_size(part) for part in value)
    return sum(_size(part) for part in vars(value).values()) if hasattr(value, "__dict__") else 0
