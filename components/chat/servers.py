"""Several servers with one model: least load, retries, deadlines, a circuit breaker, and an account of every request.

Everything here runs on one event loop, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .faults import RequestError, checked

T = TypeVar("T")

_REST = 30.0  # seconds that a server which failed is tried last
_LONGEST_WAIT = 60.0


@dataclass
class Account:
    """What became of every request: ``requests = answered + sum(failed)`` and ``sent = answered + sum(faults)``, once none is under way.

    Args:
        requests: Requests asked for.
        answered: Requests with a usable answer.
        failed: Requests without one, by the kind of the last fault.
        sent: Times that a request was sent.
        retried: How many of these were not a request's first.
        faults: Times sent that brought no usable answer, by kind.
        sent_to: Times sent, by server.
        probes: HTTP requests of the readiness probe, which are in no other number.
        prompt_tokens: Tokens of all prompts, as the servers report them; failed answers cost tokens too.
        completion_tokens: Tokens of all answers.
        reused_tokens: Tokens of prompts that were not computed again.
    """

    requests: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    retried: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    sent_to: Counter[str] = field(default_factory=Counter)
    probes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reused_tokens: int = 0

    def numbers(self) -> dict[str, Any]:
        """All of it as plain numbers and dictionaries."""
        return {key: dict(value) if isinstance(value, Counter) else value for key, value in vars(self).items()}


class Breaker:
    """Stops sending after ``limit`` requests in a row failed through the servers' fault; 0 never stops.

    Closed, everything is sent. Open, nothing is. A new round makes an open one half-open: one trial request decides.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.row = 0
        self.reason = ""
        self.half_open = False
        self.opened = asyncio.Event()
        self.trial = asyncio.Lock()

    def new_round(self) -> None:
        if self.opened.is_set():
            self.opened.clear()
            self.half_open = True

    def record(self, fault: RequestError | None) -> None:
        """Take note of how a request ended."""
        if fault is None or not fault.of_server:
            self.row, self.half_open = 0, False
            self.opened.clear()
            return
        self.row += 1
        if self.limit and (self.half_open or self.row >= self.limit):
            self.reason = f"{self.row} requests in a row failed, the last: {fault.reason}"
            self.half_open = False
            self.opened.set()

    def check(self) -> None:
        """Raise the reason if nothing is to be sent."""
        if self.opened.is_set():
            raise RequestError("not sent", f"not sent, the circuit breaker is open: {self.reason}")

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the breaker opens."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.opened.wait()


@dataclass
class Server:
    """One server: its client, how much it has to do, and until when it is tried last (seconds of the loop's clock)."""

    url: str
    client: Any
    under_way: int = 0
    resting_until: float = 0.0


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """How a request ended: what was read from its answer, or the fault; and how often it was sent."""

    value: T | None
    fault: RequestError | None
    attempts: int

    @property
    def failure(self) -> str:
        return "" if self.fault is None else self.fault.reason


def chat_completion(client: Any, **body: Any) -> Awaitable[Any]:
    """Ask a client of the openai package for a chat completion."""
    found: Awaitable[Any] = client.chat.completions.create(**body)
    return found


class Servers:
    """Requests to any of several servers. Made on the event loop that it runs on.

    Args:
        servers: The servers, all with the same model.
        account: Where requests are counted.
        concurrency: Requests under way at once, on all servers together.
        attempts: How often a request is sent before it counts as failed.
        timeout: Seconds for one attempt.
        deadline: Seconds for all attempts of one request, waits included.
        breaker: See :class:`Breaker`.
        call: What is asked of a server's client, with the arguments of a request; a chat completion by default.
        what: What the answer is called in messages.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        account: Account,
        concurrency: int,
        attempts: int,
        timeout: float,
        deadline: float,
        breaker: int,
        call: Callable[..., Awaitable[Any]] = chat_completion,
        what: str = "chat completion",
    ) -> None:
        self.servers = servers
        self.call = call
        self.what = what
        self.account = account
        self.attempts = attempts
        self.timeout = timeout
        self.deadline = deadline
        self.breaker = Breaker(breaker)
        self._gate = asyncio.Semaphore(concurrency)

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(server.client.close() for server in self.servers))

    async def ask(
        self, body: Callable[[], Awaitable[dict[str, Any]]], read: Callable[[Any], T], round_end: float | None = None
    ) -> Outcome[T]:
        """Send one request until it is answered or has failed. Never raises for what a server does.

        Args:
            body: Builds the arguments of the call, when it is the request's turn.
            read: Takes what is wanted from an answer, or raises :class:`RequestError`.
            round_end: Moment by which there is an outcome, on the loop's clock.
        """
        self.account.requests += 1
        end = math.inf if round_end is None else round_end
        outcome: Outcome[T] = Outcome(None, RequestError("not sent", "not sent, the round's time was over"), 0)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(round_end):
                    await self._gate.acquire()
                try:
                    outcome = await self._in_turn(body, read, end)
                finally:
                    self._gate.release()
        except asyncio.CancelledError:
            self.account.failed["interrupted"] += 1
            raise
        if outcome.fault is None:
            self.account.answered += 1
        else:
            self.account.failed[outcome.fault.kind] += 1
        return outcome

    async def _in_turn(self, body: Callable[[], Awaitable[dict[str, Any]]], read: Callable[[Any], T], end: float) -> Outcome[T]:
        try:
            self.breaker.check()
            built = await body()
        except RequestError as fault:
            return Outcome(None, fault, 0)
        except (OSError, ValueError) as error:
            return Outcome(None, RequestError("not sent", f"not sent, {type(error).__name__}: {error}"), 0)
        if self.breaker.half_open:
            async with self.breaker.trial:  # all others wait for what becomes of the first
                if self.breaker.half_open:
                    return await self._with_retries(built, read, end, attempts=len(self.servers))
        return await self._with_retries(built, read, end, self.attempts)

    async def _with_retries(self, body: dict[str, Any], read: Callable[[Any], T], end: float, attempts: int) -> Outcome[T]:
        clock = asyncio.get_running_loop().time
        round_end, end = end, min(end, clock() + self.deadline)
        server: Server | None = None
        for attempt in range(1, attempts + 1):
            try:
                self.breaker.check()
                if clock() >= end:
                    raise RequestError("not sent", "not sent, the round's time was over")
            except RequestError as fault:
                return Outcome(None, fault, attempt - 1)
            server = self._least_loaded(server)
            self.account.retried += attempt > 1
            try:
                value = await self._send(server, body, read, min(self.timeout, end - clock()))
            except RequestError as fault:
                self.account.faults[fault.kind] += 1
                others = self._others(server)
                retry = fault.retry or (fault.of_server and others)  # e.g. one of them has no such model
                fault.of_server = fault.of_server and clock() < round_end  # else it was cut short by us
                wait = self._wait(attempt, None if others else fault.after)
                late = attempt < attempts and clock() + wait >= end
                if retry and attempt < attempts and not late:
                    await self.breaker.pause(wait)
                    continue
                if retry:
                    fault.reason += f" (after {attempt} attempts{', no time for another' if late else ''})"
                self.breaker.record(fault)
                return Outcome(None, fault, attempt)
            self.breaker.record(None)
            return Outcome(value, None, attempt)
        raise AssertionError("unreachable: the last attempt returns")

    def _least_loaded(self, last: Server | None) -> Server:
        now = asyncio.get_running_loop().time()
        return min(self.servers, key=lambda server: (server.resting_until > now, server is last, server.under_way))

    def _others(self, server: Server) -> bool:
        """Whether another server may be asked instead."""
        now = asyncio.get_running_loop().time()
        return any(other is not server and other.resting_until <= now for other in self.servers)

    def _wait(self, attempt: int, after: float | None) -> float:
        """Seconds before the next attempt: twice as long each time, at random around that, and as long as the server asks."""
        wait = min(_LONGEST_WAIT, random.uniform(0.5, 1.5) * 2 ** (attempt - 1))
        # a server may tell all the same: then not all at the same moment either
        return wait if after is None else max(wait, after + random.uniform(0, 1))

    async def _send(self, server: Server, body: dict[str, Any], read: Callable[[Any], T], limit: float) -> T:
        clock = asyncio.get_running_loop().time
        self.account.sent += 1
        self.account.sent_to[server.url] += 1
        server.under_way += 1
        try:
            answer = await checked(self.call(server.client, **body), limit, self.what)
        except RequestError as fault:
            if fault.of_server:
                server.resting_until = clock() + (_REST if fault.after is None else fault.after)
            raise
        except asyncio.CancelledError:
            self.account.faults["interrupted"] += 1
            raise
        finally:
            server.under_way -= 1
        server.resting_until = 0.0
        prompt, completion, reused = tokens(answer)
        self.account.prompt_tokens += prompt
        self.account.completion_tokens += completion
        self.account.reused_tokens += reused
        try:
            return read(answer)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
            raise RequestError(f"no {self.what}", f"the server sent no {self.what} ({error})", True, True) from None


def tokens(answer: Any) -> tuple[int, int, int]:
    """Tokens of the prompt, of the answer, and of the prompt that were not computed again; 0 where the server does not tell.

    Some gateways leave what a model thought out of the answer's tokens, but not out of the total, which is what is paid for.
    """
    usage = getattr(answer, "usage", None)
    details = getattr(usage, "prompt_tokens_details", None)
    told = (
        getattr(usage, "prompt_tokens", 0),
        getattr(usage, "completion_tokens", 0),
        getattr(details, "cached_tokens", 0),
        getattr(usage, "total_tokens", 0),
    )
    prompt, completion, reused, total = (number if isinstance(number, int) else 0 for number in told)
    return prompt, max(completion, total - prompt), reused
