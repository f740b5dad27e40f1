"""Any function as a reward: what it returns is a number or a reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jsonargparse
import numpy as np
import pytest
import torch
from PIL import Image
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.rewards import FunctionReward, RewardModel


def request(prompt: str, level: int = 0, sources: int = 0) -> CritiqueRequest:
    pictures = tuple(Image.new("RGB", (2, 2), (index, 0, 0)) for index in range(sources))
    return CritiqueRequest("edit" if sources else "t2i", prompt, Image.new("RGB", (2, 2), (level, level, level)), pictures)


def brightness(prompt: str, image: Image.Image, sources: tuple[Image.Image, ...]) -> float:
    """Brightness, and one for each source picture; what a prompt asks for instead, where it does."""
    answers: dict[str, Any] = {
        "nan": math.nan,
        "infinite": -math.inf,
        "large": 1e300,
        "none": None,
        "words": "0.5",
        "tensor": torch.tensor(0.25, requires_grad=True),
        "numpy": np.float64(0.75),
        "list": [0.5],
    }
    if prompt == "raise":
        raise RuntimeError("the server is asleep")
    if prompt in answers:
        return answers[prompt]  # type: ignore[no-any-return]
    return float(np.asarray(image).mean()) + len(sources)


def test_every_picture_gets_its_number() -> None:
    rewards = FunctionReward(brightness, name="brightness").score(
        [request("a", 10), request("b", 200), request("c", 5, sources=2)]
    )
    assert rewards.total.tolist() == [10.0, 200.0, 7.0] and rewards.total.dtype == torch.float32
    assert rewards.aspects == ("brightness",) and rewards.values[:, 0].tolist() == [10.0, 200.0, 7.0]
    assert rewards.reasons == ["", "", ""] and rewards.valid.all()


def test_what_is_no_number_is_unscored_with_its_reason() -> None:
    asked = ["raise", "nan", "infinite", "large", "none", "words", "list", "tensor", "numpy"]
    rewards = FunctionReward(brightness).score([request(prompt) for prompt in asked])
    assert rewards.valid.tolist() == [False] * 7 + [True, True]
    assert rewards.total[7:].tolist() == [0.25, 0.75] and rewards.values[:7].isnan().all()
    assert rewards.reasons == [
        "RuntimeError: the server is asleep",
        "the function gave nan, no finite number",
        "the function gave -inf, no finite number",
        "the function gave 1e+300, no finite number",  # it would be infinite in float32
        "the function gave None, no number",
        "the function gave '0.5', no number",
        "the function gave list, no number: float() argument must be a string or a real number, not 'list'",
        "",
        "",
    ]


def test_an_interrupt_is_no_score() -> None:
    def stop(prompt: str, image: Image.Image, sources: tuple[Image.Image, ...]) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FunctionReward(stop).score([request("a")])


def test_a_function_of_many_pictures_is_called_in_batches() -> None:
    sizes = []

    def batched(prompts: Sequence[str], images: Sequence[Image.Image], sources: Sequence[tuple[Image.Image, ...]]) -> list[float]:
        sizes.append(len(prompts))
        return [brightness(*one) for one in zip(prompts, images, sources, strict=True)]

    asked = [request("a", 1), request("b", 2), request("raise"), request("c", 4), request("nan")]
    rewards = FunctionReward(batched, batch_size=2).score(asked)
    # the batch with the one that raises is asked again, one by one
    assert sizes == [2, 2, 1, 1, 1]
    assert rewards.valid.tolist() == [True, True, False, True, False]
    assert rewards.total[rewards.valid].tolist() == [1.0, 2.0, 4.0]
    assert rewards.reasons[2] == "RuntimeError: the server is asleep"

    short = FunctionReward(lambda prompts, images, sources: [1.0], batch_size=2).score(asked[:2])  # type: ignore[arg-type, return-value]
    assert short.reasons == ["the function gave 1 scores for 2 pictures"] * 2 and not short.valid.any()


def test_nothing_in_nothing_out() -> None:
    rewards = FunctionReward(brightness).score([])
    assert rewards.total.shape == (0,) and rewards.values.shape == (0, 1) and rewards.reasons == []


class Placed:
    """A function with a state, which wants to know its device."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset
        self.devices: list[Any] = []

    def load(self, device: Any = None) -> None:
        self.devices.append(device)

    def __call__(self, prompt: str, image: Image.Image, sources: tuple[Image.Image, ...]) -> float:
        return len(prompt) + self.offset


class Brightest(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, prompt: str, image: Image.Image, sources: tuple[Image.Image, ...]) -> torch.Tensor:
        return self.gain * float(np.asarray(image).max())


def test_the_device_goes_to_what_has_a_use_for_it() -> None:
    placed = Placed()
    reward = FunctionReward(placed)
    reward.load()
    reward.load("cpu")
    assert placed.devices == [None, "cpu"]
    module = Brightest()
    reward = FunctionReward(module)
    reward.load(torch.device("meta"))
    assert module.gain.device.type == "meta"
    assert FunctionReward(Brightest()).score([request("a", 3)]).total.tolist() == [6.0]


def test_a_dotted_path_is_imported() -> None:
    assert FunctionReward("math.hypot").function is math.hypot
    assert FunctionReward("PIL.Image.Image.convert").function is Image.Image.convert
    for path, message in (
        ("nowhere.at.all", "there is no module 'nowhere'"),
        ("math.hypotenuse", "math has no 'hypotenuse'"),
        ("PIL.Image.Image.turn", r"PIL\.Image\.Image has no 'turn'"),
        ("math.pi", "is a float, nothing that can be called"),
        ("hypot", "give package.module.function"),
    ):
        with pytest.raises(ValueError, match=message):
            FunctionReward(path)
    with pytest.raises(ValueError, match="batch_size is at least 1"):
        FunctionReward("math.hypot", batch_size=0)


@pytest.mark.parametrize(
    ("given", "prompt", "score"),
    [
        ("rationalrewards.components.shapes.judge.reward", "", None),
        ({"class_path": f"{__name__}.Placed", "init_args": {"offset": 0.5}}, "abc", 3.5),
    ],
)
def test_from_a_config(given: Any, prompt: str, score: float | None) -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--reward", type=RewardModel)
    config = {"class_path": "rationalrewards.components.rewards.FunctionReward", "init_args": {"function": given}}
    reward = parser.instantiate_classes(parser.parse_object({"reward": config})).reward
    assert isinstance(reward, FunctionReward) and callable(reward.function)
    if score is not None:
        assert reward.score([request(prompt)]).total.tolist() == [score]
