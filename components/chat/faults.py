"""Why a request brought no usable answer, and what follows from it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from .base import ChatReply

T = TypeVar("T")

_RETRIED = {408, 429}  # and all from 500 on
_OWN_FAULT = {400, 413, 422}  # what is wrong with the request itself and says nothing about the server


class RequestError(Exception):
    """Why an attempt at a request brought no usable answer.

    Args:
        kind: What it is counted as, e.g. ``"HTTP 429"``.
        reason: What happened, in words.
        retry: Whether the same request may do better.
        of_server: Whether it speaks against the server and not against this one request.
        after: Seconds that the server asks to wait.
        reply: What there is of an answer.
    """

    def __init__(
        self,
        kind: str,
        reason: str,
        retry: bool = False,
        of_server: bool = False,
        after: float | None = None,
        reply: ChatReply | None = None,
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.retry = retry
        self.of_server = of_server
        self.after = after
        self.reply = reply or ChatReply("")


async def checked(call: Awaitable[T], limit: float, what: str = "chat completion") -> T:
    """Await a call of the openai client; whatever goes wrong, or takes more than ``limit`` seconds, becomes a :class:`RequestError`.

    Args:
        call: The call.
        limit: Seconds.
        what: What the answer is called in messages.
    """
    import openai

    try:
        async with asyncio.timeout(limit):
            return await call
    except TimeoutError:
        raise RequestError("no answer in time", f"no answer within {limit:.3g} s", True, True) from None
    except openai.APIStatusError as error:
        status = error.status_code
        raise RequestError(
            f"HTTP {status}",
            f"HTTP {status}: {str(error)[:200]}",
            retry=status in _RETRIED or status >= 500,
            of_server=status not in _OWN_FAULT,
            after=retry_after(error.response.headers.get("retry-after")),
        ) from None
    except openai.APIConnectionError as error:
        cause = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ else ""
        raise RequestError("no connection", f"{type(error).__name__}: {error}{cause}"[:300], True, True) from None
    except (openai.APIError, RecursionError, ValueError) as error:
        reason = f"the server sent no {what} ({type(error).__name__}: {str(error)[:200]})"
        raise RequestError(f"no {what}", reason, True, True) from None


def retry_after(header: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks to wait, in either spelling of RFC 9110 (10.2.3); ``None`` if it says nothing."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", header):
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
