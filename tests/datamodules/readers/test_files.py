"""Files of a set, from a folder and from a hub: the hub's own client against a server that speaks its protocol."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import COMMIT, Hub, environment, serving
from rationalrewards.components.pictures import picture_bytes
from rationalrewards.datamodules.readers import files
from rationalrewards.datamodules.readers.files import Files, HubFiles, LocalFiles
from support import run_python

REPO = "owner/pairs"
TREE = {
    "README.md": b"card",
    ".gitattributes": b"hidden",
    "train.json": b"[]",
    "train.jsonl": b"",
    "data/train-00000.parquet": b"first",
    "data/train-00001.parquet": b"second",
    "data/.part.parquet": b"hidden",
    "data/deep/er/test-1[a].parquet": b"third",
    ".cache/x.parquet": b"hidden",
    "images/1.webp": b"RIFF",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub(REPO, TREE)) as server:
        yield server


def as_client(program: str, hub: Hub | None, home: Path, **env: str) -> Any:
    """What a process that talks to this hub, or to none, prints as JSON in its last line."""
    # the module by itself: the package would import torch, in every one of these processes
    alone = f"import json, sys\nsys.path.insert(0, {os.path.dirname(files.__file__)!r})\nfrom files import HubFiles\n"
    alone += f"files = HubFiles({REPO!r}, {COMMIT!r})\n{ERROR}"
    done = run_python(["-c", alone + program], timeout=120, env={**environment(hub, home), **env})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


ERROR = """
def error(call):
    try:
        call()
    except ValueError as caught:
        return str(caught)
"""


PATTERNS = ["*", "*.json", "*.json*", "**/*.parquet", "data/*", "data/**", "data/train-?????.parquet", "data/**/*.parquet"]
PATTERNS += ["**/er/*", "data/deep/er/test-1[[]a].parquet", "data/train-0000[!0].parquet", ".git*", "gone/*", "**", "**/*"]


def test_a_folder_and_the_hub_list_the_same(hub: Hub, tmp_path: Path) -> None:
    for name, data in TREE.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    (tmp_path / "set" / "data" / "folder.parquet").mkdir()  # no file, whatever its name says
    local = LocalFiles(tmp_path / "set")
    listed = {pattern: local.list(pattern) for pattern in PATTERNS}
    assert listed["*"] == ["README.md", "train.json", "train.jsonl"]
    parquet = ["data/deep/er/test-1[a].parquet", "data/train-00000.parquet", "data/train-00001.parquet"]
    assert listed["**/*.parquet"] == listed["data/**"] == listed["data/**/*.parquet"] == parquet
    assert listed["data/train-0000[!0].parquet"] == ["data/train-00001.parquet"]
    assert listed["**/er/*"] == listed["data/deep/er/test-1[[]a].parquet"] == parquet[:1]
    assert listed[".git*"] == [".gitattributes"]
    assert listed["**/*"] == sorted(name for name in TREE if "/." not in f"/{name}")
    program = f"print(json.dumps({{pattern: files.list(pattern) for pattern in {PATTERNS!r}}}))"
    assert as_client(program, hub, tmp_path / "home") == listed
    # once, in four pages of three names
    assert hub.asked == [f"GET /api/datasets/{REPO}/tree/{COMMIT}"] * 4


def test_linked_folders_count(tmp_path: Path) -> None:
    (tmp_path / "disk" / "a").mkdir(parents=True)
    (tmp_path / "disk" / "a" / "x.parquet").touch()
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "set" / "linked")
    assert LocalFiles(tmp_path / "set").list("**/*.parquet") == ["linked/a/x.parquet"]
    assert LocalFiles(tmp_path / "set").path("linked/a/x.parquet") == tmp_path / "set" / "linked" / "a" / "x.parquet"


def test_the_hub_gives_files_one_by_one_and_keeps_them(hub: Hub, tmp_path: Path) -> None:
    program = "path = files.path('data/train-00001.parquet')\nprint(json.dumps([str(path), path.read_text(), files.label]))"
    path, text, label = as_client(program, hub, tmp_path / "home")
    assert (text, label) == ("second", "owner/pairs@0123456")
    assert path.endswith("/data/train-00001.parquet") and path.startswith(str(tmp_path / "home"))
    file = f"/datasets/{REPO}/resolve/{COMMIT}/data/train-00001.parquet"
    assert hub.asked == [f"HEAD {file}", f"GET {file}"]
    # what is there is not asked for again, also where there is no network
    assert as_client(program, hub, tmp_path / "home") == [path, text, label]
    assert as_client(program, None, tmp_path / "home", HF_HUB_OFFLINE="1") == [path, text, label]
    assert len(hub.asked) == 2


def test_pictures_inside_a_downloaded_archive_have_names(hub: Hub, tmp_path: Path) -> None:
    # the hub's cache links to files without a suffix: the name that was asked for is the one that leads inside
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/1.webp", b"picture")
    hub.files["images/train_1.zip"] = buffer.getvalue()
    path = as_client("print(json.dumps(str(files.path('images/train_1.zip'))))", hub, tmp_path / "home")
    assert picture_bytes(f"{path}/a/1.webp") == b"picture"


DOWNLOAD = f"hf download {REPO} --repo-type dataset --revision {COMMIT} --local-dir FOLDER` and give that folder as root"
ONE_FILE = DOWNLOAD.replace(REPO, f"{REPO} data/train-00000.parquet")


# the client itself asks six times, for 25 seconds
@pytest.mark.parametrize("how", ["offline", pytest.param("unreachable", marks=pytest.mark.slow)])
def test_without_a_hub_the_error_says_what_to_download(how: str, tmp_path: Path) -> None:
    program = "print(json.dumps([error(lambda: files.list('*')), error(lambda: files.path('data/train-00000.parquet'))]))"
    listing, file = as_client(program, None, tmp_path / "home", HF_HUB_OFFLINE="1" if how == "offline" else "0")
    assert listing.startswith("owner/pairs@0123456: its files cannot be listed (") and DOWNLOAD in listing
    assert file.startswith("owner/pairs@0123456: data/train-00000.parquet cannot be downloaded (") and ONE_FILE in file


def test_what_the_hub_does_not_have_is_named(hub: Hub, tmp_path: Path) -> None:
    other = f"HubFiles({REPO!r}, {'f' * 40!r})"
    program = f"print(json.dumps([error(lambda: files.path('data/gone.parquet')), error(lambda: {other}.list('*'))]))"
    file, listing = as_client(program, hub, tmp_path / "home")
    assert "owner/pairs@0123456: data/gone.parquet cannot be downloaded (RemoteEntryNotFoundError: 404" in file
    assert "owner/pairs@fffffff: its files cannot be listed (RevisionNotFoundError: 404" in listing


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:7], COMMIT.upper(), ""])
def test_a_revision_that_may_move_is_refused(revision: str) -> None:
    with pytest.raises(ValueError, match="owner/pairs: revision must be a commit, 40 hexadecimal digits"):
        HubFiles(REPO, revision)


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    gone: Files = LocalFiles(tmp_path / "gone")
    assert gone.label == str(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"gone is no folder; give the folder that holds the files"):
        gone.list("*")
    with pytest.raises(ValueError, match=r"x\.json does not exist; put it there"):
        LocalFiles(tmp_path).path("x.json")
