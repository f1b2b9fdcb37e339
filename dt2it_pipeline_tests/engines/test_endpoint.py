"""The line to a chat endpoint: what is sent, when it is held back, and what its errors say.

How a whole job fares on a line that misbehaves is in judges/test_faults.py.
"""

from __future__ import annotations

import base64
import email.utils
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from dt2it_pipeline.config.models import EndpointSettings
from dt2it_pipeline.config.recipe import RecipeError, parse_recipe
from dt2it_pipeline.engines.chat import ChatPrompt, fit_pixels
from dt2it_pipeline.engines.endpoint import EndpointEngine, _read, data_url
from dt2it_pipeline.engines.http import HttpClient, NoAnswer, RetryPolicy, finished, retry_after
from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, SampleRequest, StreamingEngine, stream
from dt2it_pipeline_tests.support.fault_server import KEY, FaultServer, honest, serving


def _request(text: str, **options) -> SampleRequest:
    content = [{"type": "text", "text": f"=== RESPONSE 1\n{text}\n=== END"}]
    return SampleRequest(ChatPrompt(text, ({"role": "user", "content": content},), ()), 1, 7, **options)


def _settings(server: FaultServer, **changes) -> EndpointSettings:
    return EndpointSettings(base_url=server.url, model="m", longest_wait_seconds=0.05, timeout_seconds=5, **changes)


def _used(tokens: str) -> bytes:
    """An answer that says to have cost this many tokens."""
    return b'{"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": %s}}' % tokens.encode()


def test_answers_come_with_the_place_of_their_request_and_their_tokens():
    with serving(FaultServer({})) as server:
        engine = EndpointEngine(_settings(server, concurrency=3))
        assert isinstance(engine, StreamingEngine)
        found = dict(stream(engine, [_request(f"item-{n} worth-{n}") for n in range(9)], Decoding()))
        (sample,) = engine.sample([_request("item-a worth-4")], Decoding(top_p=0.5, max_new_tokens=9))[0]
    scores = [json.loads(found[n][0].text)["responses"][0]["criteria"]["Accuracy"]["score"] for n in range(9)]
    assert scores == list(range(9))
    assert (sample.tokens, sample.prompt_tokens, sample.finished) == (20, 100, True)
    assert {"seed": 7, "top_p": 0.5, "max_tokens": 9, "temperature": 1.0}.items() <= server.bodies[-1].items()
    assert "response_format" not in server.bodies[-1]


@pytest.mark.parametrize(
    ("structured", "expected"), [("json_schema", "json_schema"), ("json_object", "json_object"), ("none", None)]
)
def test_the_form_of_an_answer_is_asked_for_as_the_endpoint_understands_it(structured, expected):
    options = {"structured": structured, "seeded": False, "length_parameter": "max_completion_tokens"}
    with serving(FaultServer({})) as server:
        EndpointEngine(_settings(server, **options)).sample(
            [_request("item-a", json_schema={"type": "object"})], Decoding()
        )
    (body,) = server.bodies
    assert body.get("response_format", {}).get("type") == expected
    assert "seed" not in body and body["max_completion_tokens"] == 64


class FormServer(FaultServer):
    """Refuses every request whose `response_format` is none of `takes`."""

    def __init__(self, takes: Callable[[dict], bool]) -> None:
        super().__init__({})
        self.takes = takes

    def next_fault(self, words: str, body: dict) -> str:
        super().next_fault(words, body)
        return "" if self.takes(body.get("response_format", {})) else "400"


BOUNDED = {"type": "object", "properties": {"maxLength": {"type": "string", "maxLength": 9}}, "required": ["maxLength"]}


@pytest.mark.parametrize(
    ("takes", "form", "refused"),
    [
        (lambda form: '"maxLength": 9' not in json.dumps(form), "json_schema without bounds", 1),
        (lambda form: form.get("type") != "json_schema", "json_object", 2),
        (lambda form: not form, "none", 3),
    ],
)
def test_an_endpoint_that_refuses_the_form_is_asked_in_a_weaker_one_and_that_is_kept(takes, form, refused, caplog):
    with serving(FormServer(takes)) as server:
        engine = EndpointEngine(_settings(server, concurrency=1))
        found = engine.sample([_request(f"item-{n}", json_schema=BOUNDED) for n in range(4)], Decoding())
        assert not any(isinstance(result, EngineError) for result in found)
        assert len(server.bodies) == refused + 4
        sent = server.bodies[refused]["response_format"] if form != "none" else {}
    if "without bounds" in form:
        assert sent["json_schema"]["schema"]["properties"] == {"maxLength": {"type": "string"}}  # a name, not a bound
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "refuses response_format json_schema with HTTP 400 (" in warning and f"is asked with {form} from" in warning


def test_a_refusal_for_another_reason_stays_one_and_costs_no_further_request_once_the_form_was_taken(caplog):
    with serving(FaultServer({"item-bad": ("400", 99)})) as server:
        engine = EndpointEngine(_settings(server, concurrency=1))
        requests = [_request(name, json_schema=BOUNDED) for name in ("item-bad", "item-good", "item-bad")]
        first, second, third = engine.sample(requests, Decoding())
    assert isinstance(first, EngineError) and "content refused" in str(first) and isinstance(third, EngineError)
    assert isinstance(second, list) and server.seen == {"item-bad": 4 + 1, "item-good": 1}
    assert server.bodies[4]["response_format"]["type"] == "json_schema" and not caplog.records


def test_a_consumer_that_stops_stops_the_line():
    stopped = threading.Event()

    def answer(words, responses):
        if "item-0" not in words:  # the next one is under way when the consumer stops, however busy the machine is
            stopped.wait(60)
        return honest(words, responses)

    with serving(FaultServer({}, answer)) as server:
        results = EndpointEngine(_settings(server, concurrency=1)).stream(
            [_request(f"item-{n}") for n in range(20)], Decoding()
        )
        next(results)
        results.close()
        stopped.set()
        for thread in [thread for thread in threading.enumerate() if thread.name == "endpoint"]:
            thread.join(60)
            assert not thread.is_alive()
        assert len(server.bodies) <= 2


def test_a_prompt_whose_places_and_images_differ_is_an_error_of_its_own():
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    odd = SampleRequest(ChatPrompt("odd", ({"role": "user", "content": content},), ()), 1, 0)
    with serving(FaultServer({})) as server:
        first, second = EndpointEngine(_settings(server)).sample([odd, _request("item-1 worth-5")], Decoding())
    assert isinstance(first, EngineError) and "1 places for images and 0 images" in str(first)
    assert not isinstance(second, EngineError)


def test_nobody_at_the_address_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv("DT2IT_TEST_KEY", KEY)
    settings = EndpointSettings(
        base_url="http://127.0.0.1:9/v1",
        model="m",
        api_key_env="DT2IT_TEST_KEY",
        retries=1,
        give_up_after=2,
        longest_wait_seconds=0.01,
    )
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9.*given up: 2 requests") as raised:
        EndpointEngine(settings).sample([_request(f"item-{n}") for n in range(5)], Decoding())
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, None), ("", None), ("3", 3), ("0.5", 0.5), ("-1", 0), ("soon", None), ("inf", None)]
)
def test_retry_after_in_seconds(value, seconds):
    assert retry_after(value) == seconds


def test_retry_after_as_a_date(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert retry_after(email.utils.formatdate(2e9 + 30, usegmt=True)) == 30
    assert retry_after(email.utils.formatdate(2e9 - 30, usegmt=True)) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": 3}',
        b"[" * 10**5,
        _used("1e999"),
        _used("NaN"),
        _used("-5"),
        _used("1" + "0" * 400),
        _used("9" * 5000),
    ],
)
def test_a_body_that_is_no_answer_is_tried_again(body):
    with _echoing(200, lambda *_: body) as url:
        settings = EndpointSettings(base_url=url, model="m", retries=1, longest_wait_seconds=0.01)
        engine = EndpointEngine(settings)
        (found,) = engine.sample([_request("item-a")], Decoding())
    assert "no answer in 2 attempts, the last with broken answer" in str(found)
    assert engine.counts == {"requests": 2, "retries": 1, "broken answer": 2}


def test_the_first_retry_is_logged_and_no_other(caplog, monkeypatch):
    monkeypatch.setenv("DT2IT_TEST_KEY", KEY)
    with _echoing(500, lambda key, _: f"down, {key}".encode()) as url:
        settings = EndpointSettings(
            base_url=url, model="m", api_key_env="DT2IT_TEST_KEY", retries=3, longest_wait_seconds=0.01
        )
        engine = EndpointEngine(settings)
        engine.sample([_request(f"item-{n}") for n in range(3)], Decoding())
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{url}/chat/completions gives no answer (http 500: down, Bearer (key)): ")
    assert "up to 3 more times, with waits of at most 0.03 s in all" in said and KEY not in said
    assert engine.counts["retries"] == 9


def test_a_server_that_is_not_there_is_logged_without_what_a_url_may_hide(caplog):
    with _echoing(200, lambda *_: b"") as url:
        closed = url.replace("127.0.0.1", "user:sekret@127.0.0.1") + "?key=sekret"
    client = HttpClient(None, RetryPolicy(1, 0.01), 5, 1)

    async def ask():
        async with client.connected() as connection:
            return await client.ask(connection, closed, None, bytes)

    assert isinstance(finished(ask()), NoAnswer)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "dt2it_pipeline.engines.http"]
    assert said.startswith(f"{url} gives no answer (connection: ") and "sekret" not in said


def test_a_refusal_without_words_is_an_empty_answer():
    body = {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}
    assert _read(json.dumps(body).encode())[0].text == ""


@pytest.mark.parametrize(("side", "kind"), [(64, "png"), (600, "jpeg")])
def test_images_travel_as_data(side, kind):
    head, data = data_url(Image.new("RGB", (side, side), "red")).split(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.size, image.convert("RGB").getpixel((5, 5))[0] > 250) == ((side, side), True)


def test_images_are_scaled_down_and_never_up():
    image = Image.new("RGB", (400, 100))
    assert fit_pixels(image, 10_000).size == (200, 50)
    assert fit_pixels(image, 40_000) is image and fit_pixels(image, None) is image
    assert fit_pixels(Image.new("RGB", (5000, 1)), 100).size == (707, 1)


class _Echo(BaseHTTPRequestHandler):
    """Answers with a code and what `reply` makes of the key that came, and of the question."""

    code: int
    reply: Callable[[str, str], bytes]
    location = ""

    def log_message(self, *arguments) -> None: ...

    def do_POST(self) -> None:
        words = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        data = type(self).reply(self.headers.get("Authorization", ""), words)
        self.send_response(self.code)
        self.send_header("Location", self.location)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def _echoing(code: int, reply: Callable[[str, str], bytes], location: str = "") -> Iterator[str]:
    handler = type("Handler", (_Echo,), {"code": code, "reply": staticmethod(reply), "location": location})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


@pytest.mark.parametrize("code", [200, 400, 401, 500])
@pytest.mark.parametrize(
    "write", [str.encode, lambda key: json.dumps({"no": key}).encode(), lambda key: repr(key).encode()]
)
def test_a_key_that_the_endpoint_sends_back_is_not_shown(monkeypatch, code, write):
    monkeypatch.setenv("DT2IT_TEST_KEY", "sek\"r'et-7f3a\n")
    with _echoing(code, lambda key, _: b"you sent " + b"." * 70 + write(key)) as url:
        settings = EndpointSettings(
            base_url=url, model="m", api_key_env="DT2IT_TEST_KEY", retries=0, longest_wait_seconds=0.01
        )
        try:
            said = str(EndpointEngine(settings).sample([_request("item-a")], Decoding())[0])
        except EngineError as error:
            said = str(error)
    assert "(key)" in said and "sek" not in said and "et-7f3a" not in said


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_is_named(monkeypatch, code):
    monkeypatch.setenv("DT2IT_TEST_KEY", "sekret-7f3a")
    with serving(FaultServer({})) as other, _echoing(code, lambda key, _: b"", f"{other.url}/chat/completions") as url:
        settings = EndpointSettings(base_url=url, model="m", api_key_env="DT2IT_TEST_KEY", retries=0)
        (found,) = EndpointEngine(settings).sample([_request("item-a")], Decoding())
        assert (
            str(found) == f"refused with HTTP {code}: a redirect, which is not followed; name the address that answers"
        )
        assert not other.bodies


def test_a_key_with_a_line_break_inside_is_told_and_not_sent(monkeypatch):
    monkeypatch.setenv("DT2IT_TEST_KEY", "sekret\nsekret")
    with pytest.raises(EngineError, match="DT2IT_TEST_KEY must be printable ASCII") as raised:
        EndpointEngine(EndpointSettings(base_url="https://h/v1", model="m", api_key_env="DT2IT_TEST_KEY"))
    assert "sekret" not in str(raised.value)


@pytest.mark.parametrize("url", ["https://h/v1#key=sekret", "https://h/v1?key=sekret", "https://sekret@h/v1"])
def test_settings_refuse_a_url_with_a_place_for_a_secret_and_do_not_show_it(url):
    with pytest.raises(ValueError, match="query and fragment") as raised:
        EndpointSettings(base_url=url, model="m")
    assert "sekret" not in str(raised.value)
    judge = {"kind": "endpoint", "name": "j", "base_url": url, "model": "m"}
    with pytest.raises(RecipeError, match="query and fragment") as raised:
        parse_recipe(json.dumps({"judging": {"judges": [judge]}}))
    assert "sekret" not in str(raised.value)


def test_one_answer_that_cannot_be_read_leaves_the_others():
    with _echoing(200, lambda _, words: _used("1e999" if "item-3" in words else "1")) as url:
        settings = EndpointSettings(base_url=url, model="m", retries=1, longest_wait_seconds=0.01)
        engine = EndpointEngine(settings)
        found = engine.sample([_request(f"item-{n}") for n in range(6)], Decoding())
    assert [n for n, result in enumerate(found) if isinstance(result, EngineError)] == [3]
    assert "broken answer" in str(found[3]) and engine.counts["requests"] == 7
