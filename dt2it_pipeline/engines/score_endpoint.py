"""Scores of responses from a reward model behind a URL, such as `vllm serve CHECKPOINT --runner pooling`.

A request holds one conversation with its images and is answered with one number (see the README.md of a checkpoint).
What may help is tried again: broken connections, time-outs, 429 and 5xx. TLS is verified, redirects are not followed,
and the key, from the environment variable VLLM_API_KEY, appears in no message.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from dt2it_pipeline.config.credentials import Redactor, check_url, checked_key
from dt2it_pipeline.engines.chat import ChatError
from dt2it_pipeline.engines.vllm_engine import EngineError
from dt2it_pipeline.errors import UnusableError
from dt2it_pipeline.media.images import opened_image
from dt2it_pipeline.media.markers import split_at_markers, user_marker_kinds
from dt2it_pipeline.media.paths import confined

KEY_VARIABLE = "VLLM_API_KEY"
_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>")  # a server would take these for control tokens
_TRIES = 5
_FIRST_WAIT = 0.5  # seconds; doubled at every try
_SHOWN = 200  # characters of a server's message
_CARD = "reward_model.json"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """A redirect would carry images and key to another place."""


class EndpointScorer:
    """A reward model behind a URL, with the interface of `reward.scoring.scorer.Scorer`.

    Args:
        url: of the server, or of its path that scores (`/classify`, the default, or `/pooling`).
        media_root: folder that no image may leave.
        system_prompt: system turn that the model was trained with. By default that of the served checkpoint where the
            server names a folder that lies on this machine too, else none; `system_prompt` then tells which.
        concurrency: requests at once.
        timeout: seconds that a request may take.

    Raises:
        EngineError: the URL or the key is none that may be used, the server cannot be reached, or names no model.
    """

    def __init__(
        self,
        url: str,
        media_root: str | Path,
        *,
        system_prompt: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
    ) -> None:
        try:
            check_url(url, f"the environment variable {KEY_VARIABLE}")
            self._key = checked_key(os.environ.get(KEY_VARIABLE, ""), f"the environment variable {KEY_VARIABLE}")
        except ValueError as error:
            raise EngineError(str(error)) from None
        self._redact = Redactor(self._key)
        parts = urllib.parse.urlsplit(url)
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path.rstrip("/") or "/classify"
        self._root, self._concurrency, self._timeout = Path(media_root), concurrency, timeout
        self._opener = urllib.request.build_opener(_NoRedirect)
        self.model, folder = self._served()
        self.system_prompt = _prompt_of(folder) if system_prompt is None else system_prompt

    def score(
        self, prompts: Mapping[str, Mapping[str, Any]], responses: Sequence[tuple[str, str, str]]
    ) -> tuple[dict[str, float], dict[str, tuple[str, str]]]:
        """Score responses.

        Args:
            prompts: rows of a prompts table by prompt_id.
            responses: (response_id, prompt_id, text), ids unique.

        Returns:
            Scores by response_id; and reason and detail of every response without one.

        Raises:
            EngineError: the server refuses the key or the model, or cannot be reached any more.
        """
        with ThreadPoolExecutor(self._concurrency) as pool:
            found = list(pool.map(lambda r: self._one(prompts.get(r[1]), r[1], r[2]), responses))
        scores: dict[str, float] = {}
        faults: dict[str, tuple[str, str]] = {}
        for (name, _, _), value in zip(responses, found, strict=True):
            if isinstance(value, float):
                scores[name] = value
            else:
                faults[name] = value
        return scores, faults

    def _one(self, prompt: Mapping[str, Any] | None, prompt_id: str, text: str) -> float | tuple[str, str]:
        if prompt is None:
            return ("prompt not found", prompt_id)
        try:
            body = {"model": self.model, "messages": self._messages(prompt, text), "add_generation_prompt": False}
        except UnusableError as error:  # a ChatError or a MediaError
            return (error.reason, error.detail)
        answer = self._ask(self._path, body)
        if isinstance(answer, tuple):
            return answer
        value = _number(answer)
        if value is None:
            return ("endpoint gave no score", self._redact(json.dumps(answer), _SHOWN))
        return value if math.isfinite(value) else ("score is not a number", str(value))

    def _messages(self, prompt: Mapping[str, Any], text: str) -> list[dict[str, Any]]:
        """The conversation in OpenAI's form, images where their markers stand."""
        media = list(prompt["media"] or ())
        turns = prompt["turns"]
        kinds = user_marker_kinds(turns)
        if kinds != [medium["kind"] for medium in media]:
            raise ChatError("image markers do not match media", f"{len(kinds)} markers, {len(media)} media")
        system = "\n\n".join(part for part in (self.system_prompt, prompt["system"]) if part)
        for words in (system, text, *(turn["text"] for turn in turns)):
            if found := _CONTROL.search(words):
                raise ChatError("control token in the conversation", found.group())
        shown = iter(media)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        for turn in turns:
            if turn["role"] != "user":
                messages.append({"role": turn["role"], "content": turn["text"]})
                continue
            content = [
                {"type": "text", "text": piece} if kind == "text" else self._image(next(shown))
                for kind, piece in split_at_markers(turn["text"])
            ]
            messages.append({"role": "user", "content": content})
        return [*messages, {"role": "assistant", "content": text}]

    def _image(self, medium: Mapping[str, str]) -> dict[str, Any]:
        if medium["kind"] != "image":
            raise ChatError("medium not supported", "an endpoint is asked about images alone")
        file = confined(medium["path"], self._root)
        with opened_image(file, medium["path"]) as image:
            image.load()  # a damaged image is not sent
            kind = Image.MIME[image.format or "PNG"]
        content = base64.b64encode(file.read_bytes()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{content}"}}

    def _served(self) -> tuple[str, str]:
        """Name of the model that the server holds, and the folder or Hub id that it was loaded from."""
        answer = self._ask("/v1/models", None)
        models = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(models, list) or not models or not isinstance(models[0], dict) or "id" not in models[0]:
            raise EngineError(f"{self._base}/v1/models names no model: {self._redact(str(answer), _SHOWN)}")
        return str(models[0]["id"]), str(models[0].get("root") or models[0]["id"])

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """The server's answer as JSON, or reason and detail where it refuses this request."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode("utf-8", "surrogatepass")
        request = urllib.request.Request(self._base + path, data, headers)
        fault = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_FIRST_WAIT * 2 ** (attempt - 1))
            try:
                with self._opener.open(request, timeout=self._timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                detail = self._redact(error.read(), _SHOWN)
                if error.code in (401, 403, 404) or 300 <= error.code < 400:
                    raise EngineError(f"{self._base}{path} answers {error.code}: {detail}") from None
                if error.code != 429 and error.code < 500:
                    return ("refused by the endpoint", f"{error.code}: {detail}")
                fault = f"{error.code}: {detail}"
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:  # broken off, no JSON
                fault = self._redact(str(error), _SHOWN)
        raise EngineError(f"{self._base}{path} gives no answer after {_TRIES} tries: {fault}")


def _number(answer: Any) -> float | None:
    """The one score in an answer of /classify (`probs`) or /pooling (`data`), or a plain `score`."""
    try:
        first = answer["data"][0]
        value = next(first[name] for name in ("probs", "data", "score", "embedding") if name in first)
        while isinstance(value, list):
            if len(value) != 1:
                return None
            value = value[0]
        return float(value)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, StopIteration):
        return None


def _prompt_of(folder: str) -> str:
    """System prompt of a checkpoint that lies on this machine; none where it does not."""
    try:
        return str(json.loads((Path(folder) / _CARD).read_text(encoding="utf-8")).get("system_prompt") or "")
    except (OSError, ValueError, AttributeError):
        return ""
