"""A rubric's own scale: whoever writes, forces, reads, averages, compares or draws a score goes by it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest
from rationalrewards.components.critic import ComparisonRequest, Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat, swap_pair
from rationalrewards.components.critique.rubric import RUBRIC_FOLDER
from rationalrewards.components.critique.teacher import HINT
from rationalrewards.components.pages import Scored, critiques_page, gallery_page
from rationalrewards.components.parrot import Ledger, ParrotOptions, ScreenOptions, rationalize
from rationalrewards.components.records import (
    TASKS,
    AspectComparison,
    AspectCritique,
    Candidate,
    Critique,
    NotApplicable,
    PairCritique,
    Preference,
    PromptRecord,
    Refinement,
    Scale,
    Score,
    Task,
    Unscored,
    from_json,
    to_json,
    write_jsonl,
)
from rationalrewards.components.refine import RefineOptions, Studio, accepted, run_arm
from rationalrewards.components.rewards import CritiqueReward
from rationalrewards.datamodules import PreferenceDataModule
from rationalrewards.lightning_modules import RewardEvaluationModule

BRAND = {
    "name": "brand",
    "aspects": [
        {
            "key": "brand_compliance",
            "title": "Brand Compliance",
            "levels": {10: "as the brand book has it", 5: "some of its colours", 0: "another brand"},
        },
        {"key": "lettering", "title": "Lettering", "optional": True},
    ],
    "pointwise": "Judge the picture from 0 to 10.\n{aspects}\nAnswer in this form:\n{answer}",
    "pairwise": "Compare the pictures, from 0 to 10.\n{aspects}\nAnswer in this form:\n{answer}",
}
SCALES = {"whole": {"low": 0, "high": 10, "step": 1}, "half": {"low": 0, "high": 10, "step": 0.5}}


def _write(path: Path, **changes: Any) -> CritiqueFormat:
    path.write_text(yaml.safe_dump({**BRAND, **changes}, sort_keys=False))
    return CritiqueFormat(str(path))


@pytest.fixture(params=SCALES)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> CritiqueFormat:
    return _write(tmp_path / "brand.yaml", scale=SCALES[request.param])


@pytest.fixture
def half(tmp_path: Path) -> CritiqueFormat:
    return _write(tmp_path / "brand.yaml", scale=SCALES["half"])


def _critique(format: CritiqueFormat, score: Score, lettering: Score = NotApplicable()) -> Critique:  # noqa: B008 - frozen
    aspects = {"brand_compliance": AspectCritique("its colours", score), "lettering": AspectCritique("its font", lettering)}
    return Critique(aspects, "so", "brighter", "a brighter logo", scale=format.rules.scale)


# -- the scale itself --------------------------------------------------------------------------------------------------


def test_critics_of_the_shipped_rubrics_keep_their_fingerprint() -> None:
    """Trained critics are bound to these: of before there were scales, and never to change."""
    assert CritiqueFormat("default").fingerprint == "3d13fd870004"
    assert CritiqueFormat("shapes").fingerprint == "2b03c70deeb2"


def test_another_scale_is_another_format(tmp_path: Path) -> None:
    """Even where no word of the rubric tells: the shapes rubric shows no scale at all."""
    data = yaml.safe_load((RUBRIC_FOLDER / "shapes.yaml").read_text())
    prints = {}
    for name, scale in {"same": {"low": 1, "high": 4.0}, **SCALES, "finer": {"step": 0.05}}.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**data, "scale": scale}))
        prints[name] = CritiqueFormat(str(path)).fingerprint
    assert prints.pop("same") == CritiqueFormat("shapes").fingerprint  # spelled out, it is still the default
    assert len({*prints.values(), CritiqueFormat("shapes").fingerprint}) == 4


def test_the_default_scale_writes_as_ever() -> None:
    """As Python writes a float with one decimal, to which critics were trained; quarters are ties between two tenths."""
    scale = Scale()
    assert scale.options() == (*"1234", *(f"{tenths / 10:.1f}" for tenths in range(10, 41)))
    for score in [*(tenths / 10 for tenths in range(10, 41)), *(quarter / 4 for quarter in range(4, 17)), 3.35, 2.05, 7.0]:
        assert scale.written(score) == f"{score:.1f}"


def test_options_are_all_ways_to_write_a_score() -> None:
    assert Scale(0, 10, 1).options() == tuple(map(str, range(11)))
    assert Scale(0, 2, 0.5).options() == ("0", "1", "2", "0.0", "0.5", "1.0", "1.5", "2.0")
    assert Scale(-1, 1, 0.5).options() == ("-1", "0", "1", "-1.0", "-0.5", "0.0", "0.5", "1.0")
    assert Scale(0.5, 2.5, 1).options() == ("0.5", "1.5", "2.5")
    assert Scale(0, 100, 0.1).options()[-1] == "100.0" and len(Scale(0, 100, 0.1).options()) == 101 + 1001


@pytest.mark.parametrize("scale", [Scale(), Scale(0, 10, 1), Scale(0, 10, 0.5), Scale(-5, 5, 0.25), Scale(0.5, 2.5, 1)])
def test_a_scale_is_closed(scale: Scale) -> None:
    for option in scale.options():
        assert scale.contains(float(option)) and 0.0 <= scale.fraction(float(option)) <= 1.0
        assert scale.written(float(option)) in scale.options()
        assert float(scale.written(float(option))) == float(option)
    assert (scale.fraction(scale.low), scale.fraction(scale.high)) == (0.0, 1.0)
    assert (scale.fraction(scale.low - 1), scale.fraction(scale.high + 1)) == (0.0, 1.0)
    rng = random.Random(0)
    for _ in range(200):  # between two steps it is written as the nearest
        score = rng.uniform(scale.low, scale.high)
        # half a step, and the last bits of a float
        assert abs(float(scale.written(score)) - score) <= scale.step / 2 + 1e-9 and scale.written(score) in scale.options()


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        ({"low": 4, "high": 1}, "low must be below high, got 4 and 1"),
        ({"low": 2, "high": 2}, "low must be below high"),
        ({"low": 0, "high": 10, "step": 3}, "step 3 does not lead from 0 to 10; it must divide 10"),
        ({"low": 0, "high": 1, "step": 0}, "step 0 does not lead from 0 to 1"),
        ({"step": -0.1}, "step -0.1 does not lead"),
        ({"low": 0, "high": 1, "step": 2}, "step 2 does not lead"),
        ({"low": 0, "high": 100, "step": 0.01}, "10000 steps from 0 to 100 are too many to choose from; at most 1000"),
        ({"high": "ten"}, "high must be a number, got 'ten'"),
        ({"low": True}, "low must be a number, got True"),
        ({"high": float("inf")}, "high must be a number, got inf"),
        ({"lowest": 0}, "unknown field 'lowest' in scale; it has: low, high, step"),
        ([0, 10], r"scale must be a mapping of low, high, step, got \[0, 10\]"),
        (None, "scale must be a mapping"),
    ],
)
def test_a_wrong_scale_is_named_with_its_file(scale: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        _ = _write(tmp_path / "wrong.yaml", scale=scale).rules
    assert str(tmp_path / "wrong.yaml") in str(caught.value)


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        ({11: "beyond"}, "1 levels, one of them for 11, but the scale is 0 to 10"),
        (["x"] * 12, "12 levels, one of them for -1, but the scale is 0 to 10"),
        ({"best": "x"}, "level 'best': 'x' must be a score and a text"),
        ([1, 2], "level 10.0: 1 must be a score and a text"),
        ("good", "levels must be a list, best first, or a mapping of scores to texts, got 'good'"),
    ],
)
def test_wrong_levels_are_named_with_their_aspect(levels: Any, says: str, tmp_path: Path) -> None:
    aspects = [{**BRAND["aspects"][0], "levels": levels}]  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=f"wrong.yaml: aspect 'brand_compliance': {says}"):
        _ = _write(tmp_path / "wrong.yaml", aspects=aspects, scale=SCALES["whole"]).rules


@pytest.mark.parametrize(
    ("levels", "lines"),
    [
        ({0: "bad", 10: "good", 7.5: "fair"}, ["10: good", "7.5: fair", "0: bad"]),  # best first, however the file has them
        (["good", "fair"], ["10: good", "9: fair"]),
        ([], []),
    ],
)
def test_any_levels_of_the_scale_are_shown(levels: Any, lines: list[str], tmp_path: Path) -> None:
    aspects = [{**BRAND["aspects"][0], "levels": levels}]  # type: ignore[dict-item]
    format = _write(tmp_path / "own.yaml", aspects=aspects, scale=SCALES["whole"])
    asked = format.pointwise_messages("t2i", "a logo", [], Image.new("RGB", (2, 2)))[0]["content"][0]["text"]
    assert asked.split("1. Brand Compliance")[1].split("\nAnswer")[0] == "".join(f"\n   {line}" for line in lines)


# -- written, forced and read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_score_is_read_as_it_was_written(own: CritiqueFormat, task: Task) -> None:
    scale = own.rules.scale
    for option in scale.options():
        critique = _critique(own, float(option), scale.high - float(option))
        assert own.parse(own.render(critique, task), task) == critique
        judged = AspectComparison("both", float(option), scale.low, "A"), AspectComparison("", scale.high, 5.0, "tie")
        pair = PairCritique(dict(zip(own.rules.keys(task), judged, strict=True)), "so", scale=scale)
        assert own.parse_pair(own.render_pair(pair, task), task) == pair
        assert swap_pair(pair).scale == scale and swap_pair(swap_pair(pair)) == pair


def test_the_constrained_form_knows_the_scale_and_nothing_else(own: CritiqueFormat) -> None:
    form, pair_form = own.pointwise_form("t2i"), own.pairwise_form("t2i")
    options = list(own.rules.scale.options())
    assert form.schema()["properties"]["brand_compliance_score"]["enum"] == options
    assert pair_form.schema()["properties"]["lettering_score_b"]["enum"] == [*options, "N/A"]
    assert f"CHOICE_1: {' | '.join(map(json.dumps, options))}" in form.lark()
    pattern = re.compile(form.regex())
    slots = {"brand_compliance_justification": "its colours", "lettering_justification": "none", "summary": "so"}
    for option in options:  # what can be forced can be read, and what is written can be forced
        text = form.fill({**slots, "brand_compliance_score": option, "lettering_score": "N/A"})
        assert pattern.fullmatch(text)
        assert own.parse(text, "t2i").score("brand_compliance") == float(option)
        assert pattern.fullmatch(own.render(_critique(own, float(option)), "t2i"))
        for wrong in ("11", "10.1", "-1", "3.3", "7/10"):
            assert not pattern.fullmatch(text.replace(f"Score: {option}", f"Score: {wrong}", 1))


@pytest.mark.parametrize(
    ("written", "score"),
    [
        ("7/10", 7.0),
        ("7.5 / 10.0", 7.5),
        ("**10**", 10.0),
        ("0", 0.0),
        ("`3`.", 3.0),
        ("6.25", 6.25),  # between two steps: read as it is
        ("11", "11 is outside 0 to 10"),
        ("-1", "-1 is outside 0 to 10"),
        ("3/4", "'3/4' is not a score"),
        ("70/100", "'70/100' is not a score"),
        ("7/1", "'7/1' is not a score"),
        ("N/A", "N/A is not allowed"),
    ],
)
def test_scores_out_of_the_best_one(own: CritiqueFormat, written: str, score: float | str) -> None:
    lines = own.render(_critique(own, 5.0), "t2i").split("\n")
    lines[lines.index(f"## Score: {own.rules.scale.written(5.0)}")] = f"## Score: {written}"
    text = "\n".join(lines)
    found = own.parse(text, "t2i").score("brand_compliance")
    if isinstance(score, float):
        assert found == score
    else:
        assert isinstance(found, Unscored) and score in found.reason


def test_four_is_no_best_score_of_another_scale() -> None:
    text = "# Detailed Judgement:\n1. Text Faithfulness:\n## Justification: x\n## Score: {}\n# Summary: so"
    assert CritiqueFormat().parse(text.format("3.5/4"), "t2i").score("text_faithfulness") == 3.5
    assert isinstance(CritiqueFormat().parse(text.format("3.5/10"), "t2i").score("text_faithfulness"), Unscored)


def test_a_critique_of_another_scale_is_not_written(half: CritiqueFormat) -> None:
    with pytest.raises(ValueError, match=r"scores from 0 to 10 cannot be written under rubric 'default', 1 to 4"):
        CritiqueFormat().render(_critique(half, 7.0), "t2i")
    with pytest.raises(ValueError, match="scores from 1 to 4 cannot be written"):
        half.render_pair(PairCritique.unscored("lost", half.rules.keys("t2i")), "t2i")


# -- averaged, kept and compared ---------------------------------------------------------------------------------------


def test_the_reward_is_the_share_of_the_way_up(half: CritiqueFormat) -> None:
    assert _critique(half, 7.5).reward() == 0.75
    assert _critique(half, 0.0, 10.0).reward() == 0.5
    assert _critique(half, 0.0).reward() == 0.0 and _critique(half, 10.0).reward() == 1.0
    pair = PairCritique({"x": AspectComparison("", 9.0, 9.5, "A")}, scale=half.rules.scale)
    assert pair.rewards() == (0.9, 0.95) and pair.verdict() == "B"  # both are beyond 4


def test_critiques_keep_their_scale_in_json(half: CritiqueFormat) -> None:
    lost = Critique.unscored("cut off", half.rules.keys("t2i"), scale=half.rules.scale)
    pair = PairCritique({"x": AspectComparison("", 9.0, NotApplicable(), Unscored("odd"))}, scale=half.rules.scale)
    for record in (_critique(half, 7.5), lost, pair, Candidate(0, "a", "a.png", "", 0.5, scale=half.rules.scale)):
        data = json.loads(json.dumps(to_json(record)))
        assert from_json(type(record), data) == record
        data.pop("scale")  # written before there were scales
        old = from_json(type(record), data)
        assert old.scale == Scale() and old != record


class Brightness(ChatModel):
    """Sees how bright a picture is, 0 to 10 in halves, and answers whatever PARROT, a reward or a judge asks."""

    def __init__(self, format: CritiqueFormat) -> None:
        self.format = format

    @property
    def identity(self) -> str:
        return "brightness"

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        return [ChatReply(self._answer(request)) for request in requests]

    def _answer(self, request: ChatRequest) -> str:
        text = request.text()
        shades = [image.getpixel((0, 0))[0] / 20 for image in request.images()]  # type: ignore[index]
        if "A is preferred" in text:
            return "A is preferred" if shades[0] > shades[1] else "B is preferred"
        if "rewrite the request; keep" in text:
            return "## Refinement Comments: brighter\n## Refined Request: a bright logo"
        if HINT in text or "Image B:" in text:
            winner = "A" if shades[0] > shades[1] else "B"
            judged = AspectComparison(f"picture {winner} is bright", shades[0], shades[1], winner)  # type: ignore[arg-type]
            aspects = {"brand_compliance": judged, "lettering": AspectComparison("", *[NotApplicable()] * 3)}
            return self.format.render_pair(PairCritique(aspects, "so", scale=self.format.rules.scale), "t2i")
        return self.format.render(_critique(self.format, shades[-1]), "t2i")


def _shade(score: float, path: Path) -> str:
    Image.new("RGB", (4, 4), (round(score * 20),) * 3).save(path)
    return str(path)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Preference]:
    """Pairs half a point apart, all but one beyond 4, where a scale that ends there would see ties."""
    scores = [(9.5, 9.0), (6.0, 6.5), (4.5, 5.0), (0.5, 0.0)]
    return [
        Preference(str(i), "t2i", "a logo", (_shade(a, tmp_path / f"{i}a.png"), _shade(b, tmp_path / f"{i}b.png")), float(a > b))
        for i, (a, b) in enumerate(scores)
    ]


def test_parrot_goes_by_the_scale(half: CritiqueFormat, pairs: list[Preference]) -> None:
    options = ParrotOptions(control_share=0.0, audit_share=0.0, screen=ScreenOptions(min_side=4, min_contrast=0.0))
    outcomes = rationalize(pairs, Brightness(half), half, options, Ledger())
    assert [outcome.reason for outcome in outcomes] == [""] * 4
    for outcome in outcomes:
        assert outcome.rationale is not None and outcome.rationale.format == half.fingerprint
        assert half.parse_pair(outcome.rationale.pair_text, "t2i").verdict() == outcome.pair.winner
        rewards = [half.parse(text, "t2i").reward() for text in outcome.rationale.point_texts]
        assert abs(rewards[0] - rewards[1]) == pytest.approx(0.05)  # type: ignore[operator]
    # the margin is a share of the scale: half a point of ten is no more than 0.06
    dropped = rationalize(pairs, Brightness(half), half, replace(options, order_margin=0.06), Ledger())
    assert {outcome.reason for outcome in dropped} == {"projected scores do not order the pair as the label does"}


def test_the_reward_model_maps_the_scale(half: CritiqueFormat) -> None:
    shown = [Image.new("RGB", (4, 4), (round(score * 20),) * 3) for score in (0.0, 2.5, 9.5, 10.0)]
    requests = [CritiqueRequest("t2i", "a logo", image) for image in shown]
    rewards = CritiqueReward(Critic(Brightness(half), half)).score(requests)
    # float32 of numbers with two decimals
    assert rewards.total.tolist() == pytest.approx([0.0, 0.25, 0.95, 1.0], abs=1e-6)
    assert rewards.values[:, 0].tolist() == [0.0, 2.5, 9.5, 10.0]  # aspects stay in points
    assert rewards.critiques is not None and rewards.critiques[0].scale == half.rules.scale


def test_what_never_came_is_unscored_on_the_same_scale(half: CritiqueFormat) -> None:
    class Broken(Brightness):
        def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
            return [ChatReply("", failure="HTTP 500") for _ in requests]

    image = Image.new("RGB", (4, 4))
    (one,) = Critic(Broken(half), half, reasks=0).critique([CritiqueRequest("t2i", "a logo", image)])
    (two,) = Critic(Broken(half), half, reasks=0).compare([ComparisonRequest("t2i", "a logo", (image, image))])
    assert one.scale == two.scale == half.rules.scale and one.failure == "HTTP 500"


@pytest.mark.parametrize("how", ["reward", "judge"])
def test_evaluation_goes_by_the_scale(half: CritiqueFormat, pairs: list[Preference], how: str, tmp_path: Path) -> None:
    critic = Critic(Brightness(half), half)
    module = RewardEvaluationModule(reward=CritiqueReward(critic)) if how == "reward" else RewardEvaluationModule(judge=critic)
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False)
    (result,) = trainer.test(module, PreferenceDataModule(str(tmp_path / "pairs.jsonl")), verbose=False)
    assert (result["test/pair_accuracy"], result["test/tie_rate"], result["test/unscored_rate"]) == (1.0, 0.0, 0.0)
    assert module.rows[0]["scores"][0]["brand_compliance"] == 9.5


# -- accepted and drawn ------------------------------------------------------------------------------------------------


def test_refinement_stops_by_the_scale(half: CritiqueFormat) -> None:
    assert accepted(_critique(half, 7.0)) and not accepted(_critique(half, 6.5))  # two thirds of ten are 6.67
    assert accepted(_critique(half, 6.5), 6.5) and not accepted(_critique(half, 6.0), 6.5)
    assert not accepted(_critique(half, 9.0, 6.5)) and accepted(_critique(half, 9.0, NotApplicable()))
    default = CritiqueFormat()  # the paper's 3 of 4
    scores = {key: AspectCritique("", 3.0) for key in default.rules.keys("t2i")}
    assert accepted(Critique(scores)) and accepted(Critique(scores), 3.0)
    assert not accepted(Critique({**scores, "text_rendering": AspectCritique("", 2.9)}))


def test_a_threshold_that_is_not_on_the_scale_is_refused(half: CritiqueFormat) -> None:
    studio = Studio(None, Critic(Brightness(half), half), 0)  # type: ignore[arg-type] # refused before anything is made
    with pytest.raises(ValueError, match="threshold 11 is not on the critic's scale, 0 to 10; give one that is, or null"):
        run_arm("refine_keep_best", [PromptRecord("p", "t2i", "a logo")], studio, RefineOptions(threshold=11.0))
    with pytest.raises(ValueError, match="threshold 0.5 is not on the critic's scale, 1 to 4"):
        studio.critic = Critic(Brightness(half))
        run_arm("refine_keep_best", [PromptRecord("p", "t2i", "a logo")], studio, RefineOptions(threshold=0.5))


def test_bars_go_by_the_scale(half: CritiqueFormat, tmp_path: Path) -> None:
    aspects = {"brand_compliance": 2.5, "lettering": 10.0}
    shown = Scored(Image.new("RGB", (4, 4)), 0.25, aspects=aspects, scale=half.rules.scale)
    made = Candidate(0, "a logo", _shade(5, tmp_path / "a.png"), "", 0.25, aspects=aspects, scale=half.rules.scale)
    refinement = Refinement("r", "t2i", "a logo", "base", (made,), 0, "budget")
    assert re.findall(r'style="(width:[^"]*)"', critiques_page([("a logo", [shown])], "title")) == ["width:25.0%", "width:100.0%"]
    assert '"aspects":[["brand_compliance",2.5,0.25],["lettering",10.0,1.0]]' in gallery_page([refinement], "title")
