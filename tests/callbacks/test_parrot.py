"""What a run of PARROT is said to take, what it shows on the way, and the report that it leaves."""

from __future__ import annotations

import json
import logging
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import tiny
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger
from page_reading import check_closed
from rationalrewards.callbacks import RationaleWriter
from rationalrewards.callbacks.parrot import RationaleProgress, RationaleReport
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.parrot import FolderInUseError, ParrotOptions, Price, RunLock, read_ledgers
from rationalrewards.components.parrot.estimate import Forecast, Load, Usage, planned_calls, total_of
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
    planned, forecast, measured = (line for line in said if line.startswith("PARROT: "))
    assert planned == f"PARROT: {planned_calls(read_jsonl(data, Preference), OPTIONS)}"
    assert forecast == f"PARROT: {progress.forecast}"
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


class Counting(ShapesTeacher):
    """The simulated teacher, which remembers how many requests came at a time."""

    def __init__(self, **rates: float) -> None:
        super().__init__(**rates)
        self.rounds: list[int] = []

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        self.rounds.append(len(requests))
        return super().complete(requests)


def same_usage(one: Usage, other: Usage) -> bool:
    # seconds and cost are sums of floats in another order
    return set(one) == set(other) and all(one[stage] == pytest.approx(other[stage]) for stage in one)


class Stopped(Exception):  # noqa: N818 - no error
    """Nobody asks for the first batch any more."""


class StopsBeforeTheFirstBatch(Callback):
    def on_predict_batch_start(self, *arguments: Any) -> None:
        raise Stopped


def test_tokens_hours_and_cost_are_said_before_the_first_batch(tmp_path: Path, said: list[str]) -> None:
    """A few pairs are measured, their answers are the run's, and what is said is their rate times the planned calls."""
    data, out = tiny.pairs(tmp_path / "data", 24), tmp_path / "out"
    teacher, progress = Counting(hallucination=0.3, label_echo=0.2), RationaleProgress(trial=5)
    with pytest.raises(Stopped):
        predict(out, data, progress, StopsBeforeTheFirstBatch(), module=module(teacher))
    pairs = read_jsonl(data, Preference)
    with read_ledgers(out) as ledgers:
        usage = ledgers.usage()
        asked = [pair.id for pair in pairs if ledgers.calls(pair.id)]
        assert [outcome["pair"] for outcome in ledgers.outcomes()] == asked
    assert asked == [pair.id for pair in pairs[:5]] and teacher.rounds[0] == 5  # all at once
    forecast, plan = progress.forecast, planned_calls(pairs, OPTIONS)
    assert forecast is not None and forecast.measured == 5 and forecast.plan == plan
    assert said[-1] == f"PARROT: {forecast}" and progress.estimate is None
    assert re.match(
        r"PARROT: 5 pairs measured, \d+ calls. At their rate 24 pairs take about [\d,]+ \+ [\d,]+ tokens, .* (min|h), [\d.]+ EUR; "
        r"if every pair gets through, .* EUR\.$",
        said[-1],
    )
    # by hand, for what was written of the comparisons
    anchor = usage["anchor"]
    alone = Forecast(replace(plan, expected_calls={"anchor": plan.calls["anchor"]}), {"anchor": anchor}, 5)
    per_call = anchor["completion_tokens"] / anchor["calls"]  # type: ignore[operator]
    assert alone.total("completion_tokens") == pytest.approx(24 * per_call)
    # the run itself asks nothing of these pairs again, and now has them on file
    before, teacher.rounds = sum(teacher.rounds), []
    again = RationaleProgress(trial=5)
    rows = predict(out, data, again, module=module(teacher))
    with read_ledgers(out) as ledgers:
        assert total_of(ledgers.usage(), "calls") == before + sum(teacher.rounds)
        assert all(call["attempt"] <= OPTIONS.attempts for pair in asked for call in ledgers.calls(pair))
    assert again.forecast is not None and same_usage(again.forecast.usage, usage) and again.forecast.measured == 5
    # and ends where a run without a trial ends
    assert rows == predict(tmp_path / "plain", data, RationaleProgress(trial=0), module=module(teacher))


def test_an_earlier_run_of_the_same_plan_is_measured_enough(tmp_path: Path) -> None:
    data, out = tiny.pairs(tmp_path / "data", 16), tmp_path / "out"
    predict(out, data, module=module(), limit_predict_batches=1)
    with read_ledgers(out) as ledgers:
        usage = ledgers.usage()
    progress, teacher = RationaleProgress(), Counting(hallucination=0.3, label_echo=0.2)
    predict(out, data, progress, module=module(teacher))
    assert progress.forecast is not None and progress.forecast.measured == 8 and same_usage(progress.forecast.usage, usage)
    assert teacher.rounds[0] == 8  # the second batch, and no trial
    # with other options it is another plan, and neither its estimate nor its figures have the first one's calls
    other, changed = RationaleProgress(), replace(OPTIONS, seed=9)
    logger = CSVLogger(tmp_path, name="csv", version="other")
    predict(out, data, other, module=module(options=changed), logger=logger)
    assert other.forecast is not None and other.forecast.measured == 4
    with read_ledgers(out) as ledgers:
        (plan,) = {outcome["plan"] for outcome in ledgers.outcomes()}
        own, all_ = ledgers.usage(plan), ledgers.usage()
    assert float(logged_by(logger)[-1]["parrot/live/calls"]) == total_of(own, "calls") < (total_of(all_, "calls") or 0)
    assert other.estimate is not None and other.estimate.usage["anchor"]["calls"] == own["anchor"]["calls"]


def test_a_trial_that_nobody_answers_is_no_estimate(tmp_path: Path, said: list[str]) -> None:
    data = tiny.pairs(tmp_path / "data", 8)
    progress = RationaleProgress()
    predict(tmp_path / "out", data, progress, module=module(Down()))
    assert progress.forecast is None
    # anchors only, and of the controls; what does not answer is not asked again by us
    assert any(
        re.match(r"PARROT: 4 pairs were tried and none of \d+ calls was answered: timed out; no estimate", line) for line in said
    )


def test_pictures_that_cannot_be_read_are_no_trial(tmp_path: Path, said: list[str]) -> None:
    data = tiny.pairs(tmp_path / "data", 8)
    pairs = read_jsonl(data, Preference)
    for pair in pairs[:3]:
        Path(pair.candidates[0]).write_bytes(b"")
    progress = RationaleProgress(trial=2)
    with pytest.raises(Stopped):
        predict(tmp_path / "out", data, progress, StopsBeforeTheFirstBatch(), module=module())
    with read_ledgers(tmp_path / "out") as ledgers:
        assert [outcome["pair"] for outcome in ledgers.outcomes()] == [pair.id for pair in pairs[3:5]]


def test_pairs_that_come_once_are_left_to_the_run(tmp_path: Path) -> None:
    """A loader that is its own iterator: what a trial would take from it would be missing."""
    data = tiny.pairs(tmp_path / "data", 8)
    pairs = read_jsonl(data, Preference)

    class Once:
        def __init__(self) -> None:
            self.batches = iter([Batch(pairs[:4]), Batch(pairs[4:])])

        def __iter__(self) -> Iterator[Batch[Preference]]:
            return self

        def __next__(self) -> Batch[Preference]:
            return next(self.batches)

    progress = RationaleProgress()
    trainer = tiny.trainer(callbacks=[progress, RationaleWriter(str(tmp_path / "out"))])
    trainer.predict(module(), Once(), return_predictions=False)
    with read_ledgers(tmp_path / "out") as ledgers:
        assert len(list(ledgers.outcomes())) == 8
    assert progress.forecast is None


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
        assert_per_thousand(said, progress)
    else:
        sources = sum(len(pair.sources) for pair in read_jsonl(data, Preference)) / 12
        assert f"PARROT: {planned_calls(Load.of_size(12, OPTIONS, sources), OPTIONS)}" in said
        assert progress.estimate is not None and progress.estimate.pairs == 12


def assert_per_thousand(said: list[str], progress: RationaleProgress) -> None:
    """What is not known for all pairs was said of a thousand."""
    assert any("is not known before they are read. Of 1,000: 1,000 pairs: at most" in line for line in said)
    assert progress.estimate is None and progress.forecast is not None and progress.forecast.plan.load.pairs == 1000
    assert any("At their rate 1,000 pairs take about" in line for line in said)


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
        assert_per_thousand(said, progress)
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
        (lambda: RationaleProgress(trial=-1), "trial is a number of pairs, got -1"),
        (lambda: RationaleReport("out", examples=-1), "examples must not be negative"),
        (lambda: RationaleReport("out", max_side=0), "max_side at least 1"),
        (lambda: RationaleReport("out", notes="one note"), "notes must be a list, got the text 'one note'"),
    ],
)
def test_wrong_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def two_processes(folder: Path, callbacks: str, end: str = "") -> Path:
    """A program that predicts on two processes."""
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
            progress = RationaleProgress(trial=3)
            trainer = tiny.trainer(callbacks=CALLBACKS, devices=2, strategy="ddp")
            module = RationalizeModule(ShapesTeacher(), CritiqueFormat("shapes"), ParrotOptions())
            trainer.predict(module, PreferenceDataModule("data/preferences.jsonl", batch_size=4), return_predictions=False)
            if trainer.is_global_zero:
                END
        """
    script = folder / "predict.py"
    filled = {"TESTS": str(Path(tiny.__file__).parent), "CALLBACKS": callbacks, "END": end or "pass"}
    text = textwrap.dedent(program)
    for name, value in filled.items():
        text = text.replace(name, value)
    script.write_text(text)
    return script


@pytest.mark.slow
def test_two_processes_report_together(tmp_path: Path) -> None:
    estimate = "progress.estimate.pairs, progress.estimate.measured, progress.estimate.processes"
    forecast = "progress.forecast.plan.load.pairs, progress.forecast.measured, progress.forecast.processes"
    end = f"print('ESTIMATE', {estimate}); print('FORECAST', {forecast})"
    tiny.pairs(tmp_path / "data", 20)
    script = two_processes(tmp_path, "[progress, RationaleReport('out'), RationaleWriter('out')]", end)
    done = run_python([script], timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    # each takes half of the pairs, and the estimate is for all
    assert "ESTIMATE 20 10 2" in done.stdout
    # three of each were measured before, and it was said once
    assert "FORECAST 20 6 2" in done.stdout and done.stderr.count("6 pairs measured") == 1
    with read_ledgers(tmp_path / "out") as ledgers:
        calls = [call for row in ledgers.outcomes() for call in ledgers.calls(row["pair"])]
    assert len({(call["pair"], call["stage"], call["sample"], call["request"]) for call in calls}) == len(calls)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["pairs"] == 20
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    check_closed(page)
    assert f"{summary['kept']} kept as rationales" in page


def test_a_folder_of_another_run_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    data, out = tiny.pairs(tmp_path / "data", 8), tmp_path / "out"
    teacher = Counting()
    with RunLock(out), pytest.raises(FolderInUseError, match="out is in use by another run"):
        predict(out, data, RationaleProgress(), module=module(teacher))
    assert teacher.rounds == [] and not list(out.glob("*.db"))
    # its own lock is gone with the run, also where that ended with an error
    with pytest.raises(Stopped):
        predict(out, data, StopsBeforeTheFirstBatch(), module=module(teacher))
    assert predict(out, data, module=module(teacher)) and teacher.rounds
    RunLock(out).close()


@pytest.mark.slow
def test_all_processes_of_a_refused_run_end(tmp_path: Path) -> None:
    tiny.pairs(tmp_path / "data", 8)
    script = two_processes(tmp_path, "[RationaleWriter('out')]")
    with RunLock(tmp_path / "out"):
        done = run_python([script], timeout=300, cwd=tmp_path)  # a guard against hanging
    assert done.returncode != 0 and "FolderInUseError: out is in use by another run" in done.stderr
    assert not list((tmp_path / "out").glob("*.db"))
    # and both of one that is not: with a folder each process joins
    done = run_python([script], timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_trainer_without_predictions_leaves_no_report(tmp_path: Path) -> None:
    report = RationaleReport(str(tmp_path / "out"))
    trainer: Trainer = tiny.trainer(callbacks=[report])
    report.teardown(trainer, module(), "fit")
    assert not (tmp_path / "out").exists()
