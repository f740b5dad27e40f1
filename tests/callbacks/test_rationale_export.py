"""Rationales are exported at the end of the run that makes them, wherever the callback stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from lightning.pytorch import Callback
from rationalrewards.callbacks import RationaleExport, RationaleWriter
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.parrot import ParrotOptions, ScreenOptions
from rationalrewards.components.parrot.export import export
from rationalrewards.components.records import Rationale, read_jsonl
from rationalrewards.components.shapes.teacher import ShapesTeacher
from rationalrewards.datamodules import PreferenceDataModule, RationaleDataModule
from rationalrewards.lightning_modules import RationalizeModule

pytestmark = tiny.QUIET

FORMAT = CritiqueFormat("shapes")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pairs(tmp_path_factory.mktemp("pairs"), 8, seed=1)


def _predict(file: Path, *callbacks: Callback, teacher: ShapesTeacher | None = None) -> None:
    options = ParrotOptions(control_share=0.0, audit_share=0.0, screen=ScreenOptions(min_contrast=0.0))
    module = RationalizeModule(teacher or ShapesTeacher(0.0, 0.0, 0.0, 0.0, 0.0), FORMAT, options)
    trainer = tiny.trainer(callbacks=list(callbacks))
    trainer.predict(module, PreferenceDataModule(str(file), batch_size=4), return_predictions=False)


@pytest.mark.parametrize("first", [True, False])
def test_exports_what_the_writer_leaves(first: bool, file: Path, tmp_path: Path) -> None:
    callbacks: list[Callback] = [
        RationaleExport(str(tmp_path / "out"), ["sharegpt", "datasets"]),
        RationaleWriter(str(tmp_path / "run")),
    ]
    _predict(file, *(callbacks if first else callbacks[::-1]))
    rationales = read_jsonl(tmp_path / "run" / "rationales.jsonl", Rationale)
    assert len(rationales) > 2
    report = export(rationales, FORMAT, tmp_path / "again", ["sharegpt", "datasets"])
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == report.as_json()
    for name in ("sharegpt.json", "dataset_info.json", "datasets/README.md", "datasets/data/train-00000-of-00001.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert not (tmp_path / "out" / "rationales.jsonl").exists()
    # a run that is taken up again, with nothing left to do, exports the same
    before = (tmp_path / "out" / "sharegpt.json").read_bytes()
    _predict(file, *callbacks)
    assert (tmp_path / "out" / "sharegpt.json").read_bytes() == before
    data = RationaleDataModule(str(tmp_path / "out" / "datasets"), FORMAT)
    data.setup("fit")
    assert len(data.rows) == 4 * len(rationales)


def test_kinds_are_handed_on(file: Path, tmp_path: Path) -> None:
    _predict(file, RationaleWriter(str(tmp_path / "run")), RationaleExport(str(tmp_path / "out"), ["sharegpt"], ["pair"]))
    assert {row["kind"] for row in json.loads((tmp_path / "out" / "sharegpt.json").read_text())} == {"pair"}
    assert not (tmp_path / "out" / "datasets").exists()


def test_nothing_kept_is_a_warning(file: Path, tmp_path: Path) -> None:
    echoing = ShapesTeacher(0.0, 0.0, 0.0, 1.0, 0.0)
    with pytest.warns(UserWarning, match=r"rationales\.jsonl holds no rationales, so that nothing is exported"):
        _predict(file, RationaleWriter(str(tmp_path / "run")), RationaleExport(str(tmp_path / "out")), teacher=echoing)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_work_is_said_before_the_teacher_is_asked(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exports what a RationaleWriter writes; add one"):
        _predict(file, RationaleExport(str(tmp_path)))
    with pytest.raises(ValueError, match="would replace what RationaleWriter leaves in"):
        _predict(file, RationaleWriter(str(tmp_path / "run")), RationaleExport(str(tmp_path / "." / "run")))
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="choose another output_dir"):
        _predict(file, RationaleWriter(str(tmp_path / "run")), RationaleExport(str(tmp_path / "file")))
    assert not list(tmp_path.rglob("rationales.jsonl"))


def test_other_stages_export_nothing(tmp_path: Path) -> None:
    (tmp_path / "rationales.jsonl").write_text("")
    callback = RationaleExport(str(tmp_path / "out"))
    trainer = tiny.trainer(callbacks=[callback, RationaleWriter(str(tmp_path))])
    callback.teardown(trainer, RationalizeModule(ShapesTeacher(), FORMAT), "fit")  # nothing to export would be a warning
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [{"to": ["csv"]}, {"to": []}, {"to": "jsonl"}, {"kinds": ["pairs"]}, {"kinds": []}])
def test_unknown_forms_and_kinds_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))} must be a list of one or more of"):
        RationaleExport("out", **given)
