"""The refine loop through a Trainer and its writer, with the embedded generator and a critic that tells the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from rationalrewards.callbacks import RefinementWriter
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.pictures import open_picture
from rationalrewards.components.records import PromptRecord, Refinement, Unscored, read_jsonl
from rationalrewards.components.refine import ARMS, ImageSource, RefineOptions
from rationalrewards.components.rewards import SanityError, SanityGate
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.datamodules import PromptDataModule
from rationalrewards.lightning_modules import RefineLoop

pytestmark = tiny.QUIET

BUDGET = 3
SHAPES = CritiqueFormat("shapes")
Traces = dict[tuple[str, str], Refinement]


def refine(requests: Path, out: Path, batch_size: int = 2, **changes: Any) -> Traces:
    options = RefineOptions(images_per_prompt=BUDGET, threshold=3.9, seed=2)
    made = {"generator": tiny.generator(), "critic": Critic(tiny.truthful(), SHAPES), "arms": ARMS, "options": options}
    made |= {"judge": ShapesTruth(), "sanity": SanityGate(side=32), **changes}  # the truth passes it
    trainer = tiny.trainer(callbacks=[RefinementWriter(str(out))])
    data = PromptDataModule(predict=str(requests), eval_batch_size=batch_size)
    trainer.predict(RefineLoop(**made), data, return_predictions=False)
    return {(trace.id, trace.arm): trace for trace in read_jsonl(out / "refinements.jsonl", Refinement)}


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.requests(tmp_path_factory.mktemp("requests"), 4, edit_share=0.5, seed=3)


@pytest.fixture(scope="module")
def finished(requests: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Traces]:
    out = tmp_path_factory.mktemp("refined")
    return out, refine(requests, out)


def test_every_request_goes_through_every_arm_within_the_budget(requests: Path, finished: tuple[Path, Traces]) -> None:
    _, traces = finished
    records = read_jsonl(requests, PromptRecord)
    assert {record.task for record in records} == {"t2i", "edit"}
    assert set(traces) == {(record.id, arm) for record in records for arm in ARMS}
    for (_, arm), trace in traces.items():
        made = len(trace.candidates)
        if arm in ("best_of_n", "blind_rewrite_best_of_n", "oracle"):
            assert made == BUDGET
        else:
            assert 1 <= made <= (1 if arm in ("base", "blind_rewrite") else BUDGET)


def test_the_best_is_kept(finished: tuple[Path, Traces]) -> None:
    for (name, arm), trace in finished[1].items():
        rewards = [candidate.reward for candidate in trace.candidates]
        assert all(reward is not None for reward in rewards)
        if arm not in ("refine_always_accept", "oracle"):
            assert rewards[trace.chosen] == max(rewards)  # type: ignore[type-var]
        base = finished[1][name, "base"].candidates[0].reward
        assert base is not None
        if arm in ("best_of_n", "refine_keep_best"):
            assert (trace.candidates[trace.chosen].reward or 0.0) >= base
        accepted = min(score for score in trace.candidates[-1].aspects.values() if score is not None) >= 3.9
        if arm == "refine_keep_best":
            assert (trace.stop == "accepted") == accepted
            assert accepted or len(trace.candidates) == BUDGET


def test_pictures_and_gallery_are_there(finished: tuple[Path, Traces]) -> None:
    out, traces = finished
    for trace in traces.values():
        for candidate in trace.candidates:
            assert open_picture(candidate.image).size == (32, 32)
            assert Path(candidate.image).resolve().parent == (out / "pictures").resolve()
            assert candidate.critique
    page = (out / "gallery.html").read_text()
    for trace in traces.values():
        assert trace.prompt in page


def test_a_picture_depends_on_its_request_and_not_on_its_batch(
    requests: Path, finished: tuple[Path, Traces], tmp_path: Path
) -> None:
    again = refine(requests, tmp_path, batch_size=4, arms=["base"])
    assert set(again) == {key for key in finished[1] if key[1] == "base"}
    for key, trace in again.items():
        one, other = open_picture(trace.candidates[0].image), open_picture(finished[1][key].candidates[0].image)
        # sums in float32 over another batch: one grey level where rounding falls the other way
        assert max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)) <= 1


def test_what_cannot_be_scored_never_wins(requests: Path, tmp_path: Path) -> None:
    failing = Critic(tiny.truthful(lambda request: True), SHAPES, reasks=0)
    for trace in refine(requests, tmp_path, arms=["best_of_n", "refine_keep_best"], critic=failing, sanity=None).values():
        assert trace.stop == "images"
        assert trace.chosen == 0
        assert {candidate.reward for candidate in trace.candidates} == {None}
        assert {candidate.unscored for candidate in trace.candidates} == {"told to fail"}


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown arm 'best'; known: base, best_of_n"):
        RefineLoop(tiny.generator(), Critic(tiny.truthful()), arms=["best"])


def test_a_critic_that_does_not_look_is_refused_before_anything_is_made(requests: Path, tmp_path: Path) -> None:
    failing = Critic(tiny.truthful(lambda request: True), SHAPES, reasks=0)
    with pytest.raises(SanityError, match=r"only 0 of 8 pictures could be scored.*Unscored: told to fail \(24\).*sanity: null"):
        refine(requests, tmp_path, critic=failing)
    assert not list(tmp_path.rglob("*.png"))
    assert RefineLoop(tiny.generator(), failing).sanity == SanityGate()  # without a word, it is on


class Printer(ImageSource):
    """Prints what it is asked for in one colour; every third picture jams, unless it was repaired."""

    def __init__(self, jams: bool = True) -> None:
        self.jams = jams
        self.printed: list[int] = []

    @property
    def identity(self) -> str:
        return "the printer"

    def sample(
        self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]
    ) -> list[Image.Image | Unscored]:
        self.printed += seeds
        return [
            Unscored("jammed") if self.jams and seed % 3 == 0 else Image.new("RGB", (32, 32), (seed % 256, 9, 9))
            for seed in seeds
        ]


def test_what_cannot_be_made_is_on_file_as_such_and_tried_again(requests: Path, tmp_path: Path) -> None:
    arms = ("best_of_n", "refine_keep_best", "oracle")
    options = RefineOptions(images_per_prompt=6, threshold=4.0, seed=1, max_failures=9)
    changes = {"arms": arms, "options": options, "batch_size": 4}
    traces = refine(requests, tmp_path, generator=(broken := Printer()), **changes)
    jammed = {seed for seed in broken.printed if seed % 3 == 0}
    assert 0 < len(jammed) < len(broken.printed) == len(set(broken.printed))
    unmade = [one for trace in traces.values() for one in trace.candidates if not one.image]
    assert unmade and all((one.reward, one.held_out, one.unscored) == (None, None, "no picture: jammed") for one in unmade)
    for trace in traces.values():
        assert trace.candidates[trace.chosen].image or not any(one.image for one in trace.candidates)
        assert trace.tokens == sum(one.tokens for one in trace.candidates)
    assert "no picture: jammed" in (tmp_path / "gallery.html").read_text()
    rows = json.loads((tmp_path / "arms.json").read_text())["tasks"]
    assert set(rows) == {"t2i", "edit"}
    assert {row["arm"] for row in rows["t2i"]} == set(arms)
    assert sum(row["unmade"] for task in rows.values() for row in task if row["images"] == 6) == len(unmade)
    assert "| refine_keep_best |" in (tmp_path / "arms.md").read_text()

    # a second run makes what failed, and nothing else
    again = refine(requests, tmp_path, generator=(repaired := Printer(jams=False)), **changes)
    assert set(repaired.printed) == jammed
    assert not [one for trace in again.values() for one in trace.candidates if not one.image]
    refine(requests, tmp_path, generator=(idle := Printer()), **changes)
    assert not idle.printed
