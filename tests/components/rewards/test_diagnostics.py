"""Figures of a judge whose noise and spread are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import tiny
import torch
from PIL import ImageChops
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.rewards import CritiqueReward, Rewards, judge_diagnostics, with_invisible_noise
from rationalrewards.components.rewards.repeats import repeated
from rationalrewards.components.shapes.truth import ShapesTruth

NAN = float("nan")


def rewards(rows: Sequence[Sequence[float]], total: Sequence[float] | None = None) -> Rewards:
    values = torch.tensor(rows, dtype=torch.float32)
    totals = torch.tensor(total) if total is not None else ((values - 1) / 3).nanmean(dim=1)
    return Rewards(totals, ("a", "b"), values, [""] * len(rows), None, (1.0, 1.0), ((1.0, 4.0), (1.0, 4.0)))


def test_figures_by_hand() -> None:
    first = rewards([[1.0, 4.0], [4.0, 4.0], [2.5, NAN], [4.0, 1.0], [4.0, 4.0]], total=[0.5, 1.0, 0.5, NAN, 1.0])
    groups = ["g", "g", "h", "h", "h"]
    found = judge_diagnostics(first, groups)
    # of aspect a: 0 and 1 in g, 0.5 and 1 in h, whose unscored picture counts nowhere
    assert found["spread/a"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["spread/total"] == pytest.approx((0.25 + 0.25) / 2)
    assert (found["saturation_low/a"], found["saturation_high/a"]) == (0.25, 0.5)
    assert (found["saturation_low/b"], found["saturation_high/b"]) == (0.0, 1.0)
    assert (found["not_applicable/a"], found["not_applicable/b"]) == (0.0, 0.25)
    assert not any(name.startswith(("noise", "signal", "drowned", "unscored")) for name in found)

    again = rewards([[1.3, 4.0], [3.4, 4.0], [2.5, NAN]], total=[0.6, 0.8, NAN])
    found = judge_diagnostics(first, groups, again, [0, 1, 2])
    # differences of 0.1 and 0.2 of the scale; the third could not be scored again
    noise = (0.1**2 + 0.2**2) / 2 / 2
    assert found["noise/a"] == pytest.approx(math.sqrt(noise), rel=1e-5) and found["noise/b"] == 0.0
    assert found["unscored_again"] == pytest.approx(1 / 3)
    # the variances of the two groups are 1/2 and 1/8, over that
    assert found["group_signal_to_noise/a"] == pytest.approx(((0.5 + 0.125) / 2 - noise) / noise, rel=1e-4)
    assert found["drowned/a"] == 0.0 and found["drowned/b"] == 1.0  # g is flat in b, h has one score only
    assert "group_signal_to_noise/b" not in found


def test_noise_and_signal_are_found_where_they_were_put() -> None:
    generator = torch.Generator().manual_seed(3)
    groups, size, noise, signal = 500, 8, 0.05, 0.1
    truth = 0.5 + signal * torch.randn(groups * size, generator=generator, dtype=torch.float64)
    first, second = (truth + noise * torch.randn(groups * size, generator=generator) for _ in range(2))
    names = [f"g{index}" for index in range(groups) for _ in range(size)]
    one, two = (Rewards(scores, (), torch.zeros(len(scores), 0), [""] * len(scores)) for scores in (first, second))
    found = judge_diagnostics(one, names, two, range(len(names)))
    # standard errors: 1 / sqrt(2 * 4000) of the noise, and about 3 % of a variance of 500 * 7 degrees of freedom
    assert found["noise/total"] == pytest.approx(noise, rel=0.05)
    assert found["signal_to_noise/total"] == pytest.approx(4.0, rel=0.12)
    assert found["group_signal_to_noise/total"] == pytest.approx(4.0, rel=0.25)  # of a skewed distribution, the median
    assert found["drowned/total"] < 0.02
    lost = judge_diagnostics(
        Rewards(first - truth, (), torch.zeros(len(truth), 0), []),
        names,
        Rewards(second - truth, (), torch.zeros(len(truth), 0), []),
        range(len(names)),
    )
    # P(chi^2_7 < 7) = 0.571, with a standard error of 0.022
    assert lost["drowned/total"] == pytest.approx(0.571, abs=0.08)
    assert abs(lost["signal_to_noise/total"]) < 0.1


def test_nothing_scored_says_nothing() -> None:
    empty = rewards([[NAN, NAN]] * 3)
    assert judge_diagnostics(empty, ["g"] * 3, empty, [0, 1, 2]) == {}
    assert judge_diagnostics(rewards([[2.0, 2.0]]), ["g"], rewards([[2.0, 2.0]]), [0])["unscored_again"] == 0.0


# -- scoring again -----------------------------------------------------------------------------------------------------


def test_invisible_noise_is_invisible_and_a_function_of_the_picture() -> None:
    pictures = tiny.drawings(3)
    asked = [CritiqueRequest("t2i", "a red circle at the top left", picture) for picture in pictures]
    noisy = repeated(asked, 1)
    for before, after in zip(asked, noisy, strict=True):
        difference = ImageChops.difference(before.image, after.image)
        assert difference.getbbox() is not None and max(high for _, high in difference.getextrema()) == 2
    assert [r.image.tobytes() for r in repeated(asked[1:], 1)] == [r.image.tobytes() for r in noisy[1:]]
    assert [r.image.tobytes() for r in repeated(asked, 2)] != [r.image.tobytes() for r in noisy]
    assert with_invisible_noise(pictures[0], 5).tobytes() == with_invisible_noise(pictures[0], 5).tobytes()
    # the truth of the shapes world does not mind
    assert torch.allclose(ShapesTruth().again(asked, 1).total, ShapesTruth().score(asked).total, atol=0.02)


class _Remembering(ChatModel):
    """A critic's answers do not matter here, only how it was asked."""

    identity = "remembering"  # type: ignore[assignment]

    def __init__(self) -> None:
        self.asked: list[tuple[int, float, bytes]] = []

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        self.asked += [(r.seed, r.temperature, r.images()[-1].tobytes()) for r in requests]
        return [ChatReply("") for _ in requests]


def test_a_critic_is_asked_again_with_other_seeds_and_other_pixels() -> None:
    chat = _Remembering()
    reward = CritiqueReward(Critic(chat, CritiqueFormat("shapes"), reasks=0), samples=2, sample_temperature=0.6)
    asked = [CritiqueRequest("t2i", "a red circle at the top left", picture) for picture in tiny.drawings(1)]
    reward.score(asked)
    reward.again(asked, 1)
    reward.again(asked, 2)
    assert [(seed, temperature) for seed, temperature, _ in chat.asked] == [(0, 0), (1, 0.6), (2, 0), (3, 0.6), (4, 0), (5, 0.6)]
    first, again, other = (chat.asked[index][2] for index in (0, 2, 4))
    assert first == chat.asked[1][2] and again == chat.asked[3][2] and len({first, again, other}) == 3
