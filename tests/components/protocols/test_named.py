"""Every protocol on judgements counted by hand: a missing one, equal gaps, ties, swapped orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rationalrewards.components.protocols import PROTOCOLS, Judgement, Place, Result, Ties, evaluate, find_protocol
from rationalrewards.components.records import Unscored

MISSING = Unscored("the server is down")
T2I = "rl-research/multimodal-rewardbench-2@0123456 (CC-BY-NC-4.0; for evaluation only), t2i/test row 1 of t2i/test-0.parquet"
GENAI = "TIGER-Lab/GenAI-Bench@local (CC-BY-4.0), image_edition/test_v1 row 3 of image_edition/test_v1-0.parquet"
ER = "TIGER-Lab/EditReward-Bench@local (Apache-2.0), {}pair/train row 2 of {}pair/train-0.parquet"
TENTH = Ties(0.1, 0.6, "other rows")


def judged(label: float, forward: Any, swapped: Any = None, *, origin: str = "", id: str = "", group: str = "") -> Judgement:
    """A judgement; by default the only one of its group, with an id that no other has."""
    judged.count += 1  # type: ignore[attr-defined]
    name = id or f"pair-{judged.count}"  # type: ignore[attr-defined]
    return Judgement(name, group or name, label, origin, forward, swapped)


judged.count = 0  # type: ignore[attr-defined]


def numbers(result: Result) -> tuple[float, float | None, int]:
    return result.value, result.of_answered, result.n


def test_mmrb2_in_both_orders() -> None:
    rows = [
        judged(1.0, (0.8, 0.6), (0.7, 0.6), origin=T2I),  # right, right
        judged(0.0, (0.8, 0.6), (0.5, 0.6), origin=T2I),  # wrong, right
        judged(1.0, (0.5, 0.5), (0.7, 0.6), origin=T2I),  # a tie, which is there and wrong; right
        judged(0.0, MISSING, (0.2, 0.6), origin=T2I),  # missing, right
        judged(1.0, MISSING, MISSING, origin=T2I),  # missing, missing
    ]
    result = evaluate("mmrb2/both-orders", rows)
    # five right of ten judgements; of the seven that are there in the published rule
    assert numbers(result) == (5 / 10, 5 / 7, 10)
    assert result.equals == "of_answered" and result.mode == "pairwise"
    assert (result.coverage, result.unscored_rate) == (7 / 10, pytest.approx(3 / 10))
    assert result.model_tie_rate == 1 / 7
    # of three pairs with both orders one agrees with itself; A wins one half more often where it is first: (0 + 1 - 0.5) / 3
    assert result.order_consistency == pytest.approx(1 / 3)
    assert result.net_position_bias == pytest.approx(1 / 6)
    assert "not the published rows" in result.notes[0]  # 1,000 pairs
    assert (result.tie_threshold, result.rows) == (0.0, "rl-research/multimodal-rewardbench-2@0123456 t2i/test")


def test_mmrb2_of_a_judge_without_orders() -> None:
    rows = [judged(1.0, rewards, origin=T2I) for rewards in ((2.0, 1.0), (1.0, 2.0), (1.0, 1.0), MISSING)]
    result = evaluate("mmrb2/both-orders", rows)
    assert numbers(result) == (1 / 4, 1 / 3, 4)  # right, wrong, a tie, missing
    assert (result.order_consistency, result.net_position_bias) == (None, None)


GENAI_ROWS: list[tuple[float, str, Any]] = [
    (1.0, "", (0.8, 0.6)),  # left; a gap of 0.2: A, right
    (0.0, "", (0.8, 0.6)),  # right; A, wrong
    (0.5, "tievote", (0.7, 0.65)),  # a tie with a mean of 0.675: both good, right
    (0.5, "bothbad_vote", (0.7, 0.65)),  # both good again: a tie, but the wrong one
    (0.5, "bothbad_vote", (0.3, 0.35)),  # a mean of 0.325: both bad, right
    (1.0, "", (0.7, 0.65)),  # a tie, wrong
    (0.5, "tievote", (0.9, 0.6)),  # A, wrong
    (1.0, "", MISSING),
    (0.0, "", (0.4, 0.5)),  # a gap of exactly the threshold, in floats a little more: a tie, wrong
]


def genai(rows: list[tuple[float, str, Any]], swapped: Callable[[Any], Any] = lambda forward: None) -> list[Judgement]:
    return [judged(label, said, swapped(said), origin=GENAI + (f", {note}" if note else "")) for label, note, said in rows]


def test_genai_four_way() -> None:
    result = evaluate("genai-tiger/test_v1/4way", genai(GENAI_ROWS), ties=TENTH)
    # rows 1, 3 and 5; the missing one stays in the published denominator
    assert numbers(result) == (3 / 9, 3 / 8, 9)
    assert (result.equals, result.tie_threshold, result.tie_fitted_on) == ("value", 0.1, "other rows")
    # upstream, a tie of no kind is right for both kinds: row 4 too
    assert result.also["bare_ties_credited"] == result.also["three_way"] == 4 / 9
    # exact equality on rows 1, 2, 6, 8, 9: right, wrong, right, missing, right
    assert result.also["decided"] == 3 / 5
    confusion = {name: value for name, value in result.also.items() if name.startswith("voted ") and value}
    assert confusion == {
        "voted both good, judged both good": 1,
        "voted both good, judged A": 1,
        "voted both bad, judged both good": 1,
        "voted both bad, judged both bad": 1,
    }


def test_genai_four_way_without_a_fitted_level() -> None:
    rows = genai([(0.5, "tievote", (0.5, 0.5)), (0.5, "bothbad_vote", (0.4, 0.4)), (1.0, "", (0.4, 0.4))])
    result = evaluate("genai-tiger/test_v1/4way", rows)
    assert result.value == 2 / 3  # 0.5 is the middle of a critique's scale
    assert "the middle of the scale, not fitted" in result.notes[0]
    # rewards without a known scale: no tie has a kind
    unknown = evaluate("genai-tiger/test_v1/4way", genai([(0.5, "tievote", (21.0, 21.0)), (1.0, "", (22.0, 21.0))]))
    assert (unknown.value, unknown.also["bare_ties_credited"]) == (1 / 2, 1.0)
    assert "every tie is wrong" in unknown.notes[0]


def test_genai_decided_asks_in_one_order() -> None:
    # the judge of pairs always takes the first place: with B shown first, B wins
    rows = genai(GENAI_ROWS, lambda said: said if said is MISSING else (0.1, 0.9))
    result = evaluate("genai-tiger/test_v1/decided", rows)
    # left first: rows 1, 2, 6, 8, 9 are right, wrong, right, missing, right
    assert numbers(result) == (3 / 5, 3 / 4, 5)
    # B first: B in rows 1, 2, 6, 9; row 8 missing: only rows 2 and 9 are right
    assert result.also["other_order"] == 2 / 5
    assert result.denominators["tied by people"] == 4
    with pytest.raises(ValueError, match="genai-tiger/test_v1/decided knows no tie threshold"):
        evaluate("genai-tiger/test_v1/decided", rows, ties=TENTH)


def test_erbench_k2() -> None:
    origin = ER.format(2, 2)
    said: list[tuple[float, Any]] = [
        (1.0, (0.6, 0.3)),  # right
        (0.5, (0.55, 0.5)),  # a tie, right
        (0.5, (0.7, 0.5)),  # A, wrong
        (0.0, (0.4, 0.5)),  # on the threshold: a tie, wrong; by sign it would be right
        (1.0, MISSING),
    ]
    rows = [judged(label, forward, origin=origin) for label, forward in said]
    three = evaluate("erbench-tiger/K2/3way", rows, ties=TENTH)
    # one threshold for all: the two rules of EditReward's strict accuracy would give 3 of 5
    assert numbers(three) == (2 / 5, 2 / 4, 5)
    decided = evaluate("erbench-tiger/K2/decided", rows)
    assert numbers(decided) == (2 / 3, 2 / 2, 3)
    exact = evaluate("erbench-tiger/K2/3way", rows)
    assert numbers(exact) == (2 / 5, 2 / 4, 5)  # right, not a tie, not a tie, right, missing
    assert exact.tie_fitted_on == "not fitted: a tie is exact equality"


def group(k: int, key: str, *said: Any) -> list[Judgement]:
    """Comparisons of a group, each of which people decided for A."""
    name = f"TIGER-Lab.EditReward-Bench-{k}pair.train.{key}_"
    return [judged(1.0, one, origin=ER.format(k, k), id=f"{name}{i}", group=key) for i, one in enumerate(said)]


def test_erbench_k3_counts_whole_groups() -> None:
    right, wrong, tie = (0.9, 0.1), (0.1, 0.9), (0.5, 0.5)
    rows = [
        *group(3, "g1", right, right, right),
        *group(3, "g2", right, right, tie),
        *group(3, "g3", right, MISSING, right),
        *group(3, "g4", right, right),  # a row is missing from the set
        *group(3, "g5", MISSING, MISSING, MISSING),
    ]
    result = evaluate("erbench-tiger/K3", rows)
    # one of five groups; the one without any answer leaves the published denominator
    assert numbers(result) == (1 / 5, 1 / 4, 5)
    assert result.coverage == 10 / 15  # 3 + 3 + 2 + 2 + 0 of five times three
    assert result.denominators["pairs"] == 14
    four = [*group(4, "h1", *[right] * 6), *group(4, "h2", *[right] * 5, wrong)]
    assert numbers(evaluate("erbench-tiger/K4", four)) == (1 / 2, 1 / 2, 2)
    # pictures of a group are in all of its pairs, so it is resampled as one: with both groups in or out, all or nothing
    assert evaluate("erbench-tiger/K4", four).interval == (0.0, 1.0)


def test_erbench_groups_need_their_ids() -> None:
    nameless = judged(1.0, (1.0, 0.0), origin=ER.format(3, 3), id="TIGER-Lab.EditReward-Bench-3pair.train-00000-of-00001-7")
    with pytest.raises(ValueError, match="no id of TIGER-Lab/EditReward-Bench"):
        evaluate("erbench-tiger/K3", [nameless])
    # one row that ranks three candidates gives three comparisons of one group
    ranked = [f"TIGER-Lab.EditReward-Bench-3pair.train.0a1b-{i}-{j}" for i, j in ((0, 1), (0, 2), (1, 2))]
    rows = [judged(1.0, (1.0, 0.0), origin=ER.format(3, 3), id=id) for id in ranked]
    assert numbers(evaluate("erbench-tiger/K3", rows)) == (1.0, 1.0, 1)


def test_erbench_of_editscore() -> None:
    origin = "EditScore/EditReward-Bench@local (Apache-2.0), overall/train row 5 of data-0.arrow"
    said = [("style", (0.9, 0.1)), ("style", (0.5, 0.5)), ("add", (0.6, 0.5)), ("add", (0.6, 0.5))]
    rows = [judged(1.0, forward, origin=f"{origin}, {kind}") for kind, forward in said]
    result = evaluate("erbench-editscore", rows)
    assert numbers(result) == (3 / 4, 3 / 4, 4)  # a tie is wrong
    assert result.also["mean_of_kinds"] == 3 / 4  # (1/2 + 1) / 2
    uneven = evaluate("erbench-editscore", rows[:3])
    assert (uneven.value, uneven.also["mean_of_kinds"]) == (2 / 3, 3 / 4)
    bare = [judged(1.0, (0.9, 0.1), origin=origin), judged(1.0, MISSING, origin=origin)]
    assert numbers(evaluate("erbench-editscore", bare)) == (1 / 2, 1.0, 2)
    assert "mean_of_kinds" not in evaluate("erbench-editscore", bare).also


@pytest.mark.parametrize(
    ("protocol", "origin"),
    [
        ("hpdv3/test", "MizzenAI/HPDv3@local (MIT), test row 9 of test.json"),
        ("imagereward/test", "zai-org/ImageRewardDB@local (Apache-2.0), test row 9 of metadata-test.parquet"),
    ],
)
def test_the_preferred_picture_gets_more(protocol: str, origin: str) -> None:
    said: list[tuple[float, Any]] = [(1.0, (3.0, 2.0)), (0.0, (3.0, 2.0)), (1.0, (2.0, 2.0)), (0.0, MISSING)]
    rows = [judged(label, forward, origin=origin) for label, forward in said]
    assert numbers(evaluate(protocol, rows)) == (1 / 4, 1 / 3, 4)  # right, wrong, a tie, missing
    # a judge of pairs is asked in both orders: with B first it says B every time
    both = [judged(label, forward, (0.0, 1.0), origin=origin) for label, forward in said]
    assert numbers(evaluate(protocol, both)) == (3 / 8, 3 / 7, 8)  # two more right: rows 2 and 4


def test_pickapic_gives_half_credit() -> None:
    origin = "yuvalkirstain/pickapic_v2@local (none), test_unique row 1 of data/test_unique-0.parquet"
    said: list[tuple[float, Any]] = [
        (1.0, (0.8, 0.5)),  # the same: 1
        (1.0, (0.55, 0.5)),  # a tie of the judge alone: half
        (0.5, (0.55, 0.5)),  # both tied: 1
        (0.5, (0.9, 0.4)),  # a tie of people alone: half
        (0.0, (0.8, 0.5)),  # 0
        (1.0, MISSING),  # 0
    ]
    rows = [judged(label, forward, origin=origin) for label, forward in said]
    result = evaluate("pickapic/test", rows, ties=Ties(0.1, fitted_on="validation_unique"))
    assert numbers(result) == (3 / 6, 3 / 5, 6)
    assert result.also["decided"] == 2 / 4  # without the threshold, rows 1, 2, 5, 6: right, right, wrong, missing
    assert result.also["three_way"] == 2 / 6


def test_own_pairs() -> None:
    rows = [
        judged(0.8, (0.8, 0.6), (0.8, 0.6)),  # four of five people say A: right twice
        judged(0.2, (0.8, 0.6), (0.1, 0.6)),  # wrong, right
        judged(0.5, (0.8, 0.6), (0.8, 0.6)),  # people's tie does not count
        judged(1.0, (0.5, 0.5), MISSING),  # a tie, missing
    ]
    assert numbers(evaluate("pairs/decided", rows)) == (3 / 6, 3 / 5, 6)
    assert evaluate("pairs/decided", rows).rows == "own pairs"
    with pytest.raises(ValueError, match="none of the 1 pairs counts"):
        evaluate("pairs/decided", rows[2:3])


def test_clusters_are_requests() -> None:
    """Ten pairs of one request, all right, and ten requests of one pair, all wrong: one cluster moves half of the rows."""
    rows = [judged(1.0, (1.0, 0.0), group="one") for _ in range(10)] + [judged(1.0, (0.0, 1.0)) for _ in range(10)]
    low, high = evaluate("pairs/decided", rows).interval
    # of 11 clusters drawn with replacement the large one is missing with probability (10/11)^11 = 0.35: the low end is 0
    assert low == 0.0 and high > 0.7  # three times the large one and 8 small: 30/38


# -- which rows ---------------------------------------------------------------------------------------------------------


def test_rows_of_another_set_are_refused() -> None:
    other = "BaiqiL/GenAI-Bench@local (MIT), test row 1 of x.parquet"
    with pytest.raises(ValueError, match=r"counts image_generation/test_v1 .* but pair 'x' is from test of BaiqiL") as caught:
        find_protocol("genai-tiger/test_v1/decided").admit("x", other)
    assert "{id: TIGER-Lab/GenAI-Bench, root: FOLDER, subset: image_generation, split: test_v1}" in str(caught.value)
    with pytest.raises(ValueError, match=r"from no public set as far as its origin tells \('my own'\).*pairs/decided"):
        find_protocol("hpdv3/test").admit("x", "my own")
    with pytest.raises(ValueError, match=r"image_edition/test of TIGER-Lab"):  # another split
        find_protocol("genai-tiger/test_v1/4way").admit("x", GENAI.replace("/test_v1 ", "/test "))
    with pytest.raises(ValueError, match=r"another protocol: mmrb2/both-orders, pairs/decided"):
        find_protocol("erbench-tiger/K3").admit("x", T2I)


def test_two_kinds_of_rows_are_refused() -> None:
    rows = [judged(1.0, (1.0, 0.0), origin=T2I), judged(1.0, (1.0, 0.0), origin=T2I.replace("t2i/test row", "edit/test row"))]
    with pytest.raises(ValueError, match="one kind of rows at a time"):
        evaluate("mmrb2/both-orders", rows)
    with pytest.raises(ValueError, match="is there twice"):
        evaluate("pairs/decided", [rows[0], rows[0]])
    with pytest.raises(ValueError, match="pointwise and pairwise judgements are mixed"):
        evaluate("pairs/decided", [judged(1.0, (1.0, 0.0)), judged(1.0, (1.0, 0.0), (1.0, 0.0))])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("genai", "BaiqiL's ratings.*may be genai-tiger/test_v1/4way, genai-tiger/test_v1/decided"),
        ("GenAI-Bench", "may be genai-tiger/test_v1/4way, genai-tiger/test_v1/decided"),
        ("erbench", "TIGER-Lab's and EditScore's.*erbench-tiger/K2/3way.*erbench-editscore"),
        ("EditReward-Bench", "erbench-tiger/K4, erbench-editscore"),
        ("erbench-tiger/K2", "^'erbench-tiger/K2' is no full name; it may be erbench-tiger/K2/3way, erbench-tiger/K2/decided:"),
        ("mmrb2", "did you mean 'mmrb2/both-orders'"),
        ("hpdv9", "no protocol 'hpdv9'; there are: pairs/decided, mmrb2"),
    ],
)
def test_bare_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_protocol(name)


def test_every_protocol_tells_its_rule_and_its_source() -> None:
    for name, protocol in PROTOCOLS.items():
        assert find_protocol(name) is protocol
        assert protocol.rule.endswith(".") and len(protocol.rule) > 40
        assert protocol.count.__doc__ and len(protocol.count.__doc__) > len(protocol.rule) + 80


def test_places() -> None:
    assert Place.of(GENAI) == Place("TIGER-Lab/GenAI-Bench", "image_edition/test_v1", "local")
    assert Place.of(GENAI + ", bothbad_vote").note == "bothbad_vote"
    for text in ("", "drawn, seed 3", "shapes@1 (simulated), test row x"):
        assert Place.of(text) == Place()
