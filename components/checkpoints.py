"""Where models come from: a folder, a hub id, or one of the tiny checkpoints that ship with the package."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = {
    "embedded:shapes-generator": Path(__file__).parent / "shapes" / "checkpoints" / "generator",
    "embedded:shapes-critic": Path(__file__).parent / "shapes" / "checkpoints" / "critic",
}


def resolve(path: str) -> str:
    """The folder of an embedded checkpoint; any other path or hub id unchanged.

    Raises:
        ValueError: If an embedded checkpoint is named that does not exist.
    """
    if not path.startswith("embedded:"):
        return path
    if path not in EMBEDDED:
        raise ValueError(f"no embedded checkpoint {path!r}; there are: {', '.join(EMBEDDED)}")
    return str(EMBEDDED[path])
