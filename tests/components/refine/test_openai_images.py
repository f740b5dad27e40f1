"""Pictures from a real HTTP server that speaks OpenAI's image API, and sometimes something else."""

from __future__ import annotations

import base64
import io
import json
import random
import threading
from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image
from rationalrewards.components.records import PromptRecord, Unscored
from rationalrewards.components.refine import OpenAIImages, RefineOptions, Studio, run_arm
from rationalrewards.components.shapes import judge
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.pairs import flawed
from rationalrewards.components.shapes.phrases import Asked
from rationalrewards.components.shapes.scenes import Scene, Shape
from support import needs

pytestmark = needs("openai")


class ImageServer(ThreadingHTTPServer):
    """Draws what it is asked for; the n-th request of a prompt gets the n-th of its treatments, the last for ever.

    A treatment is ``"fine"``, ``"together"`` (answered when three are waiting), a status, or bytes (a body with status 200).
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.treatments: dict[str, list[Any]] = {}
        self.seen: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.together = threading.Barrier(3, timeout=60)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: ImageServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        fields, files = read(self.headers["Content-Type"], raw)
        prompt = fields["prompt"]
        with self.server.lock:
            self.server.seen.append({"path": self.path, "key": self.headers["Authorization"], "files": len(files), **fields})
            count = sum(one["prompt"] == prompt for one in self.server.seen)
        treatments = self.server.treatments.get(prompt, ["fine"])
        treatment = treatments[min(count, len(treatments)) - 1]
        if treatment == "together":
            self.server.together.wait()
        if isinstance(treatment, int):
            return self.answer(treatment, b'{"error": {"message": "not today"}}')
        if isinstance(treatment, bytes):
            return self.answer(200, treatment)
        source = judge.read([Image.open(io.BytesIO(files[0])).convert("RGB")])[0].scene if files else None
        scene = flawed(Asked(prompt, source).scene, random.Random(int(fields.get("seed", 0))), 1)
        return self.answer(200, body(draw(scene)))

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def read(kind: str, raw: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The fields and files of a request, in either encoding."""
    if kind.startswith("application/json"):
        return json.loads(raw), []
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + raw)
    fields: dict[str, Any] = {}
    files = []
    for part in message.iter_parts():  # type: ignore[attr-defined]
        content = part.get_payload(decode=True)
        if part.get_filename():
            files.append(content)
        else:
            fields[part.get_param("name", header="content-disposition")] = content.decode()
    return fields, files


def body(image: Image.Image, form: str = "b64_json") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    code = base64.b64encode(buffer.getvalue()).decode()
    return json.dumps({"created": 0, "data": [{form: code if form == "b64_json" else f"data:image/png;base64,{code}"}]}).encode()


@pytest.fixture
def server() -> Iterator[ImageServer]:
    served = ImageServer()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def images(server: ImageServer) -> Iterator[OpenAIImages]:
    source = OpenAIImages("painter", server.url, size="32x32", extra_body={"num_inference_steps": 4}, attempts=2)
    yield source
    source.close()


SCENE = "red circle top left, blue square top right"


def test_pictures_come_by_request_and_seed(server: ImageServer, images: OpenAIImages) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "a secret")
        first, second, again = images.sample([SCENE, SCENE, SCENE], (), [1, 2**40 + 5, 1])
    assert isinstance(first, Image.Image) and isinstance(second, Image.Image) and isinstance(again, Image.Image)
    assert first.size == (32, 32) and first.mode == "RGB"
    assert first.tobytes() == again.tobytes() != second.tobytes()
    assert {one["path"] for one in server.seen} == {"/v1/images/generations"}
    assert sorted(one["seed"] for one in server.seen) == [1, 1, (2**40 + 5) % 2**31]  # what fits 32 bits
    for one in server.seen:
        assert (one["model"], one["size"], one["n"], one["response_format"]) == ("painter", "32x32", 1, "b64_json")
        assert one["num_inference_steps"] == 4 and one["key"] == "Bearer a secret"
    assert "a secret" not in images.identity
    assert images.account["answered"] == 3


def test_an_edit_sends_its_sources(server: ImageServer, images: OpenAIImages) -> None:
    source = draw(Scene((Shape("red", "circle"), None, Shape("blue", "cross"), None)))
    (made,) = images.sample(["turn the circle at the top left green"], (source,), [4])
    assert isinstance(made, Image.Image)
    images.sample(["turn the circle at the top left green"], (source, source), [4])
    assert [(one["path"], one["files"]) for one in server.seen] == [("/v1/images/edits", 1), ("/v1/images/edits", 2)]
    assert server.seen[0]["seed"] == "4"


def test_an_api_without_seeds_is_sent_none(server: ImageServer) -> None:
    plain = OpenAIImages("painter", server.url, seed_field=None, response_format=None)
    plain.sample([SCENE], (), [1])
    plain.close()
    assert set(server.seen[0]) == {"path", "key", "files", "model", "prompt", "n"}


def test_failures_have_their_reasons(server: ImageServer, images: OpenAIImages) -> None:
    link = json.dumps({"created": 0, "data": [{"url": "https://example.org/1.png"}]}).encode()
    unreadable = json.dumps({"created": 0, "data": [{"b64_json": "bm8gcGljdHVyZQ=="}]}).encode()
    treatments: dict[str, list[Any]] = {
        "refused": [400],
        "no json": [b"<html>"],
        "empty": [b'{"created": 0, "data": []}'],
        "link": [link],
        "unreadable": [unreadable],
        "strange": [b'{"created": 0, "data": 3}'],
        f"{SCENE}, letter A bottom left": [503, "fine"],
        f"{SCENE}, letter H bottom left": [body(draw(Scene((None, None, None, None))), "url")],
    }
    server.treatments = treatments
    made = dict(zip(treatments, images.sample(list(treatments), (), range(len(treatments))), strict=True))
    reasons = {prompt: one.reason for prompt, one in made.items() if isinstance(one, Unscored)}
    assert (
        len(reasons) == 6 and len(made) == 8
    )  # the server that was busy was asked again, and a picture in a link of its own is read
    assert reasons["refused"].startswith("HTTP 400: ") and "not today" in reasons["refused"]
    assert reasons["no json"].startswith("the server sent no picture (")
    assert reasons["empty"] == "the server sent no picture (after 2 attempts)"
    assert reasons["link"] == (
        "the server sent a link instead of a picture (https://example.org/1.png); set response_format: b64_json"
    )
    assert reasons["unreadable"].startswith("what the server sent cannot be read as a picture (")
    assert reasons["strange"].startswith("the server sent no picture (")
    sent = {prompt: sum(one["prompt"] == prompt for one in server.seen) for prompt in treatments}
    assert sent["refused"] == sent["link"] == 1  # asking again would bring the same
    assert sent["no json"] == sent["empty"] == sent["unreadable"] == 2


def test_a_loop_over_a_server_counts_what_failed(server: ImageServer, images: OpenAIImages, critic: Any) -> None:
    records = [PromptRecord("fine", "t2i", SCENE), PromptRecord("refused", "t2i", "green triangle bottom left")]
    server.treatments = {records[1].prompt: [400]}
    options = RefineOptions(images_per_prompt=3, threshold=4.0, max_failures=2)
    fine, refused = run_arm("refine_keep_best", records, Studio(images, critic, 0), options)
    assert (fine.stop, len(fine.made)) == ("images", 3) and fine.best.reward is not None
    assert (refused.stop, len(refused.made), refused.gain) == ("failures", 2, None)
    assert "HTTP 400" in refused.made[0].critique.failure


def test_edits_of_different_sources_are_asked_for_side_by_side(
    server: ImageServer, images: OpenAIImages, critic: Any, tmp_path: Any
) -> None:
    records = []
    for index, colour in enumerate(("red", "blue", "green")):
        path = tmp_path / f"{colour}.png"
        draw(Scene((Shape(colour, "circle"), None, None, None))).save(path)
        records.append(PromptRecord(str(index), "edit", "turn the circle at the top left yellow", (str(path),)))
    server.treatments = {records[0].prompt: ["together"]}  # none is answered before all three are there
    traces = run_arm("base", records, Studio(images, critic, 0), RefineOptions())
    assert all(trace.made[0].reward is not None for trace in traces)


def test_a_server_has_to_be_named_without_a_password() -> None:
    with pytest.raises(ValueError, match="base_url is empty: OpenAIImages needs the root of a server"):
        OpenAIImages("painter", [])
    with pytest.raises(ValueError, match="put it into the environment, as the key in OPENAI_API_KEY"):
        OpenAIImages("painter", "http://me:secret@localhost/v1")
