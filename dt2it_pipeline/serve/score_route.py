"""The route POST /score-responses of `dt2it serve CHECKPOINT`: a prompt with several responses in, their scores out.

It is a layer around vLLM's own application (its option --middleware) and asks that application's /classify, in the same
process, once per response. So nothing of vLLM is replaced, all other routes are as they were, and a score is the one
that /classify gives. /score is a route of vLLM's own, of two texts; hence the longer name.

What belongs here: the shape of requests and answers. What does not: access (key_guard.py) and starting vLLM.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dt2it_pipeline.engines.score_messages import data_url, score_messages
from dt2it_pipeline.errors import RowError, UserError
from dt2it_pipeline.media.images import image_size
from dt2it_pipeline.reward.too_long import TOO_LONG
from dt2it_pipeline.serve.conversations import ConversationError, as_prompt, decoded, with_images
from dt2it_pipeline.serve.score_metrics import count_request

ROUTE = "/score-responses"
MOST_RESPONSES = 128  # of one request; p_better grows with their square
_MOST_BYTES = 256 * 2**20  # of a request
_TOO_LONG = re.compile(r"maximum (?:context|model) length|max_model_len|longer than the maximum", re.I)
_PROCESSOR_FAILS = re.compile(r"failed to apply \w+ on data=", re.I)
_MOST_RATIO = 200  # of an image's sides, in the families' processors

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ScoreRequest(BaseModel):
    """What is posted to /score-responses.

    Attributes:
        prompt: a text, or messages with `role` and `content` (a text or typed parts) or `text`.
        images: data URIs or base64, for `<image>` in texts and image parts without an image of their own.
        system: system text; that of training needs not be sent.
        responses: to score.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | list[dict[str, Any]]
    responses: list[str] = Field(min_length=1, max_length=MOST_RESPONSES)
    images: list[str] = []
    system: str = ""


class RequestRefused(UserError, ValueError):
    """A request ends with this status and message instead of scores."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class ScoreResponses:
    """The layer, as vLLM's option --middleware takes it.

    Args:
        app: vLLM's application, whose /classify scores.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._digest: asyncio.Task[str] | None = None
        self._temperatures: dict[str, float | None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) != ROUTE:
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        try:
            if scope["method"] != "POST":
                raise RequestRefused(f"{ROUTE} takes POST", 405)
            request = _parsed(await _body(receive))
            status, answer = 200, await self._answer(scope, receive, request)
        except RequestRefused as ended:
            status, answer = ended.status, {"error": {"message": str(ended), "code": ended.status}}
        except RuntimeError as error:  # threads cannot be started any more
            if "after shutdown" not in str(error):
                raise
            status, answer = 503, {"error": {"message": "the server is ending", "code": 503}}
        count_request(status, answer, time.monotonic() - started)
        data = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def _answer(self, scope: Scope, receive: Receive, request: ScoreRequest) -> dict[str, Any]:
        prompt = await asyncio.to_thread(_prompt_of, request)
        model = str(scope["app"].state.args.model)
        gone = asyncio.Event()
        listener = asyncio.create_task(_listen(receive, gone))
        try:
            found = await asyncio.gather(
                *(self._score(scope, gone, prompt, text) for text in request.responses), self._digest_of(model)
            )
        finally:
            listener.cancel()
        *results, digest = found
        scores = [value if isinstance(value, float) else None for value in results]
        temperature = self._temperature_of(model)
        return {
            "scores": scores,
            "p_better": [[_p_better(first, second, temperature or 1.0) for second in scores] for first in scores],
            "temperature": temperature,
            "faults": [
                {"response": place, "reason": value[0], "detail": value[1]}
                for place, value in enumerate(results)
                if not isinstance(value, float)
            ],
            "model": model,
            "checkpoint_digest": digest,
        }

    async def _score(
        self, scope: Scope, gone: asyncio.Event, prompt: Mapping[str, Any], text: str
    ) -> float | tuple[str, str]:
        if not text.strip():
            return ("empty response", "")
        try:
            messages = score_messages(prompt, prompt["images"], text)
        except RowError as error:
            return (error.reason, error.detail)
        body = json.dumps({"messages": messages, "add_generation_prompt": False}).encode("utf-8", "surrogatepass")
        status, answer = await _asked(self._app, scope, "/classify", body, gone)
        if status == 200:
            try:
                value = float(json.loads(answer)["data"][0]["probs"][0])
            except (ValueError, KeyError, IndexError, TypeError):
                raise RequestRefused(
                    f"/classify gives no score, but {answer[:200].decode('utf-8', 'replace')!r}", 502
                ) from None
            return value if math.isfinite(value) else ("score is not a number", str(value))
        detail = _message(answer)
        if _PROCESSOR_FAILS.search(detail):  # what follows are the processor's arguments
            return await asyncio.to_thread(_image_fault, prompt["images"])
        if status in (400, 413, 422):
            return (TOO_LONG if _TOO_LONG.search(detail) else "refused by the engine", detail)
        raise RequestRefused(f"/classify answers {status}: {detail}", 503 if status >= 500 else status)

    def _temperature_of(self, model: str) -> float | None:
        """The checkpoint's temperature; None where it has none, or is no folder here."""
        from dt2it_pipeline.reward.calibration import calibration_of
        from dt2it_pipeline.reward.checkpoints.processor_files import CARD

        if model not in self._temperatures:
            try:
                found = calibration_of(json.loads((Path(model) / CARD).read_text(encoding="utf-8")))
                self._temperatures[model] = None if found is None else found.temperature
            except FileNotFoundError:
                self._temperatures[model] = None
            except (OSError, ValueError) as error:
                raise RequestRefused(f"the calibration of {model} cannot be read: {error}", 500) from None
        return self._temperatures[model]

    async def _digest_of(self, model: str) -> str:
        """Read once, in a thread: large weights take a while."""
        from dt2it_pipeline.storage.artifacts import model_digest

        if self._digest is None:
            self._digest = asyncio.create_task(asyncio.to_thread(model_digest, model))
        return await asyncio.shield(self._digest)


def _parsed(body: bytes) -> ScoreRequest:
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        raise RequestRefused(_sentences(error)) from None


def _sentences(error: ValidationError) -> str:
    """What is wrong with a body, at most three faults of it."""
    found: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in fault["loc"]) or "the body"
        if key.startswith("prompt."):
            key, text = "prompt", "a text or a list of messages is expected"
        elif fault["type"] == "extra_forbidden":
            text = f"unknown key; known are {', '.join(ScoreRequest.model_fields)}"
        else:
            text = fault["msg"][:200]
        found.setdefault(key, text)
    return "; ".join(f"{key}: {text}" for key, text in list(found.items())[:3])


def _prompt_of(request: ScoreRequest) -> dict[str, Any]:
    """The prompt with images as data URLs that were decoded once, so that a damaged one is found here."""
    try:
        prompt = as_prompt(request.prompt, request.images, request.system)
        if place := next((str(n) for n, turn in enumerate(prompt["turns"]) if not turn["text"].strip()), None):
            raise ConversationError(f"turn {place} of the prompt is empty")
        return with_images(prompt, _checked_image)
    except ConversationError as error:
        raise RequestRefused(str(error)) from None
    except RowError as error:
        raise RequestRefused(f"{error.reason}: {error.detail}") from None


def _checked_image(item: Any, name: str) -> str:
    if not isinstance(item, str):
        raise ConversationError(f"{name} is a {type(item).__name__}; send a data URI or base64")
    return data_url(decoded(item, name), name)


def _image_fault(images: list[str]) -> tuple[str, str]:
    """Reason and detail of a prompt whose images the processor refuses."""
    for place, url in enumerate(images):
        name = f"images[{place}]"
        width, height = image_size(decoded(url, name), name)
        if max(width, height) > _MOST_RATIO * min(width, height):
            return (
                "image too narrow",
                f"{name}: {width} x {height} pixels; the longer side is to be at most {_MOST_RATIO} times the other",
            )
    return "refused by the engine", "the image processor cannot read the prompt with its images"


def _p_better(first: float | None, second: float | None, temperature: float) -> float | None:
    """Probability that the first response is better (Bradley-Terry), to 6 digits; None where one has no score."""
    if first is None or second is None:
        return None
    difference = max(-700.0, min(700.0, (first - second) / temperature))
    return round(1 / (1 + math.exp(-difference)), 6)


async def _body(receive: Receive) -> bytes:
    found = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestRefused("the client went away", 499)
        found += message.get("body", b"")
        if len(found) > _MOST_BYTES:
            raise RequestRefused(f"the request is longer than {_MOST_BYTES} bytes", 413)
        if not message.get("more_body", False):
            return bytes(found)


async def _listen(receive: Receive, gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _asked(app: App, scope: Scope, path: str, body: bytes, gone: asyncio.Event) -> tuple[int, bytes]:
    """Status and body of what an application answers to a JSON body that is posted to it in this process.

    Args:
        app: to ask.
        scope: of the request that this one serves; key and state are taken from it.
        path: below the application's root path.
        body: JSON.
        gone: set when nobody waits for the answer any more; the application is told then.
    """
    kept = [(name, value) for name, value in scope["headers"] if name.lower() in (b"authorization", b"host")]
    headers = [*kept, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    whole = scope.get("root_path", "") + path
    inner = {**scope, "path": whole, "raw_path": whole.encode(), "query_string": b"", "headers": headers}
    status, parts, sent = 0, bytearray(), False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.extend(message.get("body", b""))

    await app(inner, receive, send)
    return status or 503, bytes(parts)


def _message(answer: bytes) -> str:
    """What an answer of vLLM says, in one line."""
    try:
        error = json.loads(answer)["error"]
        text = error if isinstance(error, str) else error["message"]
    except (ValueError, KeyError, TypeError):
        text = answer[:300].decode("utf-8", "replace")
    return " ".join(str(text).split())[:300]
