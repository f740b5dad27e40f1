"""Answers forced into the critique format: the grammar takes what a critic should write and nothing else, whatever the model."""

from __future__ import annotations

import random
from typing import Any

import pytest
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from rationalrewards.components.answer_form import AnswerForm, Prose
from rationalrewards.components.chat import ChatRequest, OpenAIChat, TransformersChat
from rationalrewards.components.critic import ComparisonRequest, Critic, CritiqueRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.records import AspectCritique, Critique, NotApplicable, Unscored
from rationalrewards.components.rewards import CritiqueReward
from rationalrewards.components.shapes import judge, phrases
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.phrases import Asked
from rationalrewards.components.shapes.scenes import random_edit, random_scene


@pytest.fixture(scope="module")
def chat() -> TransformersChat:
    """The base VLM, which has never seen a critique."""
    model = TransformersChat("embedded:shapes-critic", batch_size=4)
    model.load()
    return model


@pytest.fixture(scope="module")
def vocabulary(chat: TransformersChat) -> Any:
    return from_tokenizer(chat.processor.tokenizer, eos_token=chat.processor.tokenizer.eos_token_id)


def _accepts(grammar: str, text: str, vocabulary: Any, chat: TransformersChat) -> bool:
    matcher = LLMatcher(vocabulary, grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = chat.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()


def _requests(count: int, seed: int = 0) -> list[CritiqueRequest]:
    rng = random.Random(seed)
    requests = []
    for index in range(count):
        scene = random_scene(rng)
        if index % 2:
            edit = random_edit(scene, rng)
            requests.append(CritiqueRequest("edit", edit.request(), draw(random_scene(rng)), (draw(scene),)))
        else:
            requests.append(CritiqueRequest("t2i", scene.request(), draw(random_scene(rng))))
    return requests


def _asked(request: CritiqueRequest) -> Asked:
    return Asked(request.prompt, judge.read(list(request.sources))[0].scene if request.sources else None)


def test_what_a_critic_should_write_is_accepted(vocabulary: Any, chat: TransformersChat) -> None:
    format = CritiqueFormat("shapes")
    for request in _requests(20):
        asked, (seen, other) = _asked(request), judge.read([request.image, draw(random_scene(random.Random(1)))])
        critique = phrases.critique(asked, seen)
        assert _accepts(format.pointwise_form(request.task).lark(), format.render(critique, request.task), vocabulary, chat)
        pair = format.render_pair(phrases.pair_critique(asked, seen, other), request.task)
        assert _accepts(format.pairwise_form(request.task).lark(), pair, vocabulary, chat)


GOOD = Critique(
    {
        "text_faithfulness": AspectCritique("red, as asked, # round, 2. with an edge", 3.5),
        "physical_quality": AspectCritique("a soft edge", 4.0),
        "text_rendering": AspectCritique("no text", NotApplicable()),
    },
    summary="good",
)


def test_the_default_rubric_too(vocabulary: Any, chat: TransformersChat) -> None:
    format = CritiqueFormat("default")
    grammar, text = format.pointwise_form("t2i").lark(), format.render(GOOD, "t2i")
    assert _accepts(grammar, text, vocabulary, chat)
    assert _accepts(grammar, text.replace("3.5", "3"), vocabulary, chat)
    refined = f"{text}\n# User Request Refinement:\n## Refinement Comments: sharper\n## Refined Request: a sharp ball, no text"
    assert _accepts(grammar, refined, vocabulary, chat) and _accepts(
        grammar, f"# User Request Analysis: a ball\n{text}", vocabulary, chat
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("## Score: 3.5", "## Score: 4.7"),
        ("## Score: 3.5", "## Score: 5"),
        ("## Score: 3.5", "## Score: 0.5"),
        ("## Score: 3.5", "## Score: [3.5]"),
        ("## Score: 3.5", "## Score: **3.5**"),
        ("## Score: 3.5", "## Score: 3.5/4"),
        ("## Score: 3.5", "## Score: N/A"),
        ("## Score: 3.5", "## Score: high"),
        ("## Score: 3.5\n", ""),
        ("1. Text Faithfulness", "1. Text Fidelity"),
        ("a soft edge", "a soft edge\n## Score: 1.0"),
        ("# Summary: good", "# Summary: "),
        ("3. Text Rendering:\n## Justification: no text\n## Score: N/A\n", ""),
    ],
)
def test_nothing_else_is(old: str, new: str, vocabulary: Any, chat: TransformersChat) -> None:
    format = CritiqueFormat("default")
    text = format.render(GOOD, "t2i")
    assert old in text
    assert not _accepts(format.pointwise_form("t2i").lark(), text.replace(old, new), vocabulary, chat)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_model_that_never_saw_a_critique_writes_readable_ones(temperature: float, chat: TransformersChat) -> None:
    critic = Critic(chat, CritiqueFormat("shapes"), 400, temperature, reasks=0, constrained=True, prose_tokens=10)
    requests = _requests(6)
    critiques = critic.critique(requests)
    assert [critique.failure for critique in critiques] == [""] * 6
    pairs = critic.compare([ComparisonRequest(r.task, r.prompt, (r.image, r.image), r.sources) for r in requests])
    assert not any(
        isinstance(score, Unscored)
        for pair in pairs
        for judged in pair.aspects.values()
        for score in (judged.score_a, judged.score_b)
    )
    free = Critic(chat, CritiqueFormat("shapes"), 400, temperature, reasks=0).critique(requests)
    assert all(critique.failure for critique in free)  # else the constraint did nothing here


def test_an_answer_does_not_depend_on_its_batch(chat: TransformersChat) -> None:
    requests = _requests(4, seed=2)
    critic = Critic(chat, CritiqueFormat("shapes"), 300, reasks=0, constrained=True, prose_tokens=6)
    together = [critique.text for critique in critic.critique(requests)]
    assert together == [critic.critique([request])[0].text for request in requests]
    assert len(set(together)) > 1


def test_rows_that_end_at_a_stop_string_leave_the_others_alone(chat: TransformersChat, capfd: pytest.CaptureFixture[str]) -> None:
    requests = _requests(6, seed=3)
    critic = Critic(chat, CritiqueFormat("shapes"), 400, 2.0, reasks=0, constrained=True, prose_tokens=8)
    whole, short = critic.critique(requests), critic.critique(requests, refinement=False)
    assert [critique.text for critique in short] == [critique.text.split("\n# User Request Refinement")[0] for critique in whole]
    assert any(critique.refined_request for critique in whole)  # else no row met the stop string
    assert "Parser Error" not in capfd.readouterr().err


def test_free_prose_that_does_not_end_is_a_failure_with_its_reason(chat: TransformersChat) -> None:
    reward = CritiqueReward(Critic(chat, CritiqueFormat("shapes"), 40, reasks=0, constrained=True))
    rewards = reward.score(_requests(2))
    assert rewards.total.isnan().all() and all("cut off after 40 tokens" in reason for reason in rewards.reasons)


def test_a_form_that_is_none_is_refused(chat: TransformersChat) -> None:
    nothing = AnswerForm((Prose("any"),), prose_tokens=-1)
    ask = ChatRequest([{"role": "user", "content": [{"type": "text", "text": "describe"}]}], form=nothing)
    with pytest.raises(ValueError, match="form cannot be followed"):
        chat.complete([ask])


def test_a_backend_that_cannot_constrain_says_so() -> None:
    critic = Critic(OpenAIChat("m", "http://localhost:1/v1"), CritiqueFormat("shapes"), constrained=True)
    with pytest.raises(ValueError, match="cannot force answers into a form; leave out `constrained`"):
        critic.critique(_requests(1))
