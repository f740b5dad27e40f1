"""Names of pictures in prose, when the pictures change places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rationalrewards.components.critique.naming import bare_name, swap_names


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("Image A is sharper than Image B.", "Image B is sharper than Image A."),
        ("image B keeps the tail; Picture A's sky is grey", "image A keeps the tail; Picture B's sky is grey"),
        ("Images A and B share it, candidates A/B too", "Images B and A share it, candidates B/A too"),
        ("The first image wins over the second image", "The second image wins over the first image"),
        ("The second candidate, as the First picture", "The first candidate, as the Second picture"),
        # which of the two named before, follows by itself
        ("Of Image A and Image B the former is red", "Of Image B and Image A the former is red"),
        # no names of pictures
        ("A first look: the first person in an image of A4 paper", "A first look: the first person in an image of A4 paper"),
        ("Image AB, images abound, plan B", "Image AB, images abound, plan B"),
    ],
)
def test_names_follow(text: str, swapped: str) -> None:
    assert swap_names(text) == swapped
    assert swap_names(swapped) == text


WORDS = (
    "Image A",
    "image B",
    "Images A and B",
    "the first picture",
    "The Second image",
    "A",
    "B",
    "first",
    ".",
    "former",
    "pictures",
)


@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join))
def test_twice_is_as_if_never(text: str) -> None:
    assert swap_names(swap_names(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "A is cleaner",
        "the tail in B, which is longer",
        "B's tail is longer",
        "sharper than B.",
        "A and B both fail",
        "A/B differ",
        "the sky of Image A, and that of B",
    ],
)
def test_a_letter_alone_is_found(text: str) -> None:
    assert bare_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "A red square is left of a circle",
        "Image A and Image B differ, Images A and B too; picture B's sky",
        "## Score A: 3.0\n## Score B: 2.0\n## Winner: Image A",
        'the sign says "B" and the letter A is there, B&W, B-roll, vitamin-B',
        "A clearly visible tree. A matching frame",
        "",
    ],
)
def test_other_letters_are_not(text: str) -> None:
    assert bare_name(text) == ""
