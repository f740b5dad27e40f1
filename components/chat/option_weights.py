"""How probable each of several strings is as the next piece of a text, by asking a model for one token after another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

LEAST = 1e-3
"""A branch with less of the probability is not followed; it counts for the option that it holds so far."""


async def option_weights(
    next_tokens: Callable[[str], Awaitable[Mapping[str, float]]], before: str, options: Sequence[str]
) -> dict[str, float]:
    """The probability of each option after ``before``; see :class:`~rationalrewards.components.chat.base.Weights`.

    White space at the end of ``before`` is not given to the model but asked for with the options, and their weights divided by its
    probability: after "Score: " with the space as a token of its own, " N" of "N/A" could never come. All that a text may start with
    is followed token by token, as the model would write it; probability that no token shown accounts for counts as none of the
    longer options.

    Args:
        next_tokens: Text to the most probable tokens after it, as text, with their probabilities.
        before: What stands before the place.
        options: The strings that might stand there.

    Raises:
        ValueError: If the model gives the white space, or all options, less than :data:`LEAST`.
    """
    base = before.rstrip()
    gap = before[len(base) :]
    written = {gap + option: option for option in options}
    weights = dict.fromkeys(options, 0.0)
    given = 0.0

    def settle(text: str, mass: float) -> None:
        nonlocal given
        given += mass if text.startswith(gap) else 0.0
        held = max((string for string in written if text.startswith(string)), key=len, default=None)
        if held is not None:
            weights[written[held]] += mass

    async def walk(text: str, mass: float) -> None:
        shown = await next_tokens(base + text)
        deeper = []
        for token, probability in shown.items():
            longer, share = text + token, mass * probability
            # a token without text, as special ones may be, would lead back here
            undecided = token and any(string.startswith(longer) and string != longer for string in written)
            if undecided and share > LEAST:
                deeper.append(walk(longer, share))
            else:
                settle(longer, share)
        settle(text, mass * max(0.0, 1.0 - sum(shown.values())))
        for result in await asyncio.gather(*deeper, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    await walk("", 1.0)
    if given < LEAST or sum(weights.values()) < LEAST * given:
        raise ValueError(f"the model would write none of {', '.join(map(repr, list(options)[:4]))}... after {before[-40:]!r}")
    return {option: min(1.0, weight / given) for option, weight in weights.items()}
