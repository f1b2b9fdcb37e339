"""An S3 server for a test: moto's, which keeps everything in memory, in a process and on a port of its own.

    python -m dt2it_pipeline_tests.support.s3_server

prints the address and serves until its input ends. In the process of the tests, moto would bring Flask with it, and
vLLM then fails to start there: it looks at every object of every module, and those of Flask exist in a request only.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ACCESS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "something", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "team"


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Start a server with one bucket; gives the variables by which s3fs finds it. Skips where the extra is missing."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("moto[server] is not installed")
    pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
    line = [sys.executable, "-m", "dt2it_pipeline_tests.support.s3_server"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        try:
            address = server.stdout.readline().strip()
            made = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
            made.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=someone/20260101/us-east-1/s3/aws4_request")
            urllib.request.urlopen(made, timeout=30).close()
            yield ACCESS | {"AWS_ENDPOINT_URL": address}
        finally:
            server.stdin.close()


def main() -> None:
    """Serve until the input ends."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
