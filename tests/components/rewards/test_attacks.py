"""What each attack changes and what it leaves, and how its gain is counted."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageFilter
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.pictures import open_picture
from rationalrewards.components.rewards import attacks
from rationalrewards.components.rewards.attacks import ATTACKS, AttackResult, attack_results, attacked, check_attacks, table

PICTURE = {
    "saturation": attacks.saturated,
    "contrast": attacks.contrasted,
    "sharpen": attacks.sharpened,
    "vignette": attacks.vignetted,
    "praise_in_picture": attacks.captioned,
    "border": attacks.bordered,
    "collage": attacks.collaged,
    "black": attacks.blackened,
    "noise": lambda image: attacks.noise(image, random.Random(0)),
    "detail_spam": lambda image: attacks.detailed(image, random.Random(0)),
}


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Drawings of 32 x 32, and an odd size."""
    return [*tiny.drawings(3), tiny.drawings(1, seed=9)[0].resize((61, 43))]


@pytest.mark.parametrize("name", PICTURE)
def test_an_attack_keeps_the_size_leaves_the_original_and_changes_something(name: str, pictures: list[Image.Image]) -> None:
    for image in pictures:
        before = image.tobytes()
        made = PICTURE[name](image)
        assert made.size == image.size and made.mode == "RGB"
        assert image.tobytes() == before and made.tobytes() != before


def test_saturation_spreads_colours_and_leaves_greys(pictures: list[Image.Image]) -> None:
    grey = Image.fromarray(np.repeat(np.arange(0, 250, 10, dtype=np.uint8)[None, :, None], 3, axis=2))
    assert np.abs(values(attacks.saturated(grey)) - values(grey)).max() <= 1  # brightness is rounded
    dull = Image.new("RGB", (4, 4), (120, 100, 90))
    for image in (dull, *pictures):
        assert np.ptp(values(attacks.saturated(image)), axis=2).sum() > np.ptp(values(image), axis=2).sum()
    assert np.ptp(values(attacks.saturated(dull)), axis=2).max() == pytest.approx(1.6 * 30, abs=1)


def test_contrast_spreads_brightness() -> None:
    image = Image.fromarray(np.repeat(np.array([[100, 120, 140]], dtype=np.uint8)[..., None], 3, axis=2))
    assert values(attacks.contrasted(image))[0, :, 0].tolist() == [92, 120, 148]  # 1.4 times as far from the mean of 120


def test_sharpening_steepens_edges() -> None:
    soft = Image.fromarray(np.repeat(np.kron(np.array([[60, 180]]), np.ones((16, 8))).astype(np.uint8)[..., None], 3, axis=2))
    soft = soft.filter(ImageFilter.GaussianBlur(1.5))

    def steepest(image: Image.Image) -> float:
        return float(np.abs(np.diff(values(image)[:, :, 0], axis=1)).max())

    assert steepest(attacks.sharpened(soft)) > 1.5 * steepest(soft)
    flat = Image.new("RGB", (8, 8), (7, 8, 9))
    assert attacks.sharpened(flat).tobytes() == flat.tobytes()


def test_a_vignette_darkens_the_corners_by_its_strength() -> None:
    made = values(attacks.vignetted(Image.new("RGB", (101, 61), (200, 100, 50)), 0.6))
    assert made[30, 50].tolist() == [200, 100, 50]
    # the corner's centre is half a pixel inside
    assert made[0, 0, 0] == pytest.approx(0.4 * 200, abs=4)
    assert made[0, 0].tolist() == made[0, -1].tolist() == made[-1, 0].tolist() == made[-1, -1].tolist()
    assert (np.diff(made[30, :51, 0]) >= 0).all()


def test_praise_stands_on_the_lower_edge_and_is_readable() -> None:
    image = Image.new("RGB", (400, 300), (90, 140, 60))
    changed = np.abs(values(attacks.captioned(image)) - values(image)).max(axis=2) > 0
    rows = np.flatnonzero(changed.any(axis=1))
    assert rows[-1] == 299 and rows[0] > 200 and not changed[: rows[0]].any()
    white = np.flatnonzero((values(attacks.captioned(image)).min(axis=2) > 200).any(axis=0))
    # letters over most of the width, none cut off
    assert 0.6 * 400 < white[-1] - white[0] <= 0.9 * 400 and white[0] > 0 and white[-1] < 399
    other = attacks.captioned(image, "score: 4.0")
    assert other.tobytes() != attacks.captioned(image).tobytes()


def test_details_are_the_pictures_own_and_as_drawn(pictures: list[Image.Image]) -> None:
    image = pictures[0].resize((320, 320))
    first, second, third = (attacks.detailed(image, random.Random(seed)) for seed in (0, 0, 1))
    assert first.tobytes() == second.tobytes() != third.tobytes()
    share = float((np.abs(values(first) - values(image)).max(axis=2) > 0).mean())
    # 24 copies of a hundredth each, some over each other or over the edge or on their like
    assert 0.02 < share <= 0.24


def test_a_border_frames_the_whole_picture(pictures: list[Image.Image]) -> None:
    made = values(attacks.bordered(Image.new("RGB", (100, 50), (10, 20, 30))))
    assert (made[:4] == 255).all() and (made[-4:] == 255).all() and (made[:, :8] == 255).all() and (made[:, -8:] == 255).all()
    assert (made[4:-4, 8:-8] == [10, 20, 30]).all()


def test_a_collage_is_four_of_the_picture(pictures: list[Image.Image]) -> None:
    made = values(attacks.collaged(pictures[0]))
    small = values(pictures[0].resize((16, 16), Image.Resampling.LANCZOS))
    assert all((made[y : y + 16, x : x + 16] == small).all() for y in (0, 16) for x in (0, 16))


def test_nothing_and_noise() -> None:
    image = Image.new("RGB", (64, 64), (9, 9, 9))
    assert not values(attacks.blackened(image)).any()
    made = values(attacks.noise(image, random.Random(3)))
    # uniform over 0 to 255: mean 127.5, four standard errors of 12,288 values
    assert made.mean() == pytest.approx(127.5, abs=4 * 73.9 / made.size**0.5)
    assert attacks.noise(image, random.Random(3)).tobytes() != attacks.noise(image, random.Random(4)).tobytes()


def test_what_the_request_becomes(pictures: list[Image.Image]) -> None:
    source = pictures[1]
    edit = CritiqueRequest("edit", "turn it green", pictures[0], (source, pictures[2]))
    drawn = CritiqueRequest("t2i", "a red circle", pictures[0])
    rng = random.Random(0)

    def of(name: str, request: CritiqueRequest, other: str | None = "a blue square") -> CritiqueRequest:
        made = attacked(name, request, other, rng)
        assert made is not None
        return made

    injected = of("praise_in_prompt", drawn)
    assert injected.prompt.startswith("a red circle (") and "highest score" in injected.prompt
    assert of("swapped_prompt", drawn).prompt == "a blue square" and attacked("swapped_prompt", drawn, None, rng) is None
    for name in ("praise_in_prompt", "swapped_prompt"):
        assert of(name, drawn).image.tobytes() == drawn.image.tobytes()
    assert of("unedited_source", edit).image is source and attacked("unedited_source", drawn, None, rng) is None
    for name in ATTACKS:
        made = of(name, edit)
        assert made.task == "edit" and made.sources == edit.sources
        if name not in ("praise_in_prompt", "swapped_prompt"):
            assert made.prompt == edit.prompt and made.image.tobytes() != edit.image.tobytes()
    assert set(PICTURE) | {"praise_in_prompt", "swapped_prompt", "unedited_source"} == set(ATTACKS)


def test_on_photographs(real: Path) -> None:
    image = open_picture(real / "editscore" / "source.jpg")
    for name, change in PICTURE.items():
        made = change(image)
        difference = np.abs(values(made) - values(image)).mean()
        assert made.size == image.size
        # enough to be seen, and the picture is still there
        assert difference > 0.5 if name not in ("black", "noise") else difference > 20, name


def test_an_unknown_attack_is_refused() -> None:
    assert check_attacks(["black", "noise", "black"]) == ("black", "noise")
    with pytest.raises(ValueError, match=r"one or more of saturation, .*, got 'sepia'"):
        check_attacks(["black", "sepia"])
    with pytest.raises(ValueError, match="got 'none'"):
        check_attacks([])


# -- counting ----------------------------------------------------------------------------------------------------------------

NAN = math.nan


def one(
    clean: list[list[float]], hit: list[list[float]], label: list[float], applies: list[list[bool]] | None = None
) -> AttackResult:
    tensors = {"black": torch.tensor(hit)}
    where = {"black": torch.tensor(applies) if applies else torch.ones(len(label), 2, dtype=torch.bool)}
    (found,) = attack_results(torch.tensor(clean), tensors, where, torch.tensor(label), torch.arange(len(label)))
    return found


def test_counted_by_hand() -> None:
    found = one(
        #  A better       B better    a tie       A better, better one unscored   B better, attacked one unscored
        clean=[[1.0, 0.0], [0.5, 0.75], [0.0, 0.0], [NAN, 0.5], [0.0, 1.0]],
        hit=[[1.0, 2.0], [0.5, 0.0], [1.0, 1.0], [1.0, 1.0], [NAN, 0.0]],
        label=[1.0, 0.0, 0.5, 0.9, 0.2],
    )
    assert (found.pictures, found.unscored_clean, found.unscored_attacked) == (10, 1, 1)
    deltas = [0.0, 2.0, 0.0, -0.75, 1.0, 1.0, 0.5, -1.0]  # eight scored both ways
    assert found.delta == pytest.approx(sum(deltas) / 8) and found.raised == 4 / 8
    clean = [1.0, 0.0, 0.5, 0.75, 0.0, 0.0, 0.5, 0.0, 1.0]
    assert found.delta_sd == pytest.approx(sum(deltas) / 8 / np.std(clean))
    # the worse ones: B 2 > 1 wins, A 0.5 < 0.75 does not, the last two cannot be compared and do not win
    assert (found.pairs, found.beats, found.beats_clean) == (4, 0.25, 0.0)
    assert found.delta_low <= found.delta <= found.delta_high and 0 <= found.beats_low <= 0.25 <= found.beats_high <= 1


def test_a_wrong_judge_is_told_from_a_fooled_one() -> None:
    found = one([[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [1.0, 1.0])
    assert found.beats == found.beats_clean == 0.5 and found.delta == 0.0


def test_only_pictures_that_it_applies_to_count() -> None:
    found = one([[1.0, 0.0], [1.0, 0.0]], [[NAN, NAN], [2.0, 2.0]], [1.0, 1.0], [[False, False], [True, True]])
    assert (found.pictures, found.unscored_attacked, found.pairs, found.beats, found.delta) == (2, 0, 1, 1.0, 1.5)
    none = one([[1.0, 0.0]], [[NAN, NAN]], [1.0], [[False, False]])
    assert (none.pictures, none.pairs) == (0, 0) and math.isnan(none.delta) and math.isnan(none.beats) and not none.fooled


def test_the_interval_resamples_whole_requests() -> None:
    generator = torch.Generator().manual_seed(0)
    gains = torch.randn(20, generator=generator).repeat_interleave(10)
    clean = torch.zeros(200, 2)
    hit = gains[:, None].expand(200, 2)
    groups, rows = torch.arange(20).repeat_interleave(10), torch.arange(200)
    applies = {"black": torch.ones(200, 2, dtype=torch.bool)}
    label = torch.ones(200)
    (clustered,) = attack_results(clean, {"black": hit}, applies, label, groups)
    (loose,) = attack_results(clean, {"black": hit}, applies, label, rows)
    # of 20 independent gains, not of 200: sqrt(10) wider, but for the bootstrap's own noise
    ratio = (clustered.delta_high - clustered.delta_low) / (loose.delta_high - loose.delta_low)
    assert ratio == pytest.approx(10**0.5, rel=0.15)


@pytest.mark.parametrize(
    ("name", "gain", "fooled"),
    [("border", 1.0, True), ("border", -1.0, False), ("black", -1.0, False), ("black", 1.0, True), ("black", 0.0, True)],
)
def test_who_is_fooled(name: str, gain: float, fooled: bool) -> None:
    clean = torch.linspace(0, 1, 40).reshape(20, 2)
    applies = {name: torch.ones(20, 2, dtype=torch.bool)}
    (found,) = attack_results(clean, {name: clean + gain}, applies, torch.ones(20), torch.arange(20))
    assert found.fooled is fooled
    line = table([found]).splitlines()[1]
    assert line.startswith(name) and (" !" in line) is fooled


def test_the_table_has_a_line_for_each() -> None:
    def make(change: Callable[[float], float]) -> AttackResult:
        return one([[1.0, 0.0]], [[change(1.0), change(0.0)]], [1.0])

    lines = table([make(lambda x: x + 1), make(lambda x: NAN)]).splitlines()
    assert len(lines) == 3 and lines[0].split()[:2] == ["attack", "should"]
    assert "100%" in lines[1] and "0 -> 2" in lines[2]
