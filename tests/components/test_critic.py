"""A critic asks again what it could not read, keeps the order, and never makes a number of a failure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest, Place, TransformersChat, Weights
from rationalrewards.components.critic import ComparisonRequest, Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat, save_fingerprint
from rationalrewards.components.critique.formats import REFINEMENT_HEADING
from rationalrewards.components.records import (
    AspectComparison,
    AspectCritique,
    Critique,
    NotApplicable,
    PairCritique,
    Unscored,
    from_json,
    to_json,
)
from rationalrewards.components.rewards import CritiqueReward, critique_rewards
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_scene

FORMAT = CritiqueFormat()


def _written(score: float) -> str:
    scores = {"text_faithfulness": score, "physical_quality": score, "text_rendering": NotApplicable()}
    return FORMAT.render(Critique({key: AspectCritique("", value) for key, value in scores.items()}), "t2i")


class Script(ChatModel):
    """Answers from a table of prompts to answers, one after the other; the last one for ever."""

    def __init__(self, table: dict[str, list[ChatReply | str]]) -> None:
        self.table = table
        self.asked: list[list[tuple[str, ChatRequest]]] = []

    @property
    def identity(self) -> str:
        return "script"

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        replies = []
        self.asked.append([])
        for request in requests:
            prompt = request.text().rsplit("<request>", 1)[1].removesuffix("</request>")
            self.asked[-1].append((prompt, request))
            answers = self.table[prompt]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            replies.append(answer if isinstance(answer, ChatReply) else ChatReply(answer))
        return replies


def _requests(*prompts: str) -> list[CritiqueRequest]:
    return [CritiqueRequest("t2i", prompt, Image.new("RGB", (4, 4))) for prompt in prompts]


def test_only_what_failed_is_asked_again_with_another_seed() -> None:
    chat = Script(
        {
            "good": [_written(4.0)],
            "second try": ["I would rather not", _written(2.5)],
            "third try": [ChatReply("half", failure="cut off"), "mumble", _written(1.0)],
            "never": ["mumble"],
            "down": [ChatReply("", failure="HTTP 500")],
        }
    )
    critic = Critic(chat, FORMAT, max_tokens=77, temperature=0.1, reasks=2, reask_temperature=0.9)
    critiques = critic.critique(_requests("good", "second try", "third try", "never", "down"))
    rewards = [critique.reward() for critique in critiques]
    assert rewards[:3] == [1.0, 0.5, 0.0]
    assert isinstance(rewards[3], Unscored) and "Text Faithfulness is missing" in rewards[3].reason
    assert rewards[4] == Unscored("HTTP 500")
    assert [[prompt for prompt, _ in batch] for batch in chat.asked] == [
        ["good", "second try", "third try", "never", "down"],
        ["second try", "third try", "never", "down"],
        ["third try", "never", "down"],
    ]
    settings = [{(r.max_tokens, r.temperature, r.seed) for _, r in batch} for batch in chat.asked]
    assert settings == [{(77, 0.1, 0)}, {(77, 0.9, 1)}, {(77, 0.9, 2)}]


def test_no_reask_when_all_is_read_or_none_is_wanted() -> None:
    chat = Script({"good": [_written(4.0)], "bad": ["mumble"]})
    Critic(chat, FORMAT, reasks=5).critique(_requests("good"))
    Critic(chat, FORMAT, reasks=0).critique(_requests("bad"))
    assert len(chat.asked) == 2


def test_refinement_is_stopped_before_it_starts_where_nobody_reads_it() -> None:
    chat = Script({"good": [_written(4.0)]})
    critic = Critic(chat, FORMAT)
    critic.critique(_requests("good"))
    critic.critique(_requests("good"), refinement=False)
    CritiqueReward(critic).score(_requests("good"))
    assert [batch[0][1].stop for batch in chat.asked] == [(), (REFINEMENT_HEADING,), (REFINEMENT_HEADING,)]


def test_comparisons_are_read_and_asked_again() -> None:
    aspects = {key: AspectComparison("", 3.0, 2.0, "A") for key in FORMAT.rules.keys("t2i")}
    chat = Script({"pair": ["Image A", FORMAT.render_pair(PairCritique(aspects), "t2i")], "never": ["Image B"]})
    first, second = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (9, 9, 9))
    requests = [ComparisonRequest("t2i", prompt, (first, second)) for prompt in ("pair", "never")]
    critiques = Critic(chat, FORMAT, reasks=1).compare(requests)
    assert critiques[0].verdict() == "A"
    assert isinstance(critiques[1].verdict(), Unscored)
    assert chat.asked[0][0][1].images() == [first, second]
    assert len(chat.asked[1]) == 2


def test_a_critic_trained_on_another_format_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    save_fingerprint(tmp_path, CritiqueFormat("shapes"))
    with pytest.raises(ValueError, match="'shapes'.*'default'"):
        Critic(TransformersChat(str(tmp_path)), CritiqueFormat("default")).load()


class Doubtful(Script):
    """Finds two scores equally probable at the first place of an answer and is sure of the written one at the others."""

    def weigh(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> list[list[Weights]]:
        self.weighed = [[answer[place.start :][:3] for place in row] for answer, row in zip(answers, places, strict=True)]
        return [
            [Weights({"2.0": 0.3, "3.0": 0.3}), *[Weights({answer[place.start :][:3]: 0.5}) for place in row[1:]]] if row else []
            for answer, row in zip(answers, places, strict=True)
        ]


def test_expected_scores_stand_beside_the_written_ones_and_count() -> None:
    chat = Doubtful({"good": [_written(4.0)], "bad": ["mumble"]})
    good, bad = Critic(chat, FORMAT, reasks=0, expected=True).critique(_requests("good", "bad"))
    assert chat.weighed == [["4.0", "4.0"], []]  # N/A has no expected score
    assert good.score("text_faithfulness") == 4.0 and good.value("text_faithfulness") == 2.5
    assert good.aspects["text_faithfulness"].expected == 2.5 and good.value("physical_quality") == 4.0
    assert isinstance(good.value("text_rendering"), NotApplicable)
    assert good.reward() == pytest.approx((2.5 + 4.0) / 2 / 3 - 1 / 3)
    assert isinstance(bad.reward(), Unscored) and isinstance(bad.value("nonsense"), Unscored)
    rewards = critique_rewards([good, bad])
    assert rewards.values[0, 0] == 2.5 and rewards.valid.tolist() == [True, False]
    assert from_json(Critique, to_json(good)) == good


@pytest.mark.parametrize("lost", [Weights({}, "the server is gone"), Weights({"3.0": 0.0})])
def test_a_critique_with_one_unknown_place_keeps_all_its_written_scores(lost: Weights) -> None:
    class Lost(Doubtful):
        def weigh(self, *arguments: Any) -> list[list[Weights]]:
            return [[*row[:-1], lost] for row in super().weigh(*arguments)]

    (critique,) = Critic(Lost({"good": [_written(4.0)]}), FORMAT, expected=True).critique(_requests("good"))
    assert critique.reward() == 1.0 and all(judged.expected is None for judged in critique.aspects.values())


def test_a_backend_without_probabilities_says_so() -> None:
    with pytest.raises(ValueError, match="Script does not show its probabilities; leave out expected scores"):
        Critic(Script({"good": [_written(4.0)]}), FORMAT, expected=True).critique(_requests("good"))


def test_expected_scores_of_a_real_model_are_the_means_over_its_probabilities() -> None:
    chat = TransformersChat("embedded:shapes-critic", batch_size=4)
    format = CritiqueFormat("shapes")
    rng = random.Random(4)
    requests = [CritiqueRequest("t2i", random_scene(rng).request(), draw(random_scene(rng))) for _ in range(3)]
    critic = Critic(chat, format, 300, constrained=True, prose_tokens=8, expected=True)
    for request, critique in zip(requests, critic.critique(requests), strict=True):
        ask = ChatRequest(format.pointwise_messages("t2i", request.prompt, (), request.image))
        for judged in critique.aspects.values():
            if isinstance(judged.score, float):
                assert judged.at is not None and float(critique.text[judged.at :].split("\n")[0]) == judged.score
                ((weights,),) = chat.weigh([ask], [critique.text], [[Place(judged.at, format.rules.scale.options())]])
                mass = sum(weights.options.values())
                mean = sum(float(option) * weight for option, weight in weights.options.items()) / mass
                # read alone and in a batch: rounding of float32 in another order of sums
                assert judged.expected == pytest.approx(mean, abs=1e-4) and 1.0 < mean < 4.0
