"""How refinement searches: budgets, breadth, what varies, and why it stops."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from PIL import Image
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.critique.grammar import REFINEMENT_HEADING
from rationalrewards.components.records import PromptRecord, Unscored
from rationalrewards.components.refine import STOPS, RefineOptions, Studio, Trace, accepted, run_arm

FORMAT = CritiqueFormat("shapes")
RECORDS = [
    PromptRecord("a", "t2i", "red circle top left, blue square top right"),
    PromptRecord("b", "t2i", "green triangle bottom left"),
    PromptRecord("c", "t2i", "yellow cross top right, letter A bottom right"),
]
NEVER = {"threshold": 4.0, "seed": 3}
"""Flawed pictures never score 4 in everything."""


def refined(painter: Any, chat: Any, arm: str = "refine_keep_best", records: Any = RECORDS, **options: Any) -> list[Trace]:
    studio = Studio(painter, Critic(chat, FORMAT, reasks=0), options.get("seed", 0))
    return run_arm(arm, records, studio, RefineOptions(**options))  # type: ignore[arg-type]


def rewards(trace: Trace) -> list[float]:
    return [-1.0 if made.reward is None else made.reward for made in trace.made]


def test_pictures_and_rounds_are_budgets(painter: Any, seeing: Any) -> None:
    flawed = painter(flaws=(2,))
    for trace in refined(flawed, seeing(), images_per_prompt=8, breadth=3, **NEVER):
        assert trace.stop == "images"
        assert [made.round for made in trace.made] == [0, 1, 1, 1, 2, 2, 2, 3]  # the last round is what is left
    for trace in refined(flawed, seeing(), images_per_prompt=8, breadth=3, rounds=2, **NEVER):
        assert trace.stop == "rounds"
        assert [made.round for made in trace.made] == [0, 1, 1, 1, 2, 2, 2]
    (trace,) = refined(flawed, seeing(), records=RECORDS[:1], images_per_prompt=8, rounds=0, **NEVER)
    assert (trace.stop, len(trace.made)) == ("rounds", 1)


def test_critic_tokens_are_a_budget_and_every_one_is_counted(painter: Any, seeing: Any) -> None:
    free = refined(painter(flaws=(2,)), seeing(), images_per_prompt=6, **NEVER)
    for trace in free:
        # each critique reads 100 tokens and writes a token a word
        assert [made.tokens for made in trace.made] == [100 + len(made.critique.text.split()) for made in trace.made]
        assert trace.tokens == sum(made.tokens for made in trace.made)
    limit = free[0].made[0].tokens + 1  # more than the first critique takes, and less than two
    for trace, unbounded in zip(
        refined(painter(flaws=(2,)), seeing(), images_per_prompt=6, tokens_per_prompt=limit, **NEVER), free, strict=True
    ):
        assert trace.stop == "tokens"
        spent, count = 0, 0
        while spent < limit:
            spent, count = spent + unbounded.made[count].tokens, count + 1
        assert len(trace.made) == count == 2
    # a rewrite apart from its critique costs, too
    scores = refined(painter(flaws=(2,)), seeing(), "refine_scores_only", images_per_prompt=3, **NEVER)
    for trace in scores:
        assert all(made.tokens > 200 for made in trace.made[1:])


def test_an_accepted_picture_ends_it_early(painter: Any, seeing: Any) -> None:
    traces = refined(painter(flaws=(0, 1, 2)), seeing(), images_per_prompt=12, threshold=3.9, seed=1, breadth=2)
    ended = [trace for trace in traces if trace.stop == "accepted"]
    assert ended
    for trace in ended:
        last = trace.made[-1].round
        assert any(accepted(made.critique, 3.9) for made in trace.made if made.round == last)
        assert not any(accepted(made.critique, 3.9) for made in trace.made if made.round < last)
        assert rewards(trace)[trace.chosen] == max(rewards(trace))


@pytest.mark.parametrize("patience", [1, 3])
def test_no_gain_for_some_rounds_ends_it(painter: Any, seeing: Any, patience: int) -> None:
    for trace in refined(painter(flaws=(1, 2)), seeing(), images_per_prompt=40, breadth=2, patience=patience, **NEVER):
        assert trace.stop == "no gain"
        tops = [
            max(reward for reward, made in zip(rewards(trace), trace.made, strict=True) if made.round == number)
            for number in range(trace.made[-1].round + 1)
        ]
        best = [max(tops[: number + 1]) for number in range(len(tops))]
        still = [after <= before for before, after in pairwise(best)]
        # the last rounds brought nothing better, and never before so many in a row
        assert all(still[-patience:]) and not any(all(still[n : n + patience]) for n in range(len(still) - patience))
    (trace,) = refined(painter(flaws=(2,)), seeing(), records=RECORDS[:1], images_per_prompt=9, patience=1, min_gain=1.0, **NEVER)
    assert (trace.stop, len(trace.made)) == ("no gain", 2)  # no picture is better by a whole point


def test_pictures_that_cannot_be_made_are_counted_and_never_chosen(painter: Any, seeing: Any) -> None:
    records = [PromptRecord(str(index), "t2i", RECORDS[0].prompt) for index in range(12)]
    mixed = 0
    for trace in refined(painter(fails=0.5), seeing(), records=records, images_per_prompt=6, **NEVER):
        made = [not isinstance(one.picture, Unscored) for one in trace.made]
        mixed += 0 < sum(made) < len(made)
        for one in trace.made:
            if isinstance(one.picture, Unscored):
                assert one.reward is None and one.picture.reason == one.critique.failure == "no picture: no paint left"
                with pytest.raises(ValueError, match="there is no picture: no picture: no paint left"):
                    _ = one.image
        if any(made):
            assert trace.image.size == (32, 32)
            assert rewards(trace)[trace.chosen] == max(rewards(trace)) > -1
    assert mixed >= 3  # the case was met
    for trace in refined(painter(fails=1.0), seeing(), records=records[:2], images_per_prompt=6, max_failures=2, **NEVER):
        assert (trace.stop, len(trace.made), trace.chosen) == ("failures", 2, 0)
    for arm in ("best_of_n", "blind_rewrite_best_of_n"):
        for trace in refined(painter(fails=1.0), seeing(), arm, records=records[:2], images_per_prompt=3, **NEVER):
            assert (trace.stop, len(trace.made), trace.gain) == ("images", 3, None)


def test_kept_noise_changes_only_the_words(painter: Any, seeing: Any) -> None:
    work = painter(flaws=(2,))
    for trace in refined(work, seeing(numbered=True), images_per_prompt=4, seeds="kept", **NEVER):
        assert len({made.request for made in trace.made}) == 4
        assert {made.copy for made in trace.made} == {0}
    assert len({seed for _, seed in work.asked}) == len(RECORDS)
    for trace in refined(painter(flaws=(2,)), seeing(numbered=True), images_per_prompt=4, **NEVER):
        assert [made.copy for made in trace.made] == [0, 1, 2, 3]


def test_the_same_words_on_the_same_noise_are_no_further_picture(painter: Any, seeing: Any) -> None:
    for trace in refined(painter(flaws=(2,)), seeing(), images_per_prompt=6, seeds="kept", **NEVER):
        # rewritten once; then it rewrites the rewrite into itself
        assert (trace.stop, len(trace.made)) == ("no rewrite", 2)


@pytest.mark.parametrize("vary", ["rewrite", "critique", "seed"])
def test_what_varies_within_a_round(painter: Any, seeing: Any, vary: str) -> None:
    chat = seeing(numbered=True)
    work = painter(flaws=(2,))
    traces = refined(work, chat, images_per_prompt=4, breadth=3, vary=vary, **NEVER)
    for trace in traces:
        first, *others = trace.made
        assert others[0].request == first.critique.refined_request  # the critic's own comes first
        assert [made.parent for made in others] == [0, 0, 0]
        assert len({made.copy for made in trace.made}) == 4
        assert len({made.request for made in others}) == (1 if vary == "seed" else 3)
        own, *more = (made.tokens - 100 - len(made.critique.text.split()) for made in others)
        assert own == 0 and all((tokens > 0) == (vary != "seed") for tokens in more)
    begun = {"rewrite": 6, "critique": 0, "seed": 0}[vary]
    assert len(chat.begun) == begun
    for text in chat.begun:
        assert text.endswith(f"{REFINEMENT_HEADING}\n")
        assert text.split(REFINEMENT_HEADING)[0].rstrip() in {
            trace.made[0].critique.text.split(REFINEMENT_HEADING)[0].rstrip() for trace in traces
        }


def test_a_search_from_the_best_does_not_follow_what_is_worse(painter: Any, seeing: Any) -> None:
    followed = {"best": 0, "latest": 0}
    for parent in followed:
        chat = seeing(numbered=True)
        for trace in refined(painter(flaws=(1, 2, 3)), chat, images_per_prompt=8, breadth=2, parent=parent, **NEVER):
            for number in range(1, trace.made[-1].round + 1):
                before = [index for index, made in enumerate(trace.made) if made.round < number]
                latest = [index for index in before if trace.made[index].round == number - 1]
                scores = rewards(trace)
                parents = {made.parent for made in trace.made if made.round == number}
                assert parents == {max(before if parent == "best" else latest, key=lambda index: (scores[index], -index))}
                followed[parent] += parents != {max(before, key=lambda index: (scores[index], -index))}
            # a picture that is refined a second time gets new words
            assert len({made.request for made in trace.made}) == len(trace.made)
    assert followed["best"] == 0 < followed["latest"]


def test_scores_only_sees_neither_picture_nor_words(painter: Any, seeing: Any) -> None:
    chat = seeing()
    traces = refined(painter(flaws=(2,)), chat, "refine_scores_only", images_per_prompt=2, **NEVER)
    assert len(chat.begun) == len(RECORDS)
    seen = [picture for picture in chat.pictures if picture.getcolors() == [(32 * 32, (128, 128, 128))]]
    assert len(seen) == len(RECORDS)
    for text, trace in zip(chat.begun, traces, strict=True):
        said = FORMAT.parse(text, "t2i")
        critique = trace.made[0].critique
        assert {key: said.score(key) for key in said.aspects} == {key: critique.score(key) for key in critique.aspects}
        assert not any(judged.justification for judged in said.aspects.values()) and not said.summary and not said.analysis
        assert any(
            judged.justification and judged.justification in trace.made[0].critique.text for judged in critique.aspects.values()
        )


def test_shuffled_goes_on_from_the_next_requests_critique(painter: Any, seeing: Any, tmp_path: Any) -> None:
    chat = seeing()
    traces = refined(painter(flaws=(2,)), chat, "refine_shuffled", images_per_prompt=2, **NEVER)
    for text, other in zip(chat.begun, [*traces[1:], traces[0]], strict=True):
        assert text.split(REFINEMENT_HEADING)[0].rstrip() == other.made[0].critique.text.split(REFINEMENT_HEADING)[0].rstrip()
    assert [picture.tobytes() for picture in chat.pictures[3:6]] == [trace.made[0].image.tobytes() for trace in traces]
    alone = seeing()
    (trace,) = refined(painter(flaws=(2,)), alone, "refine_shuffled", RECORDS[:1], images_per_prompt=2, **NEVER)
    assert not alone.begun and {made.request for made in trace.made} == {RECORDS[0].prompt}


def test_few_pictures_a_call_are_the_same_pictures(painter: Any, seeing: Any) -> None:
    calls: list[int] = []

    class Counting(painter):  # type: ignore[misc, valid-type]
        def sample(self, prompts: Any, sources: Any, seeds: Any) -> Any:
            calls.append(len(prompts))
            return super().sample(prompts, sources, seeds)

    def pictures(**options: Any) -> list[bytes]:
        calls.clear()
        critic = Critic(seeing(), FORMAT)
        made = RefineOptions(images_per_prompt=4, **NEVER)  # type: ignore[arg-type]
        studio = Studio(Counting(), critic, 3, **options)
        return [one.image.tobytes() for trace in run_arm("best_of_n", RECORDS, studio, made) for one in trace.made]

    together = pictures()
    assert calls == [12]
    assert pictures(pictures_per_call=5) == together
    assert calls == [5, 5, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"breadth": 0}, "breadth must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, or null for none, got 0"),
        ({"tokens_per_prompt": -5}, "tokens_per_prompt must be at least 1, or null for none, got -5"),
        ({"rounds": -1}, "rounds must be at least 0, or null for no limit, got -1"),
        ({"vary": "seed", "seeds": "kept", "breadth": 2}, "leave nothing that differs within a round; set breadth: 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefineOptions(**options)


def test_every_reason_to_stop_is_named() -> None:
    assert set(STOPS) == {"accepted", "images", "tokens", "rounds", "no rewrite", "no gain", "failures"}


def test_an_oracle_needs_a_judge(painter: Any, seeing: Any) -> None:
    with pytest.raises(ValueError, match="arm 'oracle' picks by the held-out judge: give `judge`"):
        refined(painter(), seeing(), "oracle")


def test_a_blank_picture_has_the_colour_that_was_asked_for(painter: Any, seeing: Any) -> None:
    chat = seeing()
    studio = Studio(painter(), Critic(chat, FORMAT), 0, blank=(236, 236, 230))
    run_arm("blind_rewrite", RECORDS[:1], studio, RefineOptions())
    assert chat.pictures[0].tobytes() == Image.new("RGB", (32, 32), (236, 236, 230)).tobytes()
