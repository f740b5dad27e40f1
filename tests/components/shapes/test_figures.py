"""The job's figures on pictures whose truth is known because they were drawn for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rationalrewards.components.records import Candidate, Preference, Refinement, write_jsonl
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.figures import aspect_errors, generator_figures, rate_interval, refinement_figures
from rationalrewards.components.shapes.make_data import shapes_generator
from rationalrewards.components.shapes.pairs import write_prompts
from rationalrewards.components.shapes.scenes import Letter, Scene, Shape
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.datamodules.readers import read_prompts

RIGHT = Scene((Shape("red", "circle"), None, Letter("A"), None))
HALF = Scene((Shape("blue", "circle"), None, Letter("A"), None))
WRONG = Scene((None, Shape("green", "cross"), None, None))


def _picture(folder: Path, name: str, scene: Scene) -> str:
    path = folder / f"{name}.png"
    draw(scene).save(path)
    return str(path)


def _trace(folder: Path, number: int, arm: str, scenes: list[Scene], chosen: int) -> Refinement:
    made = [
        Candidate(index, RIGHT.request(), _picture(folder, f"{number}{arm}{index}", scene), {}, 0.5)
        for index, scene in enumerate(scenes)
    ]
    return Refinement(f"r{number}", "t2i", RIGHT.request(), arm, tuple(made), chosen, "budget")


def test_refinement_figures_count_what_was_chosen(tmp_path: Path) -> None:
    rows = []
    for number, (best, kept) in enumerate([(RIGHT, RIGHT), (HALF, RIGHT), (HALF, RIGHT), (RIGHT, WRONG)]):
        rows += [
            _trace(tmp_path, number, "base", [HALF], 0),
            _trace(tmp_path, number, "best_of_n", [HALF, best], 1),
            _trace(tmp_path, number, "refine_keep_best", [HALF, WRONG, kept], 2),
        ]
    write_jsonl(tmp_path / "refinements.jsonl", rows)
    figures = refinement_figures(tmp_path / "refinements.jsonl")
    assert (figures["n"], figures["base"], figures["best_of_n"], figures["refine_keep_best"]) == (4, 0.0, 0.5, 0.75)
    assert figures["gain"] == pytest.approx(0.25)
    assert (figures["harm_rate"], figures["harm_rate_n"]) == (0.25, 4)
    assert (figures["base_images"], figures["best_of_n_images"], figures["refine_keep_best_images"]) == (1, 2, 3)
    assert figures["base_ci95"] == [0.0, 0.0] and figures["gain_ci95"][0] < 0.25 < figures["gain_ci95"][1]


def test_without_the_arms_there_is_nothing_to_compare(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "refinements.jsonl", [_trace(tmp_path, 0, "base", [RIGHT], 0)])
    assert refinement_figures(tmp_path / "refinements.jsonl").keys() == {"n", "base", "base_ci95", "base_images"}


def test_aspect_errors_are_distances_to_the_truth(tmp_path: Path) -> None:
    pictures = (_picture(tmp_path, "right", RIGHT), _picture(tmp_path, "half", HALF))
    write_jsonl(tmp_path / "pairs.jsonl", [Preference("p", "t2i", RIGHT.request(), pictures, 1.0)])
    # of the second picture half the only shape is right: 2.5 of 4; its quality was not scored
    scores = [
        {"text_faithfulness": 3.5, "physical_quality": 4.0, "text_rendering": 4.0},
        {"text_faithfulness": 2.5, "physical_quality": None, "text_rendering": 1.0},
    ]
    (tmp_path / "judgements.jsonl").write_text(json.dumps({"id": "p", "scores": scores}) + "\n")
    found = aspect_errors(tmp_path / "pairs.jsonl", tmp_path / "judgements.jsonl")
    assert found["aspect_mae"] == pytest.approx({"text_faithfulness": 0.25, "physical_quality": 0.0, "text_rendering": 1.5})
    assert found["aspect_mae_n"] == {"text_faithfulness": 2, "physical_quality": 1, "text_rendering": 2}
    assert found["aspect_mae_ci95"]["physical_quality"] == [0.0, 0.0]


def test_the_truth_as_critic_correlates_with_itself_on_requests_and_edits(tmp_path: Path) -> None:
    generator = shapes_generator(steps=2)
    generator.load()
    records = read_prompts(write_prompts(tmp_path, 4, seed=3, edit_share=0.5))
    assert {record.task for record in records} == {"t2i", "edit"}
    torch.manual_seed(0)
    figures = generator_figures(generator, ShapesTruth(), records, 2, seed=1, folder=tmp_path / "shown")
    assert figures["n"] == figures["within_group_corr_n"] == 8
    assert figures["truth"] == figures["reward"] and figures["truth_ci95"] == figures["reward_ci95"]
    assert figures["within_group_corr"] == pytest.approx(1.0)
    assert figures["within_group_corr_ci95"] == pytest.approx([1.0, 1.0])
    shown = json.loads((tmp_path / "shown" / "captions.json").read_text())
    assert len(shown) == 8 and (tmp_path / "shown" / "07.png").is_file()
    assert {one["prompt"] for one in shown} == {record.prompt for record in records}


def test_a_rate_that_does_not_exist_has_no_interval() -> None:
    assert rate_interval("x", None, 3) == rate_interval("x", float("nan"), 3) == {"x_n": 3}
    assert rate_interval("x", 1.0, 4)["x_ci95"][1] == 1.0
