"""PARROT on two real processes gives what one gives, and goes on with what another number of processes began."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from rationalrewards.callbacks import RationaleWriter
from rationalrewards.components.chat import ChatReply, ChatRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.parrot import ParrotOptions, ScreenOptions, read_ledgers
from rationalrewards.components.records import Preference, Rationale, read_jsonl, write_jsonl
from rationalrewards.components.shapes.teacher import ShapesTeacher
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.lightning_modules import RationalizeModule
from support import run_python

pytestmark = [pytest.mark.slow, *tiny.QUIET]

# nothing by chance: then a pair and its twin, whose seeds differ, fare alike, and it does not matter which of them is kept
FAULTLESS = {"hallucination": 0.0, "obedience": 0.0, "vagueness": 0.0, "label_echo": 0.0, "position_bias": 0.0}
# every pair is in the slices, so that its id does not matter either; a clean drawing may be of one colour
OPTIONS = ParrotOptions(control_share=1.0, audit_share=1.0, seed=4, screen=ScreenOptions(min_contrast=0.0))
BATCH = 3
TWINS = {"kept": "twin of kept", "dropped": "twin of dropped"}


class Counting(ShapesTeacher):
    """The simulated teacher, counting what it is asked."""

    asked = 0

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        self.asked += len(requests)
        return super().complete(requests)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, every third with the wrong label; the last two are pairs from the beginning once more, with other ids."""
    drawn = read_jsonl(tiny.pairs(tmp_path_factory.mktemp("pairs"), 22, seed=1), Preference)
    pairs = [replace(pair, label=1 - pair.label) if index % 3 == 1 else pair for index, pair in enumerate(drawn)]
    # whether rows are dealt out or cut in halves, each original is in one process' share and its twin in the other's
    wrong = next(index for index in (1, 7) if pairs[index].winner != "tie")
    pairs[0], pairs[wrong] = replace(pairs[0], id="kept"), replace(pairs[wrong], id="dropped")
    pairs += [replace(pairs[wrong], id=TWINS["dropped"]), replace(pairs[0], id=TWINS["kept"])]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    write_jsonl(path, pairs)
    return path


def on_one(file: Path, out: Path, **trainer: Any) -> int:
    """Predict in this process; returns how many questions the teacher got."""
    teacher = Counting(**FAULTLESS)
    module = RationalizeModule(teacher, CritiqueFormat("shapes"), OPTIONS)
    data = PreferenceDataModule(str(file), batch_size=BATCH)
    tiny.trainer(callbacks=[RationaleWriter(str(out))], **trainer).predict(module, data, return_predictions=False)
    return teacher.asked


def on_two(file: Path, out: Path, **trainer: Any) -> None:
    """``rationalrewards predict`` on two processes; Lightning starts the second."""
    teacher = {"class_path": "rationalrewards.components.shapes.teacher.ShapesTeacher", "init_args": FAULTLESS}
    module = {"format": {"rubric": "shapes"}, "teacher": teacher, "options": asdict(OPTIONS)}
    writer = {"class_path": "rationalrewards.callbacks.RationaleWriter", "init_args": {"output_dir": str(out)}}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    recipe = {
        "return_predictions": False,
        "model": {"class_path": "rationalrewards.lightning_modules.RationalizeModule", "init_args": module},
        "data": {
            "class_path": "rationalrewards.datamodules.PreferenceDataModule",
            "init_args": {"paths": str(file), "batch_size": BATCH},
        },
        "trainer": {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "callbacks": [writer], **quiet, **trainer},
    }
    Path("two.yaml").write_text(yaml.safe_dump(recipe))
    done = run_python(["-m", "rationalrewards", "predict", "-c", "two.yaml"], timeout=300)  # a guard against hanging
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def alone(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the pairs."""
    out = tmp_path_factory.mktemp("alone")
    assert on_one(file, out) > 0
    kept = results(out)
    assert "kept" in kept and not {"dropped", *TWINS.values()} & set(kept) and len(kept) < 20
    return out


def results(out: Path) -> dict[str, tuple[str, tuple[str, str]]]:
    made = read_jsonl(out / "rationales.jsonl", Rationale)
    assert len({rationale.pair.id for rationale in made}) == len(made)
    return {rationale.pair.id: (rationale.pair_text, rationale.point_texts) for rationale in made}


def once(made: dict[str, Any]) -> dict[str, Any]:
    """With twins under one name: which of them is first is a matter of milliseconds."""
    assert not {"kept", TWINS["kept"]} <= set(made)
    return {"kept" if name == TWINS["kept"] else name: value for name, value in made.items()}


def rounded(value: Any) -> Any:
    """Floats to 9 places: sums over pairs are the same only up to their order."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 9) if isinstance(value, float) else value


def summary(out: Path) -> Any:
    return rounded(json.loads((out / "summary.json").read_text()))


def answered(file: Path, out: Path) -> Counter[tuple[Any, ...]]:
    """How often each question was answered, over all ledgers; the twins left out."""
    names = [pair.id for pair in read_jsonl(file, Preference) if pair.id not in (*TWINS, *TWINS.values())]
    with read_ledgers(out) as ledgers:
        rows = [row for name in names for row in ledgers.calls(name)]
    assert not any(row["failure"] for row in rows)
    return Counter((row["pair"], row["stage"], row["sample"], row["request"]) for row in rows)


def test_two_processes_make_what_one_makes_and_one_has_nothing_left_to_ask(file: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    on_two(file, out)
    assert once(results(out)) == results(alone)
    assert summary(out) == summary(alone)
    assert answered(file, out) == answered(file, alone)
    # both processes did their share
    with read_ledgers(out) as ledgers:
        assert {pair["pair"] for pair in ledgers.outcomes()} == {pair.id for pair in read_jsonl(file, Preference)}
    sizes = {path.name: path.stat().st_size for path in out.glob("*.db")}
    assert sorted(sizes) == ["ledger.db", "ledger.rank1.db"] and min(sizes.values()) > 50_000

    before = results(out), summary(out)
    assert on_one(file, out) == 0
    assert (results(out), summary(out)) == before


def test_two_processes_go_on_where_one_was_broken_off(file: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert on_one(file, out, limit_predict_batches=4) > 0
    begun = answered(file, out)
    assert begun and 0 < len(results(out)) < len(results(alone))
    on_two(file, out)
    assert results(out) == results(alone)  # the originals came before there was a second process
    assert summary(out) == summary(alone)
    assert begun <= answered(file, out) == answered(file, alone)


def test_one_process_goes_on_where_two_were_broken_off(file: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    on_two(file, out, limit_predict_batches=2)
    begun = answered(file, out)
    assert begun and 0 < len(results(out)) < len(results(alone))
    assert on_one(file, out) > 0
    assert once(results(out)) == results(alone)
    assert summary(out) == summary(alone)
    assert begun <= answered(file, out) == answered(file, alone)
