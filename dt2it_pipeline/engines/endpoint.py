"""A chat endpoint that speaks OpenAI's protocol (an API, or `vllm serve`), behind the protocol of sampling engines.

Requests are sent concurrently, but never more at once than the settings say; `engines.http` tries again where that may
help. An endpoint that refuses the form in which a request asks for JSON is asked in a weaker form.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from dt2it_pipeline.config.models import EndpointSettings
from dt2it_pipeline.engines.chat import ChatPrompt
from dt2it_pipeline.engines.http import HttpClient, NoAnswer, Refused, RetryPolicy, each
from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, Sample, SampleRequest

_LOSSLESS_PIXELS = 512 * 512  # larger images are sent as JPEG
_REFUSES_ALL = (401, 403, 404)  # wrong key, no permission, no such model
_REFUSES_FORM = (400, 422)  # what servers answer to a `response_format` that they do not know
# How JSON is asked for, the strongest form first. Some endpoints take a schema, but not its bounds on lengths.
_SCHEMA, _UNBOUNDED, _OBJECT, _WORDS = "json_schema", "json_schema without bounds", "json_object", "none"
_FORMS = (_SCHEMA, _UNBOUNDED, _OBJECT, _WORDS)
_BOUNDS = frozenset({"minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems"})
logger = logging.getLogger(__name__)

Result = list[Sample] | EngineError


class EndpointEngine:
    """Answers prompts with images through a chat endpoint.

    A request for JSON that the endpoint refuses (HTTP 400, 422) is sent again in a weaker form: a schema without
    bounds, then `json_object`, then words alone. The first form that it takes is kept, with a warning. A schema that it
    has taken before is not the reason for a refusal.

    Raises:
        EngineError: the environment variable of the key is not set, or holds what cannot be a key.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        try:
            key = settings.key()
        except ValueError as error:
            raise EngineError(str(error)) from None
        policy = RetryPolicy(settings.retries, settings.longest_wait_seconds)
        self._http = HttpClient(key, policy, settings.timeout_seconds, settings.concurrency)
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._answered = 0  # requests that found an answer
        self._in_a_row = 0  # requests that found none since the last that did
        self._fatal: EngineError | None = None
        self._form = _FORMS.index(settings.structured)
        self._taken: set[str] = set()  # schemas with which a request found an answer

    @property
    def counts(self) -> Counter[str]:
        """Requests sent, retries, and faults by kind; see `HttpClient`."""
        return self._http.counts

    def sample(self, requests: Sequence[SampleRequest], decoding: Decoding) -> list[Result]:
        """Answer a batch; see SamplingEngine."""
        found = dict(self.stream(requests, decoding))
        return [found[place] for place in range(len(requests))]

    def stream(self, requests: Sequence[SampleRequest], decoding: Decoding) -> Iterator[tuple[int, Result]]:
        """Answers as they come; see StreamingEngine.

        Raises:
            EngineError: the key or the model is refused, or `give_up_after` requests in a row found no answer. What
                came before has been handed on.
        """
        results: queue.SimpleQueue[tuple[int, Result] | BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            # In a thread of its own: the caller may be inside an event loop (a notebook is).
            try:
                asyncio.run(self._serve(requests, decoding, results, stop))
                results.put(None)
            except BaseException as error:  # handed on to the caller, whatever it is
                results.put(error)

        thread = threading.Thread(target=work, daemon=True, name="endpoint")
        thread.start()
        try:
            while (item := results.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join(timeout=5)
        if self._fatal is not None:
            raise self._fatal

    async def _serve(
        self, requests: Sequence[SampleRequest], decoding: Decoding, results: Any, stop: threading.Event
    ) -> None:
        def stopped() -> bool:
            return stop.is_set() or self._fatal is not None

        async with self._http.connected() as connection:

            async def answer(place: int) -> None:
                if stopped():
                    return
                try:
                    result = self._result(await self._asked(connection, requests[place], decoding, stopped))
                except Exception as error:  # whatever one request or its answer raises, the others go on
                    result = self._failed(self._http.clean(f"{type(error).__name__}: {error}"), True)
                if result is not None:
                    results.put((place, result))

            done = asyncio.create_task(each(len(requests), self._settings.concurrency, answer))
            while not done.done():
                await asyncio.wait([done], timeout=0.2)
                if stop.is_set():
                    done.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await done

    async def _asked(
        self, connection: Any, request: SampleRequest, decoding: Decoding, stopped: Callable[[], bool]
    ) -> list[Sample] | Refused | NoAnswer | None:
        """What one request comes to, in the strongest form that the endpoint takes."""
        form, refused = self._form, None
        schema = None if request.json_schema is None else json.dumps(request.json_schema, sort_keys=True)
        while True:
            body = await asyncio.to_thread(self._body, request, decoding, _FORMS[form])
            found = await self._http.ask(connection, self._url, body, _read, stopped)
            if schema is None:
                return found
            if isinstance(found, list):
                self._taken.add(schema)
                if refused is not None:
                    self._weaken(form, refused)
                return found
            if not isinstance(found, Refused) or found.code not in _REFUSES_FORM:
                return found
            refused = refused or found
            if (schema in self._taken and form >= self._form) or form + 1 == len(_FORMS):
                return refused
            form = max(form + 1, self._form)

    def _weaken(self, form: int, refused: Refused) -> None:
        if form <= self._form:
            return  # another request has found that out
        before, self._form = _FORMS[self._form], form
        logger.warning(
            "%s refuses response_format %s with HTTP %d (%s): it is asked with %s from here on. `structured: %s` "
            "beside its base_url saves the refused requests",
            self._settings.base_url, before, refused.code, refused.detail, _FORMS[form],
            _FORMS[form] if form != _FORMS.index(_UNBOUNDED) else _OBJECT,
        )  # fmt: skip

    def _result(self, found: list[Sample] | Refused | NoAnswer | None) -> Result | None:
        """The answers to one request, the error that it met, or None where the endpoint has been given up meanwhile."""
        if isinstance(found, Refused):
            return self._refused(found.code, found.detail)
        if isinstance(found, NoAnswer):
            return self._failed(f"no answer in {found.attempts} attempts, the last with {found.detail}", True)
        if found is not None:
            self._answered += 1
            self._in_a_row = 0
            found = [replace(sample, text=self._http.hidden(sample.text)) for sample in found]
        return found

    def _refused(self, code: int, message: str) -> EngineError:
        if code == 401 or (code in _REFUSES_ALL and not self._answered):
            source = self._settings.api_key_env or "no key was sent"
            self._fatal = EngineError(
                f"{self._settings.base_url} refuses model {self._settings.model!r} with HTTP {code} "
                f"(key: {source}): {message}"
            )
        return self._failed(f"refused with HTTP {code}: {message}", not self._answered)

    def _failed(self, detail: str, counts: bool) -> EngineError:
        self._in_a_row += counts
        if self._in_a_row >= self._settings.give_up_after and self._fatal is None:
            self._fatal = EngineError(
                f"{self._settings.base_url} is given up: {self._in_a_row} requests in a row found no answer; {detail}"
            )
        return EngineError(detail)

    def _body(self, request: SampleRequest, decoding: Decoding, form: str) -> bytes:
        settings = self._settings
        temperature = decoding.temperature if request.temperature is None else request.temperature
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": _messages(request.prompt),
            "temperature": temperature,
            settings.length_parameter: decoding.max_new_tokens,
        }
        if request.n > 1:
            body["n"] = request.n
        if decoding.top_p < 1:
            body["top_p"] = decoding.top_p
        if settings.seeded:
            body["seed"] = request.seed
        if request.json_schema is not None and form in (_SCHEMA, _UNBOUNDED):
            wanted = request.json_schema if form == _SCHEMA else _without_bounds(request.json_schema)
            schema = {"name": "reply", "strict": True, "schema": wanted}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.json_schema is not None and form == _OBJECT:
            body["response_format"] = {"type": "json_object"}
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def _without_bounds(schema: Any) -> Any:
    """A JSON schema without bounds on lengths and numbers; a property that has such a name stays."""
    if isinstance(schema, list):
        return [_without_bounds(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_bounds(value)
        for key, value in schema.items()
        if key not in _BOUNDS or not isinstance(value, int | float)
    }


def data_url(image: Image.Image) -> str:
    """An image as the text in which endpoints take it: PNG while it is small, JPEG beyond 512 x 512 pixels."""
    buffer = io.BytesIO()
    small = image.width * image.height <= _LOSSLESS_PIXELS
    if small:
        image.save(buffer, format="PNG")
    else:
        image.save(buffer, format="JPEG", quality=95)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _messages(prompt: ChatPrompt) -> list[dict[str, Any]]:
    wanted = sum(part["type"] == "image" for message in prompt.messages for part in message["content"])
    if wanted != len(prompt.images):  # a StopIteration would hang whoever awaits it
        raise EngineError(f"the prompt has {wanted} places for images and {len(prompt.images)} images")
    images = iter(prompt.images)
    messages: list[dict[str, Any]] = []
    for message in prompt.messages:
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "image":
                parts.append({"type": "image_url", "image_url": {"url": data_url(next(images))}})
            else:
                parts.append({"type": "text", "text": part["text"]})
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        messages.append({"role": message["role"], "content": parts[0]["text"] if plain else parts})
    return messages


def _read(content: bytes) -> list[Sample]:
    """The answers in an endpoint's body. Raises any error where it is no answer."""
    body = json.loads(content)
    usage = body.get("usage") or {}
    choices = body["choices"]
    if not choices:
        raise ValueError("no choices")
    written, read = int(usage.get("completion_tokens") or 0), int(usage.get("prompt_tokens") or 0)
    if not (0 <= written < 2**31 and 0 <= read < 2**31):
        raise ValueError("no number of tokens")
    return [
        Sample(
            str(choice["message"].get("content") or ""),
            written // len(choices) + (written % len(choices) if not place else 0),
            choice.get("finish_reason") != "length",
            0 if place else read,
        )
        for place, choice in enumerate(choices)
    ]
