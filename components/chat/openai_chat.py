"""A vision-language model behind an OpenAI-compatible server: vLLM, SGLang, ``transformers serve`` or a paid API."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from PIL import Image

from .base import ChatModel, ChatReply, ChatRequest

_RETRY_STATUS = {408, 409, 429, 500, 502, 503, 504}


class OpenAIChat(ChatModel):
    """Concurrent requests with bounded retries. A request that keeps failing gives a reply with its reason; nothing raises.

    Args:
        model: Model name as the server knows it.
        base_url: Server root, e.g. ``http://localhost:8000/v1``.
        api_key_env: Environment variable that holds the key. Keys are never init args, so that no config can leak one; local
            servers need none.
        concurrency: Requests under way at once.
        attempts: How often a request is sent before it counts as failed.
        timeout: Seconds for one attempt.
        deadline: Seconds for all attempts of one request together.
        extra_body: Further fields of the request body, e.g. a server's own sampling options.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        attempts: int = 4,
        timeout: float = 180.0,
        deadline: float = 600.0,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.base_url = base_url
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.attempts = attempts
        self.timeout = timeout
        self.deadline = deadline
        self.extra_body = extra_body or {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._stop: Any = None

    @property
    def identity(self) -> str:
        return f"{self.model} at {self.base_url}"

    @property
    def fingerprint(self) -> str:
        return f"{self.identity} {json.dumps(self.extra_body, sort_keys=True)}"

    def load(self, device: Any = None) -> None:
        """Start the one event loop and client of this process."""
        if self._loop is not None:
            return
        try:
            import openai
        except ImportError:
            raise ImportError("OpenAIChat needs the openai client: pip install 'rationalrewards[openai]'") from None
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_serve, args=(self._loop,), daemon=True, name="openai-chat")
        thread.start()
        key = os.environ.get(self.api_key_env) or "none"  # local servers accept any key
        self._client = openai.AsyncOpenAI(api_key=key, base_url=self.base_url, timeout=self.timeout, max_retries=0)
        self._stop = weakref.finalize(self, _stop, self._loop, thread, self._client)

    def close(self) -> None:
        """End the loop and its connections; the next request starts new ones. Dropping the object does the same."""
        if self._stop is not None:
            self._stop()
        self._loop = self._client = self._stop = None

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        if any(request.form for request in requests):
            raise ValueError("OpenAIChat cannot force answers into a form; leave out `constrained`, or use TransformersChat")
        self.load()
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(self._all(requests), self._loop).result()

    async def _all(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        gate = asyncio.Semaphore(self.concurrency)

        async def one(request: ChatRequest) -> ChatReply:
            async with gate:
                return await self._with_retries(request)

        return list(await asyncio.gather(*map(one, requests)))

    async def _with_retries(self, request: ChatRequest) -> ChatReply:
        import openai

        end = asyncio.get_running_loop().time() + self.deadline
        reason = ""
        for attempt in range(1, self.attempts + 1):
            wait = random.uniform(0.5, 1.5) * 2 ** (attempt - 1)
            try:
                return await self._send(request, attempt)
            except openai.APIStatusError as error:
                reason = f"HTTP {error.status_code}: {str(error)[:200]}"
                if error.status_code not in _RETRY_STATUS:
                    return ChatReply("", failure=reason, attempts=attempt)
                wait = _retry_after(error.response.headers.get("retry-after"), wait)
            except (openai.APIError, ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
                reason = f"{type(error).__name__}: {str(error)[:200]}"  # no connection, time-out, or a body that is no answer
            if attempt == self.attempts or asyncio.get_running_loop().time() + wait > end:
                return ChatReply("", failure=f"{reason} (after {attempt} attempts)", attempts=attempt)
            await asyncio.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns")

    async def _send(self, request: ChatRequest, attempt: int) -> ChatReply:
        answer = await self._client.chat.completions.create(
            model=self.model,
            messages=[_message(turn) for turn in request.messages],
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
            stop=list(request.stop) or None,
            extra_body=self.extra_body,
        )
        choice = answer.choices[0]
        text = choice.message.content
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the server sent an empty answer")
        cut_off = f"the answer was cut off after {request.max_tokens} tokens" if choice.finish_reason == "length" else ""
        usage = answer.usage
        return ChatReply(
            text,
            failure=cut_off,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            attempts=attempt,
        )


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, client: Any) -> None:
    """Close the client's connections on its own loop, then end the loop and its thread."""
    if loop.is_closed():
        return

    async def close() -> None:
        await client.close()
        loop.stop()

    asyncio.run_coroutine_threadsafe(close(), loop)
    if threading.current_thread() is not thread:  # the last reference may be dropped on the loop's own thread
        thread.join(timeout=10)


def _retry_after(header: str | None, default: float) -> float:
    try:
        return max(default, float(header)) if header else default
    except ValueError:
        return default


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for part in turn["content"]:
        if part["type"] == "image":
            parts.append({"type": "image_url", "image_url": {"url": _data_url(part["image"])}})
        else:
            parts.append(part)
    if all(part["type"] == "text" for part in parts):
        return {"role": turn["role"], "content": "\n".join(part["text"] for part in parts)}
    return {"role": turn["role"], "content": parts}


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
