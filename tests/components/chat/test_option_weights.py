"""Probabilities of options in given answers: the walk over tokens, and the client against a server that really computes them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import math
import random
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rationalrewards.components.chat import ChatRequest, OpenAIChat, Place, TransformersChat
from rationalrewards.components.chat.option_weights import LEAST, option_weights
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import random_scene
from servers import FaultServer, completion, running
from support import needs

# -- the walk --------------------------------------------------------------------------------------------------------------


class Language:
    """A model of a few tokens: after each text it gives every token its own probability, all different."""

    def __init__(self, tokens: str, seed: int, shown: int = 99) -> None:
        self.tokens = tokens.split("|")
        self.seed = seed
        self.shown = shown
        self.asked: list[str] = []

    def probabilities(self, text: str) -> dict[str, float]:
        rng = random.Random(f"{self.seed} {text}")
        drawn = [rng.expovariate(1.0) ** 2 for _ in self.tokens]
        return {token: weight / sum(drawn) for token, weight in zip(self.tokens, drawn, strict=True)}

    async def next_tokens(self, text: str) -> Mapping[str, float]:
        self.asked.append(text)
        likely = sorted(self.probabilities(text).items(), key=lambda item: -item[1])
        return dict(likely[: self.shown])

    def begins(self, given: str, string: str) -> float:
        """The probability that what follows ``given`` begins with ``string``, over every way to write it in tokens; exact."""
        total = 0.0
        for token, probability in self.probabilities(given).items():
            if token.startswith(string):
                total += probability
            elif string.startswith(token):
                total += probability * self.begins(given + token, string[len(token) :])
        return total


def _weigh(language: Language, before: str, *options: str) -> dict[str, float]:
    return asyncio.run(option_weights(language.next_tokens, before, options))


@pytest.mark.parametrize("seed", range(20))
def test_the_walk_finds_the_joint_probabilities(seed: int) -> None:
    # a space alone or with what follows, a number whole or digit by digit, an option that others continue
    language = Language(" |1|2|.|5|1.5| 2| N|N|/A|\n|x", seed)
    weights = _weigh(language, "Score: ", "1", "1.5", "2", "2.5", "N/A")
    base, given = "Score:", language.begins("Score:", " ")
    exact = {option: language.begins(base, f" {option}") / given for option in weights}
    for whole, longer in (("1", "1.5"), ("2", "2.5")):
        exact[whole] -= exact[longer]
    # what is not followed is at most LEAST for each of the few dozen beginnings, and mostly far less
    assert weights == pytest.approx(exact, abs=10 * LEAST / given)
    assert 0 < sum(weights.values()) <= 1 + 1e-9


def test_white_space_is_asked_for_with_the_option() -> None:
    class Fixed(Language):
        def probabilities(self, text: str) -> dict[str, float]:
            return {
                "Score:": {" ": 0.5, " N": 0.25, "\n": 0.25},
                "Score: ": {"3": 0.8, "4": 0.2},
                "Score: N": {"/A": 1.0},
            }[text]

    # given the space: two thirds of the probability are digits; with "Score: " as the beginning, N/A could never come
    weights = _weigh(Fixed("", 0), "Score: ", "3", "4", "N/A")
    assert weights == pytest.approx({"3": 0.8 * 2 / 3, "4": 0.2 * 2 / 3, "N/A": 1 / 3})


def test_what_a_server_does_not_show_is_none_of_the_longer_options() -> None:
    class Fixed(Language):
        def probabilities(self, text: str) -> dict[str, float]:
            return {":": {"3": 0.6, "4": 0.3, "": 0.05}, ":3": {".": 0.5}, ":3.": {"5": 0.5, "50": 0.5}}[text]

    language = Fixed("", 0)
    assert _weigh(language, ":", "3", "3.5", "4") == pytest.approx({"3": 0.3, "3.5": 0.3, "4": 0.3})
    assert language.asked == [":", ":3", ":3."]  # nothing below an option that no other continues


def test_options_that_would_never_come_are_an_error() -> None:
    language = Language("a|b", 0)
    with pytest.raises(ValueError, match="would write none of '1', '2'... after 'Score:'"):
        _weigh(language, "Score:", "1", "2")
    with pytest.raises(ValueError, match="would write none of 'a'... after 'Score: '"):
        _weigh(language, "Score: ", "a")


# -- against a server ------------------------------------------------------------------------------------------------------


class LogprobServer(ThreadingHTTPServer):
    """The part of vLLM's protocol that weighing needs, with the embedded critic behind it: continues an answer by one token."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, chat: TransformersChat) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.chat = chat
        self.lock = threading.Lock()  # the model is used by one thread at a time
        self.bodies: list[dict[str, Any]] = []
        self.broken = ""  # an answer that begins so is not continued

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: LogprobServer
    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            *messages, last = body["messages"]
            assert last["role"] == "assistant" and body["continue_final_message"] and not body["add_generation_prompt"]
            assert body["logprobs"] and body["max_tokens"] == 1
            if self.server.broken and last["content"].startswith(self.server.broken):
                status, answer = 400, {"error": {"message": "on purpose"}}
            else:
                shown = likely_tokens(
                    self.server.chat, [_message(turn) for turn in messages], last["content"], body["top_logprobs"]
                )
                answer = json.loads(completion(shown[0]["token"], "length"))
                answer["choices"][0]["logprobs"] = {"content": [{**shown[0], "top_logprobs": shown}]}
                status = 200
        sent = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    parts = turn["content"] if isinstance(turn["content"], list) else [{"type": "text", "text": turn["content"]}]
    content = []
    for part in parts:
        if part["type"] == "image_url":
            data = base64.b64decode(part["image_url"]["url"].split(",")[1])
            content.append({"type": "image", "image": Image.open(io.BytesIO(data))})
        else:
            content.append(part)
    return {"role": turn["role"], "content": content}


@torch.no_grad()
def log_probabilities(chat: TransformersChat, messages: list[dict[str, Any]], begun: str) -> torch.Tensor:
    """``float32 [vocabulary]``: of the token after the beginning of an answer."""
    turns = [*messages, {"role": "assistant", "content": begun}]
    text = chat.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=False, continue_final_message=True)
    images = [part["image"] for turn in messages for part in turn["content"] if part["type"] == "image"]
    inputs = chat.processor(text=[text], images=images or None, return_tensors="pt")
    return chat.model(**inputs).logits[0, -1].float().log_softmax(-1)


def likely_tokens(chat: TransformersChat, messages: list[dict[str, Any]], begun: str, number: int) -> list[dict[str, Any]]:
    values, indices = log_probabilities(chat, messages, begun).topk(number)
    pairs = zip(indices.tolist(), values.tolist(), strict=True)
    return [{"token": chat.processor.tokenizer.decode([index]), "logprob": value, "bytes": None} for index, value in pairs]


@pytest.fixture(scope="module")
def local() -> TransformersChat:
    chat = TransformersChat("embedded:shapes-critic")
    chat.load()
    chat.model.eval()
    return chat


@pytest.fixture
def server(local: TransformersChat) -> Iterator[LogprobServer]:
    server = LogprobServer(local)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def _asked(seed: int, noisy: bool = False) -> ChatRequest:
    picture = draw(random_scene(random.Random(seed)))
    if noisy:  # half of it: the critic is no longer sure
        noise = np.random.default_rng(seed).integers(0, 256, (picture.height, picture.width, 3), dtype=np.uint8)
        picture = Image.blend(picture, Image.fromarray(noise), 0.5)
    parts = [{"type": "text", "text": "describe the picture"}, {"type": "image", "image": picture}]
    return ChatRequest([{"role": "user", "content": parts}], max_tokens=48)


def _exact(chat: TransformersChat, request: ChatRequest, before: str, options: tuple[str, ...]) -> dict[str, float]:
    """The joint probabilities over the whole vocabulary: every way to write an option, nothing cut off."""
    tokens = [chat.processor.tokenizer.decode([index]) for index in range(len(chat.processor.tokenizer))]

    @cache
    def after(begun: str) -> list[float]:
        return log_probabilities(chat, list(request.messages), begun).exp().tolist()

    def begins(given: str, string: str) -> float:
        total = 0.0
        for token, probability in zip(tokens, after(given), strict=False):  # the model has more columns than tokens
            if token.startswith(string):
                total += probability
            elif token and string.startswith(token):
                total += probability * begins(given + token, string[len(token) :])
        return total

    base = before.rstrip()
    gap = before[len(base) :]
    exact = {option: begins(base, gap + option) / begins(base, gap) for option in options}
    longer = {option: [other for other in options if other.startswith(option) and other != option] for option in options}
    return {option: value - sum(exact[other] for other in longer[option]) for option, value in exact.items()}


COLOURS = ("red", "green", "blue", "yellow", "purple")


@needs("openai")
def test_weights_are_the_models_joint_probabilities(server: LogprobServer, local: TransformersChat) -> None:
    requests = [_asked(seed, noisy=True) for seed in range(3)]
    answers = ["top left red square ; top right nothing", "top left blue circle ; top right", "top left yellow cross"]
    colour = Place(len("top left "), (*COLOURS, "nothing", "letter"))
    thing = Place(len("top left "), (*COLOURS, "red circle", "blue circle", "nothing", "letter"))
    start = Place(0, ("top", "sharp", "nothing"))
    places = [[], [colour], [thing, start]]
    with contextlib.closing(OpenAIChat("critic", server.url, max_pixels=10_000)) as chat:
        found = chat.weigh(requests, answers, places)
        account = chat.account
    assert [len(weights) for weights in found] == [0, 1, 2]
    uncertain = 0
    for request, answer, at, weights in zip(requests, answers, places, found, strict=True):
        for place, weight in zip(at, weights, strict=True):
            assert weight.failure == ""
            exact = _exact(local, request, answer[: place.start], place.options)
            # 20 of 652 tokens are told, and branches below LEAST are not followed; seen: 1e-4 at most
            assert dict(weight.options) == pytest.approx(exact, abs=LEAST)
            uncertain += max(exact.values()) < 0.9
    assert uncertain >= 2  # not all of it is trivial
    assert account["requests"] == account["answered"] == account["sent"] == len(server.bodies)
    # as few as there are beginnings worth following; all small
    assert len(server.bodies) <= 3 * 12
    assert {(body["temperature"], body["max_tokens"], body["top_logprobs"]) for body in server.bodies} == {(0.0, 1, 20)}


@needs("openai")
def test_scores_with_decimals_share_their_first_digit(server: LogprobServer, local: TransformersChat) -> None:
    request, options = _asked(7), ("1", "2", "3", "3.5", "3.7", "4", "N/A")
    answer = "## Score: 3.5"
    with contextlib.closing(OpenAIChat("critic", server.url)) as chat:
        ((weight,),) = chat.weigh([request], [answer], [[Place(len("## Score: "), options)]])
    exact = _exact(local, request, "## Score: ", options)
    assert dict(weight.options) == pytest.approx(exact, abs=LEAST)
    assert exact["1"] > 0.05 and exact["2"] > 0.05  # the base never saw a score, but it knows its digits


@needs("openai")
def test_a_place_that_cannot_be_weighed_has_a_failure(server: LogprobServer) -> None:
    server.broken = "top left"
    places = [[Place(0, ("top", "sharp")), Place(len("top left "), COLOURS)]]
    with contextlib.closing(OpenAIChat("critic", server.url)) as chat:
        ((good, bad),) = chat.weigh([_asked(1)], ["top left red square"], places)
        assert chat.account["failed"] == {"HTTP 400": 1}
    assert good.failure == "" and good.options["top"] > 0.5
    # the server says of every answer that it read 7 tokens and wrote 3
    assert good.requests > 0 and (good.prompt_tokens, good.completion_tokens) == (7 * good.requests, 3 * good.requests)
    assert (bad.prompt_tokens, bad.completion_tokens, bad.requests) == (0, 0, 1)
    assert bad.failure.startswith("HTTP 400") and bad.options == {}


@needs("openai")
def test_weights_come_as_they_are_there() -> None:
    """One answer whose server hangs keeps none of the others waiting."""
    entry = {"token": "top", "logprob": math.log(0.75), "bytes": None}
    answer = json.loads(completion("top", "length"))
    answer["choices"][0]["logprobs"] = {"content": [{**entry, "top_logprobs": [entry]}]}
    with running(FaultServer()) as fault, contextlib.closing(OpenAIChat("m", fault.url, timeout=60.0)) as chat:
        fault.default = json.dumps(answer).encode()
        fault.treatments = {"slow": ["hang"]}
        requests = [ChatRequest([{"role": "user", "content": [{"type": "text", "text": "describe"}]}])] * 3
        stream = chat.stream_weights(
            requests, ["slow", "", ""], [[Place(4, ("top",))], [Place(0, ("top",))], [Place(0, ("top",))]]
        )
        early = {}
        while len(early) < 2:
            early.update(next(stream))
        stream.close()  # the slow one is given up
    assert set(early) == {1, 2} and all(weights.options == {"top": 0.75} for (weights,) in early.values())


@needs("openai")
def test_a_server_without_probabilities(server: LogprobServer) -> None:
    plain = json.loads(completion("red", "length"))
    nonsense = [{"token": "red", "logprob": 1e6, "bytes": None}]
    fancy = json.loads(completion("red", "length"))
    fancy["choices"][0]["logprobs"] = {"content": [{**nonsense[0], "top_logprobs": nonsense}]}
    with running(FaultServer()) as fault, contextlib.closing(OpenAIChat("m", fault.url, attempts=1)) as chat:
        for answer, reason in ((plain, "does not tell probabilities"), (fancy, "no chat completion")):
            fault.default = json.dumps(answer).encode()
            ((weight,),) = chat.weigh([_asked(1)], ["top left red"], [[Place(9, COLOURS)]])
            assert reason in weight.failure and weight.options == {}
        assert chat.account["requests"] == 2 == chat.account["sent"]


@needs("openai")
def test_probabilities_are_retried_and_limited_like_answers(local: TransformersChat) -> None:
    entry = {"token": " red", "logprob": math.log(0.75), "bytes": None}
    answer = json.loads(completion(" red", "length"))
    answer["choices"][0]["logprobs"] = {"content": [{**entry, "top_logprobs": [entry]}]}
    with running(FaultServer()) as fault:
        fault.treatments = {"top left": [(500, {}), json.dumps(answer).encode()]}
        fault.default = "hang"
        places = [[Place(len("top left "), ("red",)), Place(0, ("red",))]]
        with contextlib.closing(OpenAIChat("m", fault.url, round_deadline=5.0, timeout=60.0)) as chat:
            ((good, late),) = chat.weigh([_asked(1)], ["top left red"], places)
            account = chat.account
    assert good.options == {"red": 1.0}  # all that was shown after the space
    assert "no answer within" in late.failure
    assert account["faults"] == {"HTTP 500": 1, "no answer in time": 1} and account["sent"] == 3
