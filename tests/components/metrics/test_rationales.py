"""What a reader makes of rationales, pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rationalrewards.components.metrics import (
    GroundingGain,
    RationaleSufficiency,
    clustered_bootstrap,
    paired_bootstrap,
)

NAN = float("nan")


def _compute(metric: RationaleSufficiency | GroundingGain) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def _right(said: float, truth: float) -> bool:
    if math.isnan(said) or said == 0.5:
        return False
    return (said > 0.5) == (truth > 0.5)


def _readings(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    """Labels with ties and votes, and probabilities of three readers: some certain, some torn, some not understood."""
    label = rng.choice([0.0, 0.2, 0.5, 0.8, 1.0], n)
    readers = []
    for skill in (0.1, 0.2, 0.4):
        said = np.clip(label + rng.normal(size=n) * (1 - skill) * 0.6, 0, 1)
        said[rng.random(n) < 0.1] = 0.5
        said[rng.random(n) < 0.1] = NAN
        readers.append(said)
    return (label, *readers)


@pytest.mark.parametrize("seed", range(5))
def test_rationales_against_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, text, images, both = _readings(rng, 140)
    groups = torch.tensor(rng.integers(0, 45, 140))
    sufficiency, gain = RationaleSufficiency(), GroundingGain()
    sufficiency.update(torch.tensor(label), torch.tensor(text), groups)
    gain.update(torch.tensor(label), torch.tensor(images), torch.tensor(both), groups)
    values = {**_compute(sufficiency), **_compute(gain)}
    decided = [i for i in range(140) if label[i] != 0.5]
    clusters = groups[torch.tensor(decided)]
    rights = {}
    for name, said in (("sufficiency", text), ("images_accuracy", images), ("both_accuracy", both)):
        rights[name] = torch.tensor([float(_right(said[i], label[i])) for i in decided])
        assert values[name] == pytest.approx(float(rights[name].mean()))
    low, high = clustered_bootstrap(rights["sufficiency"], clusters)
    assert (values["sufficiency_low"], values["sufficiency_high"]) == pytest.approx((low, high), abs=1e-6)
    assert values["grounding_gain"] == pytest.approx(values["both_accuracy"] - values["images_accuracy"], abs=1e-6)
    low, high = paired_bootstrap(rights["both_accuracy"], rights["images_accuracy"], clusters)
    assert (values["grounding_gain_low"], values["grounding_gain_high"]) == pytest.approx((low, high), abs=1e-6)
    for name, said in (("unscored_rate", text), ("images_unscored_rate", images), ("both_unscored_rate", both)):
        assert values[name] == pytest.approx(np.mean([math.isnan(said[i]) for i in decided]))
    answered = [text[i] for i in decided if not math.isnan(text[i])]
    assert values["tie_rate"] == pytest.approx(np.mean([said == 0.5 for said in answered]))
    assert values["n_pairs"] == len(decided)


def test_silence_with_the_rationale_is_a_loss() -> None:
    label = torch.tensor([1.0, 1.0, 0.0, 0.0])
    metric = GroundingGain()
    metric.update(label, label, torch.full((4,), NAN), torch.arange(4))
    values = _compute(metric)
    assert (values["grounding_gain"], values["grounding_gain_low"], values["grounding_gain_high"]) == (-1.0, -1.0, -1.0)
    assert (values["both_unscored_rate"], values["images_unscored_rate"]) == (1.0, 0.0)


def test_text_that_adds_nothing_gains_nothing_for_sure() -> None:
    """Both readers wrong on the same pairs: the paired interval is a point, whatever the accuracy."""
    label = torch.tensor([1.0, 0.0] * 20)
    said = label.clone()
    said[::3] = 1 - said[::3]
    metric = GroundingGain()
    metric.update(label, said, said * 0.8 + 0.1, torch.arange(40))  # less certain, but the same side
    values = _compute(metric)
    assert (values["grounding_gain"], values["grounding_gain_low"], values["grounding_gain_high"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("label", [[], [0.5, 0.5]])
def test_no_pair_decided(label: list[float]) -> None:
    n = len(label)
    sufficiency, gain = RationaleSufficiency(), GroundingGain()
    sufficiency.update(torch.tensor(label), torch.ones(n), torch.arange(n))
    gain.update(torch.tensor(label), torch.ones(n), torch.ones(n), torch.arange(n))
    values = {**_compute(sufficiency), **_compute(gain)}
    assert values.pop("n_pairs") == 0
    assert all(map(math.isnan, values.values()))


def test_all_unscored_is_all_wrong() -> None:
    metric = RationaleSufficiency()
    metric.update(torch.tensor([1.0, 0.0]), torch.full((2,), NAN), torch.arange(2))
    values = _compute(metric)
    assert (values["sufficiency"], values["unscored_rate"]) == (0.0, 1.0)
