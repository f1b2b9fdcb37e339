"""A server on 127.0.0.1 that answers /score-responses by the length of responses, or misbehaves as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ScoreServer(ThreadingHTTPServer):
    """`faults` are statuses that the next requests get; `answers` are bodies in place of scores."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.requests: list[dict[str, Any]] = []
        self.faults: list[int] = []
        self.answers: list[bytes] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None: ...


class _Handler(BaseHTTPRequestHandler):
    server: ScoreServer

    def log_message(self, *arguments: Any) -> None: ...

    def answer(self, code: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "served", "root": "a/hub-id"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.keys.add(self.headers.get("Authorization"))
            fault = self.server.faults.pop(0) if self.server.faults else 0
            answer = self.server.answers.pop(0) if self.server.answers else b""
        if fault or answer:
            self.answer(fault or 200, answer or {"error": {"message": "so it is"}})
        elif self.path == "/classify":
            self.answer(200, {"data": [{"probs": [float(len(body["messages"][-1]["content"]))]}]})
        else:
            long = [len(text) > 50 for text in body["responses"]]
            scores = [None if over else float(len(text)) for text, over in zip(body["responses"], long, strict=True)]
            faults = [
                {"response": place, "reason": "longer than max_length", "detail": ""}
                for place, over in enumerate(long)
                if over
            ]
            self.answer(200, {"scores": scores, "faults": faults})


@contextmanager
def score_server(port: int = 0) -> Iterator[ScoreServer]:
    """A server until the block ends."""
    server = ScoreServer(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
