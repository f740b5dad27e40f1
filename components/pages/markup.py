"""HTML that cannot be broken by what is put in: a plain string is escaped everywhere, only :class:`Html` passes."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from ..pictures import open_picture


class Html(str):
    """Markup made by this package; everything else is text and gets escaped."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child] | None"
Attribute = str | int | float | bool | None

_VOID = {"img", "input", "meta"}
# control characters and halves of surrogate pairs: legal in a Python string, not in an HTML file
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def escape(text: str) -> Html:
    """Text as HTML, safe as content and between double quotes; what no HTML file may hold becomes U+FFFD."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n")), quote=True))


def join(*children: Child) -> Html:
    """Children one after the other; nested lists are flattened and ``None`` is left out."""
    parts = []
    for child in children:
        if isinstance(child, str):
            parts.append(escape(child))
        elif child is not None:
            parts.append(join(*child))
    return Html("".join(parts))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """One element.

    Args:
        name: Element name.
        children: Content; strings are escaped.
        attributes: A trailing ``_`` is dropped and ``_`` inside becomes ``-`` (``class_``, ``aria_label``). ``True`` is
            written bare; ``None`` and ``False`` are left out.
    """
    written = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {key}")
        elif value is not None and value is not False:
            # an attribute is always escaped, markup included: quotes are all that ends it
            written.append(f' {key}="{escape(str(value))}"')
    opening = f"<{name}{''.join(written)}>"
    return Html(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


SMALL = 160
"""Pictures with no side longer than this (pixels) are kept without loss and enlarged with hard pixels."""


def picture(image: str | Path | Image.Image, alt: str, max_side: int = 640) -> Html:
    """A picture as an ``<img>`` with a ``data:`` URI, or a box that says why it cannot be shown.

    Args:
        image: Picture, or its file.
        alt: What stands for the picture where it is not seen.
        max_side: Longer pictures are reduced to this many pixels, so that a page of photographs can still be opened.
    """
    try:
        image = image.convert("RGB") if isinstance(image, Image.Image) else open_picture(image)
    except ValueError as error:
        return tag("div", str(error), class_="missing", role="img", aria_label=alt)
    small = max(image.size) <= SMALL
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=88)
    uri = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    width, height = image.size
    return tag(
        "img",
        src=uri,
        alt=alt,
        width=width,
        height=height,
        loading="lazy",
        decoding="async",
        class_="pixels" if small else None,
    )


def words(key: str) -> str:
    """A key as a heading: ``text_faithfulness`` to ``Text faithfulness``, ``rl`` to ``RL``."""
    text = key.replace("_", " ").strip()
    return "RL" if text == "rl" else text[:1].upper() + text[1:]


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign: ``+0.120``, ``±0.000``, and a minus sign (U+2212) below zero."""
    rounded = round(value, digits)
    return ("+" if rounded > 0 else "\u2212" if rounded < 0 else "±") + f"{abs(rounded):.{digits}f}"


def scrolling(label: str, *children: Child) -> Html:
    """A region that scrolls sideways on narrow screens, and by keyboard."""
    return tag("div", *children, class_="scroll", role="region", aria_label=label, tabindex=0)


STYLE = """
:root { color-scheme: light dark;
  --ground: #ffffff; --surface: #f6f7f9; --ink: #1b1f24; --quiet: #57606a; --line: #dde1e6; --accent: #0b62c4;
  --good: #11713f; --bad: #b3261e; --new: #d7f0df; --warn: #fff4d6; --warn-line: #d9a300;
  --c0: #0b62c4; --c1: #c8500a; --c2: #0a7d5a; --c3: #9b4f96; --c4: #7a5c00; --c5: #4a5568; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #14171a; --surface: #1d2125; --ink: #e6e9ec; --quiet: #a0a8b0; --line: #343a40; --accent: #6cb0ff;
  --good: #5fd08f; --bad: #ff8a80; --new: #1d4a31; --warn: #332b12; --warn-line: #b58c1a;
  --c0: #6cb0ff; --c1: #ff9d5c; --c2: #4fd0a5; --c3: #d79ad2; --c4: #e0c050; --c5: #aab4c0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0; }
p { margin: .25rem 0; }
.quiet, small, figcaption { color: var(--quiet); }
small { font-size: .85em; }
[hidden] { display: none !important; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.text, td, summary, pre { overflow-wrap: anywhere; }
.text { white-space: pre-line; unicode-bidi: isolate; }
ins { background: var(--new); text-decoration: none; border-radius: 3px; box-shadow: 0 0 0 1px var(--new); }
del { color: var(--quiet); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: middle; }
thead th { font-weight: 600; font-size: .85em; color: var(--quiet); vertical-align: bottom; }
tbody th { font-weight: 400; }
td.number, th.number { text-align: right; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
figure { margin: 0; min-width: 0; }
img { display: block; width: 100%; height: auto; background: var(--surface); border-radius: 4px; }
img.pixels { image-rendering: pixelated; }
.missing { display: grid; place-items: center; aspect-ratio: 1; padding: .5rem; border: 1px dashed var(--bad);
  border-radius: 4px;
  color: var(--bad); font-size: .8rem; text-align: center; overflow-wrap: anywhere; overflow: hidden; }
details { margin-top: .5rem; }
summary { cursor: pointer; color: var(--accent); font-size: .9em; }
pre { white-space: pre-wrap; font: .82rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: .5rem 0 0;
  padding: .6rem;
  background: var(--surface); border-radius: 4px; }
.bar { display: block; height: .4rem; background: var(--line); border-radius: 2px; overflow: hidden; }
.bar > i { display: block; height: 100%; background: var(--accent); }
"""


def page(title: str, body: Child, style: str = "", script: str = "") -> str:
    """A whole page. Its policy forbids every request and every script but ours.

    Args:
        title: Title of the window; text.
        body: Content of ``<body>``.
        style: Further CSS; ours, never text from outside.
        script: JavaScript; likewise.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if script else "'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", title),
        tag("style", Html(STYLE + style)),
    )
    scripts = tag("script", Html(script)) if script else None
    content = tag("html", tag("head", *head), tag("body", body, scripts), lang="en")
    return f"<!doctype html>\n{content}\n"
