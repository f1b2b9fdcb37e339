"""An S3 server for a test: moto's, which keeps everything in memory, on a port of its own."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ACCESS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "something", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "team"


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Start a server with one bucket; gives the variables by which s3fs finds it. Skips where the extra is missing."""
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        made = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
        made.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=someone/20260101/us-east-1/s3/aws4_request")
        urllib.request.urlopen(made, timeout=30).close()
        yield ACCESS | {"AWS_ENDPOINT_URL": address}
    finally:
        server.stop()
