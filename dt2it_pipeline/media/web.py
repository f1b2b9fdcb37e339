"""Images that rows name by an address of the web, fetched only where the manifest allows it.

A data set is written by strangers: an address may lead into the network of whoever reads it, to a file without end, or
to something that is no image. Only public addresses are connected to, every redirect included; size, time and the
announced type are limited; what came is then decoded as any other image.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time

import httpx

from dt2it_pipeline.media.errors import MediaError

MAX_BYTES = 64 << 20  # of one image
_SECONDS = 30.0  # for connecting, and between two parts of an answer
_LONGEST = 120.0  # seconds for one image
_REDIRECTS = 5
_ATTEMPTS = 3
_WAIT = 1.0  # seconds before the second attempt, doubled before the third
_AGAIN = (429, 500, 502, 503, 504)
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)


def is_address(name: str) -> bool:
    """Whether the name of an image is an address of the web."""
    return _ADDRESS.match(name) is not None


def fetch(url: str) -> bytes:
    """The bytes behind a public address.

    Raises:
        MediaError: the host is unknown or not public, the answer is no image by its type, too large, too slow, or an
            error.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _fetched(url)
        except (_MayPassError, httpx.TransportError) as error:
            if attempt + 1 == _ATTEMPTS:
                if isinstance(error, MediaError):
                    raise
                raise MediaError("image not fetched", f"{url[:300]}: {str(error) or type(error).__name__}") from error
            time.sleep(_WAIT * 2**attempt)
        except MediaError:
            raise
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise MediaError("image not fetched", f"{url[:300]}: {error}") from error
    raise AssertionError("the last attempt returns or raises")


class _MayPassError(MediaError):
    """An answer that may be another one in a moment."""


def _fetched(url: str) -> bytes:
    place = httpx.URL(url)
    # No proxy of the environment: it would look the host up itself, behind the check of its addresses.
    with httpx.Client(timeout=_SECONDS, trust_env=False) as client:
        for _ in range(_REDIRECTS + 1):
            if place.scheme not in ("http", "https") or not place.host:
                raise MediaError("address not allowed", f"{url[:300]}: leads to {str(place)[:300]}")
            address = _public_address(place.host, place.port or (443 if place.scheme == "https" else 80), url)
            # Connected to by number, so that the host cannot mean another machine a moment later.
            request = client.build_request(
                "GET",
                place.copy_with(host=address),
                headers={"Host": place.netloc.decode("ascii"), "Accept": "image/*"},
                extensions={"sni_hostname": place.host},
            )
            answer = client.send(request, stream=True)
            try:
                if answer.is_redirect:
                    place = place.join(answer.headers["location"])
                    continue
                return _content(answer, url)
            finally:
                answer.close()
    raise MediaError("image not fetched", f"{url[:300]}: more than {_REDIRECTS} redirects")


def _content(answer: httpx.Response, url: str) -> bytes:
    if answer.status_code in _AGAIN:
        raise _MayPassError("image not fetched", f"{url[:300]}: status {answer.status_code}")
    if answer.status_code != 200:
        raise MediaError("image not fetched", f"{url[:300]}: status {answer.status_code}")
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and not kind.startswith("image/") and kind not in ("application/octet-stream", "binary/octet-stream"):
        raise MediaError("not an image", f"{url[:300]}: type {kind[:80]}")
    parts, size, started = [], 0, time.monotonic()
    for part in answer.iter_bytes():
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise MediaError("image too large", f"{url[:300]}: more than {MAX_BYTES} bytes")
        if time.monotonic() - started > _LONGEST:
            raise MediaError("image not fetched", f"{url[:300]}: not whole after {_LONGEST:.0f} seconds")
    return b"".join(parts)


def _public_address(host: str, port: int, url: str) -> str:
    """An address of a host, all of whose addresses are public. Raises MediaError where one is not."""
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise MediaError("image not fetched", f"{url[:300]}: host {host[:120]!r}: {error}") from error
    if not found or not all(map(_is_public, found)):
        raise MediaError("address not allowed", f"{url[:300]}: host {host[:120]!r} is not on the public internet")
    return found[0]


def _is_public(address: str) -> bool:
    """Whether an address belongs to the public internet: not private, local, reserved or multicast."""
    found = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (inner is None or _is_public(str(inner)))
