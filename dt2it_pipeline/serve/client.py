"""One client of a reward model for programs that ask for rewards: RL libraries, scripts, services.

The model is in this process, or behind a URL. What belongs here: batching, counting, and errors that a person can mend.
What does not: how a library holds prompts (conversations.py), and the few lines that fit each library (*_reward.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dt2it_pipeline.engines.http import finished
from dt2it_pipeline.errors import RowError, UserError
from dt2it_pipeline.serve.backends import Faults, InProcess, Served
from dt2it_pipeline.serve.conversations import ConversationError, opened, with_images

if TYPE_CHECKING:
    from dt2it_pipeline.reward.modeling.model import RewardNetwork

logger = logging.getLogger(__name__)

MODEL_ENV = "DT2IT_REWARD_MODEL"  # URL, folder or Hub id for the modules that a library loads from a file
_EMPTY = ("empty response", "")


class RewardClientError(UserError, ValueError):
    """Prompts and responses do not fit together, or no model is named; the message says where."""


@dataclass(frozen=True)
class RewardStatistics:
    """What a client has done so far.

    Attributes:
        responses: that were asked for.
        scored: that got a score.
        unscored: the others, by reason.
        requests: over HTTP, retries included; 0 in process.
        retries: of these.
        faults: of requests by kind, such as `timeout` or `http 503`.
        median_seconds: of one request, or of one call in process, among the latest 10,000; 0 before the first.
        p95_seconds: that 95% of these stayed below.
    """

    responses: int
    scored: int
    unscored: Mapping[str, int] = field(default_factory=dict)
    requests: int = 0
    retries: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    median_seconds: float = 0.0
    p95_seconds: float = 0.0


class RewardClient:
    """Scores responses with a reward model in this process or behind a URL; both give the same scores.

    Examples:
        >>> from PIL import Image
        >>> from dt2it_pipeline.config.paths import model_path
        >>> from dt2it_pipeline.reward import RewardModel
        >>> from dt2it_pipeline.serve import RewardClient
        >>> model = RewardModel.from_pretrained(model_path("demo"), new_head_seed=0)  # a trained one needs no seed
        >>> client = RewardClient(model)  # or RewardClient("http://127.0.0.1:8000"), or a folder
        >>> question = {
        ...     "turns": [{"role": "user", "text": "<image>What colour is the shape?"}],
        ...     "images": [Image.new("RGB", (64, 64), "red")],
        ... }
        >>> scores = client.score([question], [["The shape is red.", "blue", ""]])
        >>> [score is None for score in scores[0]]  # an empty response has no score
        [False, False, True]
        >>> client.statistics().unscored
        {'empty response': 1}

    Args:
        model: a loaded reward model, a folder or Hub id to load one from, or the URL of `dt2it serve CHECKPOINT`. A URL
            that ends with `/classify` is asked as `vllm serve CHECKPOINT --runner pooling` is: a request per response.
        media_root: folder that paths of images count from and may not leave; the working directory, without limits, by
            default.
        max_length: longest prompt with response, in tokens, of a model in this process; by default what it allows.
        tokens_per_batch: token budget of one forward pass of a model in this process, padding included.
        concurrency: requests at once to a URL.
        timeout: seconds that one request may take.
        retry_seconds: for which a request that fails is sent again, so that a server may be started again.

    Raises:
        EngineError: the URL or the key in the environment variable VLLM_API_KEY is none that may be used, or the server
            gives no answer for `retry_seconds`.
        CheckpointError: a folder holds no reward model that can be loaded.
    """

    def __init__(
        self,
        model: RewardNetwork | str | Path,
        *,
        media_root: str | Path | None = None,
        max_length: int | None = None,
        tokens_per_batch: int = 8192,
        concurrency: int = 16,
        timeout: float = 120.0,
        retry_seconds: float = 300.0,
    ) -> None:
        self._media_root = media_root
        root = media_root if media_root is not None else "/"
        if isinstance(model, str) and model.startswith(("http://", "https://")):
            self._backend: InProcess | Served = Served(
                model, root, concurrency=concurrency, timeout=timeout, retry_seconds=retry_seconds
            )
        else:
            self._backend = InProcess(model, root, max_length=max_length, tokens_per_batch=tokens_per_batch)
        self._lock = threading.Lock()
        self._unscored: Counter[str] = Counter()
        self._responses = 0
        self._seconds: deque[float] = deque(maxlen=10_000)
        self.lowest: float | None = None

    @classmethod
    def from_environment(cls, **settings: Any) -> RewardClient:
        """A client of the model that the environment variable DT2IT_REWARD_MODEL names: a URL, folder or Hub id.

        Args:
            settings: of the class.

        Raises:
            RewardClientError: the variable is not set. Others are those of the class.
        """
        model = os.environ.get(MODEL_ENV, "").strip()
        if not model:
            raise RewardClientError(
                f"the environment variable {MODEL_ENV} is not set; it names the reward model: the URL of `dt2it "
                "serve`, or a checkpoint's folder"
            )
        return cls(model, **settings)

    def score(
        self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[str]]
    ) -> list[list[float | None]]:
        """Score responses to prompts. Unlike `RewardModel.score`, what cannot be scored costs that response alone.

        Args:
            prompts: as `RewardModel.score` takes them; an image may also be bytes or a data URI.
            responses: the texts of each prompt.

        Returns:
            A list per prompt with a score per response; None for one without (empty, too long, an image that cannot be
            read). `statistics` counts them by reason.

        Raises:
            RewardClientError: prompts and responses have another shape; the message says where.
            EngineError: the server refuses, or gives no answer for `retry_seconds`; the message names its URL.
        """
        return finished(self.score_async(prompts, responses))

    async def score_async(
        self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[str]]
    ) -> list[list[float | None]]:
        """The same in an event loop; arguments, result and errors are those of `score`."""
        rows, texts, faults = await asyncio.to_thread(self._checked, prompts, responses)
        started = time.monotonic()
        scores, more = await self._backend.score(rows, texts) if texts else ({}, {})
        faults |= more
        with self._lock:
            if texts:
                self._seconds.append(time.monotonic() - started)
            self._responses += sum(map(len, responses))
            self._count(faults)
            if scores:
                least = min(scores.values())
                self.lowest = least if self.lowest is None else min(self.lowest, least)
        return [
            [scores.get(f"{number}.{place}") for place in range(len(members))]
            for number, members in enumerate(responses)
        ]

    def rewards(self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[float | None]:
        """Scores of one response per prompt. Equal prompts are scored together, their images encoded once.

        Args:
            prompts: one per response, as of `score`.
            responses: the texts.

        Returns:
            A score per response, None for one without.

        Raises:
            RewardClientError, EngineError: as of `score`.
        """
        return finished(self.rewards_async(prompts, responses))

    async def rewards_async(self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[float | None]:
        """The same in an event loop; arguments, result and errors are those of `rewards`."""
        if len(prompts) != len(responses):
            raise RewardClientError(f"{len(prompts)} prompts but {len(responses)} responses; give one per prompt")
        return [found[0] for found in await self.score_async(prompts, [[text] for text in responses])]

    def statistics(self) -> RewardStatistics:
        """Counts and durations so far."""
        http = self._backend.http
        seconds = list(self._seconds if http is None else http.latencies) or [0.0]
        counts = Counter() if http is None else http.counts
        with self._lock:
            return RewardStatistics(
                responses=self._responses,
                scored=self._responses - self._unscored.total(),
                unscored=dict(self._unscored),
                requests=counts["requests"],
                retries=counts["retries"],
                faults={kind: count for kind, count in counts.items() if kind not in ("requests", "retries")},
                median_seconds=float(np.median(seconds)),
                p95_seconds=float(np.quantile(seconds, 0.95)),
            )

    def _checked(
        self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[str]]
    ) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str, str]], Faults]:
        """Rows by id, equal prompts once; responses (id, row's id, text); and those that cannot be scored."""
        from dt2it_pipeline.reward.scoring.inputs import prompt_row

        for name, given in (("prompts", prompts), ("responses", responses)):
            if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
                raise RewardClientError(f"{name} must be a list with one entry per prompt, found {_kind(given)}")
        if len(prompts) != len(responses):
            raise RewardClientError(
                f"{len(prompts)} prompts but {len(responses)} lists of responses; give one list per prompt"
            )
        rows: dict[str, dict[str, Any]] = {}
        known: dict[str, str] = {}
        texts: list[tuple[str, str, str]] = []
        faults: Faults = {}
        for number, (prompt, members) in enumerate(zip(prompts, responses, strict=True)):
            if isinstance(members, str) or not isinstance(members, Sequence):
                raise RewardClientError(f"responses to prompt {number} must be a list of texts, found {_kind(members)}")
            for place, text in enumerate(members):
                if not isinstance(text, str):
                    raise RewardClientError(f"prompt {number}, response {place}: expected a text, found {_kind(text)}")
            names = [f"{number}.{place}" for place in range(len(members))]
            try:
                row = prompt_row(with_images(prompt, opened), number, self._media_root)
            except RowError as error:  # an image that cannot be read
                faults |= dict.fromkeys(names, (error.reason, error.detail))
                continue
            except ConversationError as error:
                raise RewardClientError(f"prompt {number}: {error}") from None
            except ValueError as error:
                raise RewardClientError(str(error)) from None
            media = [(medium["kind"], medium["sha256"] or medium["path"]) for medium in row["media"]]
            turns = [(turn["role"], turn["text"]) for turn in row["turns"]]
            key = known.setdefault(repr((row["system"], turns, media)), str(number))
            rows.setdefault(key, row)
            for name, text in zip(names, members, strict=True):
                if text.strip():
                    texts.append((name, key, text))
                else:
                    faults[name] = _EMPTY
        used = {key for _, key, _ in texts}
        return {key: row for key, row in rows.items() if key in used}, texts, faults

    def _count(self, faults: Faults) -> None:
        for name, (reason, detail) in faults.items():
            if reason not in self._unscored:
                number, _, place = name.partition(".")
                logger.warning(
                    "prompt %s, response %s has no score: %s%s. Later ones of this kind are counted, not logged",
                    number, place, reason, f" ({detail})" if detail else "",
                )  # fmt: skip
            self._unscored[reason] += 1


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
