"""Bad input ends in a message that names the file, the row and what to do, before anything is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rationalrewards.callbacks import (
    AdapterEMA,
    AdapterExport,
    CriticExport,
    EvaluationWriter,
    RationaleWriter,
    RefinementWriter,
    RewardLogging,
)
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.memory import explain_out_of_memory
from rationalrewards.components.parrot import Ledger, ParrotOptions, rationalize
from rationalrewards.components.records import Preference, PromptRecord, Rationale, read_jsonl, to_json
from rationalrewards.components.refine import Studio
from rationalrewards.components.shapes.teacher import ShapesTeacher
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.datamodules import PreferenceDataModule, PromptDataModule, RationaleDataModule
from rationalrewards.datamodules.readers import read_preferences, read_prompts
from rationalrewards.lightning_modules import RationalizeModule, RewardEvaluationModule
from rationalrewards.lightning_modules.base import RewardsModule
from support import ROOT
from tiny import QUIET, generator, trainer

from rationalrewards import cli

pytestmark = QUIET

PAIR: dict[str, Any] = {
    "id": "first",
    "task": "t2i",
    "prompt": "a red circle",
    "candidates": ["a.png", "b.png"],
    "label": 1.0,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two good pictures, as PNG, JPEG and WebP."""
    for name, colour in (("a", "red"), ("b", "blue")):
        # noise compresses badly, so that half a file is half a picture
        picture = Image.effect_noise((32, 32), 60.0).convert("RGB")
        picture.paste(colour, (0, 0, 8, 8))
        for kind in ("png", "jpg", "webp"):
            picture.save(tmp_path / f"{name}.{kind}")
    return tmp_path


def write(path: Path, *rows: Any) -> Path:
    """Write rows as JSONL; a text is a line as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def cut(path: Path) -> None:
    """Keep the first half of a file, as a broken download does."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


# -- pictures -----------------------------------------------------------------------------------------------------------


def by_rationalize(path: Path) -> None:
    """A bad picture costs its pair alone: the reason is on file, and told here."""
    for outcome in rationalize(read_preferences(path), ShapesTeacher(), CritiqueFormat("shapes"), ParrotOptions(), Ledger()):
        if outcome.stage == "screen" and not outcome.kept:
            raise ValueError(outcome.reason)


def by_evaluate(path: Path) -> None:
    data = PreferenceDataModule(str(path), batch_size=2)
    trainer().test(RewardEvaluationModule(reward=ShapesTruth()), datamodule=data, verbose=False)


def by_distill(path: Path) -> None:
    pairs, format = read_jsonl(path, Preference), CritiqueFormat("shapes")
    rows = [to_json(Rationale(pair, "", ("", ""), format.fingerprint)) for pair in pairs]
    data = RationaleDataModule(str(write(path.with_name("rationales.jsonl"), *rows)), format=format, pairwise=False)
    data.setup("fit")
    list(data.train_dataloader())


READERS_OF_PAIRS: list[Callable[[Path], None]] = [by_rationalize, by_evaluate, by_distill]


def spoil(folder: Path, how: str, name: str) -> str:
    """Make a picture missing, cut off or something else; what the message says of it."""
    path = folder / name
    if how == "missing":
        path.unlink()
        return "does not exist; put it there or correct its path"
    if how == "cut":
        cut(path)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_text("<html>not found</html>", encoding="utf-8")
    return "the file is cut off or not a picture; replace it or take its row out"


@pytest.mark.parametrize("read", READERS_OF_PAIRS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_stage_names_the_row_of_a_picture_it_cannot_read(read: Callable[[Path], None], how: str, folder: Path) -> None:
    good = {**PAIR, "id": "good", "candidates": ["a.jpg", "b.jpg"]}
    path = write(folder / "pairs.jsonl", good, PAIR)
    remedy = spoil(folder, how, "b.png")
    with pytest.raises(ValueError, match=re.escape(remedy)) as caught:
        read(path)
    name = "rationales.jsonl" if read is by_distill else "pairs.jsonl"
    assert f"{folder / name}, row 2: picture {folder / 'b.png'} " in str(caught.value)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
@pytest.mark.parametrize("how", ["cut", "empty", "page"])
def test_every_kind_of_broken_picture_is_noticed(how: str, kind: str, folder: Path) -> None:
    path = write(folder / "pairs.jsonl", {**PAIR, "candidates": [f"a.{kind}", f"b.{kind}"]})
    remedy = spoil(folder, how, f"a.{kind}")
    with pytest.raises(ValueError, match=re.escape(remedy)) as caught:
        by_rationalize(path)
    assert f"{path}, row 1: picture {folder / f'a.{kind}'} cannot be read" in str(caught.value)


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_source_of_an_edit_is_named_with_its_row(how: str, folder: Path) -> None:
    edit = {"instruction": "remove the square", "source": "a.png", "edited": "b.png"}
    path = write(folder / "edits.jsonl", {**edit, "source": "a.jpg"}, edit)
    remedy = spoil(folder, how, "a.png")
    studio = Studio(generator(), Critic(ShapesTeacher()), seed=0)
    good, bad = read_prompts(path)
    assert studio.sources(good)[0].size == (32, 32)
    with pytest.raises(ValueError, match=re.escape(remedy)) as caught:
        studio.sources(bad)
    assert f"{path}, row 2: picture {folder / 'a.png'}" in str(caught.value)


def test_a_picture_of_a_record_that_no_file_holds_is_named_with_its_id(folder: Path) -> None:
    record = PromptRecord("by hand", "edit", "remove the square", (str(folder / "none.png"),))
    studio = Studio(generator(), Critic(ShapesTeacher()), seed=0)
    with pytest.raises(ValueError, match=r"record 'by hand': picture .*none\.png does not exist"):
        studio.sources(record)


def test_where_a_record_was_read_is_no_part_of_it(folder: Path) -> None:
    (read,) = read_preferences(write(folder / "pairs.jsonl", PAIR))
    made = Preference("first", "t2i", "a red circle", (str(folder / "a.png"), str(folder / "b.png")), 1.0)
    assert read == made
    assert to_json(read) == to_json(made)


# -- rows ---------------------------------------------------------------------------------------------------------------

READERS = {
    "preferences": read_preferences,
    "prompts": read_prompts,
    "rationales": lambda path: read_jsonl(path, Rationale),
}
PROMPT = {"id": "x", "task": "t2i", "prompt": "a red circle"}
RANKED = {"prompt": "a red circle", "images": ["a.png", "b.png"], "ranking": [1, 2]}


@pytest.mark.parametrize(
    ("kind", "bad", "says"),
    [
        # a wrong column: what is missing, and what was there instead
        ("preferences", {**{k: v for k, v in PAIR.items() if k != "label"}, "lable": 1.0}, "missing: label; found: .*lable"),
        ("preferences", {**PAIR, "labels": 1.0}, "unknown column 'labels'; a Preference has: id, task, prompt"),
        ("preferences", {"instruction": "x", "before": "a.png", "edited": "b.png"}, "missing: source; found: before"),
        ("prompts", {"text": "a red circle"}, "no column 'prompt'; found: text"),
        ("prompts", {**PROMPT, "seed": 3}, "unknown column 'seed'; a PromptRecord has: id, task, prompt"),
        ("rationales", {"pair": PAIR, "pair_text": "x", "format": "0"}, "column 'point_texts' is missing; a Rationale has"),
        ("rationales", {"pair": {**PAIR, "x": 1}, "pair_text": "", "point_texts": ["", ""], "format": ""}, "column 'x'; a Pref"),
        # an empty prompt
        ("preferences", {**PAIR, "prompt": ""}, "the prompt is empty; write the request or take the row out"),
        ("preferences", {**RANKED, "prompt": " \n"}, "the prompt is empty; write the request or take the row out"),
        ("prompts", {"prompt": ""}, "the prompt is empty; write the request or take the row out"),
        ("prompts", {"instruction": "", "source": "a.png"}, "the prompt is empty; write the request or take the row out"),
        # a label out of range
        ("preferences", {**PAIR, "label": 2}, "the probability that A is preferred, 0 to 1, got 2"),
        ("preferences", {**PAIR, "label": -0.1}, "0 to 1, got -0.1"),
        ("preferences", {**PAIR, "label": "A"}, "0 to 1, got 'A'"),
        ("preferences", '{"id": "n", "task": "t2i", "prompt": "x", "candidates": ["a", "b"], "label": NaN}', "got nan"),
        # ranks that are not one for each image
        ("preferences", {**RANKED, "ranking": [1]}, "2 images but 1 ranks; give each image one rank"),
        # tasks and sources that contradict each other
        ("preferences", {**PAIR, "task": "video"}, "task must be one of t2i, edit, got 'video'"),
        ("prompts", {**PROMPT, "task": "edit"}, "an edit needs source pictures"),
        # not a row at all
        ("preferences", "[1, 2]", r"is not a JSON object|not a JSON object"),
        ("prompts", "null", r"is not a JSON object|not a JSON object"),
        ("rationales", '"text"', "is not a JSON object"),
    ],
)
def test_a_bad_row_is_named(kind: str, bad: Any, says: str, tmp_path: Path) -> None:
    good = {"preferences": PAIR, "prompts": {**PROMPT, "id": "y"}}.get(kind)
    if good is None:
        good = {"pair": PAIR, "pair_text": "x", "point_texts": ["x", "x"], "format": "0"}
    # an empty line counts, as in an editor
    path = write(tmp_path / "rows.jsonl", good, "", bad)
    with pytest.raises(ValueError, match=says) as caught:
        READERS[kind](path)
    assert str(caught.value).startswith(f"{path}, row 3: ")


@pytest.mark.parametrize("kind", ["preferences", "prompts"])
def test_a_line_that_is_no_json_is_named(kind: str, tmp_path: Path) -> None:
    good = PAIR if kind == "preferences" else PROMPT
    path = write(tmp_path / "rows.jsonl", good, "", '{"id": "cut off", "task": ')
    with pytest.raises(ValueError, match="line 3: not JSON .*correct the line or take it out") as caught:
        READERS[kind](path)
    assert str(path) in str(caught.value)
    # a file that is one JSON list counts its own lines
    (tmp_path / "rows.json").write_text(f"[\n  {json.dumps(good)},\n  {{]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.json, line 3: not JSON"):
        READERS[kind](tmp_path / "rows.json")


def test_no_rows_and_no_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.jsonl does not exist; give the path"):
        PreferenceDataModule(str(tmp_path / "gone.jsonl")).setup("test")
    with pytest.raises(ValueError, match=r"empty\.jsonl: no pairs"):
        PreferenceDataModule(str(write(tmp_path / "empty.jsonl"))).setup("test")
    with pytest.raises(ValueError, match="give `data.train`: a file of requests"):
        PromptDataModule().setup("fit")


# -- rubrics ------------------------------------------------------------------------------------------------------------

ASPECT = {"key": "colour", "title": "Colour"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"aspects": [{**ASPECT, "titel": "Colour"}]}, "unknown field 'titel' in aspect 'colour'; an aspect has: key, title"),
        ({"aspects": [{**ASPECT, "tasks": ["video"]}]}, "aspect 'colour': unknown task 'video'; known: t2i, edit"),
        ({"aspects": [{"key": "colour"}]}, "field 'title' is missing"),
        ({"aspects": [ASPECT, ASPECT]}, "two aspects share a key"),
        ({"aspects": ["colour"]}, "aspect 'colour' must be a mapping with key and title"),
        ({"aspects": {"colour": ASPECT}}, r"a mapping with name, aspects \(a list\)"),
        (
            {"aspects": [{**ASPECT, "levels": ["a", "b", "c", "d", "e"]}]},
            "aspect 'colour': 5 levels, one of them for 0, but the scale is 1 to 4",
        ),
        ({"aspekts": []}, "unknown field 'aspekts'; a rubric has: name, aspects, pointwise, pairwise, scale"),
        ({"pairwise": None}, "field 'pairwise' is missing"),
    ],
)
def test_a_rubric_with_something_unknown_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    rubric = {"name": "mine", "aspects": [ASPECT], "pointwise": "judge it", "pairwise": "compare them", **change}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in rubric.items() if value is not None}), encoding="utf-8")
    with pytest.raises(ValueError, match=says) as caught:
        _ = CritiqueFormat(str(path)).rules
    assert str(path) in str(caught.value)


def test_an_empty_and_a_missing_rubric_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    with pytest.raises(ValueError, match=r"empty\.yaml: a rubric is a mapping"):
        _ = CritiqueFormat(str(tmp_path / "empty.yaml")).rules
    with pytest.raises(ValueError, match="no rubric 'colours'; give the path of a YAML file or one of: default, shapes"):
        _ = CritiqueFormat("colours").rules


# -- places that cannot be written --------------------------------------------------------------------------------------


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder that nobody can make, root included: the way to it leads through a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "out"


@pytest.mark.parametrize(
    ("make", "hook"),
    [
        (RationaleWriter, "on_predict_start"),
        (RefinementWriter, "on_predict_start"),
        (EvaluationWriter, "on_test_start"),
        (CriticExport, "on_fit_start"),
        (AdapterExport, "on_fit_start"),
        (lambda output_dir: AdapterEMA(output_dir=output_dir), "on_fit_start"),
        (RewardLogging, "on_fit_start"),
    ],
    ids=[
        "RationaleWriter",
        "RefinementWriter",
        "EvaluationWriter",
        "CriticExport",
        "AdapterExport",
        "AdapterEMA",
        "RewardLogging",
    ],
)
def test_a_writer_says_so_before_any_work(make: Callable[[str], Any], hook: str, closed: Path) -> None:
    module = RationalizeModule(ShapesTeacher(), CritiqueFormat("shapes"))
    with pytest.raises(PermissionError, match="choose another output_dir") as caught:
        getattr(make(str(closed)), hook)(trainer(), module)
    assert f"cannot write to {closed} " in str(caught.value)


def test_the_command_line_ends_with_the_folder_it_cannot_write(closed: Path, folder: Path) -> None:
    path = write(folder / "pairs.jsonl", PAIR)
    arguments = [
        *("predict", "-c", str(ROOT / "configs" / "rationalize" / "shapes.yaml")),
        *("--data.init_args.paths", str(path), "--trainer.logger=false", "--trainer.enable_progress_bar=false"),
        "--trainer.callbacks=RationaleWriter",
        f"--trainer.callbacks.output_dir={closed}",
    ]
    with pytest.raises(PermissionError, match="choose another output_dir") as caught:
        cli.run(arguments)
    assert str(closed) in str(caught.value)


# -- more than the memory holds -----------------------------------------------------------------------------------------


def test_a_request_that_no_memory_holds_is_not_guessed_at() -> None:
    maker = generator(pipeline_kwargs={**generator().pipeline_kwargs, "height": 2**24, "width": 2**24})
    maker.load()
    with pytest.raises(
        MemoryError, match="1 pictures of 16777216 x 16777216 pixels at once: more memory.*lower.*eval_batch_size"
    ):
        maker.sample(["a red circle top left"], [], [0])


class _Overflow(torch.autograd.Function):
    """Fails on the way back, as an allocator does."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        torch.empty(2**60)  # more than any machine has: the CPU allocator's own error
        return gradients[0]


class _Heavy(RewardsModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = _Overflow.apply(self.weight).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_memory_that_runs_out_in_the_backward_pass_is_explained() -> None:
    with pytest.raises(MemoryError, match="the backward pass: more memory than there is.*lower the data module's batch_size"):
        trainer(max_steps=1).fit(_Heavy(), torch.utils.data.DataLoader([0]))  # type: ignore[arg-type]


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"), explain_out_of_memory("anything", "anything"):
        raise RuntimeError("shapes do not fit")
