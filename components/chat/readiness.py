"""Whether a server is up, has the model, and looks at pictures; asked before the work begins."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from PIL import Image

from .faults import RequestError, checked
from .pictures import data_url
from .servers import Account, Server, tokens

log = logging.getLogger(__name__)

_PAUSE = 2.0  # seconds between looks


async def until_ready(
    server: Server, model: str, account: Account, seconds: float, timeout: float, settings: dict[str, Any]
) -> None:
    """Wait until a server answers a tiny request with a picture.

    Args:
        server: The server.
        model: The model that it should have.
        account: Where the probe's requests are counted.
        seconds: How long to wait for a server that is not up yet.
        timeout: Seconds for one look.
        settings: The arguments of a request besides its messages: an API that is paid for refuses what it does not know.

    Raises:
        RuntimeError: With what was seen last, when time is up, or at once if waiting cannot help.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    while True:
        try:
            return await _look(server, model, account, min(timeout, max(end - clock(), 1.0)), settings)
        except RequestError as fault:
            last = fault
        late = clock() + _PAUSE >= end
        if late or not last.retry:
            waited = f" after {seconds:g} s" if last.retry else ""
            raise RuntimeError(
                f"{server.url} is not ready{waited}: {last.reason}. Start the server or correct base_url, model or the key; "
                "ready_timeout is how long it is waited for, 0 leaves this probe out"
            )
        log.info("waiting for %s: %s", server.url, last.reason)
        await asyncio.sleep(_PAUSE)


async def _look(server: Server, model: str, account: Account, limit: float, settings: dict[str, Any]) -> None:
    account.probes += 1
    listed = []
    try:
        page = await checked(server.client.models.list(), limit)
        listed = [entry.id for entry in page.data]
    except (AttributeError, TypeError):
        pass  # another shape of list tells nothing
    except RequestError as fault:
        # not every server has a list; `transformers serve` answers 500 where nothing was ever downloaded
        if fault.kind in ("no connection", "no answer in time", "HTTP 401", "HTTP 403"):
            raise
    # SGLang answers to any name, so a wrong one would go unseen. `transformers serve` lists its download cache and never a folder.
    if listed and model not in listed and not Path(model).is_absolute():
        raise RequestError("model", f"it has no model {model!r} but {', '.join(map(repr, listed[:8]))}")

    async def prompt_tokens(content: list[dict[str, Any]]) -> int:
        account.probes += 1
        messages = [{"role": "user", "content": content}]
        call = server.client.chat.completions.create(messages=messages, **settings)
        answer = await checked(call, limit)
        if not getattr(answer, "choices", None):
            raise RequestError("no chat completion", "it sent no chat completion")
        return tokens(answer)[0]

    question = {"type": "text", "text": "Which colour is the picture?"}
    picture = {"type": "image_url", "image_url": {"url": data_url(Image.new("RGB", (64, 64), "red"))}}
    blind, seeing = await asyncio.gather(prompt_tokens([question]), prompt_tokens([picture, question]), return_exceptions=True)
    for result in (seeing, blind):
        if isinstance(result, BaseException):
            raise result
    if blind and blind == seeing:
        raise RequestError("pictures", f"it does not look at pictures: {blind} prompt tokens with a picture and without")
