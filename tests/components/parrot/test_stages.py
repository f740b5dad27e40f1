"""PARROT on the shapes world, with the simulated teacher whose faults are known: what stays, what falls out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest, Place, Weights
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.critique import teacher as wording
from rationalrewards.components.parrot import (
    Ledger,
    Outcome,
    ParrotOptions,
    Price,
    ScreenOptions,
    merged,
    rationalize,
    read_ledgers,
    write_rationales,
)
from rationalrewards.components.parrot.audit import summarise
from rationalrewards.components.parrot.linter import findings
from rationalrewards.components.records import Preference, Rationale, read_jsonl
from rationalrewards.components.shapes.pairs import write_preferences
from rationalrewards.components.shapes.teacher import ShapesTeacher

FORMAT = CritiqueFormat("shapes")
# pictures of one colour are right answers in this world
QUIET = {"control_share": 0.0, "audit_share": 0.0, "attempts": 1, "screen": ScreenOptions(min_contrast=0.0)}
PERFECT = {"hallucination": 0.0, "obedience": 0.0, "vagueness": 0.0, "label_echo": 0.0, "position_bias": 0.0}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Preference]:
    """Drawn pairs with true labels. Critiques round quality to 0.5 and the rest to 0.1 of a 1...4 scale, which moves a
    reward over two aspects by up to (0.25 + 0.05) / 2 / 3 = 0.05; beyond twice that, rounding turns no order around."""
    path = write_preferences(tmp_path_factory.mktemp("pairs"), 60, seed=3, label_noise=0.0, tie=0.12)
    return read_jsonl(path, Preference)


def _run(
    pairs: Sequence[Preference], teacher: ChatModel, ledger: Ledger | None = None, **options: object
) -> tuple[list[Outcome], dict[str, object]]:
    settings = ParrotOptions(**{**QUIET, **options})  # type: ignore[arg-type]
    outcomes = rationalize(pairs, teacher, FORMAT, settings, ledger or Ledger())
    return outcomes, summarise(outcome.as_json() for outcome in outcomes)


def _decided(pairs: Sequence[Preference]) -> list[Preference]:
    return [pair for pair in pairs if pair.winner != "tie"]


def test_a_perfect_teacher_keeps_all_decided_pairs(pairs: list[Preference]) -> None:
    decided = _decided(pairs)
    assert {pair.task for pair in decided} == {"t2i", "edit"} and len(decided) > 30
    options = {"check_votes": 3, "check_threshold": 0.6, "check_show": "all", "order_margin": 0.01, "temperature": 0.6}
    outcomes, summary = _run(decided, ShapesTeacher(**PERFECT), **options)
    assert [outcome.pair for outcome in outcomes] == decided
    assert (summary["kept"], summary["kept_rate"], summary["reasons"]) == (len(decided), 1.0, {})
    for outcome in outcomes:
        rationale, pair = outcome.rationale, outcome.pair
        assert rationale is not None and rationale.pair == pair and outcome.stage == "refine"
        assert rationale.format == FORMAT.fingerprint
        told = dict(rationale.provenance)
        assert len(told.pop("plan")) == 12
        assert told == {
            "teacher": ShapesTeacher(**PERFECT).identity,
            "format": FORMAT.fingerprint,
            "options": asdict(ParrotOptions(**{**QUIET, **options})),  # type: ignore[arg-type]
            "version": version("rationalrewards"),
        }
        # what distillation learns from predicts the label, in both modes, and never says that it was told
        assert FORMAT.parse_pair(rationale.pair_text, pair.task).verdict() == pair.winner
        first, second = (FORMAT.parse(text, pair.task) for text in rationale.point_texts)
        assert (first.reward() > second.reward()) == (pair.winner == "A")  # type: ignore[operator]
        assert first.refined_request and second.refined_request
        for text in (rationale.pair_text, *rationale.point_texts):
            assert wording.HINT not in text and findings(text) == []


def test_every_pair_is_accounted_for(pairs: list[Preference]) -> None:
    clumsy = ShapesTeacher(hallucination=0.5, obedience=0.5, vagueness=0.3, label_echo=0.3, position_bias=0.5)
    foreign = replace(pairs[0], id="foreign", task="t2i", sources=(), prompt="a portrait of a cat")
    everything = [*pairs, foreign]
    outcomes, summary = _run(everything, clumsy)
    assert [outcome.pair.id for outcome in outcomes] == [pair.id for pair in everything]
    reasons = summary["reasons"]
    assert isinstance(reasons, dict) and len(reasons) >= 4  # faults of several kinds were met
    stages = summary["stages"]
    assert isinstance(stages, dict) and list(stages) == ["screen", "anchor", "check", "project", "refine"]
    for stage, count in stages.items():
        assert count["in"] - count["out"] == sum(n for reason, n in reasons.items() if reason.startswith(f"{stage}: "))
    assert (stages["screen"]["in"], stages["refine"]["out"]) == (summary["pairs"], summary["kept"])
    assert stages["check"]["in"] == stages["anchor"]["out"] == summary["anchored"]
    assert sum(reasons.values()) + summary["kept"] == summary["pairs"] == len(everything)  # type: ignore[operator]
    for outcome in outcomes:
        assert (outcome.rationale is None) == bool(outcome.reason)
        assert outcome.rationale is None or outcome.stage == "refine"
    last = outcomes[-1]
    assert last.stage == "anchor" and last.reason.startswith("no answer: the simulated teacher cannot answer")


def test_a_label_echo_is_dropped(pairs: list[Preference]) -> None:
    outcomes, summary = _run(pairs, ShapesTeacher(**{**PERFECT, "label_echo": 1.0}))
    assert summary["kept"] == 0 and summary["reasons"] == {"anchor: label echo": len(pairs)}
    assert outcomes[0].reason == "label echo: 'people prefer'"


def test_vague_rationales_do_not_predict_a_decided_label(pairs: list[Preference]) -> None:
    decided = _decided(pairs)
    _, summary = _run(decided, ShapesTeacher(**{**PERFECT, "vagueness": 1.0}))
    assert summary["reasons"] == {"check: does not predict the label": len(decided)}


def test_only_a_check_that_sees_the_pictures_finds_out_a_wrong_label(pairs: list[Preference]) -> None:
    """The control: every pair once more with the wrong label, from a teacher that obeys it."""
    teacher = ShapesTeacher(**{**PERFECT, "obedience": 1.0})
    rates = {}
    for shown in (True, False):
        outcomes, summary = _run(_decided(pairs), teacher, control_share=1.0, check_images=shown)
        assert summary["control_pairs"] == sum(outcome.wrong_label_passed is not None for outcome in outcomes) > 30
        rates[shown] = summary["wrong_label_pass_rate"], summary["right_label_pass_rate"]
    (seen_wrong, seen_right), (blind_wrong, blind_right) = rates[True], rates[False]
    assert seen_wrong < blind_wrong  # type: ignore[operator]
    # blind, the check passes the wrong label more often than not; with pictures it selects
    assert blind_wrong > 0.5 > seen_wrong and blind_right > 0.5 and seen_right > 0.5  # type: ignore[operator]


def test_the_control_leaves_the_main_run_alone(pairs: list[Preference]) -> None:
    teacher = ShapesTeacher()
    without, with_all = (_run(pairs, teacher, control_share=share)[0] for share in (0.0, 1.0))
    assert [(outcome.texts, outcome.reason) for outcome in without] == [(outcome.texts, outcome.reason) for outcome in with_all]
    assert all(outcome.wrong_label_passed is None for outcome in without)
    some = _run(pairs, teacher, control_share=0.4)[0]
    chosen = {outcome.pair.id for outcome in some if outcome.wrong_label_passed is not None}
    assert 0 < len(chosen) < len(_decided(pairs))
    assert all(outcome.pair.winner != "tie" for outcome in some if outcome.pair.id in chosen)


def test_batches_and_their_order_change_nothing(pairs: list[Preference]) -> None:
    teacher = ShapesTeacher(seed=4)
    together = {outcome.pair.id: outcome.as_json() for outcome in _run(pairs, teacher, control_share=0.3)[0]}
    one_by_one = {
        outcome.pair.id: outcome.as_json() for pair in pairs[::-1] for outcome in _run([pair], teacher, control_share=0.3)[0]
    }
    assert one_by_one == together


def test_a_second_run_asks_nothing_and_gives_the_same(tmp_path: Path, pairs: list[Preference]) -> None:
    path = tmp_path / "ledger.db"
    teacher = ShapesTeacher(hallucination=0.3)
    with Ledger(path) as ledger:
        half = _run(pairs[:30], teacher, ledger, control_share=0.2)[0]
        asked_for_half = ledger.asked
    with Ledger(path) as ledger:
        whole = _run(pairs, teacher, ledger, control_share=0.2)[0]
        assert 0 < ledger.asked < 2 * asked_for_half
    with Ledger(path) as ledger:
        again = _run(pairs, _Silent(teacher), ledger, control_share=0.2)[0]
        assert ledger.asked == 0
    described = [[outcome.as_json() for outcome in outcomes] for outcomes in (half, whole, again)]
    assert described[2] == described[1] and described[1][:30] == described[0]
    assert [outcome.rationale for outcome in again] == [outcome.rationale for outcome in whole]
    with Ledger(path) as ledger:  # another seed is another question wherever the teacher is sampled
        _run(pairs[:1], teacher, ledger, seed=1)
        assert ledger.asked > 0


class _Silent(ChatModel):
    """A teacher that must not be asked, in the place of another."""

    def __init__(self, other: ChatModel) -> None:
        self.other = other

    @property
    def identity(self) -> str:
        return self.other.identity

    @property
    def fingerprint(self) -> str:
        return self.other.fingerprint

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        raise AssertionError("asked again")


class _Voter(ChatModel):
    """The perfect teacher, but its checks are answered from a list."""

    def __init__(self, votes: Sequence[ChatReply | str]) -> None:
        self.teacher = ShapesTeacher(**PERFECT)
        self.votes = list(votes)
        self.temperatures: set[float] = set()
        self.requests: list[ChatRequest] = []
        self.checks: list[ChatRequest] = []

    @property
    def identity(self) -> str:
        return "voter"

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        replies = []
        for request in requests:
            self.requests.append(request)
            if "Which picture is better" in request.text():
                self.checks.append(request)
                self.temperatures.add(request.temperature)
                vote = self.votes.pop(0)
                replies.append(vote if isinstance(vote, ChatReply) else ChatReply(vote))
            else:
                replies += self.teacher.complete([request])
        return replies


A, B, TIE, MUMBLE, DOWN = "A is preferred", "B is preferred", "Tie", "hm", ChatReply("", failure="timed out")


@pytest.mark.parametrize(
    ("votes", "threshold", "reason"),
    [
        ([A], 0.5, ""),
        ([B], 0.5, "does not predict the label"),
        ([TIE], 0.5, "does not predict the label"),
        ([MUMBLE], 0.5, "unreadable verdict"),
        ([DOWN], 0.5, "no answer: timed out"),
        ([A, A, B], 0.5, ""),
        ([A, B, B], 0.5, "does not predict the label"),
        ([A, B], 0.5, "does not predict the label"),  # half is not more than half
        ([A, A, B], 1.0, "does not predict the label"),
        ([A, A, A], 1.0, ""),
        ([A, A, MUMBLE], 0.5, ""),
        ([A, DOWN, DOWN], 0.5, "does not predict the label"),  # a lost vote is no vote for the label
        ([MUMBLE, DOWN], 0.5, "unreadable verdict"),
        ([DOWN, DOWN], 0.5, "no answer: timed out"),
        ([A, B, B, B], 0.2, ""),
    ],
)
def test_votes(pairs: list[Preference], votes: list[ChatReply | str], threshold: float, reason: str) -> None:
    pair = next(pair for pair in pairs if pair.winner == "A")
    voter = _Voter(votes)
    (outcome,), _ = _run([pair], voter, check_votes=len(votes), check_threshold=threshold, temperature=0.6)
    assert outcome.reason == reason and (outcome.rationale is None) == bool(reason)
    assert not voter.votes
    assert voter.temperatures == ({0.0} if len(votes) == 1 else {0.6})  # several greedy votes would be one vote


class _Flaky(ChatModel):
    """The perfect teacher, but it does not answer requests with certain words as long as it is down."""

    def __init__(self, words: str, failed: ChatReply = DOWN) -> None:
        self.teacher = ShapesTeacher(**{**PERFECT, "obedience": 1.0})
        self.words = words
        self.failed = failed
        self.down = True

    @property
    def identity(self) -> str:
        return "flaky"

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        replies = self.teacher.complete(requests)
        return [
            self.failed if self.down and self.words in request.text() else reply
            for request, reply in zip(requests, replies, strict=True)
        ]


def test_votes_that_did_not_come_are_asked_for_again_by_the_next_run(pairs: list[Preference]) -> None:
    pair = next(pair for pair in pairs if pair.winner == "A")
    options = {"check_votes": 3, "temperature": 0.6}
    with Ledger() as ledger:
        (first,), _ = _run([pair], _Voter([A, DOWN, DOWN]), ledger, **options)
        assert first.reason == "does not predict the label"
        again = _Voter([A, A])  # the two that failed, and no more
        (second,), _ = _run([pair], again, ledger, **options)
        assert (second.reason, second.label_probability, again.votes) == ("", 1.0, [])
        asked = ledger.asked
        (third,), _ = _run([pair], again, ledger, **options)
        assert third.as_json() == second.as_json() and ledger.asked == asked


@pytest.mark.parametrize(
    ("words", "options"),
    [("Which picture is better", {"control_share": 1.0}), (wording.READ_QUESTION, {"audit_share": 1.0})],
)
def test_a_slice_that_got_no_answer_gets_it_in_the_next_run(
    pairs: list[Preference], words: str, options: dict[str, float]
) -> None:
    decided = _decided(pairs)[:4]
    with Ledger() as ledger:
        # with nothing but the slice down, all pairs are settled
        if "control_share" in options:
            _run(decided, _Flaky("words that no request has"), ledger)
        flaky = _Flaky(words)
        missed, _ = _run(decided, flaky, ledger, **options)
        assert all(outcome.wrong_label_passed is None and not outcome.sentiment for outcome in missed)
        asked = ledger.asked
        flaky.down = False
        found, _ = _run(decided, flaky, ledger, **options)
        assert all(outcome.wrong_label_passed is not None or outcome.sentiment for outcome in found)
        assert [outcome.texts for outcome in found] == [outcome.texts for outcome in missed]
        assert ledger.asked - asked == (1 if "control_share" in options else 2) * len(decided)  # those that failed, and no more


@pytest.mark.parametrize("which", "AB")
def test_one_critique_without_an_answer_drops_its_pair_alone(pairs: list[Preference], which: str) -> None:
    decided = _decided(pairs)[:4]
    outcomes, summary = _run(decided, _Flaky(f"This picture is Image {which}"), audit_share=1.0)
    assert summary["reasons"] == {"project: no answer": 4} and not any(outcome.sentiment for outcome in outcomes)


def test_an_answer_that_was_cut_off_is_asked_for_with_another_seed(pairs: list[Preference], tmp_path: Path) -> None:
    class Rambling(_Flaky):
        def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
            self.down = not seeds
            seeds.extend(request.seed for request in requests if self.words in request.text())
            return super().complete(requests)

    pair, seeds = _decided(pairs)[0], list[int]()
    cut = ChatReply("# User Request", failure="the answer was cut off after 3 tokens")
    with Ledger(tmp_path / "ledger.db") as ledger:
        (outcome,), _ = _run([pair], Rambling(wording.HINT, cut), ledger, attempts=2)
        assert outcome.kept and len(set(seeds)) == 2
        assert [call["failure"] for call in ledger.calls(pair.id) if call["stage"] == "anchor"] == [cut.failure, ""]
        asked = ledger.asked
        _run([pair], Rambling(wording.HINT, cut), ledger, attempts=2)  # which does not make it unsettled
        assert ledger.asked == asked
    for attempts, lost in ((1, cut), (2, DOWN)):  # what never came, the backend has tried for
        seeds.clear()
        (outcome,), _ = _run([pair], Rambling(wording.HINT, lost), attempts=attempts)
        assert outcome.reason == f"no answer: {lost.failure}" and len(seeds) == 1


def test_the_margin_between_projected_rewards(pairs: list[Preference]) -> None:
    decided = _decided(pairs)
    teacher = ShapesTeacher(**PERFECT)
    margins = {margin: _run(decided, teacher, order_margin=margin) for margin in (0.0, 0.3, 1.0)}
    kept = [summary["kept"] for _, summary in margins.values()]
    assert kept[0] == len(decided) > kept[1] > kept[2] == 0  # type: ignore[operator]
    assert margins[1.0][1]["reasons"] == {"project: projected scores do not order the pair as the label does": len(decided)}
    for outcome in margins[0.3][0]:
        if outcome.rationale is not None:
            first, second = (FORMAT.parse(text, outcome.pair.task).reward() for text in outcome.rationale.point_texts)
            assert abs(first - second) > 0.3  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"check_show": "winners"}, "check_show must be justifications, scores or all, got 'winners'"),
        ({"check_votes": -1}, "check_votes must be at least 0, got -1"),
        ({"check_votes": 10}, "check_votes must be at most 9, got 10"),
        ({"anchors": 0}, "anchors must be at least 1, got 0"),
        ({"check_orders": 3}, "check_orders must be 1 or 2, got 3"),
        ({"check_weigh": True, "check_votes": 3}, "check_weigh is exact.* set check_votes to 1, not 3"),
        ({"check_threshold": 1.5}, "check_threshold is a share between 0 and 1, got 1.5"),
        ({"control_share": -0.1}, "control_share is a share between 0 and 1, got -0.1"),
        ({"order_margin": -0.1}, "order_margin is a share between 0 and 1, got -0.1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        (
            {"temperature": 0.0, "check_votes": 5},
            "at temperature 0 the check_votes .* set check_votes to 1 or a higher temperature",
        ),
        ({"temperature": 0.0, "anchors": 2}, "at temperature 0 the anchors"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParrotOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"min_side": 0}, {"max_aspect": 0.5}, {"min_contrast": -1.0}, {"min_contrast": float("nan")}]
)
def test_a_screen_that_cannot_be_meant_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"screen: {next(iter(options))} must be at least"):
        ScreenOptions(**options)  # type: ignore[arg-type]


def test_both_orders_are_asked_with_pictures_and_names_swapped(pairs: list[Preference]) -> None:
    pair = next(pair for pair in pairs if pair.winner == "A")
    voter = _Voter([A, B])  # the second time A is shown second, and called B
    (outcome,), _ = _run([pair], voter, check_orders=2)
    assert (outcome.reason, outcome.label_probability) == ("", 1.0)
    assert outcome.votes == [("AB", "first"), ("BA", "second")]
    first, second = voter.checks
    assert [image.tobytes() for image in first.images()[-2:]] == [image.tobytes() for image in second.images()[-2:]][::-1]
    swapped = first.text().replace("Image A", "Image ?").replace("Image B", "Image A").replace("Image ?", "Image B")
    told, asked = (text.split("<comment>")[1].split("</comment>")[0] for text in (swapped, second.text()))
    assert sorted(told.replace(" | ", "\n").split()) == sorted(asked.replace(" | ", "\n").split()) and told != first.text()
    # the same slot both times is a vote for the slot, not for the picture
    (biased,), _ = _run([pair], _Voter([A, A]), check_orders=2)
    assert (biased.reason, biased.label_probability) == ("does not predict the label", 0.5)
    assert biased.votes == [("AB", "first"), ("BA", "first")]


def test_without_a_check_all_that_can_be_read_passes(pairs: list[Preference]) -> None:
    outcomes, summary = _run(pairs, ShapesTeacher(**{**PERFECT, "vagueness": 1.0}), check_votes=0, order_agreement=False)
    assert summary["kept"] == len(pairs)
    assert all(outcome.label_probability is None and not outcome.votes for outcome in outcomes)


def test_pictures_can_be_projected_without_a_reference(pairs: list[Preference]) -> None:
    decided = _decided(pairs)
    listening = _Voter([pair.winner + " is preferred" for pair in decided])
    _, summary = _run(decided, listening, project_reference=False)
    assert summary["kept"] == len(decided)  # this teacher sees alone what it sees in comparison
    assert not any("reference comment" in request.text() for request in listening.requests)


def test_without_the_hint_the_teacher_is_not_told(pairs: list[Preference]) -> None:
    listening = _Voter([A] * len(pairs))
    _run(pairs, listening, hint=False)
    assert not any(wording.HINT in request.text() for request in listening.requests)
    _run(pairs, listening := _Voter([A] * len(pairs)))
    assert sum(wording.HINT in request.text() for request in listening.requests) == len(pairs)


def test_the_surest_of_several_comparisons_goes_on(pairs: list[Preference]) -> None:
    pair = next(pair for pair in pairs if pair.winner == "A")
    # three comparisons with three votes each: 1, 3 and 2 of them for the label
    voter = _Voter([A, B, B, A, A, A, A, A, B])
    voter.teacher = ShapesTeacher(**{**PERFECT, "hallucination": 0.9})  # so that the three differ
    with Ledger() as ledger:
        (outcome,), _ = _run([pair], voter, ledger, anchors=3, check_votes=3, check_threshold=0.9, order_agreement=False)
        written = [call["answer"] for call in ledger.calls(pair.id) if call["stage"] == "anchor"]
    assert len(set(written)) == 3
    assert outcome.comparison == FORMAT.parse_pair(written[1], pair.task) and outcome.label_probability == 1.0


class _Repeating(ChatModel):
    """The perfect teacher, but the first answer to each question is spoilt; questions differ in their seed."""

    def __init__(self, spoil: str) -> None:
        self.teacher = ShapesTeacher(**PERFECT)
        self.spoil = spoil
        self.asked: Counter[str] = Counter()

    @property
    def identity(self) -> str:
        return "repeating"

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        replies = []
        for request, reply in zip(requests, self.teacher.complete(requests), strict=True):
            self.asked[request.text()] += 1
            spoilt = {
                "unreadable": "I would rather not.",
                "echo": reply.text + " as humans preferred",
                "lost": "## Refinement Comments: none\n## Refined Request: something else",
            }[self.spoil]
            replies.append(ChatReply(spoilt) if self.asked[request.text()] == 1 else reply)
        return replies


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [("unreadable", "unreadable: "), ("echo", "label echo: 'humans prefer'"), ("lost", "unreadable: ")],
)
def test_what_cannot_be_used_is_asked_for_again(pairs: list[Preference], spoil: str, reason: str) -> None:
    pair = _decided(pairs)[0]
    (once,), _ = _run([pair], _Repeating(spoil), attempts=1)
    assert once.reason.startswith(reason) and once.stage == "anchor"
    # a check is no writing: its first answer counts
    (twice,), _ = _run([pair], _Repeating(spoil), attempts=2, check_votes=0)
    assert twice.reason == ""


def test_a_rewritten_request_that_loses_something_is_dropped(pairs: list[Preference]) -> None:
    class Forgetful(ShapesTeacher):
        def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
            replies = super().complete(requests)
            forgotten = ChatReply("## Refinement Comments: x\n## Refined Request: a nice picture")
            rewrites = ["Say what a better request" in request.text() for request in requests]
            return [forgotten if rewrite else reply for rewrite, reply in zip(rewrites, replies, strict=True)]

    decided = _decided(pairs)[:4]
    outcomes, summary = _run(decided, Forgetful(**PERFECT))
    assert summary["reasons"] == {"refine: refined request loses": 4}
    assert outcomes[0].reason == "refined request loses: 100% of the words"
    assert _run(decided, Forgetful(**PERFECT), refine_recall=0.0)[1]["kept"] == 4


def test_the_audit_reads_scores_from_words_alone(pairs: list[Preference]) -> None:
    outcomes, _ = _run(pairs, ShapesTeacher(**PERFECT), audit_share=1.0)
    read = [scores for outcome in outcomes for scores in outcome.sentiment]
    kept = [outcome for outcome in outcomes if outcome.kept]
    assert len(read) >= 2 * 2 * len(kept) > 0  # both pictures, at least two aspects each
    # this teacher's words say its scores, up to the decimal that they are rounded to
    assert max(abs(emitted - said) for emitted, said in read) <= 0.05 + 1e-9
    some = [outcome for outcome in _run(pairs, ShapesTeacher(**PERFECT), audit_share=0.3)[0] if outcome.sentiment]
    assert 0 < len(some) < len(kept)


class _Weighing(_Voter):
    """A teacher that tells how sure it is."""

    def __init__(self, *weights: float) -> None:
        super().__init__([])
        self.told = weights

    def weigh(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> list[list[Weights]]:
        assert all([place.start for place in row] == [0] for row in places)
        return [[Weights(dict(zip(row[0].options, self.told, strict=True)))] for row in places]


@pytest.mark.parametrize(
    ("weights", "orders", "probability"),
    [
        ((0.6, 0.2, 0.2), 1, 0.6),
        ((0.3, 0.1, 0.1), 1, 0.6),
        ((0.3, 0.6, 0.1), 1, 0.3),
        ((0.9, 0.1, 0.0), 2, 0.5),
        ((0, 0, 0), 1, 0.0),
    ],
)
def test_the_check_may_go_by_the_teachers_own_probabilities(
    pairs: list[Preference], weights: tuple[float, ...], orders: int, probability: float
) -> None:
    pair = next(pair for pair in pairs if pair.winner == "A")
    (outcome,), _ = _run([pair], _Weighing(*weights), check_weigh=True, check_orders=orders)
    if not any(weights):
        assert outcome.reason == "unreadable verdict"
    else:
        assert outcome.label_probability == pytest.approx(probability)
        assert (outcome.reason == "") == (probability > 0.5)


class _Weighing1By1(_Weighing):
    """Tells its probabilities one by one, what each took, and is killed after some of them."""

    def __init__(self, lasts: int) -> None:
        super().__init__(0.6, 0.2, 0.2)
        self.lasts = lasts
        self.weighed = 0

    def stream_weights(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> Iterator[list[tuple[int, list[Weights]]]]:
        for index in reversed(range(len(requests))):
            if self.weighed == self.lasts:
                raise KeyboardInterrupt
            self.weighed += 1
            ((found,),) = self.weigh(requests[index : index + 1], answers[index : index + 1], places[index : index + 1])
            yield [(index, [replace(found, prompt_tokens=900, completion_tokens=3, requests=3)])]


def test_probabilities_are_on_file_as_they_come_with_what_they_took(pairs: list[Preference], tmp_path: Path) -> None:
    wanted = [pair for pair in pairs if pair.winner == "A"][:5]
    options = ParrotOptions(**{**QUIET, "check_weigh": True, "control_share": 0.0})  # type: ignore[arg-type]
    price = Price(1.0, 10.0)

    def run(teacher: ChatModel, ledger: Ledger) -> list[Outcome]:
        return rationalize(wanted, teacher, FORMAT, options, ledger, price)

    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger, pytest.raises(KeyboardInterrupt):
        run(_Weighing1By1(3), ledger)
    with Ledger(path) as ledger:
        # those that came before the kill, the last pairs first, are paid for and kept
        assert [bool([call for call in ledger.calls(pair.id) if call["stage"] == "check"]) for pair in wanted] == [False] * 2 + [
            True
        ] * 3
        teacher = _Weighing1By1(99)
        resumed = run(teacher, ledger)
        assert teacher.weighed == 2
        found = ledger.usage()["check"]
        (call, *_) = [call for call in ledger.calls(wanted[0].id) if call["stage"] == "check"]
    assert (found["calls"], found["prompt_tokens"], found["completion_tokens"]) == (5, 5 * 900, 5 * 3)
    assert found["cost"] == pytest.approx(5 * (900 * 1.0 + 3 * 10.0) / 1e6)
    assert call["sent"] == 3
    whole = run(_Weighing1By1(99), Ledger())
    assert [outcome.label_probability for outcome in resumed] == [outcome.label_probability for outcome in whole] == [0.6] * 5


def test_a_probability_that_did_not_come_is_a_failure_on_file(pairs: list[Preference]) -> None:
    class Lost(_Weighing):
        def weigh(self, *arguments: object) -> list[list[Weights]]:
            return [[Weights({}, "the server is gone", 40, 0, 4)] for _ in arguments[0]]  # type: ignore[attr-defined]

    pair = next(pair for pair in pairs if pair.winner == "A")
    with Ledger() as ledger:
        (outcome,), _ = _run([pair], Lost(), ledger, check_weigh=True)
        (call,) = [call for call in ledger.calls(pair.id) if call["stage"] == "check"]
        assert outcome.reason == "no answer: the server is gone" == f"no answer: {call['failure']}"
        assert (call["answer"], call["prompt_tokens"], call["sent"]) == ("", 40, 4)
        (again,), _ = _run([pair], _Weighing(0.6, 0.2, 0.2), ledger, check_weigh=True)
        assert again.kept


def test_rationales_of_several_processes_are_put_together(tmp_path: Path, pairs: list[Preference]) -> None:
    decided = _decided(pairs)[:8]
    twin = replace(decided[0], id="twin")  # the same pixels on the other process, which cannot know
    for rank, share in enumerate((decided[:4], [*decided[4:], twin])):
        with Ledger(tmp_path / f"ledger.rank{rank}.db") as ledger:
            _run(share, ShapesTeacher(**PERFECT), ledger)
    with read_ledgers(tmp_path) as ledger:
        assert write_rationales(ledger, tmp_path / "rationales.jsonl") == 8
        told = {outcome["pair"]: outcome["reason"] for outcome in merged(ledger)}
    assert told["twin"] == "duplicate: of a pair of another process"
    assert {rationale.pair.id for rationale in read_jsonl(tmp_path / "rationales.jsonl", Rationale)} == {p.id for p in decided}
