"""The report of a PARROT run shows what was counted, says what was not measured, and cannot be broken by what it shows."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from page_reading import EVIL, Page, check_closed, pixels
from PIL import Image
from rationalrewards.components.pages.charts import WIDTH
from rationalrewards.components.pages.parrot_examples import Example
from rationalrewards.components.pages.parrot_page import parrot_page
from rationalrewards.components.parrot.audit import summarise
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import Scene, Shape


def row(stage: str = "refine", reason: str = "", **more: Any) -> dict[str, Any]:
    return {"pair": "p", "kept": not reason, "last_stage": stage, "reason": reason, **more}


def run() -> list[dict[str, Any]]:
    """Forty pairs of two sets."""
    first, second = {"origin": "set one, row 1", "task": "t2i"}, {"origin": "set two, row 1", "task": "edit"}
    words, votes = {"pair": 200, "A": 80, "B": 90}, [["AB", "first"], ["BA", "second"]]
    return [
        *[row(label=1.0, words=words, votes=votes, verdict="A", winners=[3, 3], **first)] * 12,
        *[row(label=0.0, words=words, wrong_label_passed=False, verdict="B", **second)] * 8,
        *[row("check", "does not predict the label", label=0.0, words={"pair": 50}, wrong_label_passed=True, **first)] * 8,
        *[row("check", "no answer: timed out", label=1.0, **second)] * 2,
        *[row("anchor", "label echo: 'people prefer'", label=1.0, **second)] * 6,
        *[row("screen", "duplicate: of p", label=0.5, **second)] * 4,
    ]


USAGE: dict[str, dict[str, float | None]] = {
    "refine": {
        "calls": 40,
        "failures": 0,
        "images": 60,
        "prompt_tokens": 900,
        "completion_tokens": 80,
        "seconds": 7.0,
        "cost": 0.3,
    },
    "anchor": {
        "calls": 36,
        "failures": 2,
        "images": 70,
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "seconds": 9.0,
        "cost": 1.25,
    },
}


def text_of(page: str) -> str:
    """What a reader sees, tags taken out."""
    body = page[page.index("<body>") :].replace("\u202f", " ").replace("\u2212", "-").replace("\u2013", "-")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def drawn(path: Path, colour: str) -> str:
    draw(Scene((Shape(colour, "circle"), None, None, None))).save(path)
    return str(path)


@pytest.fixture
def example(tmp_path: Path) -> Example:
    pictures = drawn(tmp_path / "a.png", "red"), drawn(tmp_path / "b.png", "blue")
    texts = [("Comparison", "A is redder."), ("Check", "Tie")]
    return Example("pair 7", "a red circle", pictures, 1.0, (), "set one, row 7", "check", "unreadable verdict", texts, 0.25)


def test_what_a_reader_sees_first() -> None:
    page = parrot_page(
        summarise(run()), USAGE, notes=["The teacher is simulated."], settings={"teacher": "Somebody"}, currency="EUR"
    )
    check_closed(page)
    seen = text_of(page)
    for wanted in (
        "Teacher: Somebody.",
        "The teacher is simulated.",
        "Preference pairs 40 20 kept as rationales 2 without an answer of the teacher",
        "Kept 50.0 % 95 % interval 35.2 to 64.8 %, n = 40",
        # of 16 control pairs 8 right labels and 8 wrong labels pass
        "Wrong labels that pass 50.0 % 95 % interval 28.0 to 72.0 %, n = 16 right labels: 50.0 %",
        # all 12 of label A, 8 of 16 of label B
        "Position bias +50.0 points",
        "Cost 1.55 EUR 76 calls 2 480 tokens",
    ):
        assert wanted in seen, wanted


def test_tables_hold_the_counts() -> None:
    seen = text_of(parrot_page(summarise(run()), USAGE, currency="EUR"))
    for wanted in (
        "Check does not predict the label 8 20.0 %",
        "Anchor label echo 6 15.0 %",
        "Screen duplicate 4 10.0 %",
        "set one 20 12 60.0 %",
        "set two 20 8 40.0 %",
        "Task: text to image 20 12 60.0 %",
        "Label: no difference 4 0 0.0 %",
        "Same verdict in both orders Pairs whose votes lean to the same side whichever picture is shown first. 100.0 %",
        "kept: 20 texts, median 200, four in five from 200 to 200 words",
        "dropped: 8 texts, median 50, four in five from 50 to 50 words",
    ):
        assert wanted in seen, wanted
    # in the order of the stages, and their sums
    assert "Comparisons 36 2 70 1 000 500 9 1.25 Refined requests 40 0 60 900 80 7 0.30 All 76 2 130 1 900 580 16 1.55" in seen


def test_the_flow_is_drawn_to_scale() -> None:
    page = check_closed(parrot_page(summarise(run())))

    def widths(class_: str) -> list[float]:
        return [float(a["width"] or "nan") for a in page.all("rect", class_)]

    # 40 pairs: 4 fall out at the screen, 6 at the anchor, 8 and 2 at the check, none later
    shares = [36 / 40, 30 / 40, 20 / 40, 20 / 40, 20 / 40, 20 / 40]
    # 0.05: widths are written with one decimal
    assert widths("on") == pytest.approx([share * WIDTH for share in shares], abs=0.05)
    assert widths("stream") == pytest.approx([share * WIDTH for share in shares[:-1]], abs=0.05)
    assert widths("d1") == pytest.approx([count / 40 * WIDTH for count in (4, 6, 8)], abs=0.05)
    assert widths("d2") == pytest.approx([2 / 40 * WIDTH], abs=0.05)
    # what falls out stands beside what goes on, one kind after the other
    for class_, starts in (("d1", shares[:3]), ("d2", [28 / 40])):
        found = [float(a["x"] or "nan") for a in page.all("rect", class_)]
        assert found == pytest.approx([start * WIDTH for start in starts], abs=0.05)


def test_bars_of_lengths_are_drawn_to_scale() -> None:
    words = [100, 100, 100, 140, 140, 250]
    rows = [row(words={"pair": count}) for count in words] + [row("check", "unreadable verdict", words={"pair": 100})] * 2
    summary = summarise(rows)
    assert summary["lengths"]["point"]["histogram"] is None
    page = check_closed(parrot_page(summary))
    bars = {
        name: [(float(a["y"] or "nan"), float(a["height"] or "nan")) for a in page.all("rect", name)]
        for name in ("kept", "dropped")
    }
    kept, dropped = ([height for _, height in found] for found in bars.values())
    assert len(kept) == 3 and len(dropped) == 1
    unit = dropped[0] / 2
    assert kept == pytest.approx([3 * unit, 2 * unit, unit], abs=0.2)  # heights are written with one decimal
    # both kinds of text of 100 words, one on the other; all others stand on the ground
    (top, height), *others = bars["kept"]
    assert sum(bars["dropped"][0]) == pytest.approx(top, abs=0.11)
    assert [sum(bar) for bar in others] == pytest.approx([top + height] * 2, abs=0.11)


@pytest.mark.parametrize("rows", [[], [row("anchor", "no answer: down")]])
def test_nothing_is_shown_as_a_number_that_was_not_measured(rows: list[dict[str, Any]]) -> None:
    silent = {"anchor": {**USAGE["anchor"], "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}} if rows else {}
    page = parrot_page(summarise(rows), silent)
    check_closed(page)
    seen = text_of(page)
    for heading in ("Wrong labels that pass", "Position bias", "Cost"):
        assert f"{heading} not measured" in seen
    assert "tokens not measured" in seen and "Teacher not recorded." in seen
    # every figure of agreement, then the lengths
    table = seen[seen.index("Figure, and what it reads") : seen.index("Calls and cost", seen.index("Figure, and what it reads"))]
    assert table.count("not measured") == 8 and "no texts" in table
    if not rows:
        assert "%" not in seen[: seen.index("Figure, and what it reads")].replace("95 %", "")
    else:
        assert "Comparisons 36 2 70 - - 9 -" in seen


def test_figures_of_several_runs_are_said_to_be_mixed() -> None:
    mixed = [row(plan="one"), row(plan="two")]
    assert "These figures mix 2 plans" in parrot_page(summarise(mixed))
    assert "These figures mix" not in parrot_page(summarise(mixed[:1]))


def test_many_sources_are_cut_and_counted() -> None:
    rows = [row(origin=f"set {index}") for index in range(57)] + [row(origin="set large")] * 3
    page = parrot_page(summarise(rows))
    seen = text_of(page)
    assert "and 8 more" in seen and seen.index("set large 3 3") < seen.index("set 0 1 1")
    assert "set 48 1 1" in seen and "set 49 1 1" not in seen


def test_an_example_stands_with_its_pictures(example: Example) -> None:
    edit = dataclasses.replace(
        example, sources=(example.candidates[1],), label=0.2, reason="", stage="refine", point_rewards=(0.25, 0.5)
    )
    shown = {"check: unreadable verdict": [example], "kept": [edit]}
    summary = summarise([row("check", "unreadable verdict")] * 3 + [row()] * 9)
    page = parrot_page(summary, examples=shown)
    read = check_closed(page)
    red, blue = example.candidates
    for attributes, path in zip(read.all("img"), [red, blue, blue, red, blue], strict=True):
        with Image.open(path) as original:
            assert pixels(attributes).tobytes() == original.tobytes()
    # the frame is around the preferred one of each pair
    frames = [a["class"] for a in read.all("div") if a.get("class") == "preferred"]
    assert len(frames) == 2
    assert [
        index
        for index, (name, a) in enumerate(e for e in read.elements if e[0] == "img" or e[1].get("class") == "preferred")
        if name == "div"
    ] == [0, 5]
    seen = text_of(page)
    assert "Check: unreadable verdict 1 of 3" in seen and "Kept 1 of 9" in seen
    assert "pair 7 · set one, row 7 · people preferred A" in seen and "people preferred B (80 %)" in seen
    assert "dropped at check: unreadable verdict · the check is 25 % for the label" in seen
    assert "A alone: reward 0.250" in seen and "B preferred alone: reward 0.500" in seen
    assert read.texts["pre"][:4] == ["A is redder.", "Tie"] * 2


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (1.0, "people preferred A"),
        (0.6, "people preferred A (60 %)"),
        (0.5, "people saw no difference"),
        (0.4, "people preferred B (60 %)"),
        (0.0, "people preferred B"),
    ],
)
def test_labels_in_words(example: Example, label: float, said: str) -> None:
    shown = {"kept": [dataclasses.replace(example, label=label)]}
    page = parrot_page(summarise([row()]), examples=shown)
    # the request's line ends with it
    assert f"{said} dropped at" in text_of(page)
    assert len(check_closed(page).all("div", "preferred")) == (label != 0.5)


def test_a_picture_that_is_gone_is_said_to_be(example: Example, tmp_path: Path) -> None:
    gone = dataclasses.replace(example, candidates=(str(tmp_path / "gone.png"), example.candidates[1]))
    page = parrot_page(summarise([row()]), examples={"kept": [gone]})
    assert len(check_closed(page).all("img")) == 1 and "gone.png does not exist" in page


def test_large_pictures_are_reduced(example: Example, tmp_path: Path) -> None:
    Image.effect_noise((900, 600), 40).save(tmp_path / "large.png")
    large = dataclasses.replace(example, candidates=(str(tmp_path / "large.png"),) * 2)
    page = check_closed(parrot_page(summarise([row()]), examples={"kept": [large]}, max_side=300))
    assert [pixels(attributes).size for attributes in page.all("img")] == [(300, 200)] * 2


@pytest.mark.parametrize("evil", EVIL)
def test_text_from_outside_stays_text(evil: str, example: Example) -> None:
    def made(text: str) -> str:
        # a colon or a comma would cut the text, in both pages alike
        kind = text.replace(":", ";").replace(",", ";")
        rows = [row("check", f"{kind}: {text}", origin=f"{kind}, row 1", task=kind, plan=text, words={"pair": 5}), row(plan="x")]
        shown = dataclasses.replace(
            example,
            pair=text,
            prompt=text,
            origin=text,
            stage=text,
            reason=text,
            texts=[(text, text)],
            sources=example.candidates[:1],
        )
        usage = {text: USAGE["anchor"]}
        settings = {"teacher": text, text: [text]}
        return parrot_page(summarise(rows), usage, {text: [shown]}, [text], settings, text, text)

    page = check_closed(made(evil))
    assert [name for name, _ in page.elements] == [name for name, _ in Page(made("harmless")).elements]
    assert page.texts["h1"] == page.texts["title"][:1] == [evil]
    assert page.texts["pre"][0] == evil
