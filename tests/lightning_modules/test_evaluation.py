"""Accuracies that a scripted judge must get, counted by hand."""

from __future__ import annotations

import json
import random
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rationalrewards.callbacks import EvaluationWriter
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.records import AspectComparison, PairCritique, Preference, write_jsonl
from rationalrewards.components.rewards import CritiqueReward, RewardModel, Rewards
from rationalrewards.components.shapes.truth import ShapesTruth
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.lightning_modules import RewardEvaluationModule
from support import run_python

SHAPES = CritiqueFormat("shapes")

pytestmark = tiny.QUIET

BRIGHTNESS = [(200, 100), (50, 60), (70, 70), (90, 40), (10, 20), (80, 80)]
"""Grey levels of the two pictures of each pair: all that the scripted judges go by."""
LABELS = [1.0, 1.0, 1.0, 0.8, 0.5, 0.0]
"""Right; wrong; judged a tie; right but unread; left tied by people; judged a tie."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    from PIL import Image

    records = []
    for index, (levels, label) in enumerate(zip(BRIGHTNESS, LABELS, strict=True)):
        names = [str(tmp_path / f"{index}{side}.png") for side in "ab"]
        for name, level in zip(names, levels, strict=True):
            Image.new("RGB", (8, 8), (level, level, level)).save(name)
        # two pairs of one request: one cluster
        prompt = "a red circle" if index < 2 else f"request {index}"
        records.append(Preference(f"pair-{index}", "t2i", prompt, (names[0], names[1]), label))
    write_jsonl(tmp_path / "preferences.jsonl", records)
    return tmp_path / "preferences.jsonl"


def level(image: Any) -> int:
    return int(image.getpixel((0, 0))[0])


class Brightness(RewardModel):
    """The grey level; pictures of level 40 cannot be read."""

    def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
        levels = [level(request.image) for request in requests]
        total = torch.tensor([float("nan") if value == 40 else value / 255 for value in levels])
        reasons = ["too dark" if value == 40 else "" for value in levels]
        return Rewards(total, ("brightness", "other"), torch.stack([total, torch.full_like(total, float("nan"))], dim=1), reasons)


def evaluate(
    module: RewardEvaluationModule,
    file: Path,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    data: Any = None,
    **options: Any,
) -> dict[str, float]:
    trainer = tiny.trainer(callbacks=[EvaluationWriter(str(out))], **(settings or {}))
    trainer.test(module, data or PreferenceDataModule(**{"paths": str(file), "batch_size": 4, **options}), verbose=False)
    trainer.strategy.barrier()  # the first process writes the files
    stored = json.loads((out / "evaluation.json").read_text())
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert stored == pytest.approx(metrics, nan_ok=True)
    return {name.removeprefix("test/"): value for name, value in metrics.items()}


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "judgements.jsonl").read_text().splitlines()]


def test_pointwise(file: Path, tmp_path: Path) -> None:
    metrics = evaluate(RewardEvaluationModule(reward=Brightness()), file, tmp_path)
    # of five pairs that people decided: one right, one wrong, two judged ties, one unread
    assert metrics["n_pairs"] == 5
    assert metrics["pair_accuracy"] == pytest.approx(1 / 5)
    assert metrics["unscored_rate"] == pytest.approx(1 / 5)
    assert metrics["tie_rate"] == pytest.approx(2 / 4)
    assert "order_consistency" not in metrics  # a judge of single pictures knows no order
    assert 0.0 <= metrics["pair_accuracy_low"] <= 1 / 5 <= metrics["pair_accuracy_high"] < 1.0
    written = rows(tmp_path)
    assert [row["verdict"] for row in written] == ["A", "B", "tie", "unscored: too dark", "B", "tie"]
    assert [row["verdict"] for row in written] == [row["swapped"] for row in written]
    assert written[3]["scores"][0]["brightness"] == pytest.approx(90 / 255)
    assert written[3]["scores"][1] == {"brightness": None, "other": None}
    assert written[0]["group"] == written[1]["group"] != written[2]["group"]


def test_testing_twice_counts_once(file: Path, tmp_path: Path) -> None:
    module = RewardEvaluationModule(reward=Brightness())
    first = evaluate(module, file, tmp_path / "first")
    again = evaluate(module, file, tmp_path / "again")
    assert first == again
    assert len(rows(tmp_path / "again")) == len(LABELS)
    # people's ties do not count, so leaving them out changes nothing but the rows
    assert evaluate(module, file, tmp_path / "decided", decided_only=True) == first
    assert len(rows(tmp_path / "decided")) == len(LABELS) - 1


class Brighter(ChatModel):
    """A judge of pairs: the brighter picture, or one fault of a judge.

    Args:
        fault: ``first``: the picture shown first always wins. ``half``: no answer when the brighter picture comes second.
    """

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.format = CritiqueFormat("shapes")

    @property
    def identity(self) -> str:
        return "brighter"

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        return [self._answer(*map(level, request.images())) for request in requests]

    def _answer(self, first: int, second: int) -> ChatReply:
        if self.fault == "half" and second > first:
            return ChatReply("I would rather not say.")
        wins = self.fault == "first" or first > second
        scores = (3.0, 2.0) if wins else ((2.0, 2.0) if first == second else (2.0, 3.0))
        # the written winner says the opposite: scores decide
        judged = AspectComparison("seen", *scores, "B" if wins else "A")
        keys = self.format.rules.keys("t2i")
        return ChatReply(self.format.render_pair(PairCritique({key: judged for key in keys}, "said"), "t2i"))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        # pairs 0 and 3 right in both orders, pair 1 wrong in both, pairs 2 and 5 ties
        ("", {"pair_accuracy": 2 / 5, "order_consistency": 1.0, "unscored_rate": 0.0, "tie_rate": 2 / 5}),
        # A in one order and B in the other, for every pair: half right, never consistent
        ("first", {"pair_accuracy": 1 / 2, "order_consistency": 0.0, "unscored_rate": 0.0, "tie_rate": 0.0}),
        # pairs 0, 1 and 3 are read in one order only; 0 and 3 are right there, half each
        ("half", {"pair_accuracy": 1 / 5, "order_consistency": 1.0, "unscored_rate": 3 / 10, "tie_rate": 4 / 7}),
    ],
)
def test_pairwise_in_both_orders(fault: str, expected: dict[str, float], file: Path, tmp_path: Path) -> None:
    metrics = evaluate(RewardEvaluationModule(judge=Critic(Brighter(fault), SHAPES)), file, tmp_path)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    written = rows(tmp_path)
    if fault == "first":
        assert {(row["verdict"], row["swapped"]) for row in written} == {("A", "B")}
    if fault == "half":
        assert written[0]["verdict"] == "A"
        assert written[0]["swapped"].startswith("unscored: ")
        assert written[1]["verdict"].startswith("unscored: ")
        assert written[1]["swapped"] == "B"  # named as the pair has them, not as they were shown


def test_the_truth_agrees_with_true_labels_through_a_critique(tmp_path: Path) -> None:
    file = tiny.pairs(tmp_path / "pairs", 16, seed=1)
    decided = len(tiny.decided(file))
    module = RewardEvaluationModule(reward=ShapesTruth())
    metrics = evaluate(module, file, tmp_path / "truth")
    assert (metrics["n_pairs"], metrics["pair_accuracy"]) == (decided, 1.0)
    # critiques write scores with one digit, so that close pairs may come out as ties
    said = evaluate(RewardEvaluationModule(reward=CritiqueReward(Critic(tiny.truthful(), SHAPES))), file, tmp_path / "said")
    assert said["unscored_rate"] == 0.0
    assert said["pair_accuracy"] == pytest.approx(1.0 - said["tie_rate"])


TWO = """
    import sys
    from pathlib import Path

    from lightning.pytorch.strategies import DDPStrategy
    from rationalrewards.components.records import Preference, read_jsonl
    from rationalrewards.datamodules import Batch
    from test_evaluation import SHAPES, Brighter, Brightness, Critic, RewardEvaluationModule, evaluate
    from torch.utils.data import DataLoader

    if __name__ == "__main__":
        file, out = map(Path, sys.argv[1:])
        # five pairs: the sampler that Lightning puts in gives the first one to both processes
        padded = DataLoader(read_jsonl(file, Preference), batch_size=1, collate_fn=Batch)
        for name, module, data in (
            ("pointwise", RewardEvaluationModule(reward=Brightness()), None),
            ("pairwise", RewardEvaluationModule(judge=Critic(Brighter("half"), SHAPES)), None),
            ("padded", RewardEvaluationModule(reward=Brightness()), padded),
        ):
            settings = {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")}
            # batches of one, so that each process has several
            evaluate(module, file, out / name, settings, data, batch_size=1)
"""


@pytest.mark.slow
def test_two_processes_count_every_pair_once(file: Path, tmp_path: Path) -> None:
    lines = file.read_text().splitlines()[:5]  # odd: one process gets one pair more
    file.write_text("".join(line + "\n" for line in lines))
    (tmp_path / "two" / "pointwise").mkdir(parents=True)
    (tmp_path / "two" / "pointwise" / "judgements.rank1.jsonl").write_text("of a killed run\n")
    (tmp_path / "program.py").write_text(textwrap.dedent(TWO))
    here = Path(__file__)
    done = run_python(["program.py", file, tmp_path / "two"], timeout=300, env={"PYTHONPATH": f"{here.parent}:{here.parents[1]}"})
    assert done.returncode == 0, done.stderr[-6000:]
    for name, module in (
        ("pointwise", RewardEvaluationModule(reward=Brightness())),
        ("pairwise", RewardEvaluationModule(judge=Critic(Brighter("half"), SHAPES))),
        ("padded", RewardEvaluationModule(reward=Brightness())),
    ):
        metrics = evaluate(module, file, tmp_path / "one" / name, batch_size=1)
        assert metrics["n_pairs"] == 4
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        for written in ("judgements.jsonl", "evaluation.json"):
            assert (two / written).read_text() == (one / written).read_text()
        assert [row["id"] for row in rows(two)] == [f"pair-{index}" for index in range(5)]
        assert sorted(path.name for path in two.iterdir()) == ["evaluation.json", "judgements.jsonl"]


def test_exactly_one_judge() -> None:
    for options in ({}, {"reward": Brightness(), "judge": Brighter()}):
        with pytest.raises(ValueError, match="give either `reward` .* or `judge`"):
            RewardEvaluationModule(**options)


def test_a_set_without_a_decided_pair_is_refused(file: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    random.shuffle(lines)
    ties = tmp_path / "ties.jsonl"
    ties.write_text("".join(json.dumps({**line, "label": 0.5}) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"ties\.jsonl: no pairs without a tie"):
        evaluate(RewardEvaluationModule(reward=Brightness()), ties, tmp_path / "out", decided_only=True)
