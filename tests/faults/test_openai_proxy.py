"""`transformers serve` with the embedded critic behind a proxy that spoils answers: what arrives, and that every request is counted."""

from __future__ import annotations

import contextlib
import random
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image
from rationalrewards.components.answer_form import AnswerForm, Prose
from rationalrewards.components.chat import ChatReply, ChatRequest, OpenAIChat, Place, TransformersChat
from rationalrewards.components.critique import CritiqueFormat
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_scene
from rationalrewards.lightning_modules import RationaleDistillModule
from servers import FaultServer, completion, refused, running, transformers_serve
from support import needs

pytestmark = [pytest.mark.slow, needs("openai", "fastapi", "uvicorn")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The root of the server, and the folder that it serves, as distillation exports it."""
    work = tmp_path_factory.mktemp("served")
    folder = str(work / "critic")
    student = RationaleDistillModule("embedded:shapes-critic", CritiqueFormat("shapes"))
    student.configure_model()
    student.export(folder)
    with transformers_serve(folder, work / "serve.log") as url:
        yield url, folder


@pytest.fixture(scope="module")
def local(served: tuple[str, str]) -> TransformersChat:
    chat = TransformersChat(served[1])
    chat.load()
    return chat


@pytest.fixture
def proxy(served: tuple[str, str]) -> Iterator[FaultServer]:
    # named by their seed, which changes nothing at temperature 0: all texts are ones that the critic was trained on
    with running(FaultServer(upstream=served[0], name=lambda body: str(body.get("seed")))) as proxy:
        yield proxy


def _ask(text: str, picture: Image.Image, **settings: Any) -> ChatRequest:
    content = [{"type": "text", "text": text}, {"type": "image", "image": picture}]
    return ChatRequest([{"role": "user", "content": content}], **{"max_tokens": 48, **settings})


def _pictures(number: int) -> list[Image.Image]:
    rng = random.Random(5)
    return [draw(random_scene(rng)) for _ in range(number)]


def _chat(url: str | list[str], folder: str, **settings: Any) -> contextlib.closing[OpenAIChat]:
    return contextlib.closing(OpenAIChat(folder, url, **{"timeout": 120.0, **settings}))


def _same(remote: ChatReply, local: ChatReply) -> None:
    assert (remote.failure, remote.text, remote.prompt_tokens) == ("", local.text, local.prompt_tokens)
    assert remote.completion_tokens == local.completion_tokens + 1  # the server counts the end of the turn as well


def test_transformers_serve_answers_as_the_model_in_this_process_does(
    served: tuple[str, str], proxy: FaultServer, local: TransformersChat
) -> None:
    pictures = _pictures(4)
    asks = [_ask("describe the picture", picture) for picture in pictures]
    asks.append(_ask("how sharp is the picture", pictures[0]))
    with _chat([served[0], proxy.url], served[1], concurrency=2) as chat:
        chat.load()  # both are ready: the model is there, and a picture makes the prompt longer
        # a list of models and two questions for each of the two; a server that is busy with something else is looked at again
        assert chat.account["probes"] >= 6
        for remote, here in zip(chat.complete(asks), local.complete(asks), strict=True):
            _same(remote, here)
        # an answer that the limit cuts off is a failure there too
        (cut,) = chat.complete([_ask("describe the picture", pictures[0], max_tokens=4)])
    assert "cut off after 4 tokens" in cut.failure


# what the proxy does to each call -> (what each attempt is counted as, what the failure says, or "" for the model's own answer)
FAULTS: dict[str, tuple[list[Any], list[str], str]] = {
    "untouched": (["fine"], [], ""),
    "too many": ([(429, {"Retry-After": "1"}), "fine"], ["HTTP 429"], ""),
    "server error": ([(500, {}), (502, {}), "fine"], ["HTTP 500", "HTTP 502"], ""),
    "server error for ever": ([(503, {})], ["HTTP 503"] * 3, "HTTP 503"),
    "connection lost": (["hang up", "fine"], ["no connection"], ""),
    "hang": (["hang", "fine"], ["no answer in time"], ""),
    "hang for ever": (["hang"], ["no answer in time"] * 3, "no answer within"),
    "half an answer": (["half", "fine"], ["no connection"], ""),
    "half an answer for ever": (["half"], ["no connection"] * 3, "APIConnectionError"),
    "wrong JSON": ([b'{"error": "no"}', b'{"choices": [', "fine"], ["no chat completion"] * 2, ""),
    "garbage": ([b"\x00\xff garbage", "fine"], ["no chat completion"], ""),
    "garbage for ever": ([b"<html>bad gateway</html>"], ["no chat completion"] * 3, "no chat completion"),
    "text that was cut": ([completion("top left", "length")], ["cut off"], "cut off after 48 tokens"),
    "refused request": ([(400, {})], ["HTTP 400"], "HTTP 400"),
}


def test_every_fault_on_the_way_is_counted(served: tuple[str, str], proxy: FaultServer, local: TransformersChat) -> None:
    seeds = {name: str(seed) for seed, name in enumerate(FAULTS)}
    proxy.treatments = {seeds[name]: treatments for name, (treatments, _, _) in FAULTS.items()}
    asks = [_ask("describe the picture", picture, seed=seed) for seed, picture in enumerate(_pictures(len(FAULTS)))]
    expected = local.complete(asks)
    # the last ones in a queue of real answers wait; a hanging call takes all of this, twice and three times
    with _chat(proxy.url, served[1], concurrency=len(asks), attempts=3, timeout=15.0, breaker=0) as chat:
        replies = chat.complete(asks)
        account = chat.account
    faults: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for name, reply, here in zip(FAULTS, replies, expected, strict=True):
        _, seen, failure = FAULTS[name]
        faults.update(seen)
        assert reply.attempts == len(seen) + (not failure) == len(proxy.calls[seeds[name]]), (name, reply)
        if failure:
            failed[seen[-1]] += 1
            assert re.search(failure, reply.failure), (name, reply)
        else:
            _same(reply, here)
    assert account["requests"] == len(FAULTS) and account["failed"] == dict(failed) and account["faults"] == dict(faults)
    assert account["answered"] == len(FAULTS) - failed.total()
    assert account["sent"] == len(proxy.bodies) == account["answered"] + faults.total()
    assert account["retried"] == account["sent"] - len(FAULTS)
    answered = [reply for reply in replies if not reply.failure]
    # the spoilt answers that came whole cost tokens as well: 7 and 3 of the one that was cut
    assert account["prompt_tokens"] == sum(reply.prompt_tokens for reply in answered) + 7
    assert account["completion_tokens"] == sum(reply.completion_tokens for reply in answered) + 3


def test_one_of_three_servers_is_dead_and_one_fails(served: tuple[str, str], proxy: FaultServer, local: TransformersChat) -> None:
    asks = [_ask("describe the picture", picture) for picture in _pictures(8)]
    proxy.default = (503, {})
    with refused() as dead, _chat([dead, proxy.url, served[0]], served[1], concurrency=2) as chat:
        with ThreadPoolExecutor(4) as threads:
            rounds = list(threads.map(lambda index: chat.complete(asks[index : index + 2]), range(0, 8, 2)))
        account = chat.account
    for remote, here in zip([reply for replies in rounds for reply in replies], local.complete(asks), strict=True):
        _same(remote, here)
    assert account["requests"] == account["answered"] == account["sent_to"][served[0]] == 8
    # each bad one is tried by those that are under way together at the start, and then left alone
    assert 1 <= account["sent_to"].get(dead, 0) + account["sent_to"].get(proxy.url, 0) <= 4
    assert account["faults"] == {
        kind: account["sent_to"][url]
        for kind, url in (("no connection", dead), ("HTTP 503", proxy.url))
        if url in account["sent_to"]
    }


def test_a_server_goes_away_and_comes_back(served: tuple[str, str], proxy: FaultServer, local: TransformersChat) -> None:
    asks = [_ask("describe the picture", picture) for picture in _pictures(3)]
    here = local.complete(asks)
    with _chat(proxy.url, served[1], concurrency=1, attempts=1, breaker=2) as chat:
        for remote, expected in zip(chat.complete(asks), here, strict=True):
            _same(remote, expected)
        proxy.default = "hang up"
        first, second, third = chat.complete(asks)
        assert first.failure.startswith("APIConnectionError") and second.failure.startswith("APIConnectionError")
        assert re.match("not sent, the circuit breaker is open: 2 requests.*APIConnectionError", third.failure)
        first, second, third = chat.complete(asks)
        assert [reply.attempts for reply in (first, second, third)] == [1, 0, 0]
        proxy.default = "fine"
        for remote, expected in zip(chat.complete(asks), here, strict=True):
            _same(remote, expected)
        account = chat.account
    assert account["requests"] == 12 and account["answered"] == 6
    assert account["failed"] == {"no connection": 3, "not sent": 3} and account["sent"] == len(proxy.bodies) == 9


def test_what_transformers_serve_cannot_do_is_said(served: tuple[str, str], proxy: FaultServer) -> None:
    form = AnswerForm(("top left ", Prose("rest")))
    (picture,) = _pictures(1)
    for structured in ("vllm", "vllm_guided", "sglang", "json_schema"):
        with _chat(proxy.url, served[1], structured=structured) as chat:
            (reply,) = chat.complete([_ask("describe the picture", picture, form=form)])
        # it takes `response_format` without a word, and answers as ever
        reason = "the answer is not in the form" if structured == "json_schema" else "HTTP 4..: "
        assert re.match(reason, reply.failure) and reply.attempts == 1, (structured, reply)
    with _chat(proxy.url, served[1]) as chat:
        ((weight,),) = chat.weigh([_ask("describe the picture", picture)], ["top left red"], [[Place(9, ("red", "blue"))]])
    assert re.match("HTTP 4..: ", weight.failure) and not weight.options
