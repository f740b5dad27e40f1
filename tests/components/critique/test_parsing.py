"""Critiques are read in every form that judges write them in, and no text makes the parser raise or invent a score."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rationalrewards.components.critique import parse, parse_pair
from rationalrewards.components.critique.rubric import load_rubric
from rationalrewards.components.records import (
    AspectCritique,
    Critique,
    NotApplicable,
    Score,
    Task,
    Unscored,
)

CANONICAL = """\
# User Request Analysis: one red circle, no text
# Detailed Judgement:
1. Text Faithfulness:
## Justification: the circle is red, as asked
## Score: 3.5
2. Physical and Visual Quality:
## Justification: a soft edge
## Score: 2.0
3. Text Rendering:
## Justification: no text was asked for
## Score: N/A
# Summary: good but soft
# User Request Refinement:
## Refinement Comments: ask for a sharp edge
## Refined Request: a sharp red circle"""

READ = Critique(
    {
        "text_faithfulness": AspectCritique("the circle is red, as asked", 3.5),
        "physical_quality": AspectCritique("a soft edge", 2.0),
        "text_rendering": AspectCritique("no text was asked for", NotApplicable()),
    },
    summary="good but soft",
    refinement_comments="ask for a sharp edge",
    refined_request="a sharp red circle",
    analysis="one red circle, no text",
)


def _score_first(text: str) -> str:
    return re.sub(r"(## Justification: .*)\n(## Score: .*)", r"\2\n\1", text)


VARIANTS: dict[str, Callable[[str], str]] = {
    "as asked": lambda text: text,
    "score before justification": _score_first,
    "out of 4": lambda text: re.sub(r"(Score: \d\.\d)", r"\1/4", text),
    "out of 4.0, spaced": lambda text: re.sub(r"(Score: \d\.\d)", r"\1 / 4.0", text),
    "bold scores": lambda text: re.sub(r"Score: (\S+)", r"Score: **\1**", text),
    "bold, out of 4": lambda text: re.sub(r"Score: (\d\.\d)", r"Score: **\1/4**", text),
    "bold then out of 4": lambda text: re.sub(r"Score: (\d\.\d)", r"Score: **\1**/4", text),
    "code scores": lambda text: re.sub(r"Score: (\S+)", r"Score: `\1`", text),
    "full stop after scores": lambda text: re.sub(r"(Score: \d\.\d)", r"\1.", text),
    "no hashes": lambda text: text.replace("## ", "").replace("# ", ""),
    "more hashes": lambda text: text.replace("## ", "#### "),
    "bold headings": lambda text: re.sub(r"## (\w[\w ]*):", r"**\1:**", text),
    "bold headings, colon outside": lambda text: re.sub(r"## (\w[\w ]*):", r"## **\1**:", text),
    "scores on their own line": lambda text: text.replace("Score: ", "Score:\n"),
    "everything on its own line": lambda text: re.sub(r"(#+ [\w ]+:) (?=\S)", r"\1\n\n", text),
    "n/a in lower case": lambda text: text.replace("N/A", "n/a"),
    "NA": lambda text: text.replace("N/A", "NA"),
    "N/A with a full stop": lambda text: text.replace("N/A", "N/A."),
    "titles as headings": lambda text: re.sub(r"^(\d\.)", r"### \1", text, flags=re.MULTILINE),
    "bold titles": lambda text: re.sub(r"^(\d\. .*)$", r"**\1**", text, flags=re.MULTILINE),
    "titles without number": lambda text: re.sub(r"^\d\. ", "", text, flags=re.MULTILINE),
    "titles without colon": lambda text: re.sub(r"^(\d\. .*):$", r"\1", text, flags=re.MULTILINE),
    "numbers with brackets": lambda text: re.sub(r"^(\d)\. ", r"\1) ", text, flags=re.MULTILINE),
    "blank lines": lambda text: text.replace("\n", "\n\n"),
    "windows line ends": lambda text: text.replace("\n", "\r\n"),
    "indented": lambda text: re.sub("^", "  ", text, flags=re.MULTILINE),
    "trailing spaces": lambda text: text.replace("\n", "  \n"),
    "upper case": lambda text: re.sub(r"(?m)^(#.*?:|\d\..*)", lambda match: match[0].upper(), text),
    "American judgment": lambda text: text.replace("Judgement", "Judgment"),
    "empty think block": lambda text: f"<think>\n\n</think>\n\n{text}",
    "think block that drafts scores": lambda text: (
        f"<think>\n# Detailed Judgement:\n1. Text Faithfulness:\n## Score: 1.0\n# Summary: draft\n</think>\n{text}"
    ),
    "a few words first": lambda text: f"Here is my judgement.\n\n{text}",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_read_alike(name: str) -> None:
    variant = VARIANTS[name](CANONICAL)
    assert name == "as asked" or variant != CANONICAL
    critique = parse(variant, "t2i")
    assert critique == READ
    assert critique.text == variant  # the answer is kept as it came


def test_text_without_analysis_or_refinement() -> None:
    short = CANONICAL.split("\n", 1)[1].split("\n# User Request Refinement")[0]
    critique = parse(short, "t2i")
    assert critique.aspects == READ.aspects and critique.summary == READ.summary
    assert (critique.analysis, critique.refinement_comments, critique.refined_request) == ("", "", "")


def test_prose_of_several_lines_is_kept() -> None:
    said = "the circle is red\n\n- its edge is soft: see top left\n- nothing else"
    wished = "a red circle\nwith a sharp edge\n\nand nothing else"
    text = CANONICAL.replace("the circle is red, as asked", said).replace("a sharp red circle", wished)
    for variant in (text, _score_first(text)):
        critique = parse(variant, "t2i")
        assert critique.justification("text_faithfulness") == said
        assert critique.refined_request == wished
        assert critique.score("text_faithfulness") == 3.5


@pytest.mark.parametrize(
    "quoted",
    [
        "# Summary: of the request\n## Score: 1",
        "1. Text Faithfulness:\n## Justification: none\n## Score: 1.0",
        "# Detailed Judgement:\n1. Text Faithfulness:\n## Score: 1.0\n2. Text Rendering:\n## Score: 1.0",
        "## Refined Request: draw what I say",
        "Score: 1",
    ],
)
def test_headings_quoted_in_the_analysis_are_no_judgement(quoted: str) -> None:
    critique = parse(CANONICAL.replace("one red circle, no text", f"the request says\n{quoted}\nand that is all"), "t2i")
    assert critique.aspects == READ.aspects
    assert (critique.summary, critique.refined_request) == (READ.summary, READ.refined_request)


@pytest.mark.parametrize(
    "quoted",
    [
        "## Score: 1",
        "1. Text Faithfulness:\n## Justification: poor\n## Score: 1.0",
        "# Summary: a poster",
        "# Detailed Judgement:\n1. Text Faithfulness:\n## Score: 1.0",
        "<|im_end|>\n</request>\n<image>",
    ],
)
def test_a_refined_request_may_quote_headings(quoted: str) -> None:
    """A rewritten request keeps what was asked for, and a request may ask for a poster with just these words."""
    wished = f"a poster that reads\n{quoted}"
    critique = parse(CANONICAL.replace("a sharp red circle", wished), "t2i")
    assert critique.aspects == READ.aspects
    assert (critique.summary, critique.analysis) == (READ.summary, READ.analysis)
    assert critique.refined_request == wished


@pytest.mark.parametrize(
    "running_text",
    [
        "the score of 2 would be too low",
        "Summary of flaws follows",
        "Score 1 is too hard",
        "Winner takes all",
        "text rendering",
    ],
)
def test_running_text_opens_no_field(running_text: str) -> None:
    text = CANONICAL.replace("a soft edge", f"a soft edge\n{running_text}")
    critique = parse(text, "edit" if "Image Faithfulness" in text else "t2i")
    assert critique.justification("physical_quality") == f"a soft edge\n{running_text}"
    assert critique.score("physical_quality") == 2.0


def test_where_titles_bear_no_numbers_a_title_alone_on_its_line_is_a_title() -> None:
    bare = re.sub(r"^\d\. ", "", CANONICAL, flags=re.MULTILINE).replace("a soft edge", "a soft edge\ntext rendering")
    assert parse(bare, "t2i").score("physical_quality") == Unscored("Physical and Visual Quality: no score")


@pytest.mark.parametrize(
    "quoted", ["## Score: 1.0", "Score: 1", "## Justification: poor\n## Score: 1.0", "3. Text Rendering\nis no matter"]
)
def test_headings_quoted_in_a_justification_are_its_text(quoted: str) -> None:
    said = f"the request has the line\n{quoted}\nbut the edge is soft"
    critique = parse(CANONICAL.replace("a soft edge", said), "t2i")
    if quoted.startswith("3."):  # a numbered title cannot be told from the real one: nothing is guessed
        assert isinstance(critique.reward(), Unscored)
    else:
        assert (critique.score("physical_quality"), critique.justification("physical_quality")) == (2.0, said)
        assert critique.score("text_rendering") == NotApplicable()


def test_two_scores_that_follow_each_other_are_no_score() -> None:
    critique = parse(CANONICAL.replace("## Score: 2.0", "## Score: 3.0\n## Score: 2.0"), "t2i")
    assert critique.score("physical_quality") == Unscored("Physical and Visual Quality: '2.0 and 3.0' is not a score")
    bare = parse(re.sub(r"## Justification: a soft edge\n## Score: 2.0", "## Score: 3.0\n## Score: 2.0", CANONICAL), "t2i")
    assert isinstance(bare.score("physical_quality"), Unscored)
    same = parse(CANONICAL.replace("## Score: 2.0", "## Score: 2.0\n## Score: 2.0"), "t2i")
    assert same.score("physical_quality") == 2.0
    # in a score-first answer the first one was meant, and what follows it is prose
    first = parse(_score_first(CANONICAL).replace("a soft edge", "a soft edge\n## Score: 1.0\nwould be too hard"), "t2i")
    assert first.score("physical_quality") == 2.0


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("5", "5 is outside 1 to 4"),
        ("0", "0 is outside 1 to 4"),
        ("-1", "-1 is outside"),
        ("4.5/4", "4.5 is outside"),
        ("", "'' is not a score"),
        ("high", "'high' is not a score"),
        ("3.5/5", "'3.5/5' is not a score"),
        ("3/10", "not a score"),
        ("3-4", "not a score"),
        ("3 or 4", "not a score"),
        ("nan", "not a score"),
        ("1e0", "not a score"),
        ("N/A", "N/A is not allowed"),
    ],
)
def test_a_doubtful_score_is_unscored(written: str, reason: str) -> None:
    critique = parse(CANONICAL.replace("## Score: 3.5", f"## Score: {written}"), "t2i")
    score = critique.score("text_faithfulness")
    assert isinstance(score, Unscored)
    assert reason in score.reason and score.reason.startswith("Text Faithfulness")
    assert critique.reward() == score  # no mean over what happened to be readable
    assert critique.score("physical_quality") == 2.0


def test_a_missing_aspect_is_unscored() -> None:
    critique = parse(CANONICAL, "edit")  # a text-to-image critique where an edit was judged
    assert critique.score("image_faithfulness") == Unscored("Image Faithfulness is missing")
    assert list(critique.aspects) == list(load_rubric().keys("edit"))
    without = re.sub(r"## Score: 2.0\n", "", CANONICAL)
    assert parse(without, "t2i").score("physical_quality") == Unscored("Physical and Visual Quality: no score")


def test_a_truncated_tail_loses_scores_and_changes_none() -> None:
    lines = CANONICAL.split("\n")
    for count in range(len(lines) + 1):
        critique = parse("\n".join(lines[:count]), "t2i")
        for key in READ.aspects:
            score = critique.score(key)
            assert isinstance(score, Unscored) or score == READ.score(key)
        done = lines.index("## Score: N/A") < count
        assert isinstance(critique.reward(), Unscored) != done


def test_an_unfinished_think_block_scores_nothing_from_a_draft_in_it() -> None:
    critique = parse("<think>\nmaybe\n## Score: 3.5\nor so", "t2i")
    assert all(isinstance(critique.score(key), Unscored) for key in READ.aspects)


# -- pairs -------------------------------------------------------------------------------------------------------------

PAIR = """\
# Detailed Judgement:
1. Text Faithfulness:
## Justification: Image A shows it, Image B does not
## Score A: 3.5
## Score B: 1.0
## Winner: Image A
2. Physical and Visual Quality:
## Justification: alike
## Score A: 2.0
## Score B: 2.0
## Winner: It's a tie
3. Text Rendering:
## Justification: no text was asked for
## Score A: N/A
## Score B: N/A
## Winner: N/A
# Summary: Image A is better"""

PAIR_VARIANTS: dict[str, Callable[[str], str]] = {
    "as asked": lambda text: text,
    "out of 4": lambda text: re.sub(r"(Score [AB]: \d\.\d)", r"\1/4", text),
    "bold": lambda text: re.sub(r"(Score [AB]|Winner): (.+)", r"\1: **\2**", text),
    "no hashes": lambda text: text.replace("## ", ""),
    "winner as a letter": lambda text: text.replace("Winner: Image A", "Winner: A"),
    "winner in lower case": lambda text: text.replace("Winner: Image A", "Winner: image a."),
    "plain tie": lambda text: text.replace("It's a tie", "Tie"),
    "n/a": lambda text: text.replace("N/A", "n/a"),
    "scores first": lambda text: re.sub(r"(## Justification: .*)\n(## Score A.*\n## Score B.*)", r"\2\n\1", text),
    "think block": lambda text: f"<think></think>{text}",
}


@pytest.mark.parametrize("name", PAIR_VARIANTS)
def test_pair_variants_read_alike(name: str) -> None:
    variant = PAIR_VARIANTS[name](PAIR)
    assert name == "as asked" or variant != PAIR
    critique = parse_pair(variant, "t2i")
    assert critique.scores("text_faithfulness") == (3.5, 1.0)
    assert critique.scores("text_rendering") == (NotApplicable(), NotApplicable())
    assert [judged.winner for judged in critique.aspects.values()] == ["A", "tie", NotApplicable()]
    assert critique.aspects["text_faithfulness"].justification == "Image A shows it, Image B does not"
    assert critique.summary == "Image A is better"
    assert critique.verdict() == "A"


def test_an_odd_winner_is_unscored_and_harms_no_score() -> None:
    critique = parse_pair(PAIR.replace("Winner: Image A", "Winner: both"), "t2i")
    assert critique.aspects["text_faithfulness"].winner == Unscored("winner 'both' is not a verdict")
    assert critique.verdict() == "A"


def test_one_missing_score_leaves_no_verdict() -> None:
    critique = parse_pair(PAIR.replace("## Score B: 1.0\n", ""), "t2i")
    assert critique.verdict() == Unscored("Text Faithfulness: no score b")


# -- any text at all ---------------------------------------------------------------------------------------------------

_pieces = st.sampled_from(
    [
        *CANONICAL.split("\n"),
        *PAIR.split("\n"),
        "<think>",
        "</think>",
        "## Score: 5",
        "## Score:",
        "4/4",
        "**",
        "#",
        "Score A",
        "",
    ]
)
_texts = st.one_of(
    st.text(max_size=80),
    st.lists(st.one_of(_pieces, st.text(max_size=12)), max_size=30).map("\n".join),
    st.lists(st.one_of(_pieces, st.text(max_size=3)), max_size=12).map("".join),
)


@settings(max_examples=500, deadline=None)
@given(_texts, st.sampled_from(["t2i", "edit"]))
def test_any_text_gives_a_critique(text: str, task: Task) -> None:
    rubric = load_rubric()
    critique, pair = parse(text, task), parse_pair(text, task)
    assert list(critique.aspects) == list(pair.aspects) == list(rubric.keys(task))
    numbers = set(re.findall(r"\d+(?:\.\d+)?", text))
    for aspect in rubric.for_task(task):
        scores: list[Score] = [critique.score(aspect.key), *pair.scores(aspect.key)]
        for score in scores:
            if isinstance(score, float):
                assert 1.0 <= score <= 4.0
                assert score in {float(number) for number in numbers}  # a score is only ever one that was written
            elif isinstance(score, NotApplicable):
                assert aspect.optional
            else:
                assert score.reason
        assert pair.aspects[aspect.key].winner in ("A", "B", "tie", NotApplicable()) or isinstance(
            pair.aspects[aspect.key].winner, Unscored
        )
    reward = critique.reward()
    assert isinstance(reward, Unscored) or 0.0 <= reward <= 1.0
