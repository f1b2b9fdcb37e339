"""A server that answers as the Hugging Face Hub does where a dataset is read, for one folder per repository."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "a" * 40
LONGEST_NAME = 255  # characters of a file's name


class _Handler(BaseHTTPRequestHandler):
    root: Path
    fetched: list[str]
    whole: str
    broken: str

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            repository = self.root / "/".join(parts[2:4])
            if not repository.is_dir():
                self._missing("RepoNotFound")
            elif parts[4:5] == ["tree"]:
                self._listing(repository, "/".join(parts[6:]))
            else:
                files = [{"rfilename": file.relative_to(repository).as_posix()} for file in _files(repository)]
                self._json({"id": "/".join(parts[2:4]), "sha": REVISION, "siblings": files, "tags": []})
        elif parts[0] == "datasets" and parts[3] == "resolve":
            self._file(self.root / "/".join(parts[1:3] + parts[5:]))
        else:
            self._missing("EntryNotFound")

    def do_POST(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        repository = self.root / "/".join(parts[2:4])
        found = [repository / name for name in ([asked] if isinstance(asked, str) else asked)]
        self._json([_about(file, repository) for file in found if file.exists()])

    def _listing(self, repository: Path, below: str) -> None:
        self.fetched.append(f"{repository.relative_to(self.root).as_posix()} list {below}".rstrip())
        if not (repository / below).is_dir():
            self._missing("EntryNotFound")
            return
        deep = parse_qs(urlsplit(self.path).query).get("recursive") in (["true"], ["True"])
        files = (repository / below).rglob("*") if deep else (repository / below).glob("*")
        self._json([_about(file, repository) for file in sorted(files)])

    def _file(self, file: Path) -> None:
        if len(file.name) > LONGEST_NAME:
            self.send_response(414)
            self._body(b"")
            return
        if not file.is_file():
            self._missing("EntryNotFound")
            return
        content = file.read_bytes()
        start, end, status = 0, len(content), 200
        below = file.relative_to(self.root).as_posix()
        given = self.headers.get("Range")
        if given and not (self.whole and below.startswith(f"{self.whole}/")):
            first, _, last = given.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(len(content), int(last or len(content)) + 1), 206
        if status == 206 and start >= len(content):
            self.send_response(416)
            self._body(b"")
            return
        if self.command == "GET":
            self.fetched.append(f"{below} {end - start}")
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        for name, value in {"X-Repo-Commit": REVISION, "ETag": f'"{_digest(file)}"', "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        breaks_off = below == self.broken and self.fetched.count(f"{below} {end - start}") == 1
        half = (end - start) // 2 if breaks_off else None
        if not self._body(content[start:end], half):
            self.fetched.append(f"{below} not taken whole")

    def _json(self, value: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._body(json.dumps(value).encode())

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self._body(b"")

    def _body(self, content: bytes, most: int | None = None) -> bool:
        """Send a body, of which `most` bytes alone; returns whether the other side has taken it."""
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            if self.command != "HEAD":
                self.wfile.write(content[:most])
        except ConnectionError:
            return False
        return True

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _files(repository: Path) -> list[Path]:
    return sorted(file for file in repository.rglob("*") if file.is_file())


def _about(file: Path, repository: Path) -> dict[str, Any]:
    name = file.relative_to(repository).as_posix()
    if file.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40}
    return {"type": "file", "path": name, "oid": _digest(file), "size": file.stat().st_size}


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def hub_server(root: Path, whole: str = "", broken: str = "") -> Iterator[tuple[str, list[str]]]:
    """Serve the folders `owner/name` below one as datasets, all at the commit REVISION.

    Args:
        root: of the folders.
        whole: a repository whose files are sent whole, whatever part of them is asked for.
        broken: a file that breaks off where it is first sent.

    Yields:
        Its address, and what is fetched from it, as it is: files with how many bytes, which of them were not taken
        whole, and lists of folders.
    """
    fetched: list[str] = []
    handler = type("Handler", (_Handler,), {"root": root, "fetched": fetched, "whole": whole, "broken": broken})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False  # so that all that is fetched is known at the end
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", fetched
        finally:
            server.shutdown()
            thread.join()
