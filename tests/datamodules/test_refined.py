"""Refinements become data for the next round, and nothing that is evaluated on gets into it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.parrot import Ledger, ParrotOptions, ScreenOptions, rationalize
from rationalrewards.components.records import Candidate, PromptRecord, Refinement, read_jsonl, write_jsonl
from rationalrewards.components.refine.export import ORIGIN, ExportOptions, export
from rationalrewards.components.shapes.teacher import ShapesTeacher
from rationalrewards.datamodules import PreferenceDataModule, PromptDataModule
from rationalrewards.datamodules.refined import main, without_shared

PROMPTS = [
    "red circle top left",
    "blue square top right",
    "letter A bottom right",
    "two green crosses",
    "purple square bottom left",
]


@pytest.fixture
def refinements(tmp_path: Path) -> Path:
    """Five requests: three with a gain, one of which loses its number; one without; one unscored."""
    folder = tmp_path / "refine"
    (folder / "pictures").mkdir(parents=True)
    rewards: list[tuple[float | None, float | None]] = [(0.2, 0.9), (0.3, 0.8), (0.4, 0.42), (0.1, 0.9), (None, 0.5)]
    pictures = tiny.drawings(10)
    records = []
    for index, (prompt, pair) in enumerate(zip(PROMPTS, rewards, strict=True)):
        made = []
        for number, reward in enumerate(pair):
            path = folder / "pictures" / f"{index}_{number}.png"
            pictures[2 * index + number].save(path)
            request = f"a sharp picture: {prompt}" if number else prompt
            if index == 3 and number:
                request = "green crosses"
            made.append(
                Candidate(number, request, str(path), f"critique {index} {number}", reward, "" if reward is not None else "?")
            )
        records.append(Refinement(f"r{index}", "t2i", prompt, "refine_keep_best", tuple(made), 1, "images"))
    write_jsonl(folder / "refinements.jsonl", records)
    return folder / "refinements.jsonl"


def test_what_is_worth_keeping_is_written_and_read_by_the_next_stages(
    refinements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "next"
    assert main([str(refinements), "--out", str(out), "--unchecked", "--critic", "critics/7"]) == 0
    assert "2 requests; left out: no gain 1, something of the request is lost 1, not scored 1" in capsys.readouterr().out

    data = PromptDataModule(train=str(out / "prompts.jsonl"), groups_per_epoch=2, group_size=2, batch_size=2)
    data.setup("fit")
    assert {record.prompt for record in data.prompts} == {f"a sharp picture: {prompt}" for prompt in PROMPTS[:2]}

    pairs = PreferenceDataModule(str(out / "preferences.jsonl"), batch_size=2)
    pairs.setup("predict")
    read = [pair for batch in pairs.predict_dataloader() for pair in batch]
    critiques = {row["id"]: row for row in map(json.loads, (out / "critiques.jsonl").read_text().splitlines())}
    assert {pair.prompt for pair in read} == set(PROMPTS[:2])  # the request as it stood
    for pair in read:
        assert pair.dataset == ORIGIN and "critics/7" in pair.origin and pair.id in pair.origin
        better = pair.candidates[0 if pair.winner == "A" else 1]
        assert Path(better).name == f"{pair.id[1]}_1.png" and Path(better).is_file()
        row = critiques[pair.id]
        assert (row["rewards"][0] > row["rewards"][1]) == (pair.winner == "A")
        assert row["critiques"][0 if pair.winner == "A" else 1] == f"critique {pair.id[1]} 1"

    rows = list(map(json.loads, (out / "sft.jsonl").read_text().splitlines()))
    assert [(row["prompt"], row["refined"]) for row in rows] == [(prompt, f"a sharp picture: {prompt}") for prompt in PROMPTS[:2]]
    assert all((out / row["image"]).resolve().name.endswith("_1.png") for row in rows)

    # PARROT takes them like any pairs
    teacher = ShapesTeacher(hallucination=0.0, obedience=0.0, vagueness=0.0, label_echo=0.0, position_bias=0.0)
    options = ParrotOptions(control_share=0.0, screen=ScreenOptions(min_contrast=0.0))
    assert {outcome.pair.id for outcome in rationalize(read, teacher, CritiqueFormat("shapes"), options, Ledger())} == {
        "r0",
        "r1",
    }


def test_sides_are_not_told_by_the_label() -> None:
    made = (Candidate(0, "a", "a.png", "", 0.1), Candidate(1, "a b", "b.png", "", 0.9))
    many = [Refinement(f"r{index}", "t2i", "a", "refine_keep_best", made, 1, "images") for index in range(200)]
    first = sum(pair.label for pair in export(many).pairs)
    assert 70 < first < 130  # 100 +- 4 standard deviations of a fair coin (7.1)


@pytest.mark.parametrize("what", ["the request as it stood", "the refined request", "a picture"])
def test_what_is_evaluated_on_stays_out(refinements: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, heldout = tmp_path / "next", tmp_path / "heldout.jsonl"
    if what == "a picture":
        row = {
            "id": "h",
            "prompt": "something else",
            "label": 1,
            "task": "t2i",
            "candidates": ["refine/pictures/0_1.png", "other.png"],
        }
        tiny.drawings(11)[10].save(tmp_path / "other.png")
        heldout.write_text(json.dumps(row) + "\n")
    else:
        prompt = PROMPTS[0] if what == "the request as it stood" else f"A sharp picture:  {PROMPTS[0]}."
        write_jsonl(heldout, [PromptRecord("h", "t2i", prompt)])
    assert main([str(refinements), "--out", str(out), "--against", str(heldout)]) == 1
    told = capsys.readouterr().out
    assert "nothing was written" in told and "r0" in told
    assert not out.exists()
    assert main([str(refinements), "--out", str(out), "--against", str(heldout), "--drop"]) == 0
    assert [record.id for record in read_jsonl(out / "prompts.jsonl", PromptRecord)] == ["r1"]
    assert (
        len((out / "preferences.jsonl").read_text().splitlines()) == len((out / "critiques.jsonl").read_text().splitlines()) == 1
    )


def test_rows_that_share_one_picture_all_go(refinements: Path, tmp_path: Path) -> None:
    records = read_jsonl(refinements, Refinement)
    doubled = export([*records, *(replace(record, id=f"twin of {record.id}") for record in records)])
    assert len(doubled.kept) == 4
    heldout = tmp_path / "heldout.jsonl"
    write_jsonl(heldout, [PromptRecord("h", "t2i", PROMPTS[0])])
    assert [one.id for one in without_shared(doubled, str(heldout)).kept] == ["r1", "twin of r1"]


def test_what_cannot_be_exported_is_refused(refinements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="there are no refinements of arm 'best_of_n'; there are: refine_keep_best"):
        export(read_jsonl(refinements, Refinement), ExportOptions(arm="best_of_n"))
    with pytest.raises(ValueError, match="min_gain must be more than 0, got 0: equal pictures teach nothing"):
        ExportOptions(min_gain=0.0)
    with pytest.raises(ValueError, match="min_kept is a share, 0 to 1, got 2"):
        ExportOptions(min_kept=2)
    for arguments, message in (
        ([str(refinements), "--out", str(tmp_path / "next")], "one of the arguments --against --unchecked is required"),
        ([str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "next"), "--unchecked"], "none.jsonl does not exist"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
