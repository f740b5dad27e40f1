"""A vision-language model behind OpenAI-compatible servers: vLLM, SGLang, ``transformers serve`` or a paid API."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from .base import ChatModel, ChatReply, ChatRequest, Place, Weights, in_order
from .connection import Connection
from .faults import RequestError
from .option_weights import option_weights
from .pictures import data_url, within
from .readiness import until_ready
from .servers import Outcome, Servers, tokens

_FIELDS = ("max_tokens", "temperature", "seed", "stop")

Structured = Literal["vllm", "vllm_guided", "sglang", "json_schema"]


class OpenAIChat(ChatModel):
    """Concurrent requests with bounded retries. A request that keeps failing gives a reply with its reason; nothing raises.

    What fails to arrive (no connection, no answer in time, HTTP 408, 429 and 5xx, a body that is no chat completion, an empty answer)
    is sent again after 1, 2, 4... s, half as much more or less at random, or as long as ``Retry-After`` asks. An answer that ended
    for another reason than ``stop`` is a failure and not sent again: the same seed would bring the same.

    Args:
        model: Model name as the servers know it.
        base_url: Root of the server, e.g. ``http://localhost:8000/v1``, or of several servers with the same model. The one with the
            least under way is asked; one that failed, or asked to wait, is tried last for a while, and a retry goes to another.
        api_key_env: Environment variable that holds the key. Keys are never init args, so that no config can leak one; local
            servers need none.
        concurrency: Requests under way at once, over all servers and all threads that call this object.
        attempts: How often a request is sent before it counts as failed.
        timeout: Seconds for one attempt.
        deadline: Seconds for all attempts of one request together, waits included.
        extra_body: Further fields of the request body, e.g. a server's own sampling options.
        fields: What an API calls our fields, where it has other names, and ``null`` for one that it refuses: of ``max_tokens``,
            ``temperature``, ``seed`` and ``stop``, e.g. ``{max_tokens: max_completion_tokens, seed: null}``.
        weights_id: What stands for the model in caches and ledgers. By default that is its name and all addresses, since another server
            may serve other weights under the same name; with an id of yours, servers can be added and moved, and nothing is asked
            again.
        structured: How the servers are told the form of an answer: ``vllm`` (``structured_outputs``, from vLLM 0.10.2 on),
            ``vllm_guided`` (``guided_regex``, before 0.12), ``sglang`` (``regex``), or ``json_schema`` (``response_format``, for plain
            APIs; the JSON answer is written as the text that the form stands for). Without it, requests with a form are refused.
        round_deadline: Seconds for one call of :meth:`complete` or :meth:`weigh`; what is not answered by then has failed.
        breaker: After so many requests in a row that failed through a server's fault (not through their own content), nothing is sent
            any more and all that wait fail at once. The next call starts with a single trial request. 0 never stops.
        ready_timeout: Seconds that :meth:`load` waits for every server to be up, list the model, and take a small picture in a
            request. 0 leaves this out, e.g. where all answers are expected from a cache.
        max_pixels: Larger pictures are brought down to this many pixels before they are sent, both sides by the same factor and
            rounded down: no server can ignore that silently.
        top_logprobs: How many of the most probable tokens :meth:`weigh` asks for; vLLM and paid APIs give at most 20 by default.

    Raises:
        ValueError: If there is no URL, one holds a password, or ``fields`` names another field.
    """

    def __init__(
        self,
        model: str,
        base_url: str | list[str],
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        attempts: int = 4,
        timeout: float = 180.0,
        deadline: float = 600.0,
        extra_body: dict[str, Any] | None = None,
        structured: Structured | None = None,
        round_deadline: float | None = None,
        breaker: int = 20,
        ready_timeout: float = 300.0,
        max_pixels: int | None = None,
        top_logprobs: int = 20,
        fields: dict[str, str | None] | None = None,
        weights_id: str | None = None,
    ) -> None:
        self.model = model
        self.base_url = base_url
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.attempts = attempts
        self.timeout = timeout
        self.deadline = deadline
        self.extra_body = extra_body or {}
        self.structured = structured
        self.round_deadline = round_deadline
        self.breaker = breaker
        self.ready_timeout = ready_timeout
        self.max_pixels = max_pixels
        self.top_logprobs = top_logprobs
        self.fields = fields or {}
        self.weights_id = weights_id
        if unknown := sorted(set(self.fields) - {*_FIELDS}):
            raise ValueError(f"fields: {unknown[0]!r} is none of {', '.join(_FIELDS)}; further fields go into extra_body")
        self._connection = Connection("OpenAIChat", base_url, api_key_env, concurrency, attempts, timeout, deadline, breaker)
        self._ready = False

    @property
    def urls(self) -> list[str]:
        """The roots of all servers."""
        return self._connection.urls

    @property
    def identity(self) -> str:
        return f"{self.model} at {', '.join(self.urls)}"

    @property
    def fingerprint(self) -> str:
        settings: dict[str, Any] = {"structured": self.structured, "max_pixels": self.max_pixels}
        if self.fields:
            settings["fields"] = self.fields
        return f"{self.weights_id or self.identity} {json.dumps(self.extra_body, sort_keys=True)} {json.dumps(settings)}"

    @property
    def account(self) -> dict[str, Any]:
        """What became of every request since this object was made; see :class:`~.servers.Account`."""
        return self._connection.account.numbers()

    def load(self, device: Any = None) -> None:
        """Connect, and wait until every server is ready.

        Raises:
            RuntimeError: If one is not; with its URL, what was seen, and what to do.
        """
        loop, servers = self._connection.open()
        if self._ready or not self.ready_timeout:
            return

        async def probe() -> None:
            probes = [
                until_ready(server, self.model, self._connection.account, self.ready_timeout, self.timeout, self._probe())
                for server in servers.servers
            ]
            for result in await asyncio.gather(*probes, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result

        loop.run(probe)
        self._ready = True

    def close(self) -> None:
        """End the connections; the next request opens new ones. Dropping the object does the same."""
        self._connection.close()

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        return in_order(self.stream(requests))

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[list[tuple[int, ChatReply]]]:
        if self.structured is None and any(request.form for request in requests):
            raise ValueError(
                "OpenAIChat cannot force answers into a form; leave out `constrained`, use TransformersChat, or tell how the "
                "server is asked for a form (init arg `structured`: vllm, vllm_guided, sglang or json_schema)"
            )

        async def one(servers: Servers, request: ChatRequest, end: float | None) -> ChatReply:
            outcome = await servers.ask(
                lambda: asyncio.to_thread(self._body, request), partial(_reply, request, self.structured), end
            )
            return _finished(outcome)

        yield from self._connection.round([partial(one, request=request) for request in requests], self.round_deadline)

    def weigh(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> list[list[Weights]]:
        """How probable the options at some places of given answers are; see :meth:`.ChatModel.weigh`.

        Needs a server that continues a given answer (``continue_final_message``) and tells probabilities (``top_logprobs``). vLLM and
        SGLang say that they do both; this was run against neither, but against a server of the same protocol that computes its
        probabilities with a Qwen3-VL of transformers (``tests/components/chat/test_option_weights.py``). ``transformers serve`` 5.23
        refuses both fields, so every place has a failure there; so it is with a server that gives no probabilities.

        Each place takes one small request for every beginning of an option that has more than
        :data:`~.option_weights.LEAST` of the probability: about ten for scores with a decimal. Servers with a prefix cache compute
        one token in each. White space before a place is weighed with the options, see :func:`.option_weights`. Probabilities are the
        model's own, at temperature 1 and before any other sampling option; a penalty in ``extra_body`` may change them on SGLang.
        """
        return in_order(self.stream_weights(requests, answers, places))

    def stream_weights(
        self, requests: Sequence[ChatRequest], answers: Sequence[str], places: Sequence[Sequence[Place]]
    ) -> Iterator[list[tuple[int, list[Weights]]]]:
        answering = asyncio.Semaphore(self.concurrency)  # so many answers have their pictures encoded at once

        async def one(
            servers: Servers, request: ChatRequest, answer: str, at: Sequence[Place], end: float | None
        ) -> list[Weights]:
            async with answering:
                try:
                    messages = await asyncio.to_thread(self._messages, request)
                except (OSError, ValueError) as error:
                    return [Weights({}, f"not sent, {type(error).__name__}: {error}")] * len(at)
                return list(await asyncio.gather(*(place(servers, messages, answer, spot, end) for spot in at)))

        async def place(servers: Servers, messages: list[Any], answer: str, spot: Place, end: float | None) -> Weights:
            read = written = sent = 0

            async def next_tokens(text: str) -> dict[str, float]:
                nonlocal read, written, sent

                async def body() -> dict[str, Any]:
                    return self._next_token_body(messages, text)

                outcome = await servers.ask(body, _next_tokens, end)
                sent += outcome.attempts
                if outcome.value is None:
                    raise ValueError(outcome.failure)
                found, prompt, completion = outcome.value
                read, written = read + prompt, written + completion
                return found

            options: dict[str, float] = {}
            failure = ""
            try:
                options = await option_weights(next_tokens, answer[: spot.start], spot.options)
            except ValueError as error:
                failure = str(error)
            return Weights(options, failure, read, written, sent)

        yield from self._connection.round(
            [
                partial(one, request=request, answer=answer, at=at)
                for request, answer, at in zip(requests, answers, places, strict=True)
            ],
            self.round_deadline,
        )

    # -- what is sent --------------------------------------------------------------------------------------------------

    def _messages(self, request: ChatRequest) -> list[dict[str, Any]]:
        return [_message(turn, self.max_pixels) for turn in request.messages]

    def _named(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings under the API's own names, which the client need not know, and without those that it refuses."""
        kept = {name: value for name, value in settings.items() if name not in self.fields}
        renamed = {new: value for name, value in settings.items() if (new := self.fields.get(name)) is not None}
        return {**kept, "extra_body": {**self.extra_body, **renamed}}

    def _probe(self) -> dict[str, Any]:
        """What a request of the readiness probe has besides its messages; 16 tokens are the least that some APIs take."""
        return {"model": self.model, **self._named({"max_tokens": 16, "temperature": 0.0})}

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        """The arguments of one request; encodes its pictures, so off the event loop."""
        settings = {
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "stop": list(request.stop) or None,
        }
        body: dict[str, Any] = {
            "model": self.model,
            "messages": self._messages(request),
            **self._named(settings),
        }
        if request.continues:  # vLLM and SGLang know these two; a server that does not begins anew, which the caller can see
            body["extra_body"] = {**body["extra_body"], "add_generation_prompt": False, "continue_final_message": True}
        if request.form is None:
            return body
        if self.structured == "json_schema":
            schema = {"name": "answer", "strict": True, "schema": request.form.schema()}
            response_format = {"type": "json_schema", "json_schema": schema}
            # a stop string would leave half an object; the text is cut when it is written
            body |= self._named({**settings, "stop": None})
            return {**body, "response_format": response_format}
        spelt: dict[Structured | None, dict[str, Any]] = {
            "vllm": {"structured_outputs": {"regex": request.form.regex()}},
            "vllm_guided": {"guided_regex": request.form.regex()},
            "sglang": {"regex": request.form.regex()},
        }
        return {**body, "extra_body": {**body["extra_body"], **spelt[self.structured]}}

    def _next_token_body(self, messages: Sequence[dict[str, Any]], begun: str) -> dict[str, Any]:
        named = self._named({"max_tokens": 1, "temperature": 0.0})
        return {
            "model": self.model,
            "messages": [*messages, {"role": "assistant", "content": begun}],
            "logprobs": True,
            "top_logprobs": self.top_logprobs,
            **named,
            "extra_body": {**named["extra_body"], "add_generation_prompt": False, "continue_final_message": True},
        }


def _message(turn: dict[str, Any], max_pixels: int | None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for part in turn["content"]:
        if part["type"] == "image":
            parts.append({"type": "image_url", "image_url": {"url": data_url(within(part["image"], max_pixels))}})
        else:
            parts.append(part)
    if all(part["type"] == "text" for part in parts):
        return {"role": turn["role"], "content": "\n".join(part["text"] for part in parts)}
    return {"role": turn["role"], "content": parts}


# -- what comes back -------------------------------------------------------------------------------------------------------


def _reply(request: ChatRequest, structured: Structured | None, answer: Any) -> ChatReply:
    choice = answer.choices[0]
    text = choice.message.content
    prompt, completion, reused = tokens(answer)
    reply = ChatReply(
        text if isinstance(text, str) else "", prompt_tokens=prompt, completion_tokens=completion, reused_tokens=reused
    )
    if choice.finish_reason == "length":
        raise RequestError("cut off", f"the answer was cut off after {request.max_tokens} tokens", reply=reply)
    if choice.finish_reason != "stop":
        raise RequestError(
            f"finish_reason {choice.finish_reason}", f"the answer ended with {choice.finish_reason!r}", reply=reply
        )
    if not reply.text.strip():
        raise RequestError("empty answer", "the server sent an empty answer", retry=True, reply=reply)
    if request.form is None or structured != "json_schema":
        return reply
    try:
        slots = json.loads(reply.text)
        if not isinstance(slots, dict):
            raise ValueError(f"{type(slots).__name__} instead of an object")
        written = request.form.fill(slots)
    except (RecursionError, ValueError) as error:
        raise RequestError("not in the form", f"the answer is not in the form: {error}", reply=reply) from None
    cut = min((written.find(mark) for mark in request.stop if mark in written), default=len(written))
    return replace(reply, text=written[:cut].rstrip())


def _finished(outcome: Outcome[ChatReply]) -> ChatReply:
    if outcome.value is not None:
        return replace(outcome.value, attempts=outcome.attempts)
    assert outcome.fault is not None
    return replace(outcome.fault.reply, failure=outcome.failure, attempts=outcome.attempts)


def _next_tokens(answer: Any) -> tuple[dict[str, float], int, int]:
    """The tokens that may come next with their probabilities, and how many were read and written for it."""
    logprobs = answer.choices[0].logprobs
    shown = logprobs.content[0].top_logprobs if logprobs and logprobs.content else []
    if not shown:
        raise RequestError("no logprobs", "the server does not tell probabilities (logprobs, top_logprobs)")
    found: dict[str, float] = {}
    for entry in shown:  # two tokens may have the same text
        found[entry.token] = found.get(entry.token, 0.0) + math.exp(entry.logprob)
    prompt, completion, _ = tokens(answer)
    return found, prompt, completion
