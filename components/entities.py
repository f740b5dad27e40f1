"""What a request asks for, word by word, so that a rewritten request can be checked to ask for it still.

A lexical check: it knows no synonyms ("kitten" for "cat" counts as lost) and takes every word with a meaning of its own for an
entity. Numbers and quoted text are exact in their nature, so they must stay; of the other words a share.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_QUOTED = re.compile(r"\"([^\"]+)\"|\u201c([^\u201d]+)\u201d|(?<!\w)'([^']+)'(?!\w)|\u2018([^\u2019]+)\u2019")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*|\d+(?:[.,]\d+)*", re.UNICODE)
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(("one two three four five six seven eight nine ten eleven twelve").split(), start=1)  # noqa: SIM905
}
# articles, prepositions, pronouns, auxiliaries, and what every request or instruction says: none of them is seen in a picture
_STOP = frozenset(
    """a an the this that these those some any each both all and or but nor of in on at to from by for with without into onto as it
    its is are be been being was were has have had do does did can could will would should may might must not no than then there
    their them they he him his she her hers i me my mine you your yours we us our ours who which what where when while so such very
    more most much many few lot make makes making made let put turn turned turns change changed changes changing add added adds
    adding remove removed removes removing replace replaced replaces replacing edit edited keep kept give given show shows showing
    shown please image picture photo photograph photorealistic realistic scene style look looks looking like also just
    only""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Entities:
    """What a request names.

    Args:
        words: Content words in a common form (lower case, without plural and verb endings).
        numbers: Numbers from two on, as digits; "one" and "1" mostly stand for an article.
        quotes: Quoted text, lower case.
    """

    words: frozenset[str]
    numbers: frozenset[str]
    quotes: frozenset[str]


def entities(request: str) -> Entities:
    """Find what a request names. Words of scripts without spaces are one word from space to space."""
    quotes = frozenset(" ".join(next(filter(None, groups)).lower().split()) for groups in _QUOTED.findall(request))
    words, numbers = set(), set()
    for word in _WORD.findall(_QUOTED.sub(" ", request).lower()):
        number = _NUMBERS.get(word, word if word[0].isdigit() else None)
        if number is not None:
            numbers |= {number} - {"1"}
        elif word not in _STOP:
            words.add(_stem(word))
    return Entities(frozenset(words), frozenset(numbers), quotes)


def lost_entities(request: str, rewritten: str) -> tuple[tuple[str, ...], float]:
    """What a rewritten request no longer names.

    Args:
        request: The original.
        rewritten: The rewritten one. A word that it has only inside another ("redder" for "red") counts as kept.

    Returns:
        What must not be lost and is (numbers and quoted text, sorted), and the share of the content words that is kept, 0 to 1;
        1 if the request has none.
    """
    asked, now = entities(request), entities(rewritten)
    text = " ".join(rewritten.lower().split())
    must = [quote for quote in asked.quotes if quote not in text] + [number for number in asked.numbers - now.numbers]
    # unquoted text of a rewritten request may be quoted now, and the other way round
    found = {_stem(word) for word in _WORD.findall(text)}
    kept = sum(word in found or any(word in other for other in found) for word in asked.words)
    must = [item for item in must if item not in found]
    return tuple(sorted(must)), kept / len(asked.words) if asked.words else 1.0


def _stem(word: str) -> str:
    """A word without its commonest English endings: coarse on purpose, since both sides are cut alike."""
    word = re.sub(r"['\u2019]s$", "", word)
    if word.endswith("ss"):
        return word
    for ending, rest in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("e", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)] + rest
    return word
