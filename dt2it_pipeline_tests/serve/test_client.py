"""RewardClient: the same scores in process and over HTTP, and errors that say what to do."""

from __future__ import annotations

import asyncio
import doctest
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.engines.vllm_engine import EngineError
from dt2it_pipeline.serve import RewardClient, client
from dt2it_pipeline.serve.client import MODEL_ENV, RewardClientError
from dt2it_pipeline_tests.support.score_server import ScoreServer, score_server
from dt2it_pipeline_tests.support.tiny import make_tiny


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScoreServer]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with score_server() as made:
        yield made


def question(text: str = "what", image: Any = None) -> dict[str, Any]:
    shown = "" if image is None else "<image>"
    return {"turns": [{"role": "user", "text": shown + text}], "images": [] if image is None else [image]}


def test_in_process_it_gives_the_scores_of_the_model(tmp_path: Path) -> None:
    ensure_torchvision()
    from dt2it_pipeline.reward import RewardModel

    model = RewardModel.from_pretrained(make_tiny(tmp_path, "qwen3_vl"), new_head_seed=0)
    image = Image.new("RGB", (64, 64), "red")
    prompts = [question("what colour", image), question("a circle")]
    texts = [["red", "it is blue"], ["yes"]]
    expected = model.score(prompts, texts)
    made = RewardClient(model, max_length=200)
    found = made.score(prompts, [[*texts[0], " "], [*texts[1], "long " * 300]])
    assert found[0][2] is None and found[1][1] is None
    assert np.allclose(found[0][:2], expected[0], atol=1e-6) and np.allclose(found[1][:1], expected[1], atol=1e-6)
    assert made.statistics().unscored == {"empty response": 1, "longer than max_length": 1}
    assert made.lowest == min(value for row in found for value in row if value is not None)
    paired = made.rewards([prompts[0], prompts[1], prompts[0]], ["red", "yes", "it is blue"])
    assert np.allclose(paired, [expected[0][0], expected[1][0], expected[0][1]], atol=1e-6)
    assert made.rewards([question("what", b"nonsense")], ["red"]) == [None]


def test_the_example_is_right() -> None:
    ensure_torchvision()
    (test,) = [found for found in doctest.DocTestFinder().find(RewardClient, "RewardClient", client) if found.examples]
    result = doctest.DocTestRunner().run(test)
    assert (result.failed, result.attempted > 0) == (0, True)


def test_over_http_equal_prompts_are_one_request(server: ScoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    image = Image.new("RGB", (4, 4), "red")
    asked = RewardClient(server.url)
    found = asked.rewards(
        [question("a", image), question("b"), question("a", image.copy())], ["one", "twelve", "x" * 60]
    )
    assert found == [3.0, 6.0, None]
    assert sorted(len(body["responses"]) for body in server.requests) == [1, 2]
    first = next(body for body in server.requests if len(body["responses"]) == 2)
    assert first["prompt"] == [{"role": "user", "text": "<image>a"}]
    assert first["images"][0].startswith("data:image/png;base64,")
    assert server.keys == {"Bearer secret"}
    figures = asked.statistics()
    assert (figures.responses, figures.scored, figures.unscored) == (3, 2, {"longer than max_length": 1})
    assert figures.requests == 3 and figures.retries == 0 and 0 < figures.median_seconds <= figures.p95_seconds < 60


def test_many_responses_go_out_in_several_requests(server: ScoreServer) -> None:
    (scores,) = RewardClient(server.url).score([question()], [["x" * (1 + n % 40) for n in range(300)]])
    assert scores == [float(1 + n % 40) for n in range(300)]
    assert sorted(len(body["responses"]) for body in server.requests) == [44, 128, 128]


def test_a_plain_pooling_server_is_asked_response_by_response(server: ScoreServer) -> None:
    asked = RewardClient(server.url + "/classify")
    assert asked.score([question()], [["one", "", "three"]]) == [[3.0, None, 5.0]]
    assert len(server.requests) == 2


def test_calls_of_one_event_loop_run_side_by_side(server: ScoreServer) -> None:
    async def all_of_them() -> list[Any]:
        asked = RewardClient(server.url, concurrency=2)
        return await asyncio.gather(*(asked.rewards_async([question(str(n))], ["x" * (n + 1)]) for n in range(20)))

    assert asyncio.run(all_of_them()) == [[float(n + 1)] for n in range(20)]


def test_what_may_help_is_tried_again(server: ScoreServer) -> None:
    server.faults, server.answers = [503, 500], [b"", b"", b"{}", b'{"scores": [1, 2], "faults": []}', b"not json"]
    asked = RewardClient(server.url, retry_seconds=60)
    assert asked.score([question()], [["one"]]) == [[3.0]]
    assert asked.statistics().faults == {"http 503": 1, "http 500": 1, "broken answer": 3}


def test_a_server_that_comes_back_is_waited_for_and_one_that_does_not_is_named() -> None:
    with score_server() as first:
        port = first.server_address[1]
        asked, impatient = RewardClient(first.url, retry_seconds=60), RewardClient(first.url, retry_seconds=0.5)
    with pytest.raises(
        EngineError, match=rf"127.0.0.1:{port}/score-responses gives no answer for 0.5 s \(setting retry_s"
    ):
        impatient.score([question()], [["one"]])
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asked.score([question()], [["one"]])))
    thread.start()
    time.sleep(0.5)
    with score_server(port):
        thread.join(60)
    assert found == [[[3.0]]]


def test_a_server_that_is_not_there_at_the_start() -> None:
    with score_server() as gone:
        url = gone.url
    with pytest.raises(EngineError, match="retry_seconds of RewardClient"):
        RewardClient(url, retry_seconds=0.1)


@pytest.mark.parametrize(
    ("fault", "says"), [(401, "answers 401: .*VLLM_API_KEY"), (404, "let the URL end with /classify")]
)
def test_refusals_that_a_person_can_mend(server: ScoreServer, fault: int, says: str) -> None:
    asked = RewardClient(server.url)
    server.faults = [fault]
    with pytest.raises(EngineError, match=says):
        asked.score([question()], [["one"]])


def test_one_request_that_is_refused_costs_its_responses(server: ScoreServer) -> None:
    asked = RewardClient(server.url)
    server.faults = [422]
    assert asked.score([question()], [["one", "two"]]) == [[None, None]]
    assert asked.statistics().unscored == {"refused by the server": 2}


@pytest.mark.parametrize(
    ("prompts", "responses", "says"),
    [
        ([question()], [], "1 prompts but 0 lists"),
        (question(), [["a"]], "prompts must be a list"),
        ([question()], ["a"], "responses to prompt 0 must be a list of texts, found a str"),
        ([question()], [["a", 3]], "prompt 0, response 1: expected a text, found a int"),
        ([{"text": "x"}], [["a"]], "prompt 0 is not a mapping with `turns`"),
        ([question("x", 3)], [["a"]], "prompt 0: image 0 is a int"),
        ([{"turns": [{"role": "user", "text": "<image>"}]}], [["a"]], "prompt 0 has 1 <image> markers"),
    ],
)
def test_a_wrong_shape_is_an_error_with_its_place(server: ScoreServer, prompts: Any, responses: Any, says: str) -> None:
    with pytest.raises(RewardClientError, match=says):
        RewardClient(server.url).score(prompts, responses)
    assert not server.requests


def test_the_model_may_come_from_the_environment(server: ScoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODEL_ENV, raising=False)
    with pytest.raises(RewardClientError, match="DT2IT_REWARD_MODEL is not set"):
        RewardClient.from_environment()
    monkeypatch.setenv(MODEL_ENV, server.url)
    assert RewardClient.from_environment().rewards([question()], ["one"]) == [3.0]
    with pytest.raises(EngineError, match="ends with /v1; a reward model answers at /score-responses or /classify"):
        RewardClient(server.url + "/v1")
