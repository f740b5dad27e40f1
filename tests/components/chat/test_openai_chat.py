"""The client against a real server that fails on purpose."""

from __future__ import annotations

import base64
import contextlib
import gc
import io
import json
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rationalrewards.components.answer_form import AnswerForm, Choice, Maybe, Prose
from rationalrewards.components.chat import ChatRequest, OpenAIChat
from rationalrewards.components.chat.faults import retry_after
from rationalrewards.components.chat.pictures import within
from rationalrewards.components.critic import Critic, CritiqueRequest
from rationalrewards.components.critique.formats import CritiqueFormat
from servers import FaultServer, completion, refused, running
from support import needs

pytestmark = needs("openai")


def _ask(text: str, *images: Image.Image, **settings: Any) -> ChatRequest:
    content = [{"type": "text", "text": text}, *({"type": "image", "image": image} for image in images)]
    return ChatRequest([{"role": "user", "content": content}], **settings)


def _chat(url: str | list[str], model: str = "m", **settings: Any) -> contextlib.closing[OpenAIChat]:
    return contextlib.closing(OpenAIChat(model, url, **settings))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with running(FaultServer()) as server:
        yield server


@pytest.fixture
def second() -> Iterator[FaultServer]:
    with running(FaultServer()) as server:
        yield server


# -- faults and the account ------------------------------------------------------------------------------------------------

BUSY = (429, {"Retry-After": "2"})
# what the server does to each call -> (what each attempt is counted as, what the failure says, or "" for an answer)
FAULTS: dict[str, tuple[list[Any], list[str], str]] = {
    "fine at once": (["fine"], [], ""),
    "500, then fine": ([(500, {}), "fine"], ["HTTP 500"], ""),
    "529, then fine": ([(529, {}), "fine"], ["HTTP 529"], ""),
    "408, then fine": ([(408, {}), "fine"], ["HTTP 408"], ""),
    "busy, then fine": ([BUSY, "fine"], ["HTTP 429"], ""),
    "busy, a date gone by, then fine": ([(429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), "fine"], ["HTTP 429"], ""),
    "busy, nonsense, then fine": ([(429, {"Retry-After": "later"}), "fine"], ["HTTP 429"], ""),
    "busy for longer than the deadline": (
        [(429, {"Retry-After": "3600"}), "fine"],
        ["HTTP 429"],
        "HTTP 429.*after 1 attempts, no time for another",
    ),
    "503 for ever": ([(503, {})], ["HTTP 503"] * 2, "HTTP 503.*on purpose.*after 2 attempts"),
    "400": ([(400, {}), "fine"], ["HTTP 400"], "HTTP 400.*on purpose"),
    "401": ([(401, {}), "fine"], ["HTTP 401"], "HTTP 401"),
    "hangs, then fine": (["hang", "fine"], ["no answer in time"], ""),
    "hangs for ever": (["hang"], ["no answer in time"] * 2, "no answer within 2.5 s.*after 2 attempts"),
    "hangs up, then fine": (["hang up", "fine"], ["no connection"], ""),
    "hangs up for ever": (["hang up"], ["no connection"] * 2, "APIConnectionError.*after 2 attempts"),
    "half an answer, then fine": (["half", "fine"], ["no connection"], ""),
    "half a body": ([completion("half")[:50]], ["no chat completion"] * 2, "no chat completion.*after 2 attempts"),
    "no choices": ([b'{"choices": []}'], ["no chat completion"] * 2, "no chat completion.*after 2 attempts"),
    "another API": ([b'{"text": "hello"}'], ["no chat completion"] * 2, "after 2 attempts"),
    "a list": ([b"[1, 2]", completion("fine")], ["no chat completion"], ""),
    "no text": ([b"\xff\xfe\x00", completion("fine")], ["no chat completion"], ""),
    "too deep": ([b"[" * 100_000, completion("fine")], ["no chat completion"], ""),
    "empty, then fine": ([completion(""), "fine"], ["empty answer"], ""),
    "empty for ever": ([completion(" \n")], ["empty answer"] * 2, "empty answer.*after 2 attempts"),
    "null": ([completion(None)], ["empty answer"] * 2, "empty answer"),
    "cut off": ([completion("## Score: 3.", "length"), "fine"], ["cut off"], "cut off after 99 tokens"),
    "filtered": ([completion("", "content_filter")], ["finish_reason content_filter"], "ended with 'content_filter'"),
    "a tool": ([completion(None, "tool_calls")], ["finish_reason tool_calls"], "ended with 'tool_calls'"),
    "no reason": ([completion("fine", None)], ["finish_reason None"], "ended with None"),
}
# no completion, so no tokens are told
_NO_USAGE = ("HTTP", "no ")


@pytest.mark.parametrize("hanging", [False, True])
def test_every_fault_is_accounted_for(server: FaultServer, hanging: bool) -> None:
    faults = {text: fault for text, fault in FAULTS.items() if ("hang" in fault[0]) is hanging}
    server.treatments = {text: treatments for text, (treatments, _, _) in faults.items()}
    # waiting for an answer that never comes takes all of the time-out; the others have time, however busy the machine is
    limits = {"timeout": 2.5 if hanging else 60.0, "deadline": 60.0}
    with _chat(server.url, concurrency=len(faults), attempts=2, breaker=0, **limits) as chat:
        replies = chat.complete([_ask(text, max_tokens=99) for text in faults])
        account = chat.account
    kinds: dict[str, int] = {}
    failed: dict[str, int] = {}
    for (text, (_, seen, failure)), reply in zip(faults.items(), replies, strict=True):
        for kind in seen:
            kinds[kind] = kinds.get(kind, 0) + 1
        assert reply.attempts == len(seen) + (not failure) == len(server.calls[text]), text  # told by the client, counted here
        if failure:
            failed[seen[-1]] = failed.get(seen[-1], 0) + 1
            assert re.search(failure, reply.failure, re.DOTALL), (text, reply.failure)
        else:
            assert (reply.text, reply.failure) == ("fine", ""), text
            assert (reply.prompt_tokens, reply.completion_tokens) == (7, 3)
    # all of it adds up, to the last attempt
    sent = len(server.bodies)
    assert account["requests"] == len(faults)
    assert account["failed"] == failed
    assert account["answered"] == len(faults) - sum(failed.values())
    assert account["sent"] == sent == account["answered"] + sum(kinds.values())
    assert account["retried"] == sent - len(faults)
    assert account["faults"] == kinds
    assert account["sent_to"] == {server.url: sent}
    told = account["answered"] + sum(number for kind, number in kinds.items() if not kind.startswith(_NO_USAGE))
    assert (account["prompt_tokens"], account["completion_tokens"]) == (7 * told, 3 * told)
    if not hanging:
        # a cut-off answer keeps its text, for the record
        assert replies[list(faults).index("cut off")].text == "## Score: 3."
        # the server's wish is respected; without it the wait would be 1.5 s at most
        first, again = server.calls["busy, then fine"]
        assert again - first >= 2.0


def test_an_absent_server_is_a_failure_and_no_exception() -> None:
    with refused() as url, _chat(url, attempts=1) as chat:
        (reply,) = chat.complete([_ask("hello")])
        assert chat.account["failed"] == chat.account["faults"] == {"no connection": 1}
    assert reply.failure.startswith("APIConnectionError") and reply.attempts == 1 and reply.text == ""


def test_when_to_come_back() -> None:
    assert retry_after("120") == 120.0 and retry_after(" 1.5 ") == 1.5 and retry_after("0") == 0.0
    assert [retry_after(header) for header in (None, "", "-1", "inf", "nan", "1e9", "soon")] == [None] * 7
    date = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True))
    assert date is not None and 90 < date <= 100  # a date has whole seconds; the rest is for a busy machine
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_retries_do_not_come_all_at_once(server: FaultServer) -> None:
    texts = [f"request {number}" for number in range(12)]
    server.treatments = {text: [(500, {}), "fine"] for text in texts}
    with _chat(server.url, attempts=2) as chat:
        assert {reply.failure for reply in chat.complete([_ask(text) for text in texts])} == {""}
    waits = [again - first for first, again in server.calls.values()]
    assert min(waits) >= 0.5
    # 12 draws from an interval of one second lie within 0.2 s once in 10**7 times
    assert max(waits) - min(waits) > 0.2


def test_no_attempt_outlasts_the_deadline(server: FaultServer) -> None:
    server.default = "hang"
    with _chat(server.url, timeout=600.0, deadline=0.5) as chat:
        (reply,) = chat.complete([_ask("hello")])
    assert re.search("no answer within .* s .after 1 attempts, no time for another", reply.failure), reply.failure


def test_a_round_has_an_end(server: FaultServer) -> None:
    server.default = "hang"
    with _chat(server.url, concurrency=1, round_deadline=1.0, breaker=1) as chat:
        replies = chat.complete([_ask(str(number)) for number in range(4)])
        server.default = "fine"
        (later,) = chat.complete([_ask("later")])  # a round that was cut short says nothing about the server
    first, *others = replies
    assert "no answer within" in first.failure and first.attempts == 1
    assert [(other.failure, other.attempts) for other in others] == [("not sent, the round's time was over", 0)] * 3
    assert later.text == "fine" and later.attempts == 1
    assert chat.account["failed"] == {"no answer in time": 1, "not sent": 3} and chat.account["sent"] == len(server.bodies) == 2


# -- load and threads ------------------------------------------------------------------------------------------------------


def test_requests_are_under_way_together_up_to_the_limit(server: FaultServer) -> None:
    server.default = "together"  # answered only when three are waiting at once
    with _chat(server.url, concurrency=3, attempts=1) as chat:
        replies = chat.complete([_ask(f"request {number}") for number in range(12)])
    assert [reply.failure for reply in replies] == [""] * 12
    assert server.most_in_flight == 3


def test_the_limit_holds_for_all_threads_together(server: FaultServer) -> None:
    server.default = "together"
    with _chat(server.url, concurrency=3, attempts=1) as chat, ThreadPoolExecutor(6) as threads:
        rounds = threads.map(lambda n: chat.complete([_ask(f"{n} {m}") for m in range(4)]), range(6))
        texts = [reply.text for replies in rounds for reply in replies]
    assert texts == ["fine"] * 24 and server.most_in_flight == 3
    account = chat.account
    assert account["requests"] == account["answered"] == account["sent"] == len(server.bodies) == 24


def test_one_client_serves_many_calls(server: FaultServer) -> None:
    """Each call on an event loop of its own is how a shared semaphore or client breaks (X-GenGroup/Flow-Factory)."""
    with _chat(server.url, concurrency=2, attempts=1) as chat:
        for _ in range(3):
            assert [reply.text for reply in chat.complete([_ask(str(i)) for i in range(5)])] == ["fine"] * 5
        assert chat.complete([]) == []


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "openai-chat"]


def test_closing_or_dropping_a_client_ends_its_thread_and_connections(server: FaultServer) -> None:
    chat = OpenAIChat("m", server.url)
    assert chat.complete([_ask("1")])[0].text == "fine" and len(_threads()) == 1
    chat.close()
    chat.close()
    assert _threads() == []
    assert chat.complete([_ask("2")])[0].text == "fine"  # it can be used again
    assert chat.account["answered"] == 2
    del chat
    gc.collect()
    for thread in _threads():  # the last reference may have been the loop's own, which is then still ending
        thread.join(10)
    assert _threads() == []


def test_clients_share_one_event_loop(server: FaultServer, second: FaultServer) -> None:
    one, other = OpenAIChat("m", server.url), OpenAIChat("m", second.url)
    with contextlib.closing(other):
        with contextlib.closing(one):
            assert one.complete([_ask("1")])[0].text == other.complete([_ask("1")])[0].text == "fine"
            assert len(_threads()) == 1
        assert other.complete([_ask("2")])[0].text == "fine" and len(_threads()) == 1
    assert _threads() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_a_loop_of_its_own(server: FaultServer) -> None:
    with _chat(server.url) as chat:
        assert chat.complete([_ask("parent")])[0].text == "fine"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, of a fork beside threads
            child = os.fork()
        if child == 0:
            signal.alarm(120)  # a guard against hanging
            with contextlib.suppress(BaseException):
                os._exit(0 if chat.complete([_ask("child")])[0].text == "fine" else 3)
            os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert chat.complete([_ask("parent")])[0].text == "fine"
    assert {text: len(calls) for text, calls in server.calls.items()} == {"parent": 2, "child": 1}


# -- several servers -------------------------------------------------------------------------------------------------------


def test_the_least_loaded_server_is_asked(server: FaultServer, second: FaultServer) -> None:
    for each in (server, second):
        each.default = "together"
        each.together = threading.Barrier(2, timeout=60)  # both servers have to hold two requests at once
    with _chat([server.url, second.url], concurrency=4, attempts=1) as chat:
        replies = chat.complete([_ask(f"request {number}") for number in range(4)])
        assert [reply.failure for reply in replies] == [""] * 4
        assert chat.account["sent_to"] == {server.url: 2, second.url: 2}


def test_a_dead_server_is_left_alone(server: FaultServer) -> None:
    with refused() as dead, _chat([dead, server.url], concurrency=1) as chat:
        replies = chat.complete([_ask(f"request {number}") for number in range(8)])
        account = chat.account
    assert [reply.text for reply in replies] == ["fine"] * 8 and [reply.attempts for reply in replies] == [2] + [1] * 7
    assert account["sent_to"] == {dead: 1, server.url: 8} and account["faults"] == {"no connection": 1}


@pytest.mark.parametrize("treatment", [(429, {"Retry-After": "3600"}), (404, {}), (503, {}), "half"], ids=str)
def test_a_retry_goes_to_another_server(server: FaultServer, second: FaultServer, treatment: Any) -> None:
    server.default = treatment
    with _chat([server.url, second.url], concurrency=1, deadline=60.0) as chat:  # nobody waits for an hour
        replies = chat.complete([_ask("one"), _ask("two")])
    assert [(reply.text, reply.attempts) for reply in replies] == [("fine", 2), ("fine", 1)]
    assert chat.account["sent_to"] == {server.url: 1, second.url: 2}


# -- the circuit breaker ---------------------------------------------------------------------------------------------------


def _round(chat: OpenAIChat, name: str, number: int = 6) -> list[str]:
    return [reply.failure for reply in chat.complete([_ask(f"{name} {index}") for index in range(number)])]


def test_the_breaker_opens_half_opens_and_closes(server: FaultServer) -> None:
    server.default = (503, {})
    with _chat(server.url, concurrency=1, attempts=1, breaker=3) as chat:
        opened = "not sent, the circuit breaker is open: 3 requests in a row failed, the last: HTTP 503.*on purpose"
        failures = _round(chat, "down")
        assert all(re.match("HTTP 503", failure) for failure in failures[:3])
        assert all(re.match(opened, failure, re.DOTALL) for failure in failures[3:])
        # half-open: one request is tried, the others share its fate
        failures = _round(chat, "still down")
        assert re.match("HTTP 503", failures[0]) and all("breaker is open: 4 requests" in failure for failure in failures[1:])
        assert len(server.bodies) == 4
        server.default = "fine"
        assert _round(chat, "up") == [""] * 6 == _round(chat, "still up")
        # and it takes a whole row again to open
        server.default = (503, {})
        assert sum("HTTP 503: " in failure and "not sent" not in failure for failure in _round(chat, "down again")) == 3
        account = chat.account
    assert account["requests"] == 30 and account["answered"] == 12
    assert account["failed"] == {"HTTP 503": 7, "not sent": 11}
    assert account["sent"] == len(server.bodies) == 19 and account["faults"] == {"HTTP 503": 7}


def test_one_trial_at_a_time(server: FaultServer) -> None:
    with _chat(server.url, concurrency=8, attempts=1, breaker=1, timeout=60.0) as chat:
        server.default = (500, {})
        _round(chat, "down", 1)
        server.treatments["up 0"] = ["fine"]
        server.default = (500, {})
        _round(chat, "down", 8)
        assert len(server.bodies) == 2  # eight might have been under way, one was sent
        server.default = "fine"
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda name: _round(chat, name, 4), "abcd")) == [[""] * 4] * 4


def test_the_breaker_ends_waits_between_attempts(server: FaultServer) -> None:
    server.treatments["patient"] = [(429, {"Retry-After": "3600"})]
    server.default = (500, {})
    with _chat(server.url, concurrency=4, attempts=2, deadline=7200.0, breaker=3) as chat:
        patient, *others = chat.complete([_ask("patient"), *(_ask(str(number)) for number in range(3))])  # not after an hour
    assert "breaker is open" in patient.failure and patient.attempts == 1
    assert all("HTTP 500" in other.failure for other in others)


def test_faults_of_requests_do_not_open_the_breaker(server: FaultServer) -> None:
    server.treatments = {"bad 2": [completion("", "length")], "bad 4": [completion("")], "bad 5": [completion("", "stop")]}
    server.default = (400, {})
    with _chat(server.url, concurrency=1, attempts=1, breaker=2) as chat:
        assert not any("breaker" in failure for failure in _round(chat, "bad"))
        # a row of faults is ended by an answer of any kind
        server.treatments = {f"mixed {number}": [(500, {})] for number in (0, 2, 4)}
        assert not any("breaker" in failure for failure in _round(chat, "mixed"))
    assert len(server.bodies) == 12


# -- readiness -------------------------------------------------------------------------------------------------------------


def test_a_ready_server_is_probed_once(server: FaultServer) -> None:
    with _chat(server.url) as chat:
        chat.load()
        chat.load("cpu")
        assert chat.account["probes"] == 3 == server.lists + len(server.bodies)
        assert chat.account["requests"] == chat.account["sent"] == 0
        assert chat.complete([_ask("hello")])[0].text == "fine"
    # the picture is known: red all over
    urls = [part["image_url"]["url"] for body in server.bodies for turn in body["messages"] for part in _pictures(turn)]
    (picture,) = map(_decoded, urls)
    assert picture.getcolors() == [(64 * 64, (255, 0, 0))]


def _pictures(turn: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for part in turn["content"] if isinstance(part, dict) and part["type"] == "image_url"]


def _decoded(url: str) -> Image.Image:
    kind, data = url.split(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_dead_server_is_refused_at_load(server: FaultServer) -> None:
    with refused() as dead, _chat([server.url, dead], ready_timeout=0.5) as chat:
        with pytest.raises(RuntimeError, match=f"{dead} is not ready after 0.5 s: APIConnectionError.*Start the server"):
            chat.load()
        assert chat.complete([_ask("hello")])[0].text == "fine"  # whoever does not load is not probed


@pytest.mark.parametrize("seconds", [300.0, 0.0])
def test_what_waiting_cannot_mend_is_refused_at_once(server: FaultServer, seconds: float) -> None:
    cases: list[tuple[str, Any, str]] = [
        ("models", ["other", "another"], "it has no model 'm' but 'other', 'another'"),
        ("default", (401, {}), "HTTP 401"),
        ("default", (400, {}), "HTTP 400"),
        ("sees", False, "it does not look at pictures: 7 prompt tokens with a picture and without"),
    ]
    for name, value, reason in cases:
        before = getattr(server, name)
        setattr(server, name, value)
        with _chat(server.url, ready_timeout=seconds) as chat:
            if seconds:
                with pytest.raises(RuntimeError, match=f"{server.url} is not ready: {reason}"):
                    chat.load()
            else:
                chat.load()
                assert chat.account["probes"] == 0
        setattr(server, name, before)


def test_a_server_without_a_list_of_models_is_asked_anyway(server: FaultServer) -> None:
    for models, status in ((None, 404), (None, 405), (None, 500), ([], 200)):
        server.models, server.no_list = models, status
        with _chat(server.url) as chat:
            chat.load()
    server.models, server.no_list = None, 401
    with _chat(server.url) as chat, pytest.raises(RuntimeError, match="not ready: HTTP 401"):
        chat.load()


def test_a_server_that_comes_up_is_waited_for() -> None:
    with refused() as url:
        port = int(url.split(":")[2].split("/")[0])
    with _chat(url, ready_timeout=120.0) as chat, ThreadPoolExecutor(1) as thread:
        loading = thread.submit(chat.load)
        while not chat.account["probes"]:  # it has looked at least once before there is a server
            time.sleep(0.01)
        with running(FaultServer(port=port)):
            loading.result(timeout=120)


# -- what is sent and read -------------------------------------------------------------------------------------------------


def test_what_is_sent(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    system = {"role": "system", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
    user = {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image", "image": picture}]}
    settings: dict[str, Any] = {"max_tokens": 9, "temperature": 0.25, "seed": 4, "stop": ("# End", "\n\n")}
    with (
        monkeypatch.context() as patch,
        _chat(server.url, "judge-8b", api_key_env="MY_JUDGE_KEY", extra_body={"top_k": 5}) as chat,
    ):
        patch.setenv("MY_JUDGE_KEY", "s3cret")
        (reply,) = chat.complete([ChatRequest([system, user], **settings)])
    assert reply.text == "fine"
    (body,), (headers,) = server.bodies, server.headers_seen
    sent = {key: body[key] for key in ("model", "max_tokens", "temperature", "seed", "stop", "top_k")}
    assert sent == {"model": "judge-8b", **settings, "stop": ["# End", "\n\n"], "top_k": 5}
    assert body["messages"][0] == {"role": "system", "content": "one\ntwo"}
    text, image = body["messages"][1]["content"]
    assert text == {"type": "text", "text": "look"}
    with _decoded(image["image_url"]["url"]) as decoded:
        assert decoded.tobytes() == picture.tobytes()
    assert headers["authorization"] == "Bearer s3cret"
    assert "s3cret" not in chat.identity and "judge-8b" in chat.identity
    assert "s3cret" not in str({key: value for key, value in vars(chat).items() if not key.startswith("_")})


def test_fields_go_by_the_names_of_the_api(server: FaultServer) -> None:
    with _chat(server.url, fields={"max_tokens": "max_completion_tokens", "seed": None, "temperature": None}) as chat:
        assert chat.complete([_ask("hello", max_tokens=9, temperature=0.25, seed=4)])[0].text
        assert "max_completion_tokens" in chat.fingerprint
    body = server.bodies[-1]
    assert body["max_completion_tokens"] == 9
    assert not {"max_tokens", "seed", "temperature"} & set(body)
    with pytest.raises(
        ValueError, match="fields: 'top_k' is none of max_tokens, temperature, seed, stop; further fields go into"
    ):
        OpenAIChat("m", server.url, fields={"top_k": None})


def test_addresses_that_are_refused() -> None:
    with pytest.raises(ValueError, match="base_url holds a password; put it into the environment, as the key in MY_KEY"):
        OpenAIChat("m", ["http://a/v1", "http://me:s3cret@b/v1"], api_key_env="MY_KEY")
    with pytest.raises(ValueError, match="base_url is empty"):
        OpenAIChat("m", [])


def test_all_that_answers_depend_on_is_in_the_fingerprint() -> None:
    variants = [
        OpenAIChat("m", "http://a/v1"),
        OpenAIChat("n", "http://a/v1"),
        OpenAIChat("m", ["http://a/v1", "http://b/v1"]),
        OpenAIChat("m", "http://a/v1", structured="vllm"),
        OpenAIChat("m", "http://a/v1", max_pixels=100),
    ]
    assert len({chat.fingerprint for chat in variants}) == len(variants)


def test_an_id_of_the_weights_outlives_their_servers() -> None:
    one, other = (OpenAIChat("m", url, weights_id="m, July") for url in ("http://a/v1", ["http://b/v1", "http://c/v1"]))
    assert one.fingerprint == other.fingerprint != OpenAIChat("m", "http://a/v1", weights_id="m, August").fingerprint
    assert one.fingerprint != OpenAIChat("m", "http://a/v1", weights_id="m, July", max_pixels=9).fingerprint


def test_tokens_that_were_not_computed_again(server: FaultServer) -> None:
    server.treatments = {
        "told": [completion("fine", prompt_tokens_details={"cached_tokens": 5})],
        "not told": [completion("fine", prompt_tokens_details=None)],
    }
    with _chat(server.url) as chat:
        replies = chat.complete([_ask("told"), _ask("not told")])
        assert [reply.reused_tokens for reply in replies] == [5, 0]
        assert chat.account["reused_tokens"] == 5


def test_pictures_are_brought_down_before_they_are_sent(server: FaultServer) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    with _chat(server.url, max_pixels=100 * 100) as chat:
        chat.complete([_ask("large", picture), _ask("small", picture.resize((100, 100)))])
    sizes = {body["messages"][0]["content"][0]["text"]: body["messages"][0]["content"][1] for body in server.bodies}
    # a factor of 0.288675: 115.47 and 86.6 pixels
    assert {text: _decoded(part["image_url"]["url"]).size for text, part in sizes.items()} == {
        "large": (115, 86),
        "small": (100, 100),
    }


def test_the_limit_on_pixels_holds_for_every_shape() -> None:
    rng = np.random.default_rng(1)
    for width, height, limit in [*rng.integers(1, 400, (300, 3)).tolist(), [1, 900, 100], [900, 1, 100], [500, 2, 499]]:
        small = within(Image.new("RGB", (width, height)), limit)
        assert small.width * small.height <= limit or small.size == (width, height)
        if width * height <= limit:
            assert small.size == (width, height)
        else:
            factor = (limit / (width * height)) ** 0.5
            # rounded down, and at least one pixel; a strip takes what is left lengthwise
            assert min(width * factor, height * factor) < 1 or small.size == (int(width * factor), int(height * factor))
    palette = Image.new("RGB", (64, 64), "red").convert("P")
    assert within(palette, 100).getpixel((3, 3)) == (255, 0, 0) and within(palette, None) is palette


# -- answers in a form -----------------------------------------------------------------------------------------------------

FORM = AnswerForm(("# Why: ", Prose("why"), "\n# Score: ", Choice("score", ("1", "2.5")), Maybe(("\n# More: ", Prose("more")))))


@pytest.mark.parametrize(
    ("structured", "key", "value"),
    [
        ("vllm", "structured_outputs", {"regex": FORM.regex()}),
        ("vllm_guided", "guided_regex", FORM.regex()),
        ("sglang", "regex", FORM.regex()),
        ("json_schema", "response_format", {"type": "json_schema", "json_schema": None}),
    ],
)
def test_each_server_is_told_the_form_as_it_wants_it(server: FaultServer, structured: Any, key: str, value: Any) -> None:
    if structured == "json_schema":
        value["json_schema"] = {"name": "answer", "strict": True, "schema": FORM.schema()}
        server.answer = json.dumps({"why": "all\nthere", "score": "2.5", "more": None})
    with _chat(server.url, structured=structured, extra_body={"top_k": 5}) as chat:
        formed, free = chat.complete([_ask("formed", form=FORM, stop=("END",)), _ask("free", stop=("END",))])
    bodies = {body["messages"][0]["content"]: body for body in server.bodies}
    assert bodies["formed"].pop(key) == value
    assert key not in bodies["free"] and free.text == server.answer and bodies["free"]["stop"] == ["END"]
    assert bodies["formed"]["top_k"] == bodies["free"]["top_k"] == 5
    assert chat.extra_body == {"top_k": 5}
    others = {"structured_outputs", "guided_regex", "regex", "response_format"}
    assert not others & set(bodies["formed"])
    if structured == "json_schema":
        assert formed.text == "# Why: all there\n# Score: 2.5"
        assert bodies["formed"].get("stop") is None
    else:
        assert formed.text == "fine" and bodies["formed"]["stop"] == ["END"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"why": "broken', "not in the form: Unterminated string"),
        ("[1, 2]", "not in the form: list instead of an object"),
        ("[" * 100_000, "not in the form: maximum recursion"),
        ('{"why": "well", "score": "2"}', "not in the form: score is '2', none of its options"),
        ('{"why": "", "score": "1"}', "not in the form: the answer has no why"),
    ],
    ids=["broken", "list", "deep", "no option", "empty"],
)
def test_an_object_that_does_not_fill_the_form_is_a_failure(server: FaultServer, answer: str, reason: str) -> None:
    server.answer = answer
    with _chat(server.url, structured="json_schema") as chat:
        (reply,) = chat.complete([_ask("formed", form=FORM)])
        assert chat.account["failed"] == chat.account["faults"] == {"not in the form": 1}
    assert reason in reply.failure and reply.text == answer and reply.attempts == 1


def test_a_form_is_refused_without_a_way_to_tell_it() -> None:
    with pytest.raises(ValueError, match="cannot force answers into a form; leave out `constrained`.*`structured`"):
        OpenAIChat("m", "http://localhost:1/v1").complete([_ask("formed", form=FORM)])


@pytest.mark.parametrize("refinement", [False, True])
def test_an_object_becomes_a_critique_that_can_be_read(server: FaultServer, refinement: bool) -> None:
    rubric = CritiqueFormat()
    form = rubric.pointwise_form("t2i", refinement=refinement)
    slots: dict[str, Any] = {}
    for name, kind in form.schema()["properties"].items():
        slots[name] = "2.5" if "2.5" in kind.get("enum", ()) else f"words on {name}"
    server.answer = json.dumps(slots)
    with _chat(server.url, structured="json_schema") as chat:
        critic = Critic(chat, rubric, constrained=True)
        (critique,) = critic.critique([CritiqueRequest("t2i", "a red ball", Image.new("RGB", (8, 8)))], refinement)
    assert not critique.failure
    for key in rubric.rules.keys("t2i"):
        assert critique.score(key) == 2.5
        assert critique.justification(key) == f"words on {key}_justification"
    assert critique.summary == "words on summary"
    assert critique.refined_request == ("words on refined_request" if refinement else "")


def test_fields_go_by_the_names_that_an_api_knows(server: FaultServer) -> None:
    fields = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}
    with _chat(server.url, fields=fields, extra_body={"reasoning_effort": "low"}) as chat:
        chat.load()
        (reply,) = chat.complete([_ask("hello", max_tokens=9, temperature=0.5, seed=3)])
    assert reply.text == "fine"
    # the readiness probe is sent to the same API
    assert [body["max_completion_tokens"] for body in server.bodies] == [16, 16, 9]
    for body in server.bodies:
        assert body["reasoning_effort"] == "low" and not {"max_tokens", "temperature", "seed"} & set(body)
    with pytest.raises(ValueError, match="'top_p' is none of max_tokens"):
        OpenAIChat("m", "http://a/v1", fields={"top_p": None})
