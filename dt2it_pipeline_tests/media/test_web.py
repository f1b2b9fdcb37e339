"""Images behind addresses of the web: what is fetched, and above all what is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.sources import read_source
from dt2it_pipeline.media import web
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline_tests.support.ingest_world import encoded

PICTURE = encoded(Image.new("RGB", (9, 7), "red"))


class Handler(BaseHTTPRequestHandler):
    seen: list[str] = []  # noqa: RUF012

    def log_message(self, *arguments: object) -> None: ...

    def do_GET(self) -> None:
        self.seen.append(f"{self.headers['Host']}{self.path}")
        times = sum(place.endswith(self.path) for place in self.seen)
        status, kind, body = 200, "image/png", PICTURE
        if self.path == "/page":
            kind = "text/html"
        elif self.path == "/endless":
            body = PICTURE * 2000
        elif self.path == "/gone":
            status = 404
        elif self.path == "/busy" and times < 2:
            status = 503
        elif self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Handler.seen.clear()
    monkeypatch.setattr(web, "_WAIT", 0.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://localhost:{found.server_port}"
        found.shutdown()


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine pass for the public internet; what is not public otherwise has a test of its own."""
    monkeypatch.setattr(web, "_is_public", lambda address: address in ("127.0.0.1", "::1"))


def test_an_image_is_fetched_by_the_name_of_its_host(server: str, public: None) -> None:
    assert web.fetch(f"{server}/a.png") == PICTURE
    assert Handler.seen == [f"{server.removeprefix('http://')}/a.png"]
    assert web.fetch(f"{server}/to//b.png") == PICTURE
    assert web.fetch(f"{server}/busy") == PICTURE


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("page", "not an image"),
        ("endless", "image too large"),
        ("gone", "image not fetched"),
        ("to/ftp://example.org/a.png", "address not allowed"),
        ("to/file:///etc/passwd", "address not allowed"),
        ("to/http://10.0.0.1/a.png", "address not allowed"),
    ],
)
def test_what_is_no_image_of_a_public_host_is_refused(
    server: str, public: None, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    monkeypatch.setattr(web, "MAX_BYTES", 100_000)
    with pytest.raises(MediaError) as caught:
        web.fetch(f"{server}/{path}")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.1.2.3", "192.168.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]",
     "0.0.0.0", "100.64.0.1", "[fd00::1]", "2130706433", "0x7f000001"],
)  # fmt: skip
def test_no_host_of_a_private_network_is_asked(host: str) -> None:
    with pytest.raises(MediaError) as caught:
        web.fetch(f"http://{host}:9/a.png")
    assert caught.value.reason in ("address not allowed", "image not fetched")
    assert "Connection refused" not in caught.value.detail


def test_addresses_are_fetched_where_the_manifest_allows_it_and_once(server: str, public: None, tmp_path: Path) -> None:
    row = f'{{"question": "q", "image": "{server}/a.png", "chosen": "good", "rejected": "bad"}}\n'
    (tmp_path / "rows.jsonl").write_text(row)
    manifest = Manifest(name="s", kind="preferences", path=str(tmp_path / "rows.jsonl"), licence="x")
    refused = read_source(manifest, tmp_path, tmp_path / "media")
    assert refused["quarantine"]["reason"].to_pylist() == ["address not allowed"]
    assert "media_urls: true" in refused["quarantine"]["detail"][0].as_py() and not Handler.seen
    allowed = manifest.model_copy(update={"media_urls": True})
    for _ in range(2):
        assert read_source(allowed, tmp_path, tmp_path / "media")["pairs"].num_rows == 1
    assert len(Handler.seen) == 1
