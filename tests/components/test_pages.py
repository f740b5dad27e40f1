"""The pages hold what was recorded, whatever was recorded, and nothing else."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reading import EVIL, Page, check_closed, pixels
from PIL import Image
from rationalrewards.components.pages import (
    Grid,
    Row,
    Scored,
    contact_sheet,
    critiques_page,
    histogram,
    report_page,
)
from rationalrewards.components.pages.charts import line_chart, ticks
from rationalrewards.components.pages.markup import escape, signed
from rationalrewards.components.shapes.drawing import draw
from rationalrewards.components.shapes.scenes import Scene, Shape

# a deadline would be a timing
quietly = settings(deadline=None, max_examples=60)


def drawn(path: Path, colour: str = "red") -> str:
    draw(Scene((Shape(colour, "circle"), None, None, None))).save(path)
    return str(path)


@pytest.mark.parametrize("evil", EVIL)
def test_text_in_a_report_stays_text(evil: str, tmp_path: Path) -> None:
    def report(text: str) -> str:
        picture = Path(drawn(tmp_path / "a.png"))
        grid = Grid(text, [text], [picture], [tmp_path / "gone.png"], [text], [text])
        summary = {
            "seed": text,
            "wall_seconds": {text: 1.0},
            "critic": {text: 0.5, "aspect_mae": {text: 0.1}},
            text: text,
        }
        return report_page(summary, [{"step": 0, f"train/{text}": 1.0}], [grid], [text])

    page = check_closed(report(evil))
    assert [name for name, _ in page.elements] == [name for name, _ in Page(report("harmless")).elements]


def test_critiques_stand_with_their_pictures() -> None:
    red, blue = (draw(Scene((Shape(colour, "circle"), None, None, None))) for colour in ("red", "blue"))
    scored = Scored(red, 0.5, "", {"text_faithfulness": 2.5, "text_rendering": None}, "It is red.", "witness 0.250")
    text = critiques_page([("red circle", [scored, Scored(blue, None, "cut off")]), ("blue", [])], "Round 3")
    page = check_closed(text)
    assert [pixels(attributes).tobytes() for attributes in page.all("img")] == [red.tobytes(), blue.tobytes()]
    assert page.texts["h1"] == ["Round 3"] and page.texts["h2"] == ["red circle", "blue"]
    assert "reward 0.500" in text and "witness 0.250" in text
    # 2.5 is half-way between 1 and 4
    assert [a["style"] for a in page.all("i")] == ["width:50.0%"]
    # a critique is seen without a click; what was not said takes no place
    assert page.texts["pre"] == ["It is red."] and [("open" in a) for a in page.all("details")] == [True]
    assert "unscored: cut off" in text


@pytest.mark.parametrize("evil", EVIL)
def test_text_beside_a_critique_stays_text(evil: str) -> None:
    def said(text: str) -> str:
        image = Image.new("RGB", (2, 2))
        made = [Scored(image, 0.5, "", {text: 2.0}, text, text), Scored(image, None, text, {text: None}, text, text)]
        return critiques_page([(text, made)], text)

    page = check_closed(said(evil))
    assert [name for name, _ in page.elements] == [name for name, _ in Page(said("harmless")).elements]
    assert page.texts["pre"] == [evil, evil] and page.texts["h2"] == [evil]


def test_characters_that_html_cannot_hold() -> None:
    assert escape("a\ud800b\x00c\x9bd\r\ne\tf") == "a\ufffdb\ufffdc\ufffdd\ne\tf"


@quietly
@given(st.text())
def test_escaped_text_reads_back(text: str) -> None:
    page = Page(f"<p>{escape(text)}</p>")
    expected = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", text.replace("\r\n", "\n"))
    assert page.texts["p"] == [expected]


WORDS = st.lists(st.sampled_from(["red", "blue", "circle", ",", ";", "at the", "<b>", "  "]), max_size=8).map(" ".join)


def test_signs() -> None:
    assert [signed(value) for value in (0.12, -0.05, 0.0, -0.0001)] == ["+0.120", "\u22120.050", "±0.000", "±0.000"]


# -- report

CRITIC = {
    "pair_accuracy": 0.934,
    "pair_accuracy_ci95": [0.912, 0.953],
    "n_pairs": 512,
    "unscored_rate": {"value": 0.004, "ci95": [0.001, 0.012], "n": 1024},
    "untrained_pair_accuracy": 0.497,
    "within_group_corr": -0.052,
    "aspect_mae": {"text_faithfulness": 0.31},
    "aspect_mae_n": {"text_faithfulness": 900},
}


def rows(text: str) -> dict[str, list[str]]:
    """Every table row: heading to cell texts."""
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", text, flags=re.S):
        heads = re.findall(r"<th[^>]*>(.*?)</th>", row)
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
        if len(heads) == 1:
            found[heads[0]] = [re.sub("<.*?>", "", cell) for cell in cells]
    return found


def test_report_shows_values_intervals_and_numbers() -> None:
    text = report_page({"critic": CRITIC, "seed": 7}, [], [], ["The teacher is a simulation."])
    check_closed(text)
    table = rows(text)
    assert table["Pair accuracy"][:3] == ["93.4 %", "91.2 to 95.3 %", "512"]
    assert table["Unscored"][:3] == ["0.4 %", "0.1 to 1.2 %", "1\u202f024"]
    assert table["Correlation with the truth within groups"][:2] == ["\u22120.052", ""]
    assert table["Text faithfulness"][:2] == ["0.31", "900"]
    assert not [name for name in table if "mae" in name.lower()]
    assert "The teacher is a simulation." in text and "Seed 7" in text
    # the first tile: 93.4 - 49.7
    assert "+43.7 points" in text


def test_what_was_not_measured_is_said() -> None:
    text = report_page({}, [], [], [])
    check_closed(text)
    table = rows(text)
    named = ["Pair accuracy", "Unscored", "Kept", "Share kept", "Exact match after", "Updates", "Best of N", "Harmed"]
    assert [table[name][0] for name in named] == ["not measured"] * len(named)
    undefined = rows(report_page({"critic": {"within_group_corr": math.nan, "pair_accuracy": None}}, [], [], []))
    assert undefined["Correlation with the truth within groups"][0] == "not measured"
    assert undefined["Pair accuracy"][0] == "not measured"


def test_figures_beyond_the_contract_are_shown() -> None:
    rationales = {
        "pairs": 10,
        "flipped_pass_rate": 0.0625,
        "flipped_pass_rate_ci95": [0.04, 0.09],
        "reasons": {"parse": {"early": 3}},
    }
    stages = {"anchor": {"in": 10, "out": 8}, "check": {"in": 8, "out": 5}}
    control = {"control_pairs": 4, "right_label_pass_rate": 0.75, "wrong_label_pass_rate": 0.25}
    refine = {"base": {"exact": 0.5, "exact_ci95": [0.4, 0.6], "truth": 0.61, "n": 80}, "note": "text", "n": 90}
    summary = {"rationales": {**rationales, "stages": stages, **control}, "refine": refine, "threads": 2}
    table = rows(report_page(summary, [], [], []))
    # n is not known: that of other figures must not stand in for it
    assert table["Flipped pass rate"][:3] == ["6.2 %", "4.0 to 9.0 %", ""]
    assert table["Parse · early"][0] == "3"
    # passed, of how many
    assert (table["Anchor"][:2], table["Check"][:2]) == (["8", "10"], ["5", "8"])
    assert table["Right labels that pass (control)"][:3] == ["75.0 %", "", "4"]
    assert not [name for name in table if name.startswith("Stages")]
    assert table["Base · exact"][:3] == ["50.0 %", "40.0 to 60.0 %", "80"]
    assert table["Base · truth"][0] == "0.61"
    assert (table["Note"][0], table["Threads"][0]) == ("text", "2")


def test_raw_figures_read_back() -> None:
    summary = {"critic": CRITIC, "odd": "</pre>"}
    page = check_closed(report_page(summary, [], [], []))
    assert json.loads(page.texts["pre"][0]) == summary


def test_curves_of_a_history() -> None:
    history = [
        {
            "step": step,
            "epoch": step,
            "train/reward": 0.1 * step,
            "train/truth": None if step == 2 else 0.5,
            "train/loss": 1.0,
        }
        for step in range(5)
    ]
    page = check_closed(report_page({}, history, [], []))
    curves = [a["d"] or "" for a in page.all("path", "curve")]
    # reward, truth with a gap, and loss among the further curves
    assert [(d.count("M"), d.count("L")) for d in curves] == [(1, 4), (2, 2), (1, 4)]
    labels = [a["aria-label"] for a in page.all("svg") if a.get("role") == "img"]
    assert labels[0] == "Reward of the critic, and the truth: Reward from 0 to 0.4; Truth from 0.5 to 0.5"


def test_a_chart_is_true_to_scale() -> None:
    chart = line_chart("t", {"a": [(0.0, 0.0), (5.0, 0.25), (10.0, 1.0)]}, (0.0, 1.0))
    (path,) = re.findall(r'<path d="(.*?)"', chart)
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, point.split())) for point in re.split("[ML]", path)[1:]]
    # coordinates are written with one digit after the point, so differences are off by at most 0.1
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(0.25 * (y0 - y2), abs=0.15)


def test_charts_of_hardly_anything() -> None:
    for points in ([], [(3.0, 0.5)], [(0.0, math.nan), (1.0, math.inf)]):
        assert Page(line_chart("t", {"a": points})).all("svg")


@quietly
@given(
    st.floats(-1e6, 1e6, allow_nan=False),
    st.floats(1e-3, 1e6, allow_nan=False),
    st.integers(2, 8),
)
def test_ticks_span_the_range_evenly(low: float, width: float, count: int) -> None:
    high = low + width
    found = ticks(low, high, count)
    step = found[1] - found[0]
    # a tick is index * step: relative error of one rounding, and the slack of 1e-9 steps that ticks() allows itself
    slack = 1e-8 * step + 1e-9 * abs(high)
    assert found[0] <= low + slack and found[-1] >= high - slack
    assert all(b - a == pytest.approx(step, rel=1e-4) for a, b in pairwise(found))
    # steps grow by 2.5 at most, and both ends may stick out
    assert count / 2.5 - 1 <= len(found) <= count + 3


def test_grid_pictures_and_captions(tmp_path: Path) -> None:
    before, after = Path(drawn(tmp_path / "a.png", "red")), Path(drawn(tmp_path / "b.png", "blue"))
    long = "asked: red; seen: blue; bad. " * 10
    text = report_page({}, [], [Grid("RL", ["red circle"], [before], [after], ["short"], [long])], [])
    page = check_closed(text)
    red, blue = (pixels(attributes) for attributes in page.all("img"))
    with Image.open(before) as first, Image.open(after) as second:
        assert (red.tobytes(), blue.tobytes()) == (first.tobytes(), second.tobytes())
    assert "short" in text and long in text
    # the long one is folded, beside the raw figures
    assert len(page.all("details")) == 2


def test_a_grid_of_unequal_lists_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid 'RL': 2 prompts but 1 in after"):
        Grid("RL", ["a", "b"], [Path("a"), Path("b")], [Path("a")])


# -- pictures for a log


def test_contact_sheet_keeps_pixels_square() -> None:
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    image.putpixel((0, 0), (0, 0, 255))
    sheet = contact_sheet([Row("request", [image, image], ["0.50", "unscored"])], side=96)
    blue = [(x, y) for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == (0, 0, 255)]
    # 96 / 32 = 3: one pixel becomes 3 x 3, in each of the two tiles
    assert len(blue) == 2 * 9
    with pytest.raises(ValueError, match="2 pictures but 1 captions in row 'r'"):
        Row("r", [image, image], ["0.5"])


def test_contact_sheet_takes_any_size_and_text() -> None:
    wide, tall = Image.new("L", (700, 100), 10), Image.new("RGBA", (1, 300), (0, 0, 0, 255))
    sheet = contact_sheet([Row("x" * 500, [wide, tall], ["\n" * 5, "0.1 " * 99]), Row("", [], [])], side=64)
    assert sheet.mode == "RGB"
    assert contact_sheet([]).size[0] > 0


def test_histogram_bars_have_the_heights_of_their_counts() -> None:
    image = histogram([0.1] * 4 + [0.9] * 2 + [math.nan], "reward", bounds=(0.0, 1.0), bins=10)
    heights = [sum(image.getpixel((x, y)) == (11, 98, 196) for y in range(image.height)) for x in range(image.width)]
    counts = sorted({height for height in heights if height})
    assert len(counts) == 2
    # the baseline and rounding of the lower bar may take one pixel each
    assert counts[0] == pytest.approx(counts[1] / 2, abs=2)
    histogram([], "nothing scored")
    histogram([0.5], "one")
