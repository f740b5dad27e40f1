"""Where the files of a public set are: in a folder, or on the hub at a pinned revision."""

from __future__ import annotations

import fnmatch
import glob
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Names = list[str]


class Files(ABC):
    """Files that belong together, by names relative to a common root, with ``/`` between folders."""

    @abstractmethod
    def list(self, pattern: str) -> Names:
        """Names of the files that match a glob, sorted. Hidden ones match only where the pattern has the dot.

        Args:
            pattern: ``*`` and ``?`` stay within one folder; ``**/`` stands for any folders, or none: ``**/*.parquet``.

        Raises:
            ValueError: If the files cannot be listed; the message says what to do.
        """

    @abstractmethod
    def path(self, name: str) -> Path:
        """A file on this machine, its name unchanged.

        Raises:
            ValueError: If it is not there or cannot be had; the message says what to do.
        """

    @property
    @abstractmethod
    def label(self) -> str:
        """What to call these files in messages."""


@dataclass(frozen=True)
class LocalFiles(Files):
    """The files below a folder; linked folders count.

    Args:
        root: The folder.
    """

    root: Path

    def list(self, pattern: str) -> Names:
        if not self.root.is_dir():
            raise ValueError(f"{self.root} is no folder; give the folder that holds the files")
        names = glob.iglob(pattern, root_dir=self.root, recursive=True)
        return sorted(name for name in names if (self.root / name).is_file())

    def path(self, name: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise ValueError(f"{path} does not exist; put it there, or give the folder that holds the files")
        return path

    @property
    def label(self) -> str:
        """The folder."""
        return str(self.root)


@dataclass(frozen=True)
class HubFiles(Files):
    """The files of a data set on the hub, each downloaded when it is first asked for and kept in the hub's own cache.

    The server is that of ``HF_ENDPOINT``, the cache that of ``HF_HOME``, and a gated set needs a token that ``hf auth login`` stored
    or ``HF_TOKEN`` holds.

    Args:
        repo: Owner and name of the set.
        revision: Commit, 40 hexadecimal digits: nothing else means the same data tomorrow.

    Raises:
        ValueError: If the revision is no commit.
    """

    repo: str
    revision: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"{self.repo}: revision must be a commit, 40 hexadecimal digits, got {self.revision!r}: a branch or tag may mean other "
                "data tomorrow"
            )

    @cached_property
    def _names(self) -> Names:
        from huggingface_hub import HfApi

        try:
            return sorted(HfApi().list_repo_files(self.repo, repo_type="dataset", revision=self.revision))
        except Exception as error:  # those of the HTTP library among them, which differs between versions of the hub's client
            raise ValueError(self._by_hand("its files cannot be listed", error)) from error

    def list(self, pattern: str) -> Names:
        return [name for name in self._names if _matches(name.split("/"), pattern.split("/"))]

    def path(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.repo, name, repo_type="dataset", revision=self.revision))
        except Exception as error:  # as above
            raise ValueError(self._by_hand(f"{name} cannot be downloaded", error, name)) from error

    def _by_hand(self, what: str, error: Exception, name: str = "") -> str:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        file = f"{name} " if name else ""
        return (
            f"{self.label}: {what} ({type(error).__name__}: {reason}). Where the hub can be reached, run `hf download {self.repo} {file}"
            f"--repo-type dataset --revision {self.revision} --local-dir FOLDER` and give that folder as root instead of the revision"
        )

    @property
    def label(self) -> str:
        """Set and shortened commit."""
        return f"{self.repo}@{self.revision[:7]}"


def _matches(folders: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a name matches a glob, both split at ``/``, in the meaning of :func:`glob.glob` with ``recursive``."""
    if not pattern or not folders:
        return not folders and all(part == "**" for part in pattern)
    first, *rest = folders
    if pattern[0] == "**":
        return _matches(folders, pattern[1:]) or (not first.startswith(".") and _matches(rest, pattern))
    shown = not first.startswith(".") or pattern[0].startswith(".")
    return shown and fnmatch.fnmatchcase(first, pattern[0]) and _matches(rest, pattern[1:])
