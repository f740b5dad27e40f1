"""The refine loop's gallery: what stands in its file, and what a real browser makes of it."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reading import EVIL, Page, check_closed, pixels
from PIL import Image
from rationalrewards.components.pages import gallery_page
from rationalrewards.components.pages.gallery_data import SIDES, side_for, word_changes
from rationalrewards.components.pages.markup import words
from rationalrewards.components.records import Candidate, Refinement
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import Scene, Shape


def drawn(path: Path, colour: str = "red") -> str:
    draw(Scene((Shape(colour, "circle"), None, None, None))).save(path)
    return str(path)


def candidate(image: str, reward: float | None, **changes: object) -> Candidate:
    base = Candidate(0, "red circle top left", image, "It is red.", reward, "" if reward is not None else "cut off")
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture
def record(tmp_path: Path) -> Refinement:
    first = candidate(drawn(tmp_path / "a.png", "blue"), 0.25, aspects={"text_faithfulness": 2.5, "text_rendering": None})
    changes = {"round": 1, "request": "a sharp red circle top left", "aspects": {"text_faithfulness": 4.0}, "parent": 0}
    second = candidate(drawn(tmp_path / "b.png"), 0.75, **changes)
    return Refinement("p1", "t2i", "red circle top left", "refine", (first, second), 1, "threshold met")


def data_of(text: str) -> dict[str, Any]:
    page = check_closed(text)
    (found,) = [
        text for a, text in zip(page.all("script"), page.texts["script"], strict=True) if a.get("type") == "application/json"
    ]
    return json.loads(found)


def blocks_of(text: str) -> list[Image.Image]:
    page = check_closed(text)
    found: list[Image.Image] = []
    for attributes, content in zip(page.all("script"), page.texts["script"], strict=True):
        if attributes.get("type") == "text/plain":
            assert attributes["id"] == f"p{len(found)}"
            found.append(Image.open(io.BytesIO(base64.b64decode(content.split(",", 1)[1]))))
    return found


# -- the file


def test_small_pictures_are_kept_exactly_and_once(record: Refinement) -> None:
    found = blocks_of(gallery_page([record, dataclasses.replace(record, arm="again")], "title"))
    assert len(found) == 2
    for image, made in zip(found, record.candidates, strict=True):
        with Image.open(made.image) as original:
            assert image.convert("RGB").tobytes() == original.convert("RGB").tobytes()


def test_large_pictures_are_reduced(record: Refinement, tmp_path: Path) -> None:
    paths = []
    for index in range(4):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.effect_noise((900, 600), 40).save(paths[-1])
    large = dataclasses.replace(record, candidates=tuple(candidate(path, 0.5) for path in paths), chosen=0)
    assert [image.size for image in blocks_of(gallery_page([large], "title", max_side=300))] == [(300, 200)] * 4
    # no budget at all: the least that there is
    assert [image.size for image in blocks_of(gallery_page([large], "title", picture_bytes=0))] == [(128, 85)] * 4


def test_many_pictures_are_smaller(record: Refinement, tmp_path: Path) -> None:
    paths = []
    for index in range(8):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.effect_noise((600, 600), 40).save(paths[-1])
    full = side_for(paths, 10**9, 512)
    sides = [side_for(paths, budget, 512) for budget in (10**9, 300_000, 100_000, 0)]
    assert full == 512 and sides == sorted(sides, reverse=True) and sides[-1] == min(SIDES)
    assert 128 < sides[1] < 512
    assert side_for(paths, 0, 96) == 96
    # what was promised is held: the sample is all of them
    large = dataclasses.replace(record, candidates=tuple(candidate(path, 0.5) for path in paths), chosen=0)
    page = Page(gallery_page([large], "title", picture_bytes=300_000))
    assert sum(map(len, page.texts["script"][2:])) <= 300_000 + 8 * len("data:")
    # what cannot be read, and what is small, takes no room
    assert side_for([str(tmp_path / "gone.png"), record.candidates[0].image], 0, 512) == 512
    assert side_for([], 0, 512) == 512


@pytest.mark.parametrize("evil", EVIL)
def test_text_from_outside_stays_text(evil: str, record: Refinement) -> None:
    text = gallery_page([with_text(record, evil)], evil)
    harmless, hostile = Page(gallery_page([with_text(record, "harmless")], "title")), Page(text)
    # the same elements in the same order: nothing of the text became markup
    assert [name for name, _ in hostile.elements] == [name for name, _ in harmless.elements]
    (item,) = data_of(text)["items"]
    made = item["arms"][0]["made"][0]
    assert [item["id"], item["prompt"], item["arms"][0]["stop"], made["critique"], made["unscored"]] == [evil] * 5
    (raw,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, flags=re.S)
    # neither tags nor line separators, in any case: nothing that HTML or an old JavaScript reads differently from JSON
    assert raw.isascii() and not set(raw) & set("<>&\n\r")


def with_text(record: Refinement, text: str) -> Refinement:
    """A record all of whose texts are ``text``."""
    made = [
        dataclasses.replace(c, request=text, critique=text, aspects={text: 2.0}, reward=None, unscored=text)
        for c in record.candidates
    ]
    return dataclasses.replace(record, id=text, prompt=text, arm=text, stop=text, candidates=tuple(made))


def test_what_is_no_number_is_no_number_in_a_browser(record: Refinement) -> None:
    odd = dataclasses.replace(record.candidates[0], reward=float("nan"), held_out=float("inf"))
    (item,) = data_of(gallery_page([dataclasses.replace(record, candidates=(odd,), chosen=0)], "title"))["items"]
    assert (item["arms"][0]["made"][0]["reward"], item["arms"][0]["made"][0]["heldOut"]) == (None, None)


WORDS = st.lists(st.sampled_from(["red", "blue", "circle", ",", ";", "at the", "<b>", "  "]), max_size=8).map(" ".join)


@settings(deadline=None, max_examples=60)  # a deadline would be a timing
@given(WORDS, WORDS)
def test_changes_tell_both_requests(original: str, text: str) -> None:
    changes = word_changes(original, text)

    def spelt(*kinds: int) -> str:
        return re.sub(r"\s", "", "".join(part for kind, part in changes if kind in kinds))

    assert spelt(0, 1) == re.sub(r"\s", "", text) and spelt(-1, 0) == re.sub(r"\s", "", original)


def test_changes_are_whole_passages() -> None:
    changes = word_changes("red circle top left, blue square", "a sharp picture: red circle at the top left, blue square")
    expected = [(1, "a sharp picture:"), (0, " "), (0, "red circle "), (1, "at the"), (0, " "), (0, "top left, blue square")]
    assert changes == expected
    assert word_changes("turn it red", "turn it green") == [(0, "turn it "), (-1, "red"), (1, "green")]


# -- in a browser

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def browse(text: str, folder: Path, **state: str) -> Page:
    """The page's elements as Chromium has them, once the page has been loaded at an address with this state."""
    assert CHROMIUM is not None
    path = folder / "gallery.html"
    path.write_text(text, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--disable-extensions", "--window-size=1200,2000"]
    address = f"{path.as_uri()}#{urlencode(state)}"
    command = [CHROMIUM, *flags, f"--user-data-dir={folder / 'browser'}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    dumped = done.stdout.decode("utf-8")
    assert "<html" in dumped, done.stderr.decode("utf-8", "replace")
    return Page(re.sub(r"^<!DOCTYPE html>", "", dumped, flags=re.I))


@in_browser
def test_a_browser_shows_rounds_scores_words_and_pictures(record: Refinement, tmp_path: Path) -> None:
    page = browse(gallery_page([record], "title"), tmp_path)
    assert [pixels(attributes).tobytes() for attributes in page.all("img")] == [
        Image.open(made.image).convert("RGB").tobytes() for made in record.candidates
    ]
    assert {attributes["class"] for attributes in page.all("img")} == {"pixels"}
    (section,) = page.all("section", "arm")
    assert section["data-arm"] == "refine" and section["data-gain"] == "0.5"
    assert [("chosen" in (a["class"] or "").split()) for a in page.all("li", "candidate")] == [False, True]
    # 2.5 is half-way between 1 and 4; an aspect without a score has an empty bar
    assert [a["style"] for a in page.all("i")] == ["width: 50%;", "width: 100%;"]
    assert page.texts["pre"] == ["It is red.", "It is red."] and page.texts["ins"] == ["a sharp"]
    said = " | ".join(page.texts["span"])
    for text in ("reward 0.750", "gain +0.500", "stopped: threshold met", "4.00", " +1.50", "Text rendering", "none"):
        assert text in said
    assert "2 of 2 \u00b7 round 1 \u00b7 from picture 1" in page.texts["div"]


@in_browser
def test_a_browser_shows_what_is_missing(record: Refinement, tmp_path: Path) -> None:
    lost = candidate(str(tmp_path / "gone.png"), None, unscored="no closing tag")
    never = candidate("", None, unscored="the server refused")
    page = browse(gallery_page([dataclasses.replace(record, candidates=(lost, never), chosen=-1)], "title"), tmp_path)
    (section,) = page.all("section", "arm")
    # -1 must not mark Python's last candidate
    assert section["data-gain"] == "" and not page.all("li", "chosen")
    assert "nothing chosen" in page.texts["span"] and "no closing tag" in page.texts["div"]
    boxes = " ".join(page.texts["div"])
    assert "gone.png does not exist" in boxes and "the server refused" in boxes and "there is no picture" in boxes


@pytest.fixture
def several(record: Refinement, tmp_path: Path) -> str:
    """A page of requests whose chosen pictures gain 0.5, 0, -0.2 and an unknown amount, in this order."""

    def other(name: str, reward: float | None, stop: str, faithful: float, arm: str = "refine") -> Refinement:
        second = dataclasses.replace(
            record.candidates[1], reward=reward, unscored="" if reward is not None else "cut off", aspects={"look": faithful}
        )
        first = dataclasses.replace(record.candidates[0], aspects={"look": 2.0})
        return Refinement(name, "t2i", f"request {name}", arm, (first, second), 1, stop)

    rows = [other("up", 0.75, "accepted", 4.0), other("same", 0.25, "images", 3.0), other("down", 0.05, "images", 1.0)]
    rows += [other("lost", None, "failures", 2.0), other("up", 0.3, "rounds", 2.0, "base")]
    # "up" is one request in two arms: what is the same, its id, its words and its sources
    return gallery_page(rows, "several")


STATES: list[tuple[dict[str, str], list[str]]] = [
    ({}, ["up", "same", "down", "lost"]),
    ({"order": "most"}, ["up", "same", "down", "lost"]),
    ({"order": "least"}, ["down", "same", "up", "lost"]),
    ({"order": "lowest"}, ["down", "same", "up", "lost"]),
    ({"gain": "better"}, ["up"]),
    ({"gain": "much"}, ["up"]),
    ({"gain": "worse"}, ["down"]),
    ({"gain": "same"}, ["same"]),
    ({"gain": "unknown"}, ["lost"]),
    ({"show": "some"}, ["lost"]),
    ({"show": "scored"}, ["up", "same", "down"]),
    ({"stop": "images"}, ["same", "down"]),
    ({"arm": "base"}, ["up"]),
    # in an aspect: 4, 3, 1 and 2 of 4, and 2 in the other arm of the first, each from 2
    ({"of": "look", "gain": "better"}, ["up", "same"]),
    ({"of": "look", "level": "low"}, ["up", "down", "lost"]),
    ({"of": "look", "level": "full"}, ["up"]),
    ({"of": "look", "order": "least"}, ["down", "up", "lost", "same"]),
    ({"q": "SAME request"}, ["same"]),
    ({"q": "nowhere"}, []),
    # what the page does not have is no filter
    ({"stop": "no such reason", "gain": "constructor", "other": "x"}, ["up", "same", "down", "lost"]),
]


def drive(text: str, folder: Path, script: str) -> Any:
    """What a further script in the page, which ends in ``return``, finds in it."""
    run = f"document.documentElement.setAttribute('data-found', JSON.stringify((() => {{{script}}})()))"
    page = browse(without_policy(text).replace("</body>", f"<script>{run}</script></body>"), folder)
    return json.loads(page.all("html")[0]["data-found"] or "")


def without_policy(text: str) -> str:
    changed, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert count == 1
    return changed


@in_browser
def test_an_address_filters_and_sorts(several: str, tmp_path: Path) -> None:
    addresses = json.dumps([urlencode(state) for state, _ in STATES])
    script = """
      return ADDRESSES.map((address) => {
        location.hash = address;
        dispatchEvent(new HashChangeEvent("hashchange"));
        const prompts = [...document.querySelectorAll("h2")].map((one) => one.textContent.replace("request ", ""));
        return [prompts, document.querySelector("output").textContent, document.querySelectorAll(".none").length];
      });"""
    found = drive(several, tmp_path, script.replace("ADDRESSES", addresses))
    expected = [[shown, f"{len(shown)} of 4 requests", int(not shown)] for _, shown in STATES]
    for (state, _), one, other in zip(STATES, found, expected, strict=True):
        assert one == other, state


@in_browser
def test_filters_and_place_stand_in_the_address(several: str, tmp_path: Path) -> None:
    page = browse(several, tmp_path, at="down", gain="worse")
    assert page.all("article", "here") and page.texts["h2"] == ["request down"]


@in_browser
def test_keys_do_what_the_page_says(several: str, tmp_path: Path) -> None:
    script = """
      const seen = [];
      const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
      const here = () => document.querySelector(".here h2")?.textContent.replace("request ", "") ?? null;
      const look = (key) => { press(key); seen.push([key, here(), decodeURIComponent(location.hash)]); };
      ["j", "j", "k", "G", "j", "g", "k"].forEach(look);
      press("c");
      const folds = [...document.querySelectorAll(".here details")];
      seen.push(["c", folds.length, folds.every((fold) => fold.open)]);
      press("c");
      seen.push(["c", folds.some((fold) => fold.open)]);
      ["s", "w", "r", "u", "u"].forEach(look);
      press("?");
      seen.push(["?", document.querySelector(".keys").open]);
      press("/");
      press("j");
      seen.push(["/", document.activeElement.name, here()]);
      press("Escape");
      press("j");
      press("z");
      const dialog = document.querySelector("dialog"), where = () => dialog.querySelector(".quiet").textContent;
      seen.push(["z", dialog.open, where()]);
      press("ArrowLeft");
      seen.push(["left", where()]);
      return [seen, [...document.querySelectorAll("kbd")].map((one) => one.textContent)];"""
    seen, keys = drive(several, tmp_path, script)
    assert seen == [
        ["j", "up", "#at=up"],
        ["j", "same", "#at=same"],
        ["k", "up", "#at=up"],
        ["G", "lost", "#at=lost"],
        # the last stays the last, the first the first
        ["j", "lost", "#at=lost"],
        ["g", "up", "#at=up"],
        ["k", "up", "#at=up"],
        ["c", 4, True],
        ["c", False],
        ["s", None, "#order=most"],
        ["w", None, "#gain=better&order=most"],
        ["r", None, ""],
        ["u", None, "#show=some"],
        ["u", None, ""],
        ["?", True],
        # in a field a letter is a letter
        ["/", "q", None],
        ["z", True, "2 of 2"],
        ["left", "1 of 2"],
    ]
    assert set(keys) == {"j", "k", "g", "G", "c", "z", "s", "w", "u", "r", "/", "Esc", "?"}


@in_browser
def test_only_what_is_near_the_window_is_made(record: Refinement, tmp_path: Path) -> None:
    rows = [dataclasses.replace(record, id=f"p{index}") for index in range(300)]
    page = browse(gallery_page(rows, "many"), tmp_path)
    # a request takes at least 300 pixels, and 2,000 of the window and 1,000 below it are filled
    assert len(page.all("article")) == 300 and 4 <= len(page.all("section", "arm")) <= 10
    page = browse(gallery_page(rows, "many"), tmp_path, at="p250")
    assert "p250 \u00b7 text to image" in page.texts["small"] and len(page.all("section", "arm")) <= 30


@in_browser
def test_a_browser_runs_nothing_of_the_corpus(record: Refinement, tmp_path: Path) -> None:
    # and what no HTML file can hold: NUL, and half a surrogate pair
    corpus = [*EVIL, "a\x00b\ud800c"]
    rows = []
    for evil in corpus:
        row = with_text(record, evil)
        # a word beside it, so that it stands among marked words too
        made = dataclasses.replace(row.candidates[0], request=f"{evil} x {evil}")
        rows.append(dataclasses.replace(row, candidates=(made, row.candidates[1])))
    # were anything to run, it would say so: the driver takes the policy away, and alert() leaves a mark
    mark = "window.alert = () => document.documentElement.setAttribute('data-ran', '1');"
    loud = gallery_page(rows, EVIL[0]).replace("<head>", f"<head><script>{mark}</script>", 1)
    script = """
      const seen = [];
      for (const card of document.querySelectorAll("article")) {
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
        const text = (kind) => document.querySelector(".here " + kind).textContent;
        seen.push([text("pre"), text("h2"), text(".unscored"), text("h3"), text(".aspects .name")]);
      }
      for (const one of document.querySelectorAll(".here .zoom")) one.click();
      const bad = ({ name, value }) =>
        name.startsWith("on") || (["src", "href", "action"].includes(name) && !value.startsWith("data:image/"));
      const odd = [...document.querySelectorAll("*")].filter((one) => [...one.attributes].some(bad));
      return [seen, odd.map((one) => one.outerHTML), document.documentElement.hasAttribute("data-ran"), typeof window.alert,
        document.querySelectorAll("body script").length];"""
    seen, odd, ran, alert, scripts = drive(loud, tmp_path, script)
    assert odd == [] and not ran and alert == "function"
    # data, the page's own, two pictures and this one
    assert scripts == 5
    assert len(seen) == len(corpus)
    corpus[-1] = "a\ufffdb\ufffdc"
    for found, evil in zip(seen, corpus, strict=True):
        heading = words(evil)
        assert found == [evil, evil, evil, heading, heading]
