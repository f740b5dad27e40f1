"""The named protocols: which rows each counts, in which order, and how; one number each.

A protocol is data (:class:`Protocol`) and one pure function from judgements to credits. Sources are named in each function; what
reward-models.md section 2 marks as read in a repository's code was looked up there again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..records import Unscored
from .judgements import Judgement, Pair, Place, verdict
from .ties import Ties


@dataclass(frozen=True)
class Credit:
    """What one judgement counts, or of whole groups one group.

    Args:
        unit: The pair's id, or the group's.
        cluster: What is resampled together: pairs of one request and source share pictures.
        right: 1, 0, or 0.5 where a rule gives half credit.
        asked: Judgements behind it.
        scored: How many of them came.
    """

    unit: str
    cluster: str
    right: float
    asked: int = 1
    scored: int = 1


Count = Callable[[Sequence[Judgement], Ties], list[Credit]]


@dataclass(frozen=True)
class Protocol:
    """A way of counting judgements that has a name.

    Args:
        name: Owner-qualified.
        count: The rule.
        sets: Data set to the rows of it that may be counted (one kind of rows at a time); empty: any pairs.
        rule: What is counted, in one sentence.
        equals: Which number is that of the published rule: ``"value"`` (failures are wrong), ``"of_answered"`` (failures leave the
            denominator), or ``""`` where the publisher did neither or there is none; ``rule`` says more.
        asks: Which order counts where both pictures are shown together: ``"forward"`` (A first, as stored) or ``"both"``.
        ties: What becomes of ties: ``"excluded"`` (pairs that people left tied do not count; a tie of the judge is wrong), ``"matched"``
            (people's ties must be met), ``"kinds"`` (in kind: both good or both bad), ``"half"`` (a tie on one side only is half right).
        sizes: Published number of pairs of some kinds of rows.
    """

    name: str
    count: Count
    sets: Mapping[str, tuple[str, ...]]
    rule: str
    equals: Literal["value", "of_answered", ""] = ""
    asks: Literal["forward", "both"] = "both"
    ties: Literal["excluded", "matched", "kinds", "half"] = "excluded"
    sizes: Mapping[str, int] | None = None

    @property
    def fits_ties(self) -> bool:
        """Whether a tie threshold changes the number."""
        return self.ties != "excluded"

    def admit(self, id: str, origin: str, before: Place | None = None) -> Place:
        """See that a pair is of the rows that this protocol counts.

        Args:
            id: The pair's id.
            origin: The pair's origin.
            before: The place of pairs that were admitted already.

        Returns:
            The pair's place.

        Raises:
            ValueError: If it is of another set, split or subset, or of other rows than those before; the message says what to read.
        """
        place = Place.of(origin)
        if not self.sets:
            return place
        if place.rows not in self.sets.get(place.set, ()):
            found = f"{place.rows} of {place.set}" if place.set else f"no public set as far as its origin tells ({origin!r})"
            raise ValueError(
                f"protocol {self.name} counts {self._wanted}, but pair {id!r} is from {found}; read that set "
                f"({self._config}), or count these pairs by another protocol: {_fitting(place)}"
            )
        if before is not None and (before.set, before.rows) != (place.set, place.rows):
            raise ValueError(
                f"protocol {self.name} counts one kind of rows at a time, but pair {id!r} is from {place.rows} of {place.set} after "
                f"pairs from {before.rows} of {before.set}; count each by itself"
            )
        return place

    @property
    def _wanted(self) -> str:
        return " or ".join(f"{' or '.join(rows)} of {name}" for name, rows in self.sets.items())

    @property
    def _config(self) -> str:
        name, rows = next(iter(self.sets.items()))
        subset, _, split = rows[0].rpartition("/")
        return f"data.sets: [{{id: {name}, root: FOLDER, {f'subset: {subset}, ' if subset else ''}split: {split}}}]"


PROTOCOLS: dict[str, Protocol] = {}
"""All protocols by name."""

_TAKEN = {
    "genai": "GenAI-Bench is the name of two sets: TIGER-Lab's votes on pairs, and BaiqiL's ratings of single pictures, which has no pairs",
    "erbench": "EditReward-Bench is the name of two sets, TIGER-Lab's and EditScore's",
}
_SHORT = {"genaibench": "genai", "editrewardbench": "erbench", "pickapicv2": "pickapic", "imagerewarddb": "imagereward"}


def find_protocol(name: str) -> Protocol:
    """A protocol by its full name.

    Raises:
        ValueError: If there is none of that name, or a bare name may mean several; the message names the candidates.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    given = name.casefold().strip("/")
    bare = re.sub(r"[^a-z0-9]", "", given.partition("/")[0])
    bare = _SHORT.get(bare, bare)
    meant = [known for known in PROTOCOLS if known.casefold().startswith(given)]
    meant = meant or [known for known in PROTOCOLS if bare and re.sub(r"[^a-z0-9]", "", known.casefold()).startswith(bare)]
    if len(meant) > 1:
        why = f" ({_TAKEN[bare]})" if bare in _TAKEN else ""
        raise ValueError(f"{name!r} is no full name{why}; it may be {', '.join(meant)}: give one of them")
    if meant:
        raise ValueError(f"{name!r} is no full name; did you mean {meant[0]!r}?")
    raise ValueError(f"no protocol {name!r}; there are: {', '.join(PROTOCOLS)}")


def _fitting(place: Place) -> str:
    """Names of the protocols that pairs of a place may be counted by."""
    fitting = [p.name for p in PROTOCOLS.values() if p.sets and place.rows in p.sets.get(place.set, ())]
    return ", ".join([*fitting, OWN])


def _named(
    name: str,
    sets: Mapping[str, tuple[str, ...]],
    equals: Literal["value", "of_answered", ""],
    asks: Literal["forward", "both"],
    ties: Literal["excluded", "matched", "kinds", "half"] = "excluded",
    sizes: Mapping[str, int] | None = None,
) -> Callable[[Count], Count]:
    def register(count: Count) -> Count:
        rule = " ".join(str(count.__doc__).partition("\n\n")[0].split())
        PROTOCOLS[name] = Protocol(name, count, sets, rule, equals, asks, ties, sizes)
        return count

    return register


# -- what rules share ---------------------------------------------------------------------------------------------------


def _orders(judgement: Judgement, asks: Literal["forward", "both"]) -> tuple[Pair, ...]:
    return judgement.orders if asks == "both" else (judgement.forward,)


def _credit(judgement: Judgement, rewards: Pair, right: float) -> Credit:
    return Credit(judgement.id, judgement.group, right, 1, int(not isinstance(rewards, Unscored)))


def _decided(judgements: Sequence[Judgement], asks: Literal["forward", "both"]) -> list[Credit]:
    """Pairs that people decided; a tie of the judge and a failure are wrong."""
    return [
        _credit(judgement, rewards, float(verdict(rewards) == judgement.winner))
        for judgement in judgements
        if judgement.winner != "tie"
        for rewards in _orders(judgement, asks)
    ]


# -- the protocols ------------------------------------------------------------------------------------------------------

OWN = "pairs/decided"


@_named(OWN, {}, "", "both")
def pairs_decided(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Share of the pairs that people decided on which the judge agrees; both orders count where it compares.

    For pairs of one's own. People's ties do not count; a tie of the judge and a failure are wrong (reward-models.md 4.5). It is
    ``test/pair_accuracy``.
    """
    return _decided(judgements, "both")


_MMRB2 = {name: ("t2i/test", "edit/test") for name in ("facebookresearch/MMRB2", "rl-research/multimodal-rewardbench-2")}


@_named("mmrb2/both-orders", _MMRB2, "of_answered", "both", sizes={"t2i/test": 1000, "edit/test": 1000})
def mmrb2_both_orders(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Right forward judgements and right flipped reverse ones, over both orders of all pairs.

    Source: ``compute_task_accuracy`` in ``evaluate/compute_scores/compute_accuracy.py`` of facebookresearch/MMRB2. There, judgements that
    are missing leave the denominator, each order by itself: that number is ``of_answered``. An answer that is neither A nor B (a tie) stays
    in it and is wrong. A judge of single pictures has one judgement a pair, which is the same number.
    """
    return _decided(judgements, "both")


_GENAI = {"TIGER-Lab/GenAI-Bench": ("image_generation/test_v1", "image_edition/test_v1")}
_GENAI_SIZES = {"image_generation/test_v1": 1735, "image_edition/test_v1": 919}
_KINDS = {"tievote": "both good", "bothbad_vote": "both bad"}


def four_way(judgement: Judgement, ties: Ties) -> tuple[str, str]:
    """People's vote and the judge's, each one of ``A``, ``B``, ``both good``, ``both bad``, ``tie`` (of no known kind), ``unscored``."""
    voted = judgement.winner if judgement.winner != "tie" else _KINDS.get(judgement.place.note, "tie")
    said = verdict(judgement.forward, ties.value)
    if isinstance(said, Unscored) or isinstance(judgement.forward, Unscored):
        return voted, "unscored"
    if said == "tie" and ties.good_level is not None:
        return voted, "both good" if sum(judgement.forward) / 2 >= ties.good_level else "both bad"
    return voted, said


@_named("genai-tiger/test_v1/4way", _GENAI, "value", "forward", "kinds", _GENAI_SIZES)
def genai_four_way(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Exact match of four votes (A, B, both good, both bad) over all rows, the left picture first.

    Source: ``parse_response`` in ``inference.py`` of TIGER-AI-Lab/GenAI-Bench, on the split ``test_v1``: an answer without a verdict is
    wrong and stays in the denominator. There, a bare tie (``A=B``) is right for both kinds of tie; here a tie has a kind, by the level
    that the threshold comes with, and one of no known kind is wrong (the looser number is ``bare_ties_credited``).
    """
    counted = []
    for judgement in judgements:
        voted, said = four_way(judgement, ties)
        counted.append(_credit(judgement, judgement.forward, float(voted == said and said != "tie")))
    return counted


@_named("genai-tiger/test_v1/decided", _GENAI, "", "forward", sizes=_GENAI_SIZES)
def genai_decided(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Share of the rows voted left or right on which the judge agrees, the left picture first.

    Nobody's official rule; what RationalRewards' own column seems to hold (reward-models.md 2.4.1), whose scripts leave failures out of
    the denominator and count ties by exact equality (paper.md 6.5): that would be ``of_answered``.
    """
    return _decided(judgements, "forward")


def _erbench(*subsets: str) -> dict[str, tuple[str, ...]]:
    return {"TIGER-Lab/EditReward-Bench": tuple(f"{subset}/train" for subset in subsets)}


@_named("erbench-tiger/K2/3way", _erbench("2pair"), "", "forward", "matched", {"2pair/train": 186})
def erbench_k2_three_way(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Exact match of three verdicts (A, B, tie) over all pairs of K = 2, the first candidate first; one threshold for all.

    Source: ``inference_2pair_hf.py`` of TIGER-AI-Lab/EditReward for judges that write a verdict: unreadable answers are wrong and failed
    calls leave the denominator, so its number lies between ``value`` and ``of_answered``. Its figure for scalar models
    (``eval_bench.py``) uses two rules at once and a threshold fitted on the rows that it counts (reward-models.md 4.5), and is not this.
    """
    return [
        _credit(judgement, judgement.forward, float(verdict(judgement.forward, ties.value) == judgement.winner))
        for judgement in judgements
    ]


@_named("erbench-tiger/K2/decided", _erbench("2pair"), "", "forward", sizes={"2pair/train": 186})
def erbench_k2_decided(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Share of the decided pairs of K = 2 on which the judge agrees, the first candidate first.

    ``calc_accuracy_without_ties`` in ``eval_bench.py`` of TIGER-AI-Lab/EditReward: C / (C + D + Tm), so that a tie of the judge is wrong;
    failures do not occur there.
    """
    return _decided(judgements, "forward")


_ERBENCH_ID = re.compile(r"TIGER-Lab\.EditReward-Bench-\dpair\.train\.(?P<key>.+?)(?:-row\d+)?")


def erbench_group(id: str) -> str:
    """The group of candidates that a comparison of K = 3 or 4 belongs to, from the pair's id: what stands before its first ``_``.

    Raises:
        ValueError: If the id does not tell, because the set's rows have no column ``id``.
    """
    found = _ERBENCH_ID.fullmatch(id)
    if found is None:
        raise ValueError(
            f"pair {id!r} has no id of TIGER-Lab/EditReward-Bench, so its group is not known; read the set with its column id"
        )
    ranked = re.fullmatch(r"(.+)-\d-\d", found["key"])  # from a row that ranks all candidates
    if ranked:
        return ranked[1]
    return found["key"].partition("_")[0] if "_" in found["key"] else found["key"][:10]


def _whole_groups(judgements: Sequence[Judgement], ties: Ties, candidates: int) -> Iterator[Credit]:
    groups: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        groups.setdefault(erbench_group(judgement.id), []).append(judgement)
    comparisons = candidates * (candidates - 1) // 2
    for key, members in groups.items():
        right = len(members) == comparisons and all(verdict(j.forward, ties.value) == j.winner for j in members)
        scored = sum(not isinstance(j.forward, Unscored) for j in members)
        yield Credit(key, members[0].group, float(right), comparisons, scored)


@_named("erbench-tiger/K3", _erbench("3pair"), "of_answered", "forward", sizes={"3pair/train": 450})
def erbench_k3(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Share of the groups of three edits whose three comparisons are all right, each in the stored order.

    Source: ``inference_3pair_hf.py`` of TIGER-AI-Lab/EditReward. A group with a missing comparison is wrong; one without any leaves the
    denominator there (``of_answered``). All three right is the full ranking exactly; chance is 11 % as published.
    """
    return list(_whole_groups(judgements, ties, 3))


@_named("erbench-tiger/K4", _erbench("4pair"), "of_answered", "forward", sizes={"4pair/train": 888})
def erbench_k4(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Share of the groups of four edits whose six comparisons are all right, each in the stored order.

    Source: ``inference_4pair_hf.py`` of TIGER-AI-Lab/EditReward; as K = 3. Chance is 1.4 % as published.
    """
    return list(_whole_groups(judgements, ties, 4))


_EDITSCORE = {"EditScore/EditReward-Bench": tuple(f"{name}/train" for name in ("overall", "prompt_following", "consistency"))}


@_named("erbench-editscore", _EDITSCORE, "", "both")
def erbench_editscore(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Share of the pairs of one dimension in which the better edit gets the higher reward; a tie is wrong.

    Source: ``calculate_statistics.py`` of VectorSpaceLab/EditScore (``score[0] > score[1]``, the first is the better one). There, the
    number is the mean over 13 kinds of edits, here ``mean_of_kinds`` where the pairs' origins tell the kind; a failed score is drawn at
    random there and wrong here. The judge's whole reward counts in every dimension.
    """
    return _decided(judgements, "both")


@_named("hpdv3/test", {"MizzenAI/HPDv3": ("test",)}, "value", "both")
def hpdv3_test(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Share of the test pairs in which the preferred picture gets the higher reward; a tie is wrong.

    Source: README and data card of MizzenAI/HPSv3: ``path1`` is always the preferred picture, there are no ties. Our reader shows each pair
    in an order drawn from its id, so that a judge of pairs cannot win by place.
    """
    return _decided(judgements, "both")


@_named("imagereward/test", {"zai-org/ImageRewardDB": ("test",)}, "value", "both")
def imagereward_test(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Share of the pairs of one prompt's pictures with different ranks in which the better rank gets the higher reward; a tie is wrong.

    Source: ``acc`` in ``test.py`` of THUDM/ImageReward: equal ranks give no pair, equal rewards stay in the denominator.
    """
    return _decided(judgements, "both")


_PICKAPIC = {"yuvalkirstain/pickapic_v2": ("test_unique", "test")}


@_named("pickapic/test", _PICKAPIC, "value", "both", "half", {"test_unique": 500})
def pickapic_test(judgements: Sequence[Judgement], ties: Ties) -> list[Credit]:
    """Mean credit over all rows: 1 for the same of three verdicts, half where only one side is a tie, else 0.

    Source: ``calc_score`` and ``get_pred`` in ``trainer/scripts/eval_preference_predictor.py`` of yuvalkirstain/PickScore. Its threshold
    is on the gap of the softmax of both scores, which grows with the gap of the scores, so that a threshold on either gives the same
    verdicts; it is chosen on ``validation_unique``. imscore's plain accuracy is ``decided``.
    """

    def credit(judgement: Judgement, rewards: Pair) -> float:
        said = verdict(rewards, ties.value)
        if isinstance(said, Unscored):
            return 0.0
        return 1.0 if said == judgement.winner else (0.5 if "tie" in (said, judgement.winner) else 0.0)

    return [_credit(judgement, rewards, credit(judgement, rewards)) for judgement in judgements for rewards in judgement.orders]
