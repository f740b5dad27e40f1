"""Where models come from: a folder, a hub id, or one of the tiny checkpoints that ship with the package."""

from __future__ import annotations

import hashlib
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


def fingerprint(settings: str, *paths: str | None) -> str:
    """A short digest of some settings and of the files in model folders.

    Weights are too large to be read whole at every start: of each file it takes name, size and blocks spread over it.

    Args:
        settings: All else that answers depend on.
        *paths: Folders or ``embedded:`` names; a hub id counts by what ``settings`` say of it, as ``None`` does.
    """
    folders = [Path(resolve(path)) for path in paths if path]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()]
    return hashlib.sha256("\n".join([settings, *map(_sampled_digest, files)]).encode()).hexdigest()[:16]


def _sampled_digest(file: Path, samples: int = 64, block: int = 4096) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256(f"{file.name} {size}".encode())
    with file.open("rb") as stream:
        for index in range(samples):
            stream.seek(index * size // samples)
            digest.update(stream.read(block))
    return digest.hexdigest()
