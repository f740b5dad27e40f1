"""The client against real servers: one of ours that fails on purpose, and `transformers serve` of the embedded critic."""

from __future__ import annotations

import base64
import contextlib
import gc
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rationalrewards.components.chat import ChatRequest, OpenAIChat, TransformersChat
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_scene
from rationalrewards.lightning_modules import RationaleDistillModule
from support import needs

pytestmark = needs("openai")


def _ask(text: str, *images: Image.Image, **settings: Any) -> ChatRequest:
    content = [{"type": "text", "text": text}, *({"type": "image", "image": image} for image in images)]
    return ChatRequest([{"role": "user", "content": content}], **settings)


def _chat(url: str, model: str = "m", **settings: Any) -> contextlib.closing[OpenAIChat]:
    return contextlib.closing(OpenAIChat(model, url, **settings))


def _body(text: str | None, finish: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
    return json.dumps(answer).encode()


class FaultServer(ThreadingHTTPServer):
    """An HTTP server that treats each request as its text says: the n-th call of a text gets the n-th treatment."""

    daemon_threads = True
    request_queue_size = 128  # all may connect at once
    treatments: dict[str, list[Any]]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: dict[str, list[float]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.treatments = {}
        self.together = threading.Barrier(3, timeout=60)
        self.in_flight = self.most_in_flight = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up closes its connection: expected here, nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultServer
    protocol_version = "HTTP/1.0"  # a connection a request: no call is lost in a connection that is just being closed

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        with server.lock:
            calls = server.calls.setdefault(text, [])
            calls.append(time.monotonic())
            server.bodies.append(body)
            server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
            treatments = server.treatments.get(text, ["fine"])
            treatment = treatments[min(len(calls), len(treatments)) - 1]
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            self._treat(treatment)
        finally:
            with server.lock:
                server.in_flight -= 1

    def _treat(self, treatment: Any) -> None:
        if treatment == "hang":
            self.server.released.wait(60)
            self.close_connection = True
        elif treatment == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif treatment == "together":
            self.server.together.wait()
            self._send(200, _body("fine"))
        elif treatment == "fine":
            self._send(200, _body("fine"))
        elif isinstance(treatment, bytes):
            self._send(200, treatment)
        else:
            status, headers = treatment
            self._send(status, b'{"error": {"message": "on purpose"}}', headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        with self.server.lock:
            self.server.in_flight -= 1  # before the answer goes out: the client may send its next request at once
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        finally:
            with self.server.lock:
                self.server.in_flight += 1


@pytest.fixture
def server() -> Iterator[FaultServer]:
    server = FaultServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join(10)


BUSY = (429, {"Retry-After": "2"})
# what the server does to each call -> (attempts, what the failure says, or "" for an answer)
FAULTS: dict[str, tuple[list[Any], int, str]] = {
    "fine at once": (["fine"], 1, ""),
    "500, then fine": ([(500, {}), "fine"], 2, ""),
    "busy, then fine": ([BUSY, "fine"], 2, ""),
    "busy, a date, then fine": ([(429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), "fine"], 2, ""),
    "busy for longer than the deadline": ([(429, {"Retry-After": "3600"}), "fine"], 1, "HTTP 429.*after 1 attempts"),
    "503 for ever": ([(503, {})], 2, "HTTP 503.*on purpose.*after 2 attempts"),
    "400": ([(400, {}), "fine"], 1, "HTTP 400.*on purpose"),
    "401": ([(401, {}), "fine"], 1, "HTTP 401"),
    "hangs, then fine": (["hang", "fine"], 2, ""),
    "hangs for ever": (["hang"], 2, "APITimeoutError.*after 2 attempts"),
    "hangs up, then fine": (["hang up", "fine"], 2, ""),
    "hangs up for ever": (["hang up"], 2, "APIConnectionError.*after 2 attempts"),
    "half a body": ([_body("half")[:50]], 2, "after 2 attempts"),
    "no choices": ([b'{"choices": []}'], 2, "after 2 attempts"),
    "another API": ([b'{"text": "hello"}'], 2, "after 2 attempts"),
    "a list": ([b"[1, 2]", _body("fine")], 2, ""),
    "empty, then fine": ([_body(""), "fine"], 2, ""),
    "empty for ever": ([_body(" \n")], 2, "empty answer.*after 2 attempts"),
    "null": ([_body(None)], 2, "empty answer"),
    "cut off": ([_body("## Score: 3.", "length"), "fine"], 1, "cut off after 99 tokens"),
}


@pytest.mark.parametrize("hanging", [False, True])
def test_every_fault_is_accounted_for(server: FaultServer, hanging: bool) -> None:
    faults = {text: fault for text, fault in FAULTS.items() if ("hang" in fault[0]) is hanging}
    server.treatments = {text: treatments for text, (treatments, _, _) in faults.items()}
    # waiting for an answer that never comes takes all of the time-out; the others have time, however busy the machine is
    with _chat(server.url, concurrency=len(faults), attempts=2, timeout=2.5 if hanging else 60.0, deadline=60.0) as chat:
        replies = chat.complete([_ask(text, max_tokens=99) for text in faults])
    for (text, (_, attempts, failure)), reply in zip(faults.items(), replies, strict=True):
        assert reply.attempts == attempts == len(server.calls[text]), text  # told by the client, counted by the server
        if failure:
            assert re.search(failure, reply.failure, re.DOTALL), (text, reply.failure)
        else:
            assert (reply.text, reply.failure) == ("fine", ""), text
            assert (reply.prompt_tokens, reply.completion_tokens) == (7, 3)
    if not hanging:
        # a cut-off answer keeps its text, for the record
        assert replies[list(faults).index("cut off")].text == "## Score: 3."
        # the server's wish is respected; without it the wait would be 1.5 s at most
        first, second = server.calls["busy, then fine"]
        assert second - first >= 2.0


def test_an_absent_server_is_a_failure_and_no_exception() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with _chat(f"http://127.0.0.1:{unused.getsockname()[1]}/v1", attempts=1) as chat:
            (reply,) = chat.complete([_ask("hello")])
    assert reply.failure.startswith("APIConnectionError") and reply.attempts == 1 and reply.text == ""


def test_requests_are_under_way_together_up_to_the_limit(server: FaultServer) -> None:
    texts = [f"request {number}" for number in range(12)]
    server.treatments = {text: ["together"] for text in texts}  # answered only when three are waiting at once
    with _chat(server.url, concurrency=3, attempts=1) as chat:
        replies = chat.complete([_ask(text) for text in texts])
    assert [reply.failure for reply in replies] == [""] * 12
    assert server.most_in_flight == 3


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
    kind, data = image["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as decoded:
        assert decoded.tobytes() == picture.tobytes()
    assert headers["authorization"] == "Bearer s3cret"
    assert "s3cret" not in chat.identity and "judge-8b" in chat.identity
    assert "s3cret" not in str({key: value for key, value in vars(chat).items() if not key.startswith("_")})


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
    del chat
    gc.collect()
    for thread in _threads():  # the last reference may have been the loop's own, which is then still ending
        thread.join(10)
    assert _threads() == []


# -- a real server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The root of a `transformers serve` on a free port, and the folder that it serves, as distillation exports it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = str(tmp_path / "critic")
    student = RationaleDistillModule("embedded:shapes-critic", "shapes")
    student.configure_model()
    student.export(folder)
    command = [str(Path(sys.executable).with_name("transformers")), "serve", folder, "--host", "127.0.0.1"]
    log = tmp_path / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ},
        )
    try:
        end = time.monotonic() + 600  # a guard against hanging: importing takes long on a busy machine
        while True:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer,
            ):
                assert answer.status == 200
                break
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"transformers serve did not come up:\n{log.read_text()[-3000:]}")
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@needs("fastapi", "uvicorn")
def test_transformers_serve_answers_as_the_model_in_this_process_does(served: tuple[str, str]) -> None:
    url, folder = served
    rng = random.Random(5)
    pictures = [draw(random_scene(rng)) for _ in range(4)]
    asks = [_ask("describe the picture", picture, max_tokens=48) for picture in pictures]
    asks.append(_ask("how sharp is the picture", pictures[0], max_tokens=48))
    local = TransformersChat(folder).complete(asks)
    with _chat(url, folder, concurrency=2, timeout=120) as chat:
        remote = chat.complete(asks)
        (cut,) = chat.complete([_ask("describe the picture", pictures[0], max_tokens=4)])
    assert [reply.failure for reply in remote] == [""] * 5
    assert [reply.text for reply in remote] == [reply.text for reply in local]
    # the server counts the end of the turn as well
    assert [reply.completion_tokens for reply in remote] == [reply.completion_tokens + 1 for reply in local]
    assert [reply.prompt_tokens for reply in remote] == [reply.prompt_tokens for reply in local]
    # an answer that the limit cuts off is a failure there too
    assert "cut off after 4 tokens" in cut.failure
