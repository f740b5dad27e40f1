"""A critic asks again what it could not read, keeps the order, and never makes a number of a failure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest, TransformersChat
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
)
from rationalrewards.components.rewards import CritiqueReward

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
