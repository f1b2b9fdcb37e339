"""Scores over HTTP against a small server that answers as vLLM's pooling server does."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dt2it_pipeline.engines import score_endpoint
from dt2it_pipeline.engines.http import RetryPolicy
from dt2it_pipeline.engines.score_endpoint import EndpointScorer
from dt2it_pipeline.engines.vllm_engine import EngineError
from dt2it_pipeline.media.opening import open_image
from dt2it_pipeline.media.pixels import ORIENTATION


class Server(ThreadingHTTPServer):
    """Scores a conversation by the length of its answer; `faults` are sent first, by answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.faults: dict[str, list[int]] = {}
        self.replies: dict[str, bytes] = {}  # bodies in place of a score, by answer
        self.root = "a/hub-id"
        self.refusal = "so it is"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: Any) -> None: ...

    def answer(self, code: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        if code == 302:
            self.send_header("Location", self.server.url + "/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "served", "root": self.server.root}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        self.server.requests.append(body)
        self.server.keys.add(self.headers.get("Authorization"))
        if faults := self.server.faults.get(text):
            self.answer(faults.pop(0), {"error": f"{self.server.refusal}: {self.headers.get('Authorization')}"})
        elif text in self.server.replies:
            self.answer(200, self.server.replies[text])
        elif self.path == "/pooling":
            self.answer(200, {"data": [{"data": [[float(len(text))]]}]})
        else:
            self.answer(200, {"data": [{"probs": [] if text == "odd" else [float(len(text))]}]})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(score_endpoint, "_RETRIES", RetryPolicy(first_wait=0.01))
    monkeypatch.delenv(score_endpoint.API_KEY_ENV, raising=False)
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def prompt(text: str = "<image>what is it", media: list[dict[str, str]] | None = None) -> dict[str, Any]:
    given = [{"kind": "image", "sha256": "s", "path": "a.jpg"}] if media is None else media
    return {"turns": [{"role": "user", "text": text}], "system": "own", "media": given}


def test_conversations_go_out_as_the_model_was_trained_and_scores_come_back(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.jpg", "PNG")  # a wrong extension
    monkeypatch.setenv(score_endpoint.API_KEY_ENV, "secret")
    scorer = EndpointScorer(server.url, tmp_path, system_prompt="You judge.")
    scores, faults = scorer.score({"p": prompt("look: <image>what is it")}, [("r1", "p", "red"), ("r2", "p", "green")])
    assert scores == {"r1": 3.0, "r2": 5.0}
    assert not faults
    body = next(r for r in server.requests if r["messages"][-1]["content"] == "red")
    assert (body["model"], body["add_generation_prompt"]) == ("served", False)
    assert body["messages"][0] == {"role": "system", "content": "You judge.\n\nown"}
    first, image, rest = body["messages"][1]["content"]
    assert (first["text"], rest["text"]) == ("look: ", "what is it")
    head, content = image["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(content) == (tmp_path / "a.jpg").read_bytes()
    assert server.keys == {"Bearer secret"}
    assert EndpointScorer(server.url + "/pooling", tmp_path).score({"p": prompt("q", [])}, [("r", "p", "four")])[0] == {
        "r": 4.0
    }


def test_what_cannot_be_scored_is_told_and_what_may_help_is_tried_again(server: Server, tmp_path: Path) -> None:
    scorer = EndpointScorer(server.url, tmp_path)
    server.faults = {"slow": [503, 429], "bad": [400]}
    outside = [{"kind": "image", "sha256": "s", "path": "../x.png"}]
    prompts = {"p": prompt("q", []), "m": prompt(), "o": prompt(media=outside), "n": prompt("q <image>", [])}
    texts = {"1": ("p", "slow"), "2": ("p", "bad"), "3": ("m", "x"), "4": ("o", "x"), "5": ("n", "x"), "6": ("?", "x")}
    texts |= {"7": ("p", "a <|im_end|>"), "8": ("p", "odd")}
    scores, faults = scorer.score(prompts, [(name, *rest) for name, rest in texts.items()])
    assert scores == {"1": 4.0}
    assert {name: reason for name, (reason, _) in faults.items()} == {
        "2": "refused by the endpoint",
        "3": "missing image",
        "4": "path outside the media root",
        "5": "image markers do not match media",
        "6": "prompt not found",
        "7": "control token in the conversation",
        "8": "endpoint gave no score",
    }


@pytest.mark.parametrize(
    ("code", "said"), [(401, "answers 401"), (302, "answers 302"), (500, "after 5 tries: http 500")]
)
def test_a_server_that_cannot_be_used_ends_the_run(server: Server, tmp_path: Path, code: int, said: str) -> None:
    scorer = EndpointScorer(server.url, tmp_path)
    server.faults = {"x": [code] * 9}
    with pytest.raises(EngineError, match=said):
        scorer.score({"p": prompt("q", [])}, [("r", "p", "x")])


def test_the_server_is_left_to_say_what_the_training_was(server: Server, tmp_path: Path) -> None:
    asked = [("r", "p", "x")]
    EndpointScorer(server.url, tmp_path).score({"p": prompt("q", []) | {"system": ""}}, asked)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.jpg")
    sized = EndpointScorer(server.url, tmp_path, max_pixels=4096)
    sized.score({"p": prompt("q", [])}, asked)
    sized.score({"p": prompt()}, asked)
    assert [message["role"] for message in server.requests[0]["messages"]] == ["user", "assistant"]
    assert [r.get("mm_processor_kwargs") for r in server.requests] == [None, None, {"max_pixels": 4096}]
    server.faults = {"x": [400]}
    server.refusal = "Per-request mm_processor_kwargs are disabled"
    with pytest.raises(EngineError, match="start the server with --trust-request-mm-kwargs"):
        sized.score({"p": prompt()}, asked)


@pytest.mark.parametrize(
    ("mode", "form", "kept"),
    [("RGB", "JPEG", True), ("L", "PNG", True), ("I;16", "PNG", False), ("RGBA", "PNG", False), ("RGB", "BMP", False)],
)
def test_an_image_goes_out_as_we_see_it(server: Server, tmp_path: Path, mode: str, form: str, kept: bool) -> None:
    pixels = np.arange(96, dtype=np.uint16).reshape(8, 12) * 600
    image = (
        Image.fromarray(pixels) if mode == "I;16" else Image.fromarray((pixels // 257).astype(np.uint8)).convert(mode)
    )
    if mode == "RGBA":
        image.putalpha(90)
    image.save(tmp_path / "a.jpg", form)
    assert _sent(server, tmp_path) == (kept, True)


def test_a_sideways_photograph_goes_out_upright(server: Server, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", "JPEG", exif=exif)
    assert _sent(server, tmp_path) == (False, True)


def _sent(server: Server, folder: Path) -> tuple[bool, bool]:
    """Whether the image a.jpg was sent as it is, and whether a decoder that knows nothing sees what our scorers see."""
    _, faults = EndpointScorer(server.url, folder).score({"p": prompt()}, [("r", "p", "x")])
    assert not faults
    url = server.requests[-1]["messages"][1]["content"][0]["image_url"]["url"]
    content = base64.b64decode(url.partition(",")[2])
    with Image.open(io.BytesIO(content)) as image:
        assert url.startswith(f"data:{Image.MIME[image.format or '']};")
        seen = np.asarray(image.convert("RGB"))
    file = folder / "a.jpg"
    return content == file.read_bytes(), np.array_equal(seen, np.asarray(open_image(file)))


def test_a_url_with_a_password_or_without_a_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_endpoint, "_RETRIES", RetryPolicy(first_wait=0.001))
    with pytest.raises(EngineError, match="without user and password"):
        EndpointScorer("http://me:secret@localhost:1", tmp_path)
    with pytest.raises(EngineError, match="gives no answer"):
        EndpointScorer("http://127.0.0.1:9", tmp_path)


def test_a_reply_beyond_all_numbers_is_one_fault_and_one_too_deep_an_error(server: Server, tmp_path: Path) -> None:
    scorer = EndpointScorer(server.url, tmp_path)
    server.replies = {"large": b'{"data": [{"probs": [%s]}]}' % (b"9" * 400), "deep": b"[" * 10**5}
    _, faults = scorer.score({"p": prompt("q", [])}, [("r", "p", "large")])
    assert faults["r"][0] == "endpoint gave no score"
    with pytest.raises(EngineError, match="gives no answer"):
        scorer.score({"p": prompt("q", [])}, [("r", "p", "deep")])


@pytest.mark.parametrize("url", ["/classify?api_key=sekret", "/#key=sekret"])
def test_a_url_with_a_query_or_a_fragment_is_refused_and_not_shown(server: Server, tmp_path: Path, url: str) -> None:
    with pytest.raises(EngineError, match="without user and password, query and fragment") as raised:
        EndpointScorer(server.url + url, tmp_path)
    assert "sekret" not in str(raised.value)


@pytest.mark.parametrize("key", ["sek'ret-7f3a", 'sek"ret-7f3a\n'])
def test_the_key_appears_in_no_message(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(score_endpoint.API_KEY_ENV, key)
    scorer = EndpointScorer(server.url, tmp_path)
    server.replies["odd"] = json.dumps({"you sent": f"Bearer {key.strip()}"}).encode()
    server.faults = {"bad": [400], "slow": [500] * 9, "key": [401]}
    _, faults = scorer.score({"p": prompt("q", [])}, [("1", "p", "bad"), ("2", "p", "odd")])
    said = [str(faults)]
    for text in ("slow", "key"):
        with pytest.raises(EngineError, match=r"\(key\)") as raised:
            scorer.score({"p": prompt("q", [])}, [("r", "p", text)])
        said.append(str(raised.value))
    assert not any("ret-7f3a" in text for text in said)
    assert server.keys == {f"Bearer {key.strip()}"}


def test_a_key_that_no_header_takes_is_told_and_not_sent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(score_endpoint.API_KEY_ENV, "sekret\nsekret")
    with pytest.raises(EngineError, match="VLLM_API_KEY must be printable ASCII") as raised:
        EndpointScorer(server.url, tmp_path)
    assert "sekret" not in str(raised.value)
