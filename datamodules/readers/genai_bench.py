"""GenAI-Bench of TIGER-Lab: votes on pairs of pictures and edits from an arena.

Schema (dataset card and official runner, established): parquet in ``image_generation/`` and ``image_edition/``,
``test_v1-*.parquet`` and ``test-*.parquet``. Generation: ``prompt, left_image, right_image, vote_type``; edition:
``instruct_prompt, source_image, left_output_image, right_output_image, vote_type``. Votes: ``leftvote``, ``rightvote``,
``tievote`` (both good), ``bothbad_vote``.

Traps: the official protocol is on ``test_v1`` (1,735 generations, 919 edits), the default here; ``test`` is another selection
(3,192 and 983). Both kinds of tie get the label 0.5, and the origin keeps which it was, for the four-way protocol. The places
are as voters saw them and stay. ``video_generation`` holds no pictures. BaiqiL/GenAI-Bench is another set, of ratings of single
pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rationalrewards.components.records import Preference

from .reading import Reading
from .rows import Row

GENERATION = ["left_image", "right_image"]
EDITION = ["source_image", "left_output_image", "right_output_image"]
VOTES = {"leftvote": 1.0, "rightvote": 0.0, "tievote": 0.5, "bothbad_vote": 0.5}


def read(reading: Reading) -> Iterator[Preference]:
    """Pairs of one subset and split."""
    for name in reading.tables():
        yield from read_table(reading, name, edit=reading.subset == "image_edition")


def read_table(reading: Reading, name: str, edit: bool) -> Iterator[Preference]:
    """Pairs of one file."""
    prompt, pictures = ("instruct_prompt", EDITION) if edit else ("prompt", GENERATION)
    for row in reading.table(name, [prompt, "vote_type"], pictures):
        label = voted(reading, row, VOTES)
        if label is not None:
            *sources, first, second = (row.picture(column) for column in pictures)
            note = row["vote_type"] if label == 0.5 else ""
            yield from reading.pair(row, row[prompt], (first, second), label, sources=sources, note=note)


def voted(reading: Reading, row: Row, votes: Mapping[str, float]) -> float | None:
    """The label that a row's ``vote_type`` stands for; ``None`` if there is none, which is counted.

    Raises:
        ValueError: If the vote is none of the known ones.
    """
    vote = row["vote_type"]
    if not vote:
        reading.leave_out("no label")
        return None
    if vote not in votes:
        raise row.bad("vote_type", f"must be one of {', '.join(votes)}, got {vote!r}")
    return votes[vote]
