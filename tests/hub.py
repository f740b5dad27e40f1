"""A hub of data sets on this machine: as much of its protocol as listing and downloading a set at a commit take."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Two endpoints: the listing of a set at a commit, in pages, and its files.

    Args:
        repo: Owner and name of the set.
        files: Name to content.
    """

    daemon_threads = True

    def __init__(self, repo: str, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repo = repo
        self.files = dict(files)
        self.asked: list[str] = []
        """Method and path of every request."""

    def downloaded(self) -> set[str]:
        """Names of the files that were asked for, without their folders."""
        return {request.rpartition("/")[2] for request in self.asked if request.startswith("GET /datasets/")}


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    page = 3  # names at a time: few, so that the client has to turn pages

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, repo = unquote(url.path), self.server.repo
        self.server.asked.append(f"{self.command} {path}")
        tree, file = f"/api/datasets/{repo}/tree/{COMMIT}", f"/datasets/{repo}/resolve/{COMMIT}/"
        if path == tree:
            start = int(parse_qs(url.query).get("cursor", ["0"])[0])
            entries = [
                {"type": "file", "oid": "0" * 40, "size": len(data), "path": name} for name, data in self.server.files.items()
            ]
            entries.append({"type": "directory", "oid": "0" * 40, "path": "data"})
            headers = {"Content-Type": "application/json"}
            if start + self.page < len(entries):
                headers["Link"] = f'<http://{self.headers["Host"]}{tree}?cursor={start + self.page}>; rel="next"'
            self._send(200, json.dumps(entries[start : start + self.page]).encode(), headers)
        elif path.startswith(file) and path.removeprefix(file) in self.server.files:
            content = self.server.files[path.removeprefix(file)]
            self._send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            code = "EntryNotFound" if path.startswith(file) else "RevisionNotFound" if f"/{repo}/" in path else "RepoNotFound"
            self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": f"{code} on this server"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, answering in a thread of its own."""
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def of_folder(repo: str, folder: Path) -> Hub:
    """A hub with the files of a folder."""
    return Hub(repo, {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()})


def environment(hub: Hub | None, home: Path) -> dict[str, str]:
    """What a process needs to talk to this hub, or to none, and to keep its cache in a folder."""
    return {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1] if hub else 9}",  # nobody listens at port 9
        **{"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
        # straight to this machine, whatever proxy there is
        **{"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
    }
