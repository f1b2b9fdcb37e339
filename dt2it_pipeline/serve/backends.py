"""Where a RewardClient has its scores from: a model in this process, or a server.

Both take rows of a prompts table by id and responses (id, row's id, text), and give scores by id, and reason and detail
of every response without one.
"""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from dt2it_pipeline.engines.http import HttpClient, NoAnswer, Refused, RetryPolicy, each
from dt2it_pipeline.engines.score_endpoint import EndpointScorer
from dt2it_pipeline.engines.score_messages import data_urls
from dt2it_pipeline.engines.vllm_engine import EngineError
from dt2it_pipeline.errors import RowError
from dt2it_pipeline.serve.score_route import MOST_RESPONSES, ROUTE

if TYPE_CHECKING:
    from dt2it_pipeline.reward.modeling.model import RewardNetwork

Rows = Mapping[str, Mapping[str, Any]]
Texts = Sequence[tuple[str, str, str]]
Scores = dict[str, float]
Faults = dict[str, tuple[str, str]]


class InProcess:
    """A model in this process; one call at a time."""

    http = None

    def __init__(
        self, model: RewardNetwork | str | Path, root: str | Path, *, max_length: int | None, tokens_per_batch: int
    ) -> None:
        from dt2it_pipeline.config.paths import model_path
        from dt2it_pipeline.reward.reward_model import RewardModel
        from dt2it_pipeline.reward.scoring.scorer import Scorer

        if isinstance(model, (str, Path)):
            model = RewardModel.from_pretrained(model_path(str(model)))
        model.eval()
        self._scorer = Scorer(model, root, max_length=max_length, max_pixels=None, tokens_per_batch=tokens_per_batch)
        self._lock = threading.Lock()

    async def score(self, rows: Rows, texts: Texts) -> tuple[Scores, Faults]:
        """Scores, and what has none; see the module."""
        return await asyncio.to_thread(self._score, rows, texts)

    def _score(self, rows: Rows, texts: Texts) -> tuple[Scores, Faults]:
        with self._lock:
            return self._scorer.score(rows, texts)


class Served:
    """A model behind a URL: of `dt2it serve`, or of a plain pooling server where it ends with /classify."""

    def __init__(self, url: str, root: str | Path, *, concurrency: int, timeout: float, retry_seconds: float) -> None:
        self._root, self._concurrency, self._retry_seconds = Path(root), concurrency, retry_seconds
        path = urlsplit(url).path.rstrip("/")
        self._path = path if path and path != "/" else ROUTE
        if self._path not in (ROUTE, "/classify"):
            raise EngineError(f"{url} ends with {self._path}; a reward model answers at {ROUTE} or /classify")
        self._scorer = self._named(
            lambda: EndpointScorer(
                url, root, concurrency=concurrency, timeout=timeout, retries=RetryPolicy.lasting(retry_seconds)
            )
        )
        self.http: HttpClient = self._scorer.http
        parts = urlsplit(url)
        self._url = f"{parts.scheme}://{parts.netloc}{self._path}"
        self._gates: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._gates = weakref.WeakKeyDictionary()

    async def score(self, rows: Rows, texts: Texts) -> tuple[Scores, Faults]:
        """Scores, and what has none; raises EngineError where the server refuses the key, or gives no answer."""
        if self._path != ROUTE:
            try:
                return await self._scorer.score_async(rows, texts)
            except EngineError as error:
                raise self._explained(error) from None
        members: dict[str, list[tuple[str, str]]] = {}
        for name, key, text in texts:
            members.setdefault(key, []).append((name, text))
        parts = [
            (rows[key], own[at : at + MOST_RESPONSES])
            for key, own in members.items()
            for at in range(0, len(own), MOST_RESPONSES)
        ]
        scores: Scores = {}
        faults: Faults = {}
        # A semaphore belongs to one loop: many calls of a library in one loop share the limit.
        gate = self._gates.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._concurrency))
        async with self.http.connected() as connection:

            async def one(place: int) -> None:
                async with gate:
                    await self._one(connection, *parts[place], scores, faults)

            await each(len(parts), self._concurrency, one)
        return scores, faults

    async def _one(
        self,
        connection: httpx.AsyncClient,
        row: Mapping[str, Any],
        members: Sequence[tuple[str, str]],
        scores: Scores,
        faults: Faults,
    ) -> None:
        try:
            images = await asyncio.to_thread(data_urls, list(row["media"] or ()), self._root)
        except RowError as error:  # a ChatError or a MediaError
            faults |= {name: (error.reason, error.detail) for name, _ in members}
            return
        turns = [{"role": turn["role"], "text": turn["text"]} for turn in row["turns"]]
        body = {"prompt": turns, "images": images, "system": row["system"], "responses": [text for _, text in members]}
        data = json.dumps(body).encode("utf-8", "surrogatepass")
        answer = await self.http.ask(connection, self._url, data, lambda content: _read(content, len(members)))
        if isinstance(answer, NoAnswer):
            raise EngineError(
                f"{self._url} gives no answer for {self._retry_seconds:g} s (setting retry_seconds of RewardClient; "
                f"{answer.attempts} tries): {answer.detail}. Start the server again, or raise the setting"
            )
        if isinstance(answer, Refused):
            if answer.code == 404:
                raise EngineError(
                    f"{self._url} is not there ({answer.detail}): it is a route of `dt2it serve CHECKPOINT`. For `vllm "
                    "serve CHECKPOINT --runner pooling` let the URL end with /classify"
                )
            if answer.code in (401, 403) or 300 <= answer.code < 400:
                raise EngineError(f"{self._url} answers {answer.code}: {answer.detail}; the key is in VLLM_API_KEY")
            faults |= {name: ("refused by the server", f"{answer.code}: {answer.detail}") for name, _ in members}
            return
        assert answer is not None  # nothing stops a request
        values, reasons = answer
        for place, ((name, _), value) in enumerate(zip(members, values, strict=True)):
            if value is None:
                faults[name] = reasons.get(place, ("no score", ""))
            else:
                scores[name] = value

    def _named(self, make: Any) -> Any:
        try:
            return make()
        except EngineError as error:
            raise self._explained(error) from None

    def _explained(self, error: EngineError) -> EngineError:
        """The error with the setting that it depends on."""
        if "gives no answer" not in str(error):
            return error
        return EngineError(
            f"{error}. It was asked for {self._retry_seconds:g} s (setting retry_seconds of RewardClient): start the "
            "server again, or raise the setting"
        )


def _read(content: bytes, count: int) -> tuple[list[float | None], dict[int, tuple[str, str]]]:
    """Scores of an answer, and reason and detail by place; raises for any other shape."""
    answer = json.loads(content)
    values = answer["scores"]
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{count} scores expected")
    faults = {int(fault["response"]): (str(fault["reason"]), str(fault["detail"])) for fault in answer["faults"]}
    return [None if value is None else float(value) for value in values], faults
