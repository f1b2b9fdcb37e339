"""Who may ask a server of `dt2it serve`: with a key, every route but those that watch it needs the key.

vLLM's own check covers paths below /v1, /v2 and a few more; /classify, /pooling and /tokenize are open whatever key is
set. This layer (vLLM's option --middleware) closes them. Where no key is set it does nothing, and then the server is
bound to this machine alone (`host_options`).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

from dt2it_pipeline.config.credentials import is_loopback
from dt2it_pipeline.engines.score_endpoint import API_KEY_ENV
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.serve.score_route import App, Receive, Scope, Send

LOOPBACK = "127.0.0.1"
_OPEN = ("/health", "/ping", "/metrics")  # numbers, and whether it lives; probes send no key


class OpenServerError(UserError, ValueError):
    """A server would answer anybody on the network; the message says how to set a key."""


class KeyGuard:
    """The layer, as vLLM's option --middleware takes it.

    Args:
        app: what it stands in front of.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or answer 401."""
        if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        given = scope["app"].state.args.api_key or [os.environ.get(API_KEY_ENV, "")]
        keys = [key.encode() for key in ([given] if isinstance(given, str) else given) if key]
        if not keys or path in _OPEN or path.startswith("/metrics/") or _holds(scope, keys):
            await self._app(scope, receive, send)
            return
        body = b'{"error": {"message": "Unauthorized: this route needs the key as a bearer token", "code": 401}}'
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def host_options(options: Sequence[str]) -> list[str]:
    """What to add to options of `vllm serve`, so that without --host only this machine is answered.

    >>> host_options(["--port", "8000"]), host_options(["--host=localhost"])
    (['--host', '127.0.0.1'], [])

    Raises:
        OpenServerError: --host names an address that others reach, and no key is set.
    """
    host = _value(options, "--host", "--ho")
    if host is None:
        return [] if _value(options, "--uds") is not None else ["--host", LOOPBACK]
    if not is_loopback(host) and not os.environ.get(API_KEY_ENV) and not _value(options, "--api-key"):
        raise OpenServerError(
            f"--host {host} would let anybody on the network ask the server: set a key in the environment variable "
            f"{API_KEY_ENV} (clients send the same one), or leave --host out, which answers this machine alone"
        )
    return []


def _value(options: Sequence[str], name: str, shortest: str = "") -> str | None:
    """The last value of an option, however it is written; None where it is not given.

    `shortest` is its shortest abbreviation, which vLLM's parser takes, too.
    """
    found = None
    for place, option in enumerate(options):
        key, equals, value = option.partition("=")
        key = key.replace("_", "-")
        if key == name or (shortest and key.startswith(shortest) and name.startswith(key)):
            found = value if equals else options[place + 1] if place + 1 < len(options) else ""
    return found


def _holds(scope: Scope, keys: Sequence[bytes]) -> bool:
    value = next((value for name, value in scope["headers"] if name.lower() == b"authorization"), b"")
    kind, _, given = value.partition(b" ")
    # Every key is compared, in constant time, so that the time of an answer shows nothing.
    found = [secrets.compare_digest(given.strip(), key) for key in keys]
    return kind.lower() == b"bearer" and any(found)
