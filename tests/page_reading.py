"""Pages read back: what every HTML page of the library must be, and what stands in it."""

from __future__ import annotations

import base64
import hashlib
import io
from html.parser import HTMLParser

from PIL import Image

EVIL = [
    "</script><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "'><img src=http://example.org/x.png onerror=alert(1)>",
    "</details></li></main>",
    "&lt;b&gt; &amp;amp; &#x27;",
    "<!-- <svg/onload=alert(1)>",
    "<!--<script>",
    "]]></SCRIPT ><body onload=alert(1)>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "\u2028alert(1)\u2029//",
    '\\u003c/script>\\"};alert(1);//',
    "${alert(1)} `{{constructor.constructor('alert(1)')()}}`",
    "__proto__",
    "\u202egpj.exe",
]
"""Texts that would break out of a page that did not escape them."""

VOID = {"img", "input", "meta"}
DATA = {"application/json", "text/plain"}
"""Types of ``<script>`` that hold data."""


class Page(HTMLParser):
    """A page read back: elements in order with their attributes, own text and the classes around them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def all(self, tag: str, class_: str | None = None) -> list[dict[str, str | None]]:
        return [a for name, a in self.elements if name == tag and (class_ is None or class_ in (a.get("class") or "").split())]


def check_closed(text: str) -> Page:
    """What must hold for every page: well-formed, no way out, no code but ours."""
    page = Page(text)
    text.encode("utf-8")
    for name, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        assert (attributes.get("src") or "data:").startswith("data:image/") if "src" in attributes else True
        assert (attributes.get("href") or "#").startswith("#")
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy and "img-src data:" in policy
    kinds = [a.get("type") for a in page.all("script")]
    # what is marked as data is never run, whatever a policy says
    scripts = [text for kind, text in zip(kinds, page.texts.get("script", []), strict=True) if kind not in DATA]
    assert len(scripts) <= 1
    for script in scripts:
        # a browser runs a script only if its hash is the one that the policy names
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    return page


def pixels(attributes: dict[str, str | None]) -> Image.Image:
    """The picture of an ``<img>``."""
    source = attributes["src"]
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))) as image:
        return image.convert("RGB")
