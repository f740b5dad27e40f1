"""The one event loop of this process, on a thread of its own, which all clients of servers share."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.RLock()  # the garbage collector may run a client's `leave` in the middle of another's `join`
_members: set[object] = set()
_running: EventLoop | None = None


class EventLoop:
    """A running event loop and its thread. Begins with the first client that joins, ends with the last that leaves."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._serve, daemon=True, name="openai-chat")
        self.thread.start()

    @property
    def alive(self) -> bool:
        """Whether it runs in this process: threads do not survive a fork."""
        return self.process == os.getpid() and self.thread.is_alive()

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``work`` on the loop and wait for it, from any other thread."""
        (((_, result),),) = self.stream([work])
        return result

    def stream(self, works: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> Iterator[list[tuple[int, T]]]:
        """Run all ``works`` on the loop at once; each time the results that are there by then, with their numbers."""
        found: queue.SimpleQueue[tuple[int, T] | None] = queue.SimpleQueue()

        async def one(index: int, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
            found.put((index, await work()))

        async def everything() -> None:
            await asyncio.gather(*(one(index, work) for index, work in enumerate(works)))

        future = asyncio.run_coroutine_threadsafe(everything(), self.loop)
        future.add_done_callback(lambda _: found.put(None))  # also when one of them raised
        try:
            item = found.get()
            while item is not None:
                part = [item]
                while not found.empty() and (item := found.get()) is not None:
                    part.append(item)
                yield part
                item = item and found.get()
            future.result()
        finally:  # whoever stops listening must not leave requests running there
            future.cancel()

    def _serve(self) -> None:
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
        finally:
            self.loop.close()


def join(member: object) -> EventLoop:
    """The loop of this process for one more client, which tells itself apart by ``member``."""
    global _running
    with _lock:
        _members.add(member)
        if _running is None or not _running.alive:
            _running = EventLoop()
        return _running


def leave(member: object, loop: EventLoop, close: Callable[[], Awaitable[None]]) -> None:
    """End a client's part: ``close`` runs on the loop, which then ends if nobody is left. Safe on the loop's own thread."""
    global _running
    with _lock:
        _members.discard(member)
        last = _running is loop and not _members
        if last:
            _running = None
    if not loop.alive:
        return

    async def end() -> None:
        try:
            await close()
        finally:
            if last:
                loop.loop.stop()

    future = asyncio.run_coroutine_threadsafe(end(), loop.loop)
    if threading.current_thread() is loop.thread:
        return  # the last reference was dropped there: nothing to wait for
    if last:
        loop.thread.join(timeout=10)
    else:
        future.result(timeout=10)
