"""EditReward-Data: two edits of one picture, scored and compared by trained annotators.

Schema (dataset card and README, established): parquet with ``instruction, source_img, left_output_image, right_output_image,
vote_type`` (``leftvote``, ``rightvote``, ``tie``), ``unique_key``, scores, models; 170,772 rows, 87 GB, although the card says
over 200,000. Or the JSON that its training reads, ``train.json`` or ``test.json`` at the root, which goes first; it is told in
:mod:`rationalrewards.datamodules.readers.preferred_first`.

Traps: not for commercial use; one source picture is in many pairs, so splits must be made by source; the JSON always names the
preferred edit first, the parquet does not.
"""

from __future__ import annotations

from collections.abc import Iterator

from rationalrewards.components.records import Preference

from .genai_bench import voted
from .preferred_first import read_json
from .reading import Reading

_PICTURES = ["source_img", "left_output_image", "right_output_image"]
_VOTES = {"leftvote": 1.0, "rightvote": 0.0, "tie": 0.5}


def read(reading: Reading) -> Iterator[Preference]:
    """Pairs of the JSON file if there is one, or else of the parquet files."""
    jsons = [*reading.files.list(f"{reading.split}.json"), *reading.files.list(f"{reading.split}.jsonl")]
    if jsons:
        yield from read_json(reading, jsons[0], edit=True)
        return
    for name in reading.tables():
        for row in reading.table(name, ["instruction", "vote_type"], _PICTURES, optional=["unique_key"]):
            label = voted(reading, row, _VOTES)
            if label is not None:
                source, *edits = (row.picture(column) for column in _PICTURES)
                key = str(row.values.get("unique_key") or "")
                yield from reading.pair(row, row["instruction"], (edits[0], edits[1]), label, sources=[source], key=key)
