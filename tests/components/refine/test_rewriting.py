"""Rewriting from a given critique, with real models that go on from a given beginning, and servers that may not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from rationalrewards.components.chat import ChatReply, ChatRequest, OpenAIChat, TransformersChat
from rationalrewards.components.critic import Critic
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.critique.grammar import REFINEMENT_HEADING
from rationalrewards.components.records import AspectCritique, Critique, Unscored
from rationalrewards.components.refine.rewriting import RewriteRequest, rewrite, told
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import Scene, Shape
from servers import FaultServer
from support import needs

FORMAT = CritiqueFormat("shapes")
PROMPT = "red circle top left, blue square top right"
IMAGE = draw(Scene((Shape("red", "circle"), None, None, None)))


@pytest.fixture(scope="module")
def chat() -> TransformersChat:
    """The embedded base model: it was never taught to criticise, but it writes what it is forced to."""
    made = TransformersChat("embedded:shapes-critic")
    made.load()
    return made


def test_an_answer_goes_on_from_a_given_beginning(chat: TransformersChat) -> None:
    turns = FORMAT.pointwise_messages("t2i", PROMPT, (), IMAGE)
    whole = chat.complete([ChatRequest(turns, max_tokens=24)])[0]
    begun = chat.complete([ChatRequest(turns, max_tokens=2)])[0]
    assert whole.text.startswith(begun.text) and len(whole.text) > len(begun.text) > 0
    answer = {"role": "assistant", "content": [{"type": "text", "text": begun.text}]}
    (rest,) = chat.complete([ChatRequest([*turns, answer], max_tokens=22)])
    assert begun.text + rest.text == whole.text
    # the beginning is read, not written
    assert rest.completion_tokens == whole.completion_tokens - 2
    assert rest.prompt_tokens == whole.prompt_tokens + 2


def test_a_form_holds_for_what_comes_after_the_beginning(chat: TransformersChat) -> None:
    critic = Critic(chat, FORMAT, max_tokens=400, constrained=True, prose_tokens=6, reasks=0)
    asked = [RewriteRequest("t2i", PROMPT, IMAGE, (), told(critique_of(4.0, 2.5, 3.0), FORMAT, "t2i"), n) for n in (0, 1, 2, 0)]
    first, *drawn, again = rewrite(critic, asked, temperature=2.0)
    assert first[0] and first == again
    assert len({text for text, _ in (first, *drawn)}) == 3  # each with a seed of its own


def critique_of(*scores: float) -> Critique:
    keys = FORMAT.rules.keys("t2i")
    aspects = {key: AspectCritique(f"about {key}", score) for key, score in zip(keys, scores, strict=True)}
    critique = Critique(aspects, "mostly right", "fix it", "a better request", analysis="what is asked")
    return FORMAT.parse(FORMAT.render(critique, "t2i"), "t2i")


def test_what_is_told_ends_with_the_refinements_heading() -> None:
    critique = critique_of(4.0, 2.5, 3.0)
    full, bare = told(critique, FORMAT, "t2i"), told(critique, FORMAT, "t2i", words=False)
    for text in (full, bare):
        assert text.endswith(f"\n{REFINEMENT_HEADING}\n") and text.count(REFINEMENT_HEADING) == 1
        assert "a better request" not in text and "fix it" not in text
        said = FORMAT.parse(text, "t2i")
        assert [said.score(key) for key in said.aspects] == [4.0, 2.5, 3.0]
    assert "about text_faithfulness" in full and "what is asked" in full and "mostly right" in full
    assert "about" not in bare and "what is asked" not in bare and "mostly right" not in bare
    # of one without an answer's text, its parts are written down
    unwritten = Critique({key: AspectCritique("seen", 3.0) for key in FORMAT.rules.keys("t2i")}, "so so")
    assert FORMAT.parse(told(unwritten, FORMAT, "t2i"), "t2i").summary == "so so"
    failed = Critique({key: AspectCritique("", Unscored("cut off")) for key in FORMAT.rules.keys("t2i")})
    assert told(failed, FORMAT, "t2i") == ""


class Answers(TransformersChat):
    """Answers with a set text."""

    def __init__(self, text: str, failure: str = "") -> None:
        super().__init__("embedded:shapes-critic")
        self.reply = ChatReply(text, failure, prompt_tokens=5, completion_tokens=2)

    def complete(self, requests: Any) -> list[ChatReply]:
        assert all(request.continues for request in requests)
        return [self.reply for _ in requests]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Answers("## Refinement Comments: fix it\n## Refined Request: two cats"), "two cats"),
        (Answers("## Refined Request:\ntwo cats\non a sofa"), "two cats\non a sofa"),
        (Answers("I would rather not."), ""),
        # it began anew instead of going on: not a rewrite from what it was given
        (Answers(FORMAT.render(Critique(critique_of(4.0, 2.5, 3.0).aspects, "x", "y", "two cats"), "t2i")), ""),
        (Answers("## Refined Request: two c", failure="cut off"), ""),
    ],
)
def test_what_counts_as_a_rewrite(reply: Answers, expected: str) -> None:
    asked = RewriteRequest("t2i", PROMPT, Image.new("RGB", (32, 32)), (), told(critique_of(4.0, 2.5, 3.0), FORMAT, "t2i"))
    assert rewrite(Critic(reply, FORMAT), [asked, asked], 0.8) == [(expected, 7), (expected, 7)]
    assert rewrite(Critic(reply, FORMAT), [], 0.8) == []


@pytest.fixture
def server() -> Iterator[FaultServer]:
    served = FaultServer()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@needs("openai")
def test_a_server_is_asked_to_go_on(server: FaultServer) -> None:
    server.answer = "## Refinement Comments: more light\n## Refined Request: two cats in the sun"
    remote = OpenAIChat("m", server.url, ready_timeout=0)
    asked = RewriteRequest("t2i", PROMPT, IMAGE, (), told(critique_of(4.0, 2.5, 3.0), FORMAT, "t2i"))
    ((request, tokens),) = rewrite(Critic(remote, FORMAT), [asked], 0.8)
    remote.complete([ChatRequest([{"role": "user", "content": [{"type": "text", "text": "hello"}]}])])
    remote.close()
    assert (request, tokens) == ("two cats in the sun", 7 + 3 + 16)  # of a request with one picture
    begun, plain = server.bodies
    assert begun["messages"][-1] == {"role": "assistant", "content": asked.told}
    assert (begun["continue_final_message"], begun["add_generation_prompt"]) == (True, False)
    assert not {"continue_final_message", "add_generation_prompt"} & set(plain)
