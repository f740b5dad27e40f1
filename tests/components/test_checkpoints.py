"""Names of the checkpoints that ship with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from rationalrewards.components.checkpoints import EMBEDDED, resolve


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_checkpoints_are_there(name: str) -> None:
    folder = Path(resolve(name))
    assert list(folder.rglob("*.safetensors")) and list(folder.rglob("config.json"))


@pytest.mark.parametrize("path", ["some/folder", "Qwen/Qwen3-VL-8B-Instruct", "/absolute"])
def test_any_other_path_is_left_alone(path: str) -> None:
    assert resolve(path) == path


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="no embedded checkpoint 'embedded:nope'; there are: embedded:shapes-generator, embedded:s"
    ):
        resolve("embedded:nope")
