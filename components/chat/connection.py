"""A client's servers on the event loop that all clients of this process share; opened at the first request."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from . import event_loop
from .servers import Account, Server, Servers, chat_completion

T = TypeVar("T")

_connecting = threading.Lock()


class Connection:
    """Servers with one model, behind the openai client; how they are asked is :class:`.Servers`' business.

    Args:
        owner: Name of the class that connects, for messages.
        base_url: Root of the server, or of several.
        api_key_env: Environment variable that holds the key.
        concurrency: Requests under way at once, over all servers and threads.
        attempts: How often a request is sent before it counts as failed.
        timeout: Seconds for one attempt.
        deadline: Seconds for all attempts of one request together.
        breaker: See :class:`.Breaker`.
        call: See :class:`.Servers`.
        what: See :class:`.Servers`.

    Raises:
        ValueError: If there is no URL, or one holds a password.
    """

    def __init__(
        self,
        owner: str,
        base_url: str | Sequence[str],
        api_key_env: str,
        concurrency: int,
        attempts: int,
        timeout: float,
        deadline: float,
        breaker: int,
        call: Callable[..., Awaitable[Any]] = chat_completion,
        what: str = "chat completion",
    ) -> None:
        self.owner = owner
        self.urls = [base_url] if isinstance(base_url, str) else list(base_url)
        if not self.urls:
            raise ValueError(f"base_url is empty: {owner} needs the root of a server, e.g. http://localhost:8000/v1")
        if any(urlsplit(url).password for url in self.urls):
            raise ValueError(f"base_url holds a password; put it into the environment, as the key in {api_key_env}")
        self.api_key_env = api_key_env
        self.account = Account()
        self._limits = (concurrency, attempts, timeout, deadline, breaker)
        self._call, self._what = call, what
        self._loop: event_loop.EventLoop | None = None
        self._servers: Servers | None = None
        self._leave: Any = None

    @property
    def is_open(self) -> bool:
        """Whether there was a first request."""
        return self._servers is not None

    def open(self) -> tuple[event_loop.EventLoop, Servers]:
        """The loop and the servers, connected if they are not."""
        with _connecting:  # two threads may ask for the first time at once
            if self._loop is None or self._servers is None or not self._loop.alive:
                self._loop, self._servers = self._newly_opened()
            return self._loop, self._servers

    def _newly_opened(self) -> tuple[event_loop.EventLoop, Servers]:
        try:
            import openai
        except ImportError:
            raise ImportError(f"{self.owner} needs the openai client: pip install 'rationalrewards[openai]'") from None
        key = os.environ.get(self.api_key_env) or "none"  # local servers accept any key
        # every call has a limit of its own; 10 s to connect leave time to try another server
        limit = openai.Timeout(None, connect=10.0)
        clients = [Server(url, openai.AsyncOpenAI(api_key=key, base_url=url, timeout=limit, max_retries=0)) for url in self.urls]
        member = object()
        loop = event_loop.join(member)
        account, limits, call, what = self.account, self._limits, self._call, self._what

        async def start() -> Servers:
            return Servers(clients, account, *limits, call, what)

        servers = loop.run(start)
        self._leave = weakref.finalize(self, event_loop.leave, member, loop, servers.close)
        return loop, servers

    def round(
        self, works: Sequence[Callable[..., Coroutine[Any, Any, T]]], seconds: float | None = None
    ) -> Iterator[list[tuple[int, T]]]:
        """Do all ``works`` at once; each time the results that are there by then, with their numbers.

        Args:
            works: Each is called with the servers and ``end``, the moment of the round's end on the loop's clock.
            seconds: Seconds for the round; ``None`` has no end.
        """
        loop, servers = self.open()

        async def begin() -> float | None:
            servers.breaker.new_round()
            return None if seconds is None else asyncio.get_running_loop().time() + seconds

        end = loop.run(begin)
        yield from loop.stream([partial(work, servers, end=end) for work in works])

    def close(self) -> None:
        """End the connections; the next request opens new ones. Dropping the object does the same."""
        if self._leave is not None:
            self._leave()
        self._loop = self._servers = self._leave = None
