"""Accuracies that a scripted judge must get, counted by hand."""

from __future__ import annotations

import json
import random
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rationalrewards.callbacks import EvaluationWriter
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest, TransformersChat
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.protocols import TieThreshold, read_judgements
from rationalrewards.components.records import AspectComparison, AspectCritique, Critique, PairCritique, Preference, write_jsonl
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
    stored.pop("results", None)
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
            ("both", RewardEvaluationModule(Brightness(), Critic(Brighter("half"), SHAPES), "pairs/decided"), None),
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
        ("both", RewardEvaluationModule(Brightness(), Critic(Brighter("half"), SHAPES), "pairs/decided")),
    ):
        metrics = evaluate(module, file, tmp_path / "one" / name, batch_size=1)
        if name == "both":
            for written in ("judgements.pointwise.jsonl", "judgements.pairwise.jsonl", "evaluation.json", "evaluation.md"):
                assert (tmp_path / "two" / name / written).read_text() == (tmp_path / "one" / name / written).read_text()
            assert [row["n"] for row in results(tmp_path / "two" / name)] == [4, 8]
            continue
        assert metrics["n_pairs"] == 4
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        for written in ("judgements.jsonl", "evaluation.json"):
            assert (two / written).read_text() == (one / written).read_text()
        assert [row["id"] for row in rows(two)] == [f"pair-{index}" for index in range(5)]
        assert sorted(path.name for path in two.iterdir()) == ["evaluation.json", "judgements.jsonl"]


# -- protocols ----------------------------------------------------------------------------------------------------------

ERBENCH = "TIGER-Lab/EditReward-Bench@local (Apache-2.0), 2pair/train row {} of 2pair/train-0.parquet"


def with_origin(file: Path, origin: str, ids: str = "") -> Path:
    """The pairs of a file in another one, from a public set and with other ids."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    told = [{**line, "id": ids + line["id"], "origin": origin.format(number)} for number, line in enumerate(lines, start=1)]
    path = file.with_name(f"{ids}from-a-set.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in told))
    return path


def results(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "evaluation.json").read_text())["results"]  # type: ignore[no-any-return]


def test_both_ways_of_one_critic_by_a_protocol(file: Path, tmp_path: Path) -> None:
    class Both(Brighter):
        """Also judges single pictures: the brighter, the better, but never one of level 40."""

        def _answer(self, first: int, second: int | None = None) -> ChatReply:
            if second is not None:
                return replace(super()._answer(first, second), image_tokens=2 * 64)
            if first == 40:
                return ChatReply("", failure="too dark", image_tokens=64)
            score = round(1.0 + first / 100, 1)
            judged = {key: AspectCritique("seen", score) for key in self.format.rules.keys("t2i")}
            return ChatReply(self.format.render(Critique(judged, "said"), "t2i"), image_tokens=64)

    chat = Both("first")
    module = RewardEvaluationModule(CritiqueReward(Critic(chat, SHAPES)), protocol="pairs/decided", compare_too=True)
    metrics = evaluate(module, file, tmp_path / "out")
    # alone: one right, one wrong, two ties, one unread; together: the first place wins always, so half of all judgements are right
    for mode, accuracy in (("pointwise", 1 / 5), ("pairwise", 1 / 2)):
        assert metrics[f"{mode}/pair_accuracy"] == metrics[f"{mode}/pairs/decided"] == pytest.approx(accuracy)
    alone, together = results(tmp_path / "out")
    assert (alone["mode"], alone["n"], alone["of_answered"], alone["order_consistency"]) == ("pointwise", 5, 1 / 4, None)
    assert (together["mode"], together["n"], together["order_consistency"], together["net_position_bias"]) == (
        "pairwise",
        10,
        0,
        1,
    )
    assert alone["judge"] == {
        "name": "brighter",
        "weights": "brighter",
        "format": SHAPES.fingerprint,
        "image_tokens": [64, 64, 64],
    }
    assert together["judge"]["image_tokens"] == [128, 128, 128]
    one, two = (read_judgements(tmp_path / "out" / f"judgements.{mode}.jsonl") for mode in ("pointwise", "pairwise"))
    assert [judgement.id for judgement in one] == [judgement.id for judgement in two]
    # levels 200 and 100: alone 3 and 2 of 1 to 4; together the first place gets 3 and the other 2
    assert (one[0].forward, one[0].swapped) == (pytest.approx((2 / 3, 1 / 3)), None)
    assert (two[0].forward, two[0].swapped) == (pytest.approx((2 / 3, 1 / 3)), pytest.approx((1 / 3, 2 / 3)))
    assert (tmp_path / "out" / "evaluation.md").read_text().count("| pairs/decided | own pairs |") == 2
    # the files of another way do not stay
    assert not (tmp_path / "out" / "judgements.jsonl").exists()
    evaluate(RewardEvaluationModule(Brightness()), file, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.json", "judgements.jsonl"]


def test_another_reward_is_evaluated_alone(file: Path, tmp_path: Path) -> None:
    metrics = evaluate(RewardEvaluationModule(Brightness(), protocol=["pairs/decided"], compare_too=True), file, tmp_path)
    assert metrics["pair_accuracy"] == metrics["pairs/decided"] == pytest.approx(1 / 5)
    assert metrics["pairs/decided_of_answered"] == pytest.approx(1 / 4)
    (row,) = results(tmp_path)
    assert row["judge"] == {"name": "Brightness", "weights": None, "format": None, "image_tokens": None}
    assert row["value"] == pytest.approx(metrics["pair_accuracy"])
    assert row["interval"] == pytest.approx([metrics["pair_accuracy_low"], metrics["pair_accuracy_high"]])


def test_several_protocols_count_the_same_judgements(file: Path, tmp_path: Path) -> None:
    test = with_origin(file, ERBENCH)
    names = ["erbench-tiger/K2/3way", "erbench-tiger/K2/decided"]
    metrics = evaluate(RewardEvaluationModule(Brightness(), protocol=names), test, tmp_path)
    # all six: right, wrong, tie, unread, no tie where people left one, tie
    assert metrics["erbench-tiger/K2/3way"] == pytest.approx(1 / 6)
    assert metrics["erbench-tiger/K2/decided"] == pytest.approx(1 / 5)
    assert [row["protocol"] for row in results(tmp_path)] == names


def test_a_tie_threshold_from_other_rows(file: Path, tmp_path: Path) -> None:
    test = with_origin(file, ERBENCH)
    evaluate(RewardEvaluationModule(Brightness()), with_origin(file, ERBENCH, "dev-"), tmp_path / "dev")
    dev = str(tmp_path / "dev" / "judgements.jsonl")

    def three_way(threshold: TieThreshold) -> RewardEvaluationModule:
        return RewardEvaluationModule(Brightness(), protocol="erbench-tiger/K2/3way", tie_threshold=threshold)

    metrics = evaluate(three_way(TieThreshold(judgements=[dev])), test, tmp_path / "test")
    # levels differ by 100, 10, 0, unread, 10 (people's tie), 0: with a threshold of any size from 10 to 100 two are right
    assert metrics["erbench-tiger/K2/3way"] == pytest.approx(2 / 6)
    (row,) = results(tmp_path / "test")
    assert 10 / 255 < row["tie_threshold"] < 100 / 255 and row["tie_fitted_on"].startswith(dev)
    given = evaluate(three_way(TieThreshold(10 / 255, "dev")), test, tmp_path / "given")
    assert given["erbench-tiger/K2/3way"] == pytest.approx(2 / 6)
    with pytest.raises(ValueError, match="are in the rows that the tie threshold was fitted on"):
        evaluate(three_way(TieThreshold(judgements=[str(tmp_path / "test" / "judgements.jsonl")])), test, tmp_path / "again")


def test_wrong_rows_are_refused_before_they_are_judged(file: Path, tmp_path: Path) -> None:
    class Unasked(Brightness):
        def score(self, requests: Sequence[CritiqueRequest]) -> Rewards:
            raise AssertionError("a pair was judged")

    module = RewardEvaluationModule(Unasked(), protocol=["pairs/decided", "mmrb2/both-orders"])
    with pytest.raises(
        ValueError, match=r"mmrb2/both-orders counts t2i/test or edit/test of facebookresearch/MMRB2.*read that set"
    ):
        evaluate(module, file, tmp_path)
    with pytest.raises(ValueError, match="it may be genai-tiger/test_v1/4way"):
        RewardEvaluationModule(Brightness(), protocol="genai")


def test_one_copy_of_the_weights_for_both_ways() -> None:
    def critic(path: str = "embedded:shapes-critic") -> Critic:
        return Critic(TransformersChat(path, batch_size=2), SHAPES, max_tokens=8)

    module = RewardEvaluationModule(CritiqueReward(critic()), critic())
    module.configure_model()
    assert isinstance(module.reward, CritiqueReward) and module.judge is not None
    assert module.judge.chat is module.reward.critic.chat
    assert module.judge.chat.model is not None  # type: ignore[attr-defined]


def test_judges_and_options_that_do_not_go_together() -> None:
    reward, judge = Brightness(), Critic(Brighter(), SHAPES)
    value = TieThreshold(0.1, "dev")
    for options, message in (
        ({}, "give `reward` .* or `judge` .*, or both"),
        ({"reward": reward, "judge": judge, "compare_too": True}, "either `judge` or `compare_too`"),
        ({"reward": reward, "protocol": ["pairs/decided"] * 2}, "a name is there twice"),
        ({"reward": reward, "protocol": "pairs/decided", "tie_threshold": value}, "none of the protocols uses one"),
        ({"reward": reward, "judge": judge, "protocol": "pickapic/test", "tie_threshold": value}, "holds for one way"),
    ):
        with pytest.raises(ValueError, match=message):
            RewardEvaluationModule(**options)  # type: ignore[arg-type]


def test_a_set_without_a_decided_pair_is_refused(file: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    random.shuffle(lines)
    ties = tmp_path / "ties.jsonl"
    ties.write_text("".join(json.dumps({**line, "label": 0.5}) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"ties\.jsonl: no pairs without a tie"):
        evaluate(RewardEvaluationModule(reward=Brightness()), ties, tmp_path / "out", decided_only=True)
