"""Real servers to talk to: one that fails on purpose, alone or as a proxy before another, and `transformers serve`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


def completion(text: str | None, finish: str | None = "stop", prompt_tokens: int = 7, **usage: Any) -> bytes:
    """The body of a chat completion."""
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 3, "total_tokens": prompt_tokens + 3, **usage},
    }
    return json.dumps(answer).encode()


def text_of(body: dict[str, Any]) -> str:
    """The first text of a request's last turn."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


class FaultServer(ThreadingHTTPServer):
    """An HTTP server that treats each request as its name says: the n-th call of a name gets the n-th treatment, the last for ever.

    Treatments are ``"fine"``, ``"hang"``, ``"hang up"``, ``"half"`` (of a good answer, then the connection ends), ``"together"``
    (answered when three are waiting), bytes (the body of an answer with status 200) or a pair of status and headers. A good answer is
    that of the ``upstream`` server, of which this one is then a proxy; without one it is "fine", or what ``answer`` holds.

    Args:
        upstream: Root of the server behind this one.
        port: Port; any free one by default.
        together: How many have to wait for ``"together"``.
        name: The name of a request; its text by default.
    """

    daemon_threads = True
    request_queue_size = 128  # all may connect at once

    def __init__(
        self, upstream: str | None = None, port: int = 0, together: int = 3, name: Callable[[dict[str, Any]], str] = text_of
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.upstream = upstream
        self.name = name
        self.treatments: dict[str, list[Any]] = {}
        self.default: Any = "fine"
        self.answer: str = "fine"
        self.models: list[str] | None = ["m"]  # None: there is no list of models
        self.no_list = 404
        self.sees = True  # whether a picture makes a prompt longer
        self.calls: dict[str, list[float]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.lists = 0
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.together = threading.Barrier(together, timeout=60)
        self.in_flight = self.most_in_flight = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up closes its connection: expected here, nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultServer
    counted = False  # among the requests that are in flight
    protocol_version = "HTTP/1.0"  # a connection a request: no call is lost in a connection that is just being closed

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.lists += 1
        if server.upstream is not None:
            self._send(*_forwarded(server.upstream + "/models", None))
        elif server.models is None:
            self._send(server.no_list, b"{}")
        else:
            self._send(200, json.dumps({"object": "list", "data": [{"id": name} for name in server.models]}).encode())

    def do_POST(self) -> None:
        server = self.server
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        text = server.name(body)
        with server.lock:
            calls = server.calls.setdefault(text, [])
            calls.append(time.monotonic())
            server.bodies.append(body)
            server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
            treatments = server.treatments.get(text, [server.default])
            treatment = treatments[min(len(calls), len(treatments)) - 1]
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        self.counted = True
        try:
            self._treat(treatment, body, raw)
        finally:
            self._no_longer_in_flight()

    def _no_longer_in_flight(self) -> None:
        with self.server.lock:
            self.server.in_flight -= self.counted
        self.counted = False

    def _good(self, body: dict[str, Any], raw: bytes) -> tuple[int, bytes]:
        if self.server.upstream is not None:
            return _forwarded(self.server.upstream + "/chat/completions", raw)
        parts = [part for turn in body["messages"] if isinstance(turn["content"], list) for part in turn["content"]]
        pictures = sum(part["type"] == "image_url" for part in parts) if self.server.sees else 0
        return 200, completion(self.server.answer, prompt_tokens=7 + 16 * pictures)

    def _treat(self, treatment: Any, body: dict[str, Any], raw: bytes) -> None:
        if treatment == "hang":
            self.server.released.wait(60)
        elif treatment == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif treatment == "half":
            status, answer = self._good(body, raw)
            self._send(status, answer[: len(answer) // 2], length=len(answer))
        elif treatment in ("fine", "together"):
            if treatment == "together":
                self.server.together.wait()
            self._send(*self._good(body, raw))
        elif isinstance(treatment, bytes):
            self._send(200, treatment)
        else:
            status, headers = treatment
            self._send(status, b'{"error": {"message": "on purpose"}}', headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self._no_longer_in_flight()  # before the answer goes out: the client may send its next request at once
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


def _forwarded(url: str, body: bytes | None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@contextlib.contextmanager
def running(server: FaultServer) -> Iterator[FaultServer]:
    """A server that answers until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextlib.contextmanager
def refused() -> Iterator[str]:
    """The root of a server that is not there: a port that is taken and not listened to, so connections are refused."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}/v1"


@contextlib.contextmanager
def transformers_serve(folder: str, log: Path) -> Iterator[str]:
    """The root of a `transformers serve` of a model folder on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", folder, "--host", "127.0.0.1"]
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
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()
