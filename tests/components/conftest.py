"""A critic that sees: the shapes world's ground truth behind the interface of a real model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from PIL import Image
from rationalrewards.components.chat import ChatModel, ChatReply, ChatRequest
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.critique.grammar import REFINEMENT_HEADING
from rationalrewards.components.shapes import judge, phrases
from rationalrewards.components.shapes.phrases import Asked


class SeeingChat(ChatModel):
    """Judges pictures of the shapes world from their pixels, without a flaw, and rewrites requests in detail.

    Args:
        speechless: Pictures about which it says nothing that can be read.
        numbered: Whether each rewritten request gets a number of its own, so that two rewrites are never the same.

    ``prompts``, ``pictures`` and ``begun`` are what it was asked about, shown, and given to go on from.
    """

    def __init__(self, speechless: Callable[[Image.Image], bool] = lambda image: False, numbered: bool = False) -> None:
        self.format = CritiqueFormat("shapes")
        self.speechless = speechless
        self.numbered = numbered
        self.prompts: list[str] = []
        self.pictures: list[Image.Image] = []
        self.begun: list[str] = []

    @property
    def identity(self) -> str:
        return "the ground truth"

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: ChatRequest) -> ChatReply:
        reply = self._said(request)
        if request.continues:
            self.begun.append(request.messages[-1]["content"][0]["text"])
        if request.continues and REFINEMENT_HEADING in reply.text:  # the answer has begun up to there
            reply = ChatReply(reply.text.partition(f"{REFINEMENT_HEADING}\n")[2])
        return replace(reply, prompt_tokens=100, completion_tokens=len(reply.text.split()))

    def _said(self, request: ChatRequest) -> ChatReply:
        *sources, image = request.images()
        prompt = request.text().rsplit("<request>", 1)[1].split("</request>")[0]
        self.prompts.append(prompt)
        self.pictures.append(image)
        try:
            asked = Asked(prompt, judge.read(sources)[0].scene if sources else None)
        except ValueError:
            return ChatReply("what is that?")
        if self.speechless(image):
            return ChatReply("I would rather not say.")
        critique = phrases.critique(asked, judge.read([image])[0])
        if self.numbered:
            critique = replace(critique, refined_request=f"{critique.refined_request}, version {len(self.prompts)}")
        return ChatReply(self.format.render(critique, "edit" if sources else "t2i"))


@pytest.fixture
def seeing() -> type[SeeingChat]:
    return SeeingChat
