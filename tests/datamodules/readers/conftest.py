"""What several tests of the readers begin with."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import public_sets as sets
import pytest
from set_reading import PAIRS, Read, case_set


@pytest.fixture(scope="session")
def public(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Read]:
    """All sets, each of 300 pairs: the first of real pictures, where they are there."""
    real: Path | None = None
    with suppress(pytest.skip.Exception):
        real = request.getfixturevalue("real")
    folder = tmp_path_factory.mktemp("public")
    read = {}
    for case in sets.CASES:
        gallery, root = sets.Gallery(real), folder / str(case)
        made = sets.groups(gallery, PAIRS // 6) if case.ranked else sets.choices(gallery, PAIRS, case.edit, case.ties)
        case.write(root, made)
        read[str(case)] = Read(case, root, gallery, made, list(case_set(case, root).read()))
    return read


@pytest.fixture
def gallery() -> sets.Gallery:
    """Pictures of known quality, all drawn."""
    return sets.Gallery()


@pytest.fixture
def requests(tmp_path: Path, gallery: sets.Gallery) -> Path:
    """The RL data: requests for pictures, and edits in the way of RationalRewards and in that of Edit-R1."""

    def lines(name: str, made: list[dict[str, Any]]) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in made))

    sets.store(tmp_path / "edit" / "images", {"a.png": gallery.draw(1), "b.png": gallery.draw(2)})
    lines("t2i/train.jsonl", [{"prompt": "a cat"}, {"prompt": "two dogs"}])
    lines(
        "edit/train.jsonl",
        [
            {"prompt": "add a hat", "image_path": "images/a.png", "requirement": "keep the face"},
            {"prompt": "add a hat", "image_path": "images/b.png"},
            {"prompt": "add a coat", "image_path": "images/gone.png"},
            {"prompt": "add a scarf"},
        ],
    )
    lines("edit/test_metadata.jsonl", [{"prompt": "turn it green", "image": "images/b.png", "requirement": ""}])
    return tmp_path
