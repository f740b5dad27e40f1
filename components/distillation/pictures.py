"""What a frozen vision tower sees in a picture, computed once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
from PIL import Image
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def picture_key(image: Image.Image) -> bytes:
    """A name for a picture's content: mode, size and pixels, wherever it was read from."""
    digest = blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


@dataclass(frozen=True)
class Features:
    """A picture's features.

    Args:
        tokens: What stands for the picture among the text's embeddings.
        deep: What is added in further layers, one tensor each.
        stacked: Whether the model wants pictures in one tensor, and not in a list.
    """

    tokens: Tensor
    deep: tuple[Tensor, ...] = ()
    stacked: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(tensor.nbytes for tensor in (self.tokens, *self.deep))

    def kept(self) -> Features:
        """A copy on the CPU that holds on to nothing else."""
        return self._each(lambda tensor: tensor.detach().to("cpu", copy=True))

    def to(self, device: torch.device) -> Features:
        """On another device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Features:
        return Features(change(self.tokens), tuple(change(tensor) for tensor in self.deep), self.stacked)


class FeatureStore:
    """Features of pictures in bounded memory, on the CPU.

    What came first stays; when the memory is full, nothing more is taken in. Every picture comes once per row and epoch, in another
    order each time, so that the one that was used last is the least likely to be used next, and to throw anything out for it would
    only lose hits.

    Args:
        limit: Most bytes to hold.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._known: dict[bytes, Features] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: bytes) -> Features | None:
        """A picture's features, if they are here."""
        found = self._known.get(key)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def put(self, key: bytes, features: Features) -> None:
        """Take in a picture's features, if there is room."""
        size = features.nbytes
        if key not in self._known and self.nbytes + size <= self.limit:
            self._known[key] = features.kept()
            self.nbytes += size

    def clear(self) -> None:
        """Forget everything: the vision tower is another one."""
        self._known.clear()
        self.nbytes = 0


def picture_model(student: nn.Module) -> nn.Module | None:
    """The innermost model with ``get_image_features``, which a model of transformers calls on itself; ``None`` if there is none."""
    found = [module for module in student.modules() if hasattr(type(module), "get_image_features")]
    return found[-1] if found else None


def seeing_weights(model: Any) -> list[nn.Parameter]:
    """The weights outside the language model: vision tower and projector."""
    language = {id(parameter) for parameter in model.get_decoder().parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in language]


def frozen(model: Any) -> bool:
    """Whether neither vision tower nor projector trains."""
    weights = seeing_weights(model)
    return bool(weights) and not any(parameter.requires_grad for parameter in weights)


@contextmanager
def seen_once(model: Any, keys: Sequence[bytes], store: FeatureStore | None) -> Iterator[None]:
    """Within, the model computes the features of each of its forward's pictures once, and of those in the store not at all.

    In place of ``get_image_features`` and not before the forward, because FSDP and ZeRO-3 gather weights for the whole model's forward
    only.

    Args:
        model: See :func:`picture_model`.
        keys: :func:`picture_key` of the forward's pictures, in order.
        store: Features from before, if nothing trains that makes them. They are then computed without gradients and dropout.
    """
    original = model.get_image_features
    # no process may be alone in calling a tower whose weights are gathered from all
    split = torch.distributed.is_initialized() and any(map(_is_split, seeing_weights(model)))

    def features(*args: Any, **kwargs: Any) -> Any:
        # by name, as transformers' decorators fill in what is not named
        given = {**inspect.signature(original).bind_partial(*args).arguments, **kwargs}
        pixels = next(value for value in given.values() if isinstance(value, Tensor))
        places = {key: place for place, key in reversed(list(enumerate(keys)))}
        known = {key: store.get(key) if store is not None else None for key in places}
        missing = [key for key, found in known.items() if found is None]
        if split and _any(bool(missing), pixels.device) and not missing:
            missing = [keys[0]]
        if missing:
            given |= _only(given, [places[key] for key in missing], len(keys))
            with nullcontext() if store is None else _without_training(model):
                output = original(**given)
            for key, found in zip(missing, _apart(output, len(missing)), strict=True):
                known[key] = found
                if store is not None:
                    store.put(key, found)
        return _together([found.to(pixels.device) for found in (known[key] for key in keys) if found is not None])

    model.get_image_features = features
    try:
        yield
    finally:
        del model.get_image_features


def _is_split(weight: Tensor) -> bool:
    return hasattr(weight, "ds_id") or isinstance(weight, DTensor)


def _any(here: bool, device: torch.device) -> bool:
    found = torch.tensor(float(here), device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


@contextmanager
def _without_training(model: Any) -> Iterator[None]:
    """Without gradients, and without dropout in what is frozen."""
    language = set(model.get_decoder().modules())
    training = [module for module in model.modules() if module.training and module not in language]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _only(given: Mapping[str, Any], places: Sequence[int], count: int) -> dict[str, Tensor]:
    """The arguments of ``get_image_features`` for some of the pictures.

    Raises:
        ValueError: If it cannot be told which part of an argument is whose.
    """
    grid = given.get("image_grid_thw")
    patches = None if grid is None else grid.prod(dim=1).tolist()
    chosen: dict[str, Tensor] = {}
    for name, value in given.items():
        if not isinstance(value, Tensor):
            continue
        if len(value) == count:
            chosen[name] = value[list(places)]
        elif patches is not None and len(value) == sum(patches):  # the Qwen-VL family: patches of all pictures in a row
            parts = value.split(patches)
            chosen[name] = torch.cat([parts[place] for place in places])
        else:
            raise ValueError(f"{name} has {len(value)} entries for {count} pictures")
    return chosen


def _apart(output: Any, count: int) -> list[Features]:
    """What ``get_image_features`` gives, picture by picture.

    Raises:
        ValueError: If it cannot be told which part is whose.
    """
    tokens = output.pooler_output
    deep = getattr(output, "deepstack_features", None) or ()  # one list of pictures for each layer
    if len(tokens) != count or any(len(layer) != count for layer in deep):
        raise ValueError(f"features do not come one for each of {count} pictures")
    stacked = isinstance(tokens, Tensor)
    return [Features(tokens[place], tuple(layer[place] for layer in deep), stacked) for place in range(count)]


def _together(pictures: Sequence[Features]) -> SimpleNamespace:
    """The other way round: what a model's forward takes."""
    tokens: Any = tuple(picture.tokens for picture in pictures)
    deep = [list(layer) for layer in zip(*(picture.deep for picture in pictures), strict=True)]
    return SimpleNamespace(pooler_output=torch.stack(tokens) if pictures[0].stacked else tokens, deepstack_features=deep)
