"""The shapes world is what it says: its language reads back, its judge knows the truth, its critiques say what they score."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rationalrewards.components.critic import CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat, load_rubric
from rationalrewards.components.pictures import open_picture
from rationalrewards.components.records import NotApplicable, Preference, PromptRecord, read_jsonl
from rationalrewards.components.shapes import judge, phrases
from rationalrewards.components.shapes.drawing import DAMAGES, damage, draw, random_shifts
from rationalrewards.components.shapes.judge import CLEAN_RMSE, SEVERE_RMSE, Reading
from rationalrewards.components.shapes.pairs import human_label, write_preferences, write_prompts
from rationalrewards.components.shapes.phrases import Asked
from rationalrewards.components.shapes.scenes import (
    COLOURS,
    LETTERS,
    PLACES,
    QUALITY,
    SHAPES,
    Letter,
    Scene,
    Shape,
    describe,
    describe_quality,
    parse_edit,
    parse_request,
    parse_thing,
    random_edit,
    random_scene,
)
from rationalrewards.components.shapes.truth import ShapesTruth

STYLES = ("terse", "detailed")


def _scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


# -- language ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_requests_read_back(style: str) -> None:
    for scene in _scenes(300):
        assert parse_request(scene.request(style)) == scene  # type: ignore[arg-type]
        assert parse_request(f"please, {scene.request(style)} and thank you") == scene  # type: ignore[arg-type]
    assert parse_request("a portrait of a cat") is None


@pytest.mark.parametrize("style", STYLES)
def test_edits_read_back(style: str) -> None:
    rng = random.Random(1)
    kinds = Counter()
    for scene in _scenes(400):
        edit = random_edit(scene, rng)
        kinds[edit.kind] += 1
        found = parse_edit(edit.request(style), scene)  # type: ignore[arg-type]
        assert found is not None and (found.place, found.after) == (edit.place, edit.after)
        assert found.apply(scene) == edit.apply(scene) != scene
        others = [place for place in PLACES if place != edit.place]
        assert [edit.apply(scene).at(place) for place in others] == [scene.at(place) for place in others]
    assert set(kinds) == {"recolour", "reshape", "remove", "add", "write"}
    assert parse_edit("make it nicer", scene) is None


# -- drawing and judging -----------------------------------------------------------------------------------------------


def test_the_judge_reads_every_clean_drawing() -> None:
    rng = random.Random(2)
    scenes = _scenes(200)
    every = [*(Shape(colour, kind) for colour in COLOURS for kind in SHAPES), *map(Letter, LETTERS), None]
    scenes += [Scene((thing, None, None, thing)) for thing in every]
    readings = judge.read([draw(scene, random_shifts(rng)) for scene in scenes])
    assert [reading.scene for reading in readings] == scenes
    # 8-bit rounding moves a pixel by up to half a step of 255
    assert max(reading.rmse for reading in readings) <= 0.5 / 255 + 1e-6
    assert {reading.quality for reading in readings} == {4.0}


def test_the_judge_against_the_nearest_of_all_drawings() -> None:
    """Its one matrix product gives the distances that subtracting gives."""
    rng = random.Random(3)
    image = damage(draw(_scenes(1, 9)[0]), "noise", 0.5, rng)
    pixels = np.asarray(image, dtype=np.float64) / 255
    best, total = [], 0.0
    for index in range(4):
        row, column = divmod(index, 2)
        cell = pixels[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        found: tuple[float, object] = (np.inf, None)
        for thing in [None, *(Shape(c, s) for c in COLOURS for s in SHAPES), *map(Letter, LETTERS)]:
            for dx in (-1, 0, 1):
                for dy in (-1, 0, 1):
                    shown = judge.draw_cell(thing, (dx, dy)).astype(np.float64)
                    distance = float(((cell - shown) ** 2).sum())
                    if distance < found[0]:
                        found = distance, thing
        best.append(found[1])
        total += found[0]
    (reading,) = judge.read([image])
    assert reading.scene.things == tuple(best)
    assert reading.rmse == pytest.approx((total / pixels.size) ** 0.5, rel=1e-3)  # float32 with cancellation


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_lowers_quality_with_its_strength(kind: str) -> None:
    scenes = _scenes(40, 4)

    def quality(strength: float) -> float:
        rng = random.Random(5)
        return float(np.mean([reading.quality for reading in judge.read([damage(draw(s), kind, strength, rng) for s in scenes])]))

    assert quality(0.0) == 4.0 > quality(0.4) > quality(1.0) >= 1.0
    with pytest.raises(ValueError, match="unknown damage 'rust'; known: noise, blur"):
        damage(draw(scenes[0]), "rust", 0.5, random.Random(0))


RED, BLUE = Shape("red", "circle"), Shape("blue", "square")


@pytest.mark.parametrize(
    ("asked", "seen", "faithfulness", "rendering"),
    [
        (Scene((RED, BLUE, None, None)), Scene((RED, BLUE, None, None)), 4.0, None),
        (Scene((RED, BLUE, None, None)), Scene((RED, None, None, None)), 2.5, None),
        (Scene((RED, BLUE, None, None)), Scene((Shape("red", "cross"), BLUE, None, None)), 1 + 3 * 0.75, None),
        (Scene((RED, BLUE, None, None)), Scene((RED, BLUE, RED, None)), 1 + 3 * 0.75, None),  # half a point off for an extra
        (Scene((RED, None, None, None)), Scene((None, RED, RED, None)), 1.0, None),
        (Scene((RED, Letter("A"), None, None)), Scene((RED, Letter("A"), None, None)), 4.0, 4.0),
        (Scene((RED, Letter("A"), None, None)), Scene((RED, Letter("H"), None, None)), 4.0, 2.0),
        (Scene((RED, Letter("A"), None, None)), Scene((RED, None, None, None)), 4.0, 1.0),
    ],
)
def test_scores_by_hand(asked: Scene, seen: Scene, faithfulness: float, rendering: float | None) -> None:
    scores = judge.score_scene(asked, Reading(seen, 0.0))
    assert scores["text_faithfulness"] == pytest.approx(faithfulness)
    assert scores["text_rendering"] == rendering
    assert scores["physical_quality"] == 4.0


def test_an_edit_is_judged_at_its_place_and_elsewhere() -> None:
    source = Scene((RED, BLUE, None, None))
    edit = parse_edit("turn the circle at the top left green", source)
    assert edit is not None
    done, undone, ruined = edit.apply(source), source, Scene((Shape("green", "circle"), None, RED, None))
    scores = [judge.score_edit(edit, source, Reading(scene, 0.0)) for scene in (done, undone, ruined)]
    assert [score["text_faithfulness"] for score in scores] == [4.0, 1.0, 4.0]
    assert [score["image_faithfulness"] for score in scores] == [4.0, 4.0, 2.0]  # one of three places kept
    assert judge.reward(scores[0]) == 1.0
    assert judge.reward(scores[2]) < judge.reward(scores[0]) > judge.reward(scores[1])


def test_the_truth_as_a_reward_model() -> None:
    scene = Scene((RED, BLUE, None, None))
    asks = [
        CritiqueRequest("t2i", scene.request(), draw(scene)),
        CritiqueRequest("t2i", scene.request(), draw(Scene((RED, None, None, None)))),
        CritiqueRequest("t2i", "a portrait of a cat", draw(scene)),
        CritiqueRequest("edit", "remove the circle at the top left", draw(scene.put("top left", None)), (draw(scene),)),
    ]
    rewards = ShapesTruth().score(asks)
    assert rewards.total.nan_to_num(-1).tolist() == pytest.approx([1.0, 0.75, -1, 1.0])
    assert rewards.valid.tolist() == [True, True, False, True] and "no request of the shapes world" in rewards.reasons[2]
    exact = rewards.values[:, rewards.aspects.index("exact")]
    assert exact.nan_to_num(-1).tolist() == [1.0, 0.0, -1.0, 1.0]
    assert torch.equal(rewards.values[:, 3].isnan(), torch.ones(4, dtype=torch.bool))  # no letter was asked for


# -- critiques in words ------------------------------------------------------------------------------------------------


def _cases(count: int) -> list[tuple[Asked, Reading, str]]:
    rng = random.Random(6)
    cases = []
    for index, scene in enumerate(_scenes(count, 7)):
        other = random_edit(scene, rng).apply(scene)
        seen = Reading(rng.choice((scene, other)), rng.choice((0.0, 0.06, 0.1, 0.2)))
        if index % 2:
            cases.append((Asked(scene.request()), seen, "t2i"))
        else:
            edit = random_edit(scene, rng)
            shown = Reading(rng.choice((edit.apply(scene), scene, other)), seen.rmse)
            cases.append((Asked(edit.request(), scene), shown, "edit"))
    return cases


def test_a_critique_scores_what_the_truth_scores_and_survives_being_written() -> None:
    format = CritiqueFormat("shapes")
    for asked, seen, task in _cases(100):
        critique = phrases.critique(asked, seen)
        assert format.parse(format.render(critique, task), task) == critique  # type: ignore[arg-type]
        assert tuple(critique.aspects) == load_rubric("shapes").keys(task)  # type: ignore[arg-type]
        for key, truth in asked.scores(seen).items():
            score = critique.score(key)
            if truth is None:
                assert score == NotApplicable()
            else:
                # quality is written in halves, the rest in tenths
                assert isinstance(score, float) and abs(score - truth) <= (0.25 if key == "physical_quality" else 0.05) + 1e-9
        assert Asked(critique.refined_request, asked.source).scene == asked.scene  # the rewrite asks for the same


def test_the_tally_of_a_justification_gives_its_score() -> None:
    lost: set[int] = set()
    for asked, seen, _ in _cases(200):
        said, scores = phrases.justifications(asked, seen), asked.scores(seen)
        for key in ("text_faithfulness", "image_faithfulness"):
            if key in said:
                halves, things = map(int, said[key].split(" . ")[-1].rsplit(" ; ", 1)[-1].split()[-3::2])
                lost.add(halves)
                # a thing is worth two halves, and all of them together 3 points
                assert scores[key] == pytest.approx(max(1.0, 4.0 - 1.5 * halves / things))
    assert {0, 1, 2} <= lost


def test_what_is_said_of_a_place_reads_back() -> None:
    for scene in _scenes(50, 12):
        assert [parse_thing(describe(thing)) for thing in scene.things] == list(scene.things)


def test_comparisons_say_what_was_asked() -> None:
    for asked, seen, task in _cases(100):
        said = phrases.justifications(asked, seen)
        read = phrases.read_asked(said["text_faithfulness"])
        if task == "t2i":
            assert phrases.read_asked(f"{said['text_faithfulness']}\n{said['text_rendering']}") == asked.scene
            # letters are judged in text rendering alone
            assert read == Scene(tuple(None if isinstance(t, Letter) else t for t in asked.scene.things))  # type: ignore[arg-type]
        else:
            assert asked.edit is not None and read is not None and read.at(asked.edit.place) == asked.edit.after
    assert phrases.read_asked("both well") is None


def test_what_a_comparison_claims_can_be_read_back() -> None:
    rng = random.Random(8)
    for scene in _scenes(60, 10):
        asked = Asked(scene.request())
        first, second = (Reading(random_edit(scene, rng).apply(scene), 0.0) for _ in range(2))
        pair = phrases.pair_critique(asked, first, second)
        both = asked.reward(first) - asked.reward(second)
        if abs(both) > 0.05:  # beyond what rounding can turn around
            assert pair.verdict() == ("A" if both > 0 else "B")
        said = phrases.justifications(asked, first)
        claimed = phrases.read_claims("\n".join(said.values()))
        assert claimed is not None
        for place, thing in scene.occupied():
            assert claimed.scene.at(place) == first.scene.at(place) or thing is None
    assert phrases.read_claims("both well") is None


def test_words_for_quality_fall_as_the_distance_grows() -> None:
    order = list(reversed(QUALITY))
    told = [order.index(describe_quality(judge.quality(rmse))) for rmse in np.linspace(0.0, SEVERE_RMSE + 0.05, 200).tolist()]
    assert told == sorted(told) and set(told) == set(range(7))
    assert describe_quality(judge.quality(CLEAN_RMSE)) == "sharp"


@pytest.mark.parametrize("rmse", [0.0, CLEAN_RMSE, 0.06, 0.1, 0.15, 0.3])
def test_words_for_quality_match_the_score(rmse: float) -> None:
    scene = Scene((RED, None, None, None))
    seen = Reading(scene, rmse)
    said = phrases.justifications(Asked(scene.request()), seen)
    claimed = phrases.read_claims("\n".join(said.values()))
    assert claimed is not None
    assert abs(claimed.quality - seen.quality) <= 0.25 + 1e-9


# -- data --------------------------------------------------------------------------------------------------------------


def test_labels_without_noise_are_the_truth_and_with_noise_a_logistic() -> None:
    rng = random.Random(0)
    assert [human_label(d, rng, 0.0, 0.03) for d in (0.5, 0.04, 0.02, 0.0, -0.02, -0.04)] == [1.0, 1.0, 0.5, 0.5, 0.5, 0.0]
    noisy = [human_label(0.1, rng, 0.1, 0.03) for _ in range(4000)]
    expected = 1 / (1 + np.exp(-1.0))
    assert abs(np.mean(noisy) - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)  # five standard errors


def test_a_written_set_is_a_function_of_its_seed_and_its_labels_are_true(tmp_path: Path) -> None:
    paths = [write_preferences(tmp_path / name, 20, seed, label_noise=0.0) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    pairs = read_jsonl(paths[0], Preference)
    for pair, twin in zip(pairs, read_jsonl(paths[1], Preference), strict=True):
        assert [Path(path).read_bytes() for path in pair.candidates] == [Path(path).read_bytes() for path in twin.candidates]
        sources = tuple(map(open_picture, pair.sources))
        images = [open_picture(path) for path in pair.candidates]
        truth = ShapesTruth().score([CritiqueRequest(pair.task, pair.prompt, image, sources) for image in images])
        difference = float(truth.total[0] - truth.total[1])
        assert pair.label == (0.5 if abs(difference) < 0.03 else float(difference > 0))


def test_written_requests_are_in_the_language(tmp_path: Path) -> None:
    path = write_prompts(tmp_path, 30, seed=1, edit_share=0.5)
    records = read_jsonl(path, PromptRecord)
    assert {record.task for record in records} == {"t2i", "edit"} and len({record.id for record in records}) == 30
    for record in records:
        Asked(record.prompt, judge.read([open_picture(record.sources[0])])[0].scene if record.sources else None)
    assert write_prompts(tmp_path / "again", 30, seed=1, edit_share=0.5).read_text() == path.read_text()
