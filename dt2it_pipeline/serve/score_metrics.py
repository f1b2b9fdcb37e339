"""Counters of POST /score-responses, beside vLLM's own figures on the server's /metrics.

vLLM brings prometheus_client and serves its registry; the counters are entered there. Where it is not installed, as
where the route is tried without vLLM, nothing is counted.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from typing import Any

REQUESTS, RESPONSES = "dt2it_score_requests_total", "dt2it_score_responses_total"
SECONDS = "dt2it_score_request_seconds"


def count_request(status: int, answer: Mapping[str, Any], seconds: float) -> None:
    """Count one request.

    Args:
        status: HTTP status of the answer.
        answer: what was answered; its `scores` say how many responses were scored (null: not scored).
        seconds: that the request took.
    """
    metrics = _metrics()
    if metrics is None:
        return
    requests, responses, took = metrics
    requests.labels(status=str(status)).inc()
    took.observe(seconds)
    scores = answer.get("scores", [])
    responses.labels(outcome="scored").inc(sum(score is not None for score in scores))
    responses.labels(outcome="not_scored").inc(sum(score is None for score in scores))


@functools.cache
def _metrics() -> tuple[Any, Any, Any] | None:
    """The counters, entered once; None where there is nobody to enter them with."""
    if importlib.util.find_spec("prometheus_client") is None:
        return None
    from prometheus_client import Counter, Histogram

    return (
        Counter(REQUESTS, "Requests of /score-responses by HTTP status.", ["status"]),
        Counter(RESPONSES, "Responses in these requests: scored, not_scored.", ["outcome"]),
        Histogram(SECONDS, "Seconds that a request of /score-responses took."),
    )
