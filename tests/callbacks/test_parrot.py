"""What a run of PARROT is said to take, what it shows on the way, and the report that it leaves."""

from __future__ import annotations

import json
import logging
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
import tiny
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger
from page_reading import check_closed
from rationalrewards.callbacks import RationaleWriter
from rationalrewards.callbacks.parrot import RationaleProgress, RationaleReport
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.parrot import ParrotOptions, Price, read_ledgers
from rationalrewards.components.parrot.estimate import Load, planned_calls, total_of
from rationalrewards.components.records import Preference, read_jsonl, write_jsonl
from rationalrewards.components.shapes.teacher import ShapesTeacher
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.datamodules.batches import Batch
from rationalrewards.datamodules.splits import Fold
from rationalrewards.lightning_modules import RationalizeModule
from support import run_python
from torch.utils.data import DataLoader, Dataset, IterableDataset

pytestmark = tiny.QUIET

OPTIONS = ParrotOptions(control_share=0.5, audit_share=0.5, check_orders=2)
PRICE = Price(2.0, 6.0, "EUR")


class Collects(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What was said to the user, in the end."""
    # Lightning's loggers may or may not hand on to the root, where `caplog` listens
    logger, handler = logging.getLogger("lightning.pytorch.utilities.rank_zero"), Collects()
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def module(teacher: ChatModel | None = None, price: Price | None = PRICE, options: ParrotOptions = OPTIONS) -> RationalizeModule:
    return RationalizeModule(
        teacher or ShapesTeacher(hallucination=0.3, label_echo=0.2), CritiqueFormat("shapes"), options, price
    )


def predict(
    out: Path, data: Path, *callbacks: Any, module: RationalizeModule, batch_size: int = 8, **changes: Any
) -> list[dict[str, Any]]:
    """A run, and the outcomes that it leaves."""
    trainer = tiny.trainer(callbacks=[*callbacks, RationaleWriter(str(out))], **changes)
    trainer.predict(module, PreferenceDataModule(str(data), batch_size=batch_size), return_predictions=False)
    with read_ledgers(out) as ledgers:
        return list(ledgers.outcomes())


def test_a_run_is_planned_then_measured_then_known(tmp_path: Path, said: list[str]) -> None:
    data, out = tiny.pairs(tmp_path / "data", 24), tmp_path / "out"
    logger = CSVLogger(tmp_path, name="csv", version="one")
    progress = RationaleProgress()
    rows = predict(out, data, progress, module=module(), logger=logger)
    planned, measured = (line for line in said if line.startswith("PARROT: "))
    assert planned == f"PARROT: {planned_calls(read_jsonl(data, Preference), OPTIONS)}"
    assert (
        measured.startswith("PARROT: 8 pairs measured, ")
        and "At this rate 24 pairs take " in measured
        and " EUR, and " in measured
    )
    # at the end nothing is estimated any more
    estimate = progress.estimate
    assert estimate is not None and (estimate.pairs, estimate.measured, estimate.processes) == (24, 24, 1)
    assert estimate.kept == sum(row["kept"] for row in rows)
    with read_ledgers(out) as ledgers:
        usage = ledgers.usage()
    for name in ("calls", "images", "prompt_tokens", "cost"):
        # costs are sums of floats in another order
        assert estimate.total(name) == pytest.approx(total_of(usage, name))
    assert estimate.hours is not None and estimate.hours * 3600 >= (total_of(usage, "seconds") or 0) > 0
    logged = logged_by(logger)
    assert [float(line["parrot/live/pairs"]) for line in logged] == [8, 16, 24]
    assert [int(line["step"]) for line in logged] == [8, 16, 24]
    assert float(logged[-1]["parrot/live/kept_rate"]) == pytest.approx(estimate.kept / 24)
    assert float(logged[-1]["parrot/live/cost"]) == pytest.approx(total_of(usage, "cost"))
    calls = [float(line["parrot/live/calls"]) for line in logged]
    assert calls == sorted(calls) and calls[-1] == total_of(usage, "calls")


def test_pairs_of_earlier_runs_stay_and_are_told(tmp_path: Path) -> None:
    data, fewer, out = tiny.pairs(tmp_path / "data", 12), tmp_path / "fewer.jsonl", tmp_path / "out"
    predict(out, data, module=module())
    # the pairs' pictures are named from the file's folder
    write_jsonl(fewer, read_jsonl(data, Preference)[:8])
    with pytest.warns(UserWarning, match="holds 12 pairs, and 4 of them were not in this run"):
        predict(out, fewer, module=module())
    assert json.loads((out / "summary.json").read_text())["pairs"] == 12


def logged_by(logger: CSVLogger) -> list[dict[str, str]]:
    import csv

    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_that_goes_on_counts_what_it_took_before(tmp_path: Path) -> None:
    data, out = tiny.pairs(tmp_path / "data", 16), tmp_path / "out"
    first, second = RationaleProgress(), RationaleProgress()
    predict(out, data, first, module=module())
    teacher = module()
    predict(out, data, second, module=teacher)
    assert teacher.ledger.asked == 0
    assert first.estimate is not None and second.estimate is not None
    assert second.estimate.usage == first.estimate.usage and second.estimate.kept == first.estimate.kept
    # what the first run waited for its teacher is still what 16 pairs take
    assert (second.estimate.hours or 0) * 3600 >= (total_of(first.estimate.usage, "seconds") or 0)


class Down(ChatModel):
    """A teacher that does not answer, and counts no tokens."""

    @property
    def identity(self) -> str:
        return "down"

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        return [ChatReply("", failure="timed out") for _ in requests]


def test_no_cost_where_nobody_counts_tokens(tmp_path: Path, said: list[str]) -> None:
    data = tiny.pairs(tmp_path / "data", 8)
    for price, teacher in ((None, None), (PRICE, Down())):
        logger = CSVLogger(tmp_path, name="csv", version=type(teacher).__name__)
        progress = RationaleProgress()
        rows = predict(tmp_path / logger.version, data, progress, module=module(teacher, price), logger=logger)  # type: ignore[operator]
        (line,) = logged_by(logger)
        assert "parrot/live/cost" not in line and "EUR" not in said[-1]
        assert float(line["parrot/live/unanswered"]) == sum(row["reason"].startswith("no answer") for row in rows)
        assert progress.estimate is not None and progress.estimate.total("cost") is None


@pytest.mark.parametrize("limit", [2, 1.0])
def test_pairs_that_a_limit_leaves_out_are_not_planned(tmp_path: Path, said: list[str], limit: float) -> None:
    data = tiny.pairs(tmp_path / "data", 20)
    progress = RationaleProgress()
    predict(tmp_path / "out", data, progress, module=module(), limit_predict_batches=limit)
    count = 16 if limit == 2 else 20
    assert f"PARROT: {planned_calls(read_jsonl(data, Preference)[:count], OPTIONS)}" in said
    assert progress.estimate is not None and (progress.estimate.pairs, progress.estimate.measured) == (count, count)


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Pairs of which nobody knows how many there are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Preference]:
        return iter(read_jsonl(self.path, Preference))


class Counted(Dataset):  # type: ignore[type-arg]
    """Pairs that are read one by one when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.lines = path.read_text().splitlines()
        self.path = path

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Preference:
        return read_jsonl(self.path, Preference)[index]


@pytest.mark.parametrize("kind", [Stream, Counted])
def test_pairs_that_are_streamed(tmp_path: Path, said: list[str], kind: type[Stream] | type[Counted]) -> None:
    data = tiny.pairs(tmp_path / "data", 12)
    progress = RationaleProgress()
    trainer = tiny.trainer(callbacks=[progress, RationaleWriter(str(tmp_path / "out"))])
    loader = DataLoader(kind(data), batch_size=4, collate_fn=Batch)
    trainer.predict(module(), loader, return_predictions=False)
    if kind is Stream:
        assert any("no estimate" in line for line in said) and progress.estimate is None
    else:
        sources = sum(len(pair.sources) for pair in read_jsonl(data, Preference)) / 12
        assert f"PARROT: {planned_calls(Load.of_size(12, OPTIONS, sources), OPTIONS)}" in said
        assert progress.estimate is not None and progress.estimate.pairs == 12


@pytest.mark.parametrize("limit", [None, 6])
def test_pairs_that_take_long_to_count(tmp_path: Path, said: list[str], limit: int | None) -> None:
    """A fold reads source pictures, so that its pairs are not gone through twice."""
    data = tiny.pairs(tmp_path / "data", 24)
    fold = Fold("train", (0.5, 0.5, 0.0))
    pairs = [pair for pair in read_jsonl(data, Preference) if fold.holds(pair)][:limit]
    sources = sum(len(pair.sources) for pair in pairs) / len(pairs)
    progress = RationaleProgress()
    trainer = tiny.trainer(callbacks=[progress, RationaleWriter(str(tmp_path / "out"))])
    trainer.predict(module(), PreferenceDataModule(str(data), fold=fold, limit=limit), return_predictions=False)
    if limit is None:
        assert any("no estimate" in line for line in said) and progress.estimate is None
    else:
        assert 0 < sources < 1 and len(pairs) == limit
        assert f"PARROT: {planned_calls(Load.of_size(limit, OPTIONS, sources), OPTIONS)}" in said


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_the_bar_shows_what_was_kept_and_spent(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: type) -> None:
    data = tiny.pairs(tmp_path / "data", 8)
    progress = RationaleProgress()
    predict(tmp_path / "out", data, progress, kind(), module=module(), enable_progress_bar=True)
    estimate = progress.estimate
    assert estimate is not None
    kept, calls, cost = 100 * estimate.kept / 8, estimate.total("calls"), estimate.total("cost")
    shown = re.sub(r"\s+", " ", "".join(capfd.readouterr()))
    # a narrow terminal wraps the text; it is all there
    assert f"kept {kept:.0f} %, unanswered 0, calls {calls:,.0f}, {cost:,.2f} EUR" in shown


def test_the_report(tmp_path: Path, mlflow_uri: str, said: list[str]) -> None:
    data, out = tiny.pairs(tmp_path / "data", 40), tmp_path / "out"
    logger = MLFlowLogger("tests", tracking_uri=mlflow_uri, artifact_location=(tmp_path / "artifacts").as_uri())
    # before the writer: the report is written when everything else is
    report = RationaleReport(str(out), examples=2, notes=["The teacher is simulated."])
    teacher = ShapesTeacher(hallucination=0.5, label_echo=0.3, vagueness=0.3)
    rows = predict(out, data, report, module=module(teacher), logger=logger)
    summary = json.loads((out / "summary.json").read_text())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"PARROT: {summary['kept']} of 40 pairs kept; see {out / 'report.html'}" in said
    read = check_closed(page)
    assert "The teacher is simulated." in page and ShapesTeacher(hallucination=0.5).identity in page
    assert not list(out.glob("*.part"))
    # two examples of every kind of outcome, or all, each with its pictures and with what the teacher wrote
    kinds = {"kept": summary["kept"], **summary["reasons"]}
    shown = sum(min(2, count) for count in kinds.values())
    assert len(kinds) > 2 and len(read.all("article", "example")) == shown
    assert 2 * shown <= len(read.all("img")) <= 3 * shown and not read.all("div", "missing")
    kept = next(row for row in rows if row["kept"] and row["pair"] in page)
    assert {kept["texts"][name] for name in ("pair", "A", "B")} <= set(read.texts["pre"])
    echo = next(row for row in rows if row["reason"].startswith("label echo") and row["pair"] in page)
    with read_ledgers(out) as ledgers:
        answers = [call["answer"] for call in ledgers.calls(echo["pair"]) if call["stage"] == "anchor"]
    assert len(answers) == OPTIONS.attempts and set(answers) <= set(read.texts["pre"])
    assert "Comparison, attempt 2" in read.texts["summary"]
    client = mlflow.MlflowClient(mlflow_uri)
    run = client.get_run(logger.run_id or "")
    assert [entry.path for entry in client.list_artifacts(run.info.run_id)] == ["report.html"]
    found = run.data.metrics
    assert found["parrot/pairs"] == 40 and found["parrot/kept"] == summary["kept"]
    assert found["parrot/kept_rate"] == pytest.approx(summary["kept_rate"])
    for name in ("right", "wrong"):
        assert found[f"parrot/{name}_label_pass_rate"] == pytest.approx(summary[f"{name}_label_pass_rate"])
    for section in ("position_bias", "agreement"):
        for name, figure in summary[section].items():
            assert found.get(f"parrot/{name}") == (None if figure["value"] is None else pytest.approx(figure["value"]))
    assert found["parrot/dropped/anchor/label_echo"] == summary["reasons"]["anchor: label echo"]
    assert found["parrot/source/shapes_world/kept_rate"] == pytest.approx(summary["kept_rate"])
    with read_ledgers(out) as ledgers:
        assert found["parrot/cost"] == pytest.approx(total_of(ledgers.usage(), "cost"))


def test_a_report_on_nothing_but_failures(tmp_path: Path) -> None:
    data, out = tiny.pairs(tmp_path / "data", 8), tmp_path / "out"
    logger = CSVLogger(tmp_path, name="csv", version="one")
    predict(out, data, RationaleReport(str(out), examples=1), module=module(Down()), logger=logger)
    (line,) = logged_by(logger)
    assert float(line["parrot/unanswered"]) == float(line["parrot/dropped/anchor/no_answer"]) == 8
    # nothing was measured, and nothing is logged as if it were
    assert not {"parrot/label_gap", "parrot/wrong_label_pass_rate", "parrot/cost", "parrot/prompt_tokens"} & set(line)
    page = check_closed((out / "report.html").read_text(encoding="utf-8"))
    assert page.texts["pre"][:1] == ["no answer: timed out"]


def test_a_report_needs_the_ledgers_of_a_writer(tmp_path: Path) -> None:
    data = tiny.pairs(tmp_path / "data", 4)
    teacher = module()
    with pytest.raises(ValueError, match=r"a RationaleWriter leaves in .*elsewhere; add one with that output_dir"):
        predict(tmp_path / "out", data, RationaleReport(str(tmp_path / "elsewhere")), module=teacher)
    assert teacher.ledger.asked == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RationaleProgress(passing=72), "passing is a share between 0 and 1, got 72"),
        (lambda: RationaleReport("out", examples=-1), "examples must not be negative"),
        (lambda: RationaleReport("out", max_side=0), "max_side at least 1"),
        (lambda: RationaleReport("out", notes="one note"), "notes must be a list, got the text 'one note'"),
    ],
)
def test_wrong_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_two_processes_report_together(tmp_path: Path) -> None:
    program = """
        import sys

        sys.path.insert(0, "TESTS")
        import tiny
        from rationalrewards.callbacks import RationaleWriter
        from rationalrewards.callbacks.parrot import RationaleProgress, RationaleReport
        from rationalrewards.components.critique import CritiqueFormat
        from rationalrewards.components.parrot import ParrotOptions
        from rationalrewards.components.shapes.teacher import ShapesTeacher
        from rationalrewards.datamodules import PreferenceDataModule
        from rationalrewards.lightning_modules import RationalizeModule

        if __name__ == "__main__":
            progress = RationaleProgress()
            callbacks = [progress, RationaleReport("out"), RationaleWriter("out")]
            trainer = tiny.trainer(callbacks=callbacks, devices=2, strategy="ddp")
            module = RationalizeModule(ShapesTeacher(), CritiqueFormat("shapes"), ParrotOptions())
            trainer.predict(module, PreferenceDataModule("data/preferences.jsonl", batch_size=4), return_predictions=False)
            if trainer.is_global_zero:
                print("ESTIMATE", progress.estimate.pairs, progress.estimate.measured, progress.estimate.processes)
        """
    tiny.pairs(tmp_path / "data", 20)
    script = tmp_path / "predict.py"
    script.write_text(textwrap.dedent(program).replace("TESTS", str(Path(tiny.__file__).parent)))
    done = run_python([script], timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    # each takes half of the pairs, and the estimate is for all
    assert "ESTIMATE 20 10 2" in done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["pairs"] == 20
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    check_closed(page)
    assert f"{summary['kept']} kept as rationales" in page


def test_a_trainer_without_predictions_leaves_no_report(tmp_path: Path) -> None:
    report = RationaleReport(str(tmp_path / "out"))
    trainer: Trainer = tiny.trainer(callbacks=[report])
    report.teardown(trainer, module(), "fit")
    assert not (tmp_path / "out").exists()
