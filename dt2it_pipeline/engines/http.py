"""One HTTP client that tries again, for every endpoint that the package asks.

What may help is tried again (429, 5xx, time-outs, broken connections, answers that cannot be read), with exponential
waits that are drawn at random; what cannot help (a refused request) is not. A `Retry-After` holds all requests of the
client back, since the limit is on all of them. The first fault of each kind is logged, so that a server that is down is
no silence of minutes. TLS certificates are verified, redirects are not followed, and the key
appears in no message.

What belongs here: sending, waiting, counting. What does not: what is sent, and what an answer means.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import itertools
import logging
import random
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from dt2it_pipeline.config.credentials import Redactor
from dt2it_pipeline.errors import WorkerError

logger = logging.getLogger(__name__)
_MOST_BYTES = 16 * 2**20  # of one answer; a longer one is not read to its end
_MESSAGE = 300  # characters of a server's message that are passed on
_LOOKED_AT = 4096  # bytes of a broken answer; cut far behind what is passed on, so that no part of a key is
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is sent again, and after which waits.

    Attributes:
        retries: further attempts after the first.
        longest_wait: seconds; most that is waited before one.
        first_wait: seconds, doubled at every retry.
        give_up_after: seconds from a request's first failure, after which it is not sent again; None: only `retries`
            counts.
    """

    retries: int = 4
    longest_wait: float = 60.0
    first_wait: float = 1.0
    give_up_after: float | None = None

    @classmethod
    def lasting(cls, seconds: float) -> RetryPolicy:
        """Send a request again until so many seconds have passed since it failed first, waiting at most 15 in between.

        >>> RetryPolicy.lasting(60).most_seconds
        60
        """
        return cls(retries=sys.maxsize, longest_wait=15.0, first_wait=0.5, give_up_after=seconds)

    def ends(self, attempt: int, since: float) -> bool:
        """Whether the attempt of that number (from 0) was the last, `since` seconds after the first failure."""
        return attempt >= self.retries or (self.give_up_after is not None and since >= self.give_up_after)

    def seconds(self, attempt: int) -> float:
        """A random wait after the attempt of that number (from 0)."""
        return random.uniform(0.5, 1) * self._longest(attempt)

    @property
    def most_seconds(self) -> float:
        """The most that is waited between the attempts of one request, where the server asks for no wait of its own.

        >>> RetryPolicy(retries=3, longest_wait=3).most_seconds
        6.0
        """
        if self.give_up_after is not None:
            return self.give_up_after
        return sum((self._longest(attempt) for attempt in range(self.retries)), 0.0)

    def _longest(self, attempt: int) -> float:
        return min(self.longest_wait, self.first_wait * 2.0 ** min(attempt, 60))


_REDIRECT = "a redirect, which is not followed; name the address that answers"


@dataclass(frozen=True)
class Refused:
    """The server refuses this request; sending it again would not help."""

    code: int
    detail: str


@dataclass(frozen=True)
class NoAnswer:
    """No attempt found an answer; `detail` is what the last one met."""

    attempts: int
    detail: str


class HttpFault(WorkerError):
    """One attempt failed in a way that another may mend; `wait` is what the server asked for, in seconds."""

    def __init__(self, kind: str, detail: str = "", wait: float | None = None) -> None:
        super().__init__(kind, detail, wait)
        self.kind, self.detail, self.wait = kind, detail, wait

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class HttpClient:
    """Sends requests to one server.

    `counts` has the requests sent, the retries, and the faults by kind (`http 429`, `timeout`, `connection`,
    `broken answer`); `latencies` the seconds of the latest attempts that were answered, at most 10,000.

    Args:
        key: sent as a bearer token; None or empty: none is sent.
        policy: of retries.
        timeout: seconds that one attempt may take.
        concurrency: connections at once.
    """

    def __init__(self, key: str | None, policy: RetryPolicy, timeout: float, concurrency: int) -> None:
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._redact = Redactor(key)
        self._policy, self._timeout, self._concurrency = policy, timeout, concurrency
        self._held_until = 0.0  # monotonic time before which nothing is sent
        self.counts: Counter[str] = Counter()
        self.latencies: deque[float] = deque(maxlen=10_000)

    def clean(self, text: str | bytes | bytearray) -> str:
        """A message without the key, and not longer than a line or two."""
        return self._redact(text, _MESSAGE)

    def hidden(self, text: str) -> str:
        """A text that the server wrote and that is kept, without the key; see `Redactor.hidden`."""
        return self._redact.hidden(text)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[httpx.AsyncClient]:
        """Connections for `ask`, which belong to one event loop."""
        limits = httpx.Limits(max_connections=self._concurrency)
        async with httpx.AsyncClient(headers=self._headers, timeout=self._timeout, limits=limits) as connection:
            yield connection

    async def ask(
        self,
        connection: httpx.AsyncClient,
        url: str,
        body: bytes | None,
        read: Callable[[bytes], _Read],
        stopped: Callable[[], bool] = lambda: False,
    ) -> _Read | Refused | NoAnswer | None:
        """The answer to one request; None where `stopped` becomes true before there is one.

        Args:
            connection: of `connected`.
            url: whole.
            body: JSON, which is posted; None: the URL is fetched.
            read: makes of the body what the caller wants. Whatever it raises is a broken answer.
            stopped: whether nobody waits for an answer any more.
        """
        failed_at: float | None = None
        for attempt in itertools.count():
            while (left := self._held_until - time.monotonic()) > 0:
                await asyncio.sleep(left + random.uniform(0, 0.05))  # not all at the same instant
            if stopped():
                return None
            self.counts["requests"] += 1
            started = time.monotonic()
            try:
                answer = await self._once(connection, url, body, read)
                self.latencies.append(time.monotonic() - started)
                return answer
            except HttpFault as fault:
                self.counts[fault.kind] += 1
                now = time.monotonic()
                failed_at = now if failed_at is None else failed_at
                if self._policy.ends(attempt, now - failed_at):
                    return NoAnswer(attempt + 1, self.clean(str(fault)))
                self.counts["retries"] += 1
                if self.counts[fault.kind] == 1:
                    self._warn(url, fault)
                if fault.wait is None:
                    await asyncio.sleep(self._policy.seconds(attempt))
                else:
                    wait = min(fault.wait, self._policy.longest_wait)
                    self._held_until = max(self._held_until, time.monotonic() + wait)
        raise AssertionError("unreachable")

    def _warn(self, url: str, fault: HttpFault) -> None:
        """Log that a request is sent again; the URL without user and query, which may hold secrets."""
        parts = urlsplit(url)
        where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if self._policy.give_up_after is None:
            again = f"up to {self._policy.retries} more times, with waits of at most {self._policy.most_seconds:.3g} s"
            again += " in all"
        else:
            again = f"again for {self._policy.give_up_after:g} s"
        logger.warning(
            "%s gives no answer (%s): a request is sent %s, and each attempt may take %g s. Later faults of this kind "
            "are counted, not logged",
            self.clean(where), self.clean(str(fault)), again, self._timeout,
        )  # fmt: skip

    async def _once(
        self, connection: httpx.AsyncClient, url: str, body: bytes | None, read: Callable[[bytes], _Read]
    ) -> _Read | Refused:
        """Send one request once. Raises HttpFault where another try may help."""
        method = "GET" if body is None else "POST"
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(self._timeout),
                connection.stream(method, url, content=body, headers=headers) as response,
            ):
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > _MOST_BYTES:
                        raise HttpFault("broken answer", f"longer than {_MOST_BYTES} bytes")
        except (TimeoutError, httpx.TimeoutException):
            raise HttpFault("timeout", f"{self._timeout:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise HttpFault("connection", self.clean(str(error) or type(error).__name__)) from None
        code = response.status_code
        if code == 429 or code >= 500:
            raise HttpFault(f"http {code}", self.clean(content), retry_after(response.headers.get("retry-after")))
        if code != 200:
            self.counts[f"http {code}"] += 1
            return Refused(code, self.clean(content) or (_REDIRECT if 300 <= code < 400 else ""))
        try:
            return read(bytes(content))
        except Exception as error:  # what stands in an answer is the server's, and may be anything
            detail = f"{type(error).__name__}: {bytes(content[:_LOOKED_AT])!r}"
            raise HttpFault("broken answer", detail) from None


async def each(count: int, workers: int, do: Callable[[int], Awaitable[None]]) -> None:
    """Do something for 0 to `count` - 1, so many at a time; the first error cancels what is under way and is raised."""
    places = iter(range(count))

    async def work() -> None:
        for place in places:
            await do(place)

    tasks = [asyncio.create_task(work()) for _ in range(min(workers, count))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def finished(work: Coroutine[Any, Any, _Read]) -> _Read:
    """The result of a coroutine, in a thread of its own: the caller may be inside an event loop (a notebook is)."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait (a number or a date), None where it names none."""
    if not value:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if seconds < float("inf") else None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
