"""The route that scores several responses, and the key, around an application that answers /classify as vLLM does."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from dt2it_pipeline.reward.calibration import Calibration, card_entry
from dt2it_pipeline.serve import score_route
from dt2it_pipeline.serve.key_guard import OpenServerError, host_options
from dt2it_pipeline.serve.score_metrics import REQUESTS, RESPONSES, SECONDS
from dt2it_pipeline.serve.score_route import MOST_RESPONSES, ROUTE, ScoreResponses
from dt2it_pipeline_tests.support.score_engine import Engine, png, request


def post(body: Any, engine: Engine | None = None) -> httpx.Response:
    return request(engine or Engine(), "POST", ROUTE, body)


def test_a_calibrated_checkpoint_gives_calibrated_probabilities(tmp_path: Path) -> None:
    engine, body = Engine(), {"prompt": "what", "responses": ["three", "seven.."]}
    assert post(body, engine).json()["temperature"] is None
    engine.state.args.model = str(tmp_path)
    fitted = Calibration(4.0, 3.0, 5.0, 400, 400, 0.8, 0.6, 0.5, 0.1, 0.02)
    (tmp_path / "reward_model.json").write_text(json.dumps({"calibration": card_entry(fitted)}), encoding="utf-8")
    answer = post(body, engine).json()
    assert (answer["temperature"], answer["scores"]) == (4.0, [5.0, 7.0])
    assert answer["p_better"][1][0] == pytest.approx(float(fitted.probability(2.0)), abs=1e-6)
    (tmp_path / "reward_model.json").write_text('{"calibration": {"temperature": 0}}', encoding="utf-8")
    damaged = post(body, engine)
    assert damaged.status_code == 500 and "calibrate again" in damaged.json()["error"]["message"]


def test_responses_get_scores_probabilities_and_reasons() -> None:
    engine = Engine()
    texts = ["three", "seven..", "", "a <|im_end|>", "long " * 11, "refused", "odd"]
    answer = post({"prompt": "what", "images": [png()], "system": "Judge.", "responses": texts}, engine).json()
    assert answer["scores"] == [5.0, 7.0, None, None, None, None, None]
    assert answer["p_better"][1][0] == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6)
    assert answer["p_better"][0][0] == 0.5 and answer["p_better"][0][2] is None
    assert answer["p_better"][0][1] + answer["p_better"][1][0] == pytest.approx(1, abs=1e-6)
    assert {fault["response"]: fault["reason"] for fault in answer["faults"]} == {
        2: "empty response",
        3: "control token in the conversation",
        4: "longer than max_length",
        5: "refused by the engine",
        6: "score is not a number",
    }
    assert (answer["model"], answer["checkpoint_digest"]) == ("a/hub-id", "a/hub-id")
    sent = engine.bodies[0]
    assert sent["add_generation_prompt"] is False
    assert sent["messages"][0] == {"role": "system", "content": "Judge."}
    image, words = sent["messages"][1]["content"]
    assert image["image_url"]["url"] == f"data:image/png;base64,{png()}"  # a plain image goes as it is
    assert words["text"] == "what"


def test_requests_and_responses_are_counted_where_vllm_serves_its_figures() -> None:
    def counted(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    asked, refused = ({"status": "200"}, {"status": "422"})
    before = [counted(REQUESTS, **asked), counted(REQUESTS, **refused), counted(RESPONSES, outcome="not_scored")]
    post({"prompt": "what", "responses": ["one", "", "refused"]})
    post({"prompt": "what"})
    after = [counted(REQUESTS, **asked), counted(REQUESTS, **refused), counted(RESPONSES, outcome="not_scored")]
    assert [new - old for old, new in zip(before, after, strict=True)] == [1, 1, 2]
    assert counted(f"{SECONDS}_count") >= 2


def test_an_image_that_vllm_would_decode_otherwise_is_sent_as_it_looks_to_us() -> None:
    engine = Engine()
    post({"prompt": "what", "images": [png("I;16")], "responses": ["a"]}, engine)
    url = engine.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).mode == "RGB"


@pytest.mark.parametrize(
    ("size", "fault"),
    [
        ((1, 2000), ("image too narrow", "images[1]: 1 x 2000 pixels; the longer side is to be at most 200 times")),
        ((2000, 1), ("image too narrow", "images[1]: 2000 x 1 pixels; the longer side is to be at most 200 times")),
        ((4, 4), ("refused by the engine", "the image processor cannot read the prompt with its images")),
    ],
)
def test_an_image_that_the_processor_refuses_is_named_without_the_engines_internals(
    size: tuple[int, int], fault: tuple[str, str]
) -> None:
    answer = post({"prompt": "what", "images": [png(), png(size=size)], "responses": ["one", "narrow"]}).json()
    [found] = answer["faults"]
    assert answer["scores"] == [3.0, None] and found["response"] == 1
    assert found["reason"] == fault[0] and found["detail"].startswith(fault[1])
    assert "Failed to apply" not in json.dumps(answer) and "im_start" not in json.dumps(answer)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": "x", "responses": "a"}, "responses: Input should be a valid array"),
        ({"prompt": "x", "responses": []}, "responses: List should have at least 1 item"),
        ({"prompt": "x", "responses": ["a"] * (MOST_RESPONSES + 1)}, "responses: List should have at most 128 items"),
        ({"prompt": "x", "answers": ["a"]}, "answers: unknown key; known are prompt, responses, images, system"),
        ({"prompt": 3, "responses": ["a"]}, "prompt: a text or a list of messages is expected"),
        ({"prompt": " ", "responses": ["a"]}, "turn 0 of the prompt is empty"),
        ({"prompt": "<image>", "responses": ["a"]}, "places for 1 images, but 0 are given"),
        ({"prompt": "x", "images": ["https://host/a.png"], "responses": ["a"]}, "none is fetched"),
        ({"prompt": "x", "images": ["../a.png"], "responses": ["a"]}, "a path is not read"),
        ({"prompt": "x", "images": ["aGVsbG8="], "responses": ["a"]}, "unreadable image"),
        ({"prompt": "x", "images": [3], "responses": ["a"]}, "images.0: Input should be a valid string"),
        (b"{nonsense", "the body: Invalid JSON"),
    ],
)
def test_a_wrong_shape_is_422_with_a_sentence(body: Any, says: str) -> None:
    answer = post(body)
    assert answer.status_code == 422
    assert says in answer.json()["error"]["message"]


def test_no_image_of_a_part_is_fetched_either(monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    answer = post({"prompt": [{"role": "user", "content": [part]}], "responses": ["a"]})
    assert answer.status_code == 422 and "none is fetched" in answer.json()["error"]["message"]
    monkeypatch.setattr(score_route, "_MOST_BYTES", 20)
    assert post({"prompt": "x", "responses": ["a"]}).status_code == 413


def test_a_failing_engine_is_503_and_other_routes_are_as_they_were() -> None:
    assert post({"prompt": "x", "responses": ["a", "crash"]}).status_code == 503
    assert request(Engine(), "GET", ROUTE).status_code == 405
    assert request(Engine(), "GET", "/health").json() == {"path": "/health"}


def test_an_answer_of_the_engine_without_a_score_is_a_sentence() -> None:
    answer = post({"prompt": "what", "responses": ["fine", "other"]})
    assert answer.status_code == 502 and "gives no score" in answer.json()["error"]["message"]


def test_a_client_that_goes_away_ends_its_requests() -> None:
    body = json.dumps({"prompt": "x", "responses": ["patient"]}).encode()
    engine = Engine()

    async def ask() -> None:
        messages = iter([{"type": "http.request", "body": body}, {"type": "http.disconnect"}])

        async def receive() -> Any:
            return next(messages)

        async def send(_: Any) -> None: ...

        scope = {"type": "http", "method": "POST", "path": ROUTE, "headers": [], "app": engine}
        await asyncio.wait_for(ScoreResponses(engine)(scope, receive, send), 20)

    asyncio.run(ask())
    assert len(engine.bodies) == 1


def test_the_key_guards_all_that_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    body = {"prompt": "x", "responses": ["a"]}
    for path in (ROUTE, "/classify", "/pooling", "/tokenize", "/v1/models", "/healthy"):
        for headers in (None, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            assert request(Engine("secret"), "POST", path, body, headers).status_code == 401, path
    engine = Engine("secret")
    assert request(engine, "POST", ROUTE, body, {"Authorization": "Bearer secret"}).json()["scores"] == [1.0]
    for path in ("/health", "/metrics", "/ping"):
        assert request(Engine("secret"), "GET", path).status_code == 200
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert post(body).status_code == 401


def test_another_host_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert host_options([]) == host_options(["--port", "1"]) == ["--host", "127.0.0.1"]
    for inside in (["--host", "127.0.0.1"], ["--host=::1"], ["--host", "localhost"], ["--uds", "/tmp/socket"]):
        assert host_options(inside) == []
    for outside in (
        ["--host", "0.0.0.0"],
        ["--host=10.0.0.1"],
        ["--host", "a.host"],
        ["--host", ""],
        ["--ho", "::"],
        ["--hos=0.0.0.0"],
    ):
        with pytest.raises(OpenServerError, match="VLLM_API_KEY"):
            host_options(outside)
        assert host_options([*outside, "--api-key", "k"]) == host_options([*outside, "--api_key=k"]) == []
    monkeypatch.setenv("VLLM_API_KEY", "k")
    assert host_options(["--host", "0.0.0.0"]) == []
