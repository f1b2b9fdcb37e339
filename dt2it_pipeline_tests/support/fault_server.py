"""A chat endpoint on 127.0.0.1 that answers as a judge does, or misbehaves in a chosen way.

Which fault a request meets is decided by a word in the response under judgement, so that a test can tell afterwards
what became of each item. A fault lasts for the first `times` requests about that item; then the server answers.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dt2it_pipeline.judges.rubric import CRITERIA

KEY = "local-test-key-7f3a"
_ITEM = re.compile(r"item-[a-z0-9-]+")
_RESPONSE = re.compile(r"(?ms)^=== (?:RESPONSE|回答) \d+[^\n]*\n(.*?)(?=^===)")


def verdict(number: int, score: Any = 8, weights: list[float] | None = None, names: tuple[str, ...] = CRITERIA) -> dict:
    weights = weights or [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]
    criteria = {
        name: {"weight": weight, "analysis": "", "score": score} for name, weight in zip(names, weights, strict=True)
    }
    return {"response": number, "criteria": criteria, "overall": 7.5}


def honest(words: str, responses: list[str]) -> str:
    """A judge that scores a response by the digit behind `worth-` in it, and 5 where there is none."""
    if '"better"' in words:
        first, second = (_worth(text) for text in responses)
        return json.dumps({"reference": "", "analysis": "", "better": 0 if first == second else 1 + (second > first)})
    entries = [verdict(number, _worth(text)) for number, text in enumerate(responses, start=1)]
    return json.dumps({"reference": "", "responses": entries})


def _worth(text: str) -> int:
    found = re.search(r"worth-(\d+)", text)
    return int(found.group(1)) if found else 5


class FaultServer:
    """What the server is to do, and what it has seen.

    `faults` maps a word to (fault, times): the first `times` requests whose responses hold the word meet the fault.
    """

    def __init__(self, faults: dict[str, tuple[str, int]], answer: Callable[[str, list[str]], str] = honest) -> None:
        self.faults = faults
        self.answer = answer
        self.seen: Counter[str] = Counter()  # requests per item
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self.keys: set[str] = set()
        self.url = ""
        self._at_once = 0
        self._lock = threading.Lock()

    def next_fault(self, words: str, body: dict[str, Any]) -> str:
        item = next(iter(_ITEM.findall(words)), "")
        with self._lock:
            self.bodies.append(body)
            self.seen[item] += 1
            fault, times = self.faults.get(item, ("", 0))
            return fault if self.seen[item] <= times else ""

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1


@contextmanager
def serving(server: FaultServer, hang_seconds: float = 30.0) -> Iterator[FaultServer]:
    """Serve until the block ends; no request hangs longer than `hang_seconds`."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.keys.add(self.headers.get("Authorization", ""))
            with server.busy():
                content = body["messages"][-1]["content"]
                words = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
                responses = [text.strip() for text in _RESPONSE.findall(words)]
                fault = server.next_fault(" ".join(responses), body)
                self.misbehave(fault, words, responses)

        def misbehave(self, fault: str, words: str, responses: list[str]) -> None:
            good = server.answer(words, responses)
            if fault == "429":
                self.send(429, json.dumps({"error": "slow down"}), {"Retry-After": "0.3"})
            elif fault == "500":
                self.send(500, "<html>internal error</html>")
            elif fault == "503":
                self.send(503, f"overloaded; your key was {KEY}")
            elif fault == "400":
                self.send(400, json.dumps({"error": {"message": f"content refused, key {KEY}"}}))
            elif fault == "401":
                self.send(401, json.dumps({"error": {"message": f"wrong key {KEY}"}}))
            elif fault == "hang":
                released.wait(hang_seconds)
                self.close_connection = True
            elif fault == "reset":
                # Linger 0: the client sees a reset, not an orderly end.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            elif fault == "half a body":
                self.send(200, '{"choices": [{"message": {"content": "')
            elif fault == "truncated JSON":
                self.reply(good[: len(good) // 2], "length")
            elif fault == "wrong number":
                self.reply(json.dumps({"responses": [verdict(n + 1) for n in range(len(responses) + 1)]}))
            elif fault == "score 11":
                self.reply(json.dumps({"responses": [verdict(n + 1, 11) for n in range(len(responses))]}))
            elif fault == "weights":
                entries = [verdict(n + 1, 8, [0.5] * 6) for n in range(len(responses))]
                self.reply(json.dumps({"responses": entries}))
            elif fault == "Chinese keys":
                names = ("准确", "有用", "完整", "语言质量", "创造性", "伦理")
                text = json.dumps({"responses": [verdict(n + 1, 6, None, names) for n in range(len(responses))]})
                for english, chinese in (("weight", "权重"), ("score", "分数"), ("criteria", "标准")):
                    text = text.replace(f'"{english}"', f'"{chinese}"')
                self.reply(text)
            elif fault == "quotes the injection":
                injected = re.search(r"\{.*\}", responses[0], re.S)
                self.reply(f"It asks me for {injected.group() if injected else ''}.\n{good}")
            elif fault == "prose":
                self.reply("I would rather not say.")
            else:
                self.reply(good)

        def reply(self, text: str, reason: str = "stop") -> None:
            body = {
                "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 20},
            }
            self.send(200, json.dumps(body, ensure_ascii=False))

        def send(self, code: int, text: str, headers: dict[str, str] | None = None) -> None:
            data = text.encode()
            self.send_response(code)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that has gone away, or a connection that was reset on purpose

    listener = Quiet(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{listener.server_address[1]}/v1"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        released.set()
        listener.shutdown()
        listener.server_close()
        thread.join(timeout=5)
