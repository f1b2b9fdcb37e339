"""Scores of responses from a reward model behind a URL, such as `vllm serve CHECKPOINT --runner pooling`.

A request holds one conversation with its images and is answered with one number (see the README.md of a checkpoint).
Image size, system prompt and chat template are the business of the server, which reads them in the checkpoint's files.
Only images that a server would decode otherwise than we do are decoded here (`score_messages.data_url`).

The key comes from the environment variable VLLM_API_KEY; `engines.http` keeps it out of messages, and tries again where
that may help.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from dt2it_pipeline.config.credentials import check_url, checked_key, is_loopback
from dt2it_pipeline.engines.http import HttpClient, NoAnswer, Refused, RetryPolicy, each, finished
from dt2it_pipeline.engines.score_messages import data_urls, score_messages
from dt2it_pipeline.engines.vllm_engine import EngineError
from dt2it_pipeline.errors import RowError
from dt2it_pipeline.observe.logs import log_rows

API_KEY_ENV = "VLLM_API_KEY"
logger = logging.getLogger(__name__)
_RETRIES = RetryPolicy(retries=4, first_wait=0.5)


class EndpointScorer:
    """A reward model behind a URL, with the interface of `reward.scoring.scorer.Scorer`.

    Args:
        url: of the server, or of its path that scores (`/classify`, the default, or `/pooling`).
        media_root: folder that no image may leave.
        system_prompt: system turn of a model whose chat template does not have it, unlike those of our checkpoints.
        max_pixels: images are scaled down to this many pixels instead of what the served checkpoint says; vLLM takes it
            only where it was started with --trust-request-mm-kwargs.
        concurrency: requests at once.
        timeout: seconds that a request may take.
        retries: how often and how long a request is sent again; four times by default.

    Raises:
        EngineError: the URL or the key is none that may be used, the server cannot be reached, or names no model.

    Attributes:
        model: name under which the server holds the model.
        root: folder on the server's machine, or Hub id, that the model was loaded from.
        http: that sends the requests, and counts them.
    """

    def __init__(
        self,
        url: str,
        media_root: str | Path,
        *,
        system_prompt: str = "",
        max_pixels: int | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        retries: RetryPolicy | None = None,
    ) -> None:
        try:
            check_url(url, f"the environment variable {API_KEY_ENV}")
            key = checked_key(os.environ.get(API_KEY_ENV, ""), f"the environment variable {API_KEY_ENV}")
        except ValueError as error:
            raise EngineError(str(error)) from None
        self.http = HttpClient(key, retries or _RETRIES, timeout, concurrency)
        parts = urllib.parse.urlsplit(url)
        if key and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            logger.warning("the key in %s travels unencrypted to %s: serve it with TLS", API_KEY_ENV, parts.hostname)
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path.rstrip("/") or "/classify"
        self._root, self._concurrency = Path(media_root), concurrency
        self.system_prompt = system_prompt
        self._size = {} if max_pixels is None else {"max_pixels": max_pixels}
        self.model, self.root = self._served()

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
            EngineError: the server refuses the key, the model or `max_pixels`, or cannot be reached any more.
        """
        return finished(self.score_async(prompts, responses))

    async def score_async(
        self, prompts: Mapping[str, Mapping[str, Any]], responses: Sequence[tuple[str, str, str]]
    ) -> tuple[dict[str, float], dict[str, tuple[str, str]]]:
        """The same in an event loop; arguments, result and errors are those of `score`."""
        found = await self._all(prompts, responses)
        scores: dict[str, float] = {}
        faults: dict[str, tuple[str, str]] = {}
        for (name, _, _), value in zip(responses, found, strict=True):
            if isinstance(value, float):
                scores[name] = value
            else:
                faults[name] = value
        return scores, faults

    async def _all(
        self, prompts: Mapping[str, Mapping[str, Any]], responses: Sequence[tuple[str, str, str]]
    ) -> list[float | tuple[str, str]]:
        found: list[float | tuple[str, str]] = [("not scored", "")] * len(responses)
        async with self.http.connected() as connection:

            async def one(place: int) -> None:
                _, prompt_id, text = responses[place]
                found[place] = await self._one(connection, prompts.get(prompt_id), prompt_id, text)

            await each(len(responses), self._concurrency, one)
        return found

    async def _one(
        self, connection: httpx.AsyncClient, prompt: Mapping[str, Any] | None, prompt_id: str, text: str
    ) -> float | tuple[str, str]:
        if prompt is None:
            return ("prompt not found", prompt_id)
        try:
            with log_rows([prompt_id]):  # which its thread inherits
                messages = await asyncio.to_thread(self._messages, prompt, text)
        except RowError as error:  # a ChatError or a MediaError
            return (error.reason, error.detail)
        body = {"model": self.model, "messages": messages, "add_generation_prompt": False}
        if self._size and prompt["media"]:
            body["mm_processor_kwargs"] = self._size
        answer = await self._ask(connection, self._path, body)
        if isinstance(answer, Refused):
            if "mm_processor_kwargs" in body and "mm_processor_kwargs" in answer.detail:
                raise EngineError(
                    f"{self._base} takes no image size from a request: leave max_pixels at `trained`, or start the "
                    "server with --trust-request-mm-kwargs"
                )
            return ("refused by the endpoint", f"{answer.code}: {answer.detail}")
        value = _number(answer)
        if value is None:
            return ("endpoint gave no score", self.http.clean(json.dumps(answer)))
        return value if math.isfinite(value) else ("score is not a number", str(value))

    def _messages(self, prompt: Mapping[str, Any], text: str) -> list[dict[str, Any]]:
        images = data_urls(list(prompt["media"] or ()), self._root)
        return score_messages(prompt, images, text, self.system_prompt)

    def _served(self) -> tuple[str, str]:
        """Name of the model that the server holds, and the folder or Hub id that it was loaded from."""

        async def asked() -> Any:
            async with self.http.connected() as connection:
                return await self._ask(connection, "/v1/models", None)

        answer = finished(asked())
        models = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(models, list) or not models or not isinstance(models[0], dict) or "id" not in models[0]:
            raise EngineError(f"{self._base}/v1/models names no model: {self.http.clean(str(answer))}")
        name, root = str(models[0]["id"]), str(models[0].get("root") or models[0]["id"])
        return self.http.hidden(name), self.http.hidden(root)

    async def _ask(self, connection: httpx.AsyncClient, path: str, body: Mapping[str, Any] | None) -> Any:
        """The server's answer as JSON, or Refused where it refuses this one request."""
        data = None if body is None else json.dumps(body).encode("utf-8", "surrogatepass")
        answer = await self.http.ask(connection, self._base + path, data, json.loads)
        if isinstance(answer, NoAnswer):
            raise EngineError(f"{self._base}{path} gives no answer after {answer.attempts} tries: {answer.detail}")
        if isinstance(answer, Refused) and (answer.code in (401, 403, 404) or 300 <= answer.code < 400):
            raise EngineError(f"{self._base}{path} answers {answer.code}: {answer.detail}")
        return answer


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
