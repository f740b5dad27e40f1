"""PARROT through a Trainer and its writer: every pair is accounted for, and nothing is asked twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from rationalrewards.callbacks import RationaleWriter
from rationalrewards.components.chat import ChatReply, ChatRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.parrot import Ledger, ParrotOptions, ScreenOptions, rationalize, read_ledgers
from rationalrewards.components.records import Preference, Rationale, read_jsonl, write_jsonl
from rationalrewards.components.shapes.teacher import ShapesTeacher
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.lightning_modules import RationalizeModule

pytestmark = tiny.QUIET

OPTIONS = ParrotOptions(control_share=0.5, audit_share=0.5, seed=4, screen=ScreenOptions(min_contrast=0.0))


class Counting(ShapesTeacher):
    """The simulated teacher, counting; some questions fail until ``mended``."""

    def __init__(self, failing: Sequence[int] = (), **rates: Any) -> None:
        super().__init__(**rates)
        self.failing = failing
        self.asked = 0

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        replies = super().complete(requests)
        for index in range(len(requests)):
            if self.asked + index in self.failing:
                replies[index] = ChatReply("", failure="HTTP 503 (after 4 attempts)")
        self.asked += len(requests)
        return replies


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pairs(tmp_path_factory.mktemp("pairs"), 12, seed=1)


def predict(teacher: ShapesTeacher, file: Path, out: Path, format: CritiqueFormat | None = None) -> None:
    module = RationalizeModule(teacher, format or CritiqueFormat("shapes"), OPTIONS)
    trainer = tiny.trainer(callbacks=[RationaleWriter(str(out))])
    trainer.predict(module, PreferenceDataModule(str(file), batch_size=5), return_predictions=False)


def outcomes_of(out: Path) -> dict[str, dict[str, Any]]:
    with read_ledgers(out) as ledger:
        return {outcome["pair"]: outcome for outcome in ledger.outcomes()}


def calls_of(out: Path) -> list[dict[str, Any]]:
    with read_ledgers(out) as ledger:
        return [call for name in outcomes_of(out) for call in ledger.calls(name)]


def test_writes_what_the_stages_give(file: Path, tmp_path: Path) -> None:
    predict(Counting(vagueness=0.3, label_echo=0.2), file, tmp_path)
    pairs = read_jsonl(file, Preference)
    teacher = ShapesTeacher(vagueness=0.3, label_echo=0.2)
    outcomes = rationalize(pairs, teacher, CritiqueFormat("shapes"), OPTIONS, Ledger())
    kept = [outcome.rationale for outcome in outcomes if outcome.rationale is not None]
    assert 0 < len(kept) < len(pairs)
    written = read_jsonl(tmp_path / "rationales.jsonl", Rationale)
    assert [rationale.pair.id for rationale in written] == [rationale.pair.id for rationale in kept]
    for one, other in zip(written, kept, strict=True):
        assert (one.pair_text, one.point_texts, one.format) == (other.pair_text, other.point_texts, other.format)
        assert one.format == CritiqueFormat("shapes").fingerprint
        # relative to the file, so that the folder can be moved; they lead to the same pictures
        assert [Path(path).resolve() for path in one.pair.candidates] == [Path(path) for path in other.pair.candidates]

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["pairs"], summary["kept"]) == (len(pairs), len(kept))
    assert sum(summary["reasons"].values()) == len(pairs) - len(kept)
    assert summary["control_pairs"] == sum(outcome.wrong_label_passed is not None for outcome in outcomes) > 0
    assert outcomes_of(tmp_path) == {outcome.pair.id: outcome.as_json() for outcome in outcomes}


# without {answer}: the simulated teacher would take a request that names the refined request for one of refinement
POINTWISE = [
    {"role": "system", "text": "You grade a picture. {aspects}"},
    {"role": "user", "text": "{sources}Graded: {image} <request>{request}</request>"},
]
PAIRWISE = [{"role": "user", "text": "{sources}One: {image_a} Two: {image_b} <request>{request}</request>"}]


def worded(path: Path, **sections: Any) -> CritiqueFormat:
    path.write_text(yaml.safe_dump(sections))
    return CritiqueFormat("shapes", str(path))


def test_the_teacher_is_asked_in_the_words_of_a_template(file: Path, tmp_path: Path) -> None:
    own, texts = worded(tmp_path / "own.yaml", pointwise=POINTWISE, pairwise=PAIRWISE), []

    class Listening(ShapesTeacher):
        def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
            texts.extend(request.text() for request in requests)
            return super().complete(requests)

    predict(Listening(hallucination=0.0), file, tmp_path, own)
    written = read_jsonl(tmp_path / "rationales.jsonl", Rationale)
    assert written and {rationale.format for rationale in written} == {own.fingerprint}
    assert own.fingerprint != CritiqueFormat("shapes").fingerprint
    asked = Counter(call["stage"] for call in calls_of(tmp_path))
    # what the student learns to answer is asked in its words; the two other stages are the teacher's alone
    assert sum("Two: " in text for text in texts) == asked["anchor"] + asked["control-anchor"] > 0
    assert sum("Graded: " in text for text in texts) == asked["project"] > 0


@pytest.mark.parametrize(
    "sections",
    [
        {"pointwise": POINTWISE},
        {"pairwise": PAIRWISE},
        {"pairwise": {"edit": PAIRWISE}, "pointwise": {"t2i": [{"role": "user", "text": "{image} {request}"}]}},
    ],
    ids=["no pairs", "no points", "each for another task"],
)
def test_a_template_without_a_section_is_refused_before_the_teacher_is_loaded(
    sections: dict[str, Any], file: Path, tmp_path: Path
) -> None:
    class Unloadable(Counting):
        def load(self, device: Any = None) -> None:
            raise AssertionError("it was to be refused before")

    teacher = Unloadable()
    with pytest.raises(ValueError, match=r"half\.yaml has no task with both a pairwise and a pointwise section"):
        predict(teacher, file, tmp_path, worded(tmp_path / "half.yaml", **sections))
    assert teacher.asked == 0


def test_a_finished_run_asks_nothing_again(file: Path, tmp_path: Path) -> None:
    predict(Counting(), file, tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.glob("*.json*")}
    teacher = Counting()
    predict(teacher, file, tmp_path)
    assert teacher.asked == 0
    assert {path.name: path.read_text() for path in tmp_path.glob("*.json*")} == before


def test_a_picture_that_cannot_be_read_costs_its_pair_alone(file: Path, tmp_path: Path) -> None:
    pairs = read_jsonl(file, Preference)
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(pairs[0].candidates[0]).read_bytes()[:60])
    write_jsonl(tmp_path / "pairs.jsonl", [replace(pairs[0], candidates=(str(broken), pairs[0].candidates[1])), *pairs[1:]])
    predict(Counting(), tmp_path / "pairs.jsonl", tmp_path / "out")
    told = outcomes_of(tmp_path / "out")
    assert len(told) == len(pairs)
    unread = [name for name, outcome in told.items() if outcome["last_stage"] == "screen"]
    assert unread == [pairs[0].id]
    assert "broken.png cannot be read" in told[pairs[0].id]["reason"]
    # mended, it comes in with the next run: what could not be read is looked at again
    broken.write_bytes(Path(pairs[0].candidates[0]).read_bytes())
    predict(Counting(), tmp_path / "pairs.jsonl", tmp_path / "out")
    assert outcomes_of(tmp_path / "out")[pairs[0].id]["last_stage"] != "screen"


def test_pictures_that_are_all_missing_stop_the_run(file: Path, tmp_path: Path) -> None:
    lost = [replace(pair, candidates=("no/a.png", "no/b.png")) for pair in read_jsonl(file, Preference)]
    write_jsonl(tmp_path / "pairs.jsonl", lost)
    with pytest.raises(ValueError, match=r"none of 5 pairs has pictures that can be read; the first: .*no/a\.png does not exist"):
        predict(Counting(), tmp_path / "pairs.jsonl", tmp_path / "out")


def test_a_pair_that_comes_twice_is_asked_about_once(file: Path, tmp_path: Path) -> None:
    pairs = read_jsonl(file, Preference)
    twin = replace(pairs[0], id="twin", candidates=(pairs[0].candidates[1], pairs[0].candidates[0]), label=1.0 - pairs[0].label)
    write_jsonl(tmp_path / "pairs.jsonl", [*pairs, twin])
    predict(Counting(), tmp_path / "pairs.jsonl", tmp_path / "out")
    assert outcomes_of(tmp_path / "out")["twin"]["reason"] == f"duplicate: of {pairs[0].id}"
    assert {call["pair"] for call in calls_of(tmp_path / "out")} == {pair.id for pair in pairs}


def test_failed_questions_are_asked_again_and_the_pair_comes_in(file: Path, tmp_path: Path) -> None:
    first = Counting(failing=[1, 3], hallucination=0.0)
    predict(first, file, tmp_path)
    failures = [call for call in calls_of(tmp_path) if call["failure"]]
    lost = {row["pair"] for row in failures}
    assert len(failures) == 2
    without = {rationale.pair.id for rationale in read_jsonl(tmp_path / "rationales.jsonl", Rationale)}
    assert not lost & without
    second = Counting(hallucination=0.0)
    predict(second, file, tmp_path)
    undisturbed = tmp_path / "undisturbed"
    predict(Counting(hallucination=0.0), file, undisturbed)
    expected = {r.pair.id: r.pair_text for r in read_jsonl(undisturbed / "rationales.jsonl", Rationale)}
    assert {r.pair.id: r.pair_text for r in read_jsonl(tmp_path / "rationales.jsonl", Rationale)} == expected
    calls = calls_of(tmp_path)
    answered = Counter((call["pair"], call["stage"], call["sample"], call["request"]) for call in calls if not call["failure"])
    assert set(answered.values()) == {1}
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads((undisturbed / "summary.json").read_text())


def test_a_folder_that_cannot_be_written_to_is_named(file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(PermissionError, match=r"cannot write to .*taken.*; choose another output_dir"):
        predict(Counting(), file, tmp_path / "taken")
