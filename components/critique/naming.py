"""How a comparison names its two pictures, and how the names follow when the pictures change places."""

from __future__ import annotations

import re

_NOUN = r"(?i:images?|pictures?|candidates?|photos?|photographs?|outputs?|options?|results?|versions?|edits?)"
_NAMED = re.compile(rf"\b({_NOUN} )([AB])\b(?:( and | or |, |/| & | vs\.? | versus )([AB])\b)?")
_ORDINAL = re.compile(r"\b((?i:the) )((?i:first|second))( (?i:images?|pictures?|candidates?|photos?|photographs?))\b")
_HEADING = re.compile(r"\bScore [AB]\b")
# "A" begins many sentences: it is a name where a verb, a genitive or the end of a clause follows
_VERB = (
    "is|has|was|does|shows|lacks|wins|keeps|looks|fails|follows|matches|renders|gets|contains|appears|captures|depicts|includes|"
    "omits|misses|adheres|scores|succeeds"
)
_GENITIVE = r"['\u2019]s\b"
_BARE = re.compile(
    r"(?<![\w\"'\u201c\u2018&-])(?<!\bletter )"
    rf"(?:B(?={_GENITIVE}|[\s,.;:)?!/]|$)|A(?={_GENITIVE}|/B\b|\s+(?:{_VERB})\b|\s+(?:and|or|vs\.?)\s+B\b|[,.;:)?!]|$))"
)
_OTHER = {"A": "B", "B": "A", "first": "second", "second": "first"}


def swap_names(text: str) -> str:
    """A text with its pictures' names exchanged: "Image A", "picture B", "Images A and B", "the first picture".

    Words such as "the former" point at what was named before and follow by themselves. Twice is as if never. Names that stand alone
    ("A is sharper") are not safely told from other words and stay: see :func:`bare_name`.
    """

    def named(match: re.Match[str]) -> str:
        noun, name, link, second = match.groups()
        return f"{noun}{_OTHER[name]}" + (f"{link}{_OTHER[second]}" if second else "")

    def ordinal(match: re.Match[str]) -> str:
        article, number, noun = match.groups()
        other = _OTHER[number.lower()]
        return f"{article}{other.capitalize() if number[0].isupper() else other}{noun}"

    return _ORDINAL.sub(ordinal, _NAMED.sub(named, text))


def bare_name(text: str) -> str:
    """The first words of a comparison that name a picture by its letter alone, which no exchange of names reaches; else empty."""
    rest = _NAMED.sub("", _HEADING.sub("", text))
    match = _BARE.search(rest)
    return rest[match.start() : match.start() + 24].split("\n")[0] if match else ""
