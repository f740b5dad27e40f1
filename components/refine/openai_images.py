"""Pictures from OpenAI-compatible servers: vLLM-Omni, SGLang or a paid API."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Awaitable, Iterator, Sequence
from functools import partial
from typing import Any

from PIL import Image

from ..chat.connection import Connection
from ..chat.faults import RequestError
from ..chat.servers import Outcome, Servers
from ..records import Unscored
from .images import ImageSource, Sampled

__all__ = ["OpenAIImages"]


class OpenAIImages(ImageSource):
    """``POST /v1/images/generations`` for requests without source pictures, ``/v1/images/edits`` for those with some.

    Requests are sent, repeated and given up as :class:`~rationalrewards.components.chat.OpenAIChat` does it; one picture a request. A
    picture that did not come is :class:`Unscored` with the reason.

    Args:
        model: Model name as the servers know it.
        base_url: Root of the server, e.g. ``http://localhost:8000/v1``, or of several servers with the same model.
        api_key_env: Environment variable that holds the key; keys are never init args. Local servers need none.
        size: Width and height as the API writes them, e.g. ``1024x1024``; ``None`` leaves it to the server.
        seed_field: What the API calls the seed. ``None`` sends none, as OpenAI's own API knows none: then the same request brings
            another picture each time, and arms do not share their noise.
        response_format: Asks for the picture itself, not for a link; ``None`` for APIs that know no such field and send it anyway.
        extra_body: Further fields of the request, e.g. ``num_inference_steps``.
        concurrency: Requests under way at once, over all servers.
        attempts: How often a request is sent before it counts as failed.
        timeout: Seconds for one attempt.
        deadline: Seconds for all attempts of one request together, waits included.
        breaker: After so many requests in a row that failed through a server's fault nothing is sent any more until the next call.

    Raises:
        ValueError: If there is no URL, or one holds a password.
    """

    def __init__(
        self,
        model: str,
        base_url: str | list[str],
        api_key_env: str = "OPENAI_API_KEY",
        size: str | None = None,
        seed_field: str | None = "seed",
        response_format: str | None = "b64_json",
        extra_body: dict[str, Any] | None = None,
        concurrency: int = 8,
        attempts: int = 4,
        timeout: float = 300.0,
        deadline: float = 900.0,
        breaker: int = 20,
    ) -> None:
        self.model = model
        self.base_url = base_url
        self.size = size
        self.seed_field = seed_field
        self.response_format = response_format
        self.extra_body = extra_body or {}
        self.calls_at_once = concurrency
        limits = (concurrency, attempts, timeout, deadline, breaker)
        self._connection = Connection("OpenAIImages", base_url, api_key_env, *limits, _ask, "picture")

    @property
    def identity(self) -> str:
        return json.dumps([self.model, self._connection.urls, self.size, self.extra_body], sort_keys=True)

    @property
    def account(self) -> dict[str, Any]:
        """What became of every request since this object was made; see :class:`~rationalrewards.components.chat.servers.Account`."""
        return self._connection.account.numbers()

    def load(self, device: Any = None) -> None:
        """Connect."""
        self._connection.open()

    def close(self) -> None:
        """End the connections; the next request opens new ones. Dropping the object does the same."""
        self._connection.close()

    def sample(self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]) -> list[Sampled]:
        found = {index: one for part in self.stream(prompts, sources, seeds) for index, one in part}
        return [found[index] for index in range(len(prompts))]

    def stream(
        self, prompts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int]
    ) -> Iterator[list[tuple[int, Sampled]]]:
        files = [(f"source_{number}.png", _png(source), "image/png") for number, source in enumerate(sources)]

        async def one(servers: Servers, prompt: str, seed: int, end: float | None) -> Sampled:
            async def body() -> dict[str, Any]:
                return self._body(prompt, files, seed)

            outcome: Outcome[Image.Image] = await servers.ask(body, _picture, end)
            return Unscored(outcome.failure) if outcome.value is None else outcome.value

        works = [partial(one, prompt=prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        yield from self._connection.round(works)

    def _body(self, prompt: str, files: Sequence[tuple[str, bytes, str]], seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "prompt": prompt, "n": 1}
        if files:
            body["image"] = files[0] if len(files) == 1 else list(files)
        for name, value in (("size", self.size), ("response_format", self.response_format)):
            if value is not None:
                body[name] = value
        # 31 bits: what servers read into a 32-bit integer
        seeded = {} if self.seed_field is None else {self.seed_field: seed % 2**31}
        return {**body, "extra_body": {**self.extra_body, **seeded}}


def _ask(client: Any, **body: Any) -> Awaitable[Any]:
    call: Awaitable[Any] = client.images.edit(**body) if "image" in body else client.images.generate(**body)
    return call


def _picture(answer: Any) -> Image.Image:
    shown = answer.data[0] if answer.data else None
    stored = getattr(shown, "b64_json", None)
    if not stored and (url := getattr(shown, "url", None)):
        if not url.startswith("data:"):
            raise RequestError("link", f"the server sent a link instead of a picture ({url[:80]}); set response_format: b64_json")
        stored = url.partition(",")[2]
    if not stored:
        raise RequestError("no picture", "the server sent no picture", retry=True)
    try:
        return Image.open(io.BytesIO(base64.b64decode(stored, validate=True))).convert("RGB")
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RequestError("no picture", f"what the server sent cannot be read as a picture ({error})", retry=True) from None


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
