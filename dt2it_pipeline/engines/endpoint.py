"""A chat endpoint that speaks OpenAI's protocol (an API, or `vllm serve`), behind the protocol of sampling engines.

Requests are sent concurrently, but never more at once than the settings say. What may help is tried again (429, 5xx,
time-outs, broken connections, answers that are not JSON), with exponential waits that are drawn at random; what cannot
help (a refused request) is not. A `Retry-After` holds all requests back, since the limit is on all of them. TLS
certificates are verified, redirects are not followed, and the key appears in no message.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.utils
import io
import json
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
from PIL import Image

from dt2it_pipeline.config.credentials import Redactor
from dt2it_pipeline.config.models import EndpointSettings
from dt2it_pipeline.engines.chat import ChatPrompt
from dt2it_pipeline.engines.vllm_engine import Decoding, EngineError, Sample, SampleRequest

_MOST_BYTES = 16 * 2**20  # of one answer; a longer one is not read to its end
_FIRST_WAIT = 1.0  # seconds; doubled at every retry
_SHOWN = 300  # characters of an endpoint's error message
_LOOKED_AT = 4096  # bytes of a broken answer; cut far behind what is shown, so that no part of a key is
_LOSSLESS_PIXELS = 512 * 512  # larger images are sent as JPEG
_REFUSES_ALL = (401, 403, 404)  # wrong key, no permission, no such model

Result = list[Sample] | EngineError


class _Again(Exception):
    """A request failed in a way that another try may mend; `wait` is what the endpoint asked for, in seconds."""

    def __init__(self, kind: str, detail: str, wait: float | None = None) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.wait = kind, wait


class EndpointEngine:
    """Answers prompts with images through a chat endpoint.

    `counts` says what happened on the line: requests sent, retries, and faults by kind (`http 429`, `timeout`,
    `connection`, `broken answer`).

    Raises:
        EngineError: the environment variable of the key is not set, or holds what cannot be a key.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        try:
            self._key = settings.key()
        except ValueError as error:
            raise EngineError(str(error)) from None
        self._redact = Redactor(self._key)
        self.counts: Counter[str] = Counter()
        self._answered = 0  # requests that found an answer
        self._in_a_row = 0  # requests that found none since the last that did
        self._held_until = 0.0  # monotonic time before which nothing is sent
        self._fatal: EngineError | None = None

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
        places = iter(range(len(requests)))
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        workers = min(self._settings.concurrency, len(requests))
        limits = httpx.Limits(max_connections=self._settings.concurrency)
        async with httpx.AsyncClient(headers=headers, timeout=self._settings.timeout_seconds, limits=limits) as client:

            async def work() -> None:
                for place in places:
                    if stop.is_set() or self._fatal is not None:
                        return
                    try:
                        body = await asyncio.to_thread(self._body, requests[place], decoding)
                        result = await self._answer(client, body, stop)
                    except Exception as error:  # whatever one request or its answer raises, the others go on
                        result = self._failed(self._clean(f"{type(error).__name__}: {error}"), True)
                    if result is not None:
                        results.put((place, result))

            tasks = [asyncio.create_task(work()) for _ in range(workers)]
            done = asyncio.gather(*tasks)
            while not done.done():
                await asyncio.wait([done], timeout=0.2)
                if stop.is_set():
                    done.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await done

    async def _answer(self, client: httpx.AsyncClient, body: bytes, stop: threading.Event) -> Result | None:
        """The answers to one request, the error that it met, or None where the endpoint has been given up meanwhile."""
        settings = self._settings
        for attempt in range(settings.retries + 1):
            await self._hold()
            if self._fatal is not None or stop.is_set():
                return None
            self.counts["requests"] += 1
            try:
                result = await self._once(client, body)
            except _Again as fault:
                self.counts[fault.kind] += 1
                if attempt == settings.retries:
                    last = self._clean(str(fault))
                    return self._failed(f"no answer in {attempt + 1} attempts, the last with {last}", True)
                self.counts["retries"] += 1
                await self._wait(attempt, fault)
                continue
            if isinstance(result, EngineError):
                return result
            self._answered += 1
            self._in_a_row = 0
            return result
        raise AssertionError("unreachable")

    async def _once(self, client: httpx.AsyncClient, body: bytes) -> Result:
        """Send one request once. Raises _Again where another try may help."""
        url = self._settings.base_url.rstrip("/") + "/chat/completions"
        try:
            async with (
                asyncio.timeout(self._settings.timeout_seconds),
                client.stream("POST", url, content=body, headers={"Content-Type": "application/json"}) as response,
            ):
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > _MOST_BYTES:
                        raise _Again("broken answer", f"longer than {_MOST_BYTES} bytes")
        except (TimeoutError, httpx.TimeoutException):
            raise _Again("timeout", f"{self._settings.timeout_seconds:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Again("connection", self._clean(str(error) or type(error).__name__)) from None
        code = response.status_code
        if code == 429 or code >= 500:
            raise _Again(f"http {code}", self._clean(content), _retry_after(response.headers.get("retry-after")))
        if code != 200:
            self.counts[f"http {code}"] += 1
            return self._refused(code, self._clean(content))
        return _read(bytes(content))

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

    async def _hold(self) -> None:
        while (left := self._held_until - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, 0.05))  # not all at the same instant

    async def _wait(self, attempt: int, fault: _Again) -> None:
        longest = self._settings.longest_wait_seconds
        if fault.wait is not None:
            self._held_until = max(self._held_until, time.monotonic() + min(fault.wait, longest))
        else:
            await asyncio.sleep(random.uniform(0.5, 1) * min(longest, _FIRST_WAIT * 2**attempt))

    def _body(self, request: SampleRequest, decoding: Decoding) -> bytes:
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
        if request.json_schema is not None and settings.structured == "json_schema":
            schema = {"name": "reply", "strict": True, "schema": request.json_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.json_schema is not None and settings.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")

    def _clean(self, text: str | bytes | bytearray) -> str:
        return self._redact(text, _SHOWN)


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
    """The answers in an endpoint's body. Raises _Again where it is no answer."""
    try:
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
    except Exception as error:  # what stands in an answer is the endpoint's, and may be anything
        raise _Again("broken answer", f"{type(error).__name__}: {content[:_LOOKED_AT]!r}") from None


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait (a number or a date), None where it says nothing."""
    if not value:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if seconds < float("inf") else None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
