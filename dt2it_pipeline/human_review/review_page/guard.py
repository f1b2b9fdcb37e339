"""Who may ask the page for anything: this machine's browsers by default, others with a token; and what browsers may do.

Each request passes through here. A page of another site cannot read or send anything: its name does not match (DNS
rebinding), its origin does not match (forged requests), and no script runs but the files of this package.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "dt2it_review"
MOST_BYTES = 64 << 10  # of a request's body
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Guard:
    """Passes on the requests that may be answered, and adds the headers of safety to every answer.

    Args:
        app: what answers.
        token: what a browser must have been given in the address `/?token=...`; None: no token is asked for.
        hosts: names, without a port, by which the page may be asked for. With a token, addresses in numbers count too:
            nobody can point these elsewhere.
    """

    def __init__(self, app: ASGIApp, token: str | None = None, hosts: Iterable[str] = LOOPBACK) -> None:
        self._app, self._token = app, token
        self._hosts = {host.casefold() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._known(host):
            return PlainTextResponse(
                f"This page is not known by the name {host[:100]!r}. Open the address that `dt2it review serve` "
                "printed, or name this one by --allow-host.\n",
                421,
            )
        if self._token is not None and (refused := self._unknown(scope, headers)) is not None:
            return refused
        if scope["method"] not in ("GET", "HEAD"):
            if _place_of(headers.get("origin", "")) != host.casefold():
                return _refused("The request does not come from this page.", 403)
            if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return _refused("The request must be JSON.", 415)
            length = headers.get("content-length", "")
            if not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= MOST_BYTES):
                return _refused(f"The request must have a length of at most {MOST_BYTES} bytes.", 413)
        return None

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name.casefold() in self._hosts:
            return True
        if self._token is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _unknown(self, scope: Scope, headers: Headers) -> Response | None:
        """None where the request has the token."""
        assert self._token is not None
        given = parse_qs(scope["query_string"].decode("latin-1"))
        offered = given.pop("token", [""])[0]
        if scope["method"] == "GET" and scope["path"] == "/" and offered and _same(offered, self._token):
            rest = urlencode(given, doseq=True)
            # The address without the token, so that it is in no history and on no screen that is shared.
            answer = RedirectResponse(f"/?{rest}" if rest else "/", 303)
            # `lax`, not `strict`: the link may be clicked in a mail on another site. POST has its own check.
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="lax", path="/")
            return answer
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        if cookie is not None and _same(cookie.value, self._token):
            return None
        return _refused(
            "This page needs its token. Open the whole address that `dt2it review serve` printed, with ?token=...", 401
        )


def _place_of(origin: str) -> str | None:
    """Host and port of an origin; None where it is malformed."""
    try:
        return urlsplit(origin).netloc.casefold()
    except ValueError:
        return None


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode())


def _refused(words: str, status: int) -> Response:
    return JSONResponse({"error": words}, status)
