"""Keys of endpoints: what one may hold, where it may travel, and its removal from what is kept and what people read."""

from __future__ import annotations

import html
import ipaddress
import re
from urllib.parse import unquote, urlsplit

_HIDDEN = "(key)"
_LEAST_KEPT_FROM_TEXTS = 8  # characters; a shorter key, such as EMPTY or token, is a placeholder and an ordinary word
# How the keys of vendors begin, and `key=...` without a question mark.
_KEY_IN_PATH = re.compile(
    r"(?i)(?:^|[/;&,])(?:sk[-_]|hf_|gsk_|xai-|nvapi-|ghp_|github_pat_|AIza|eyJ|(?:api[-_]?)?key[=:]|(?:access[-_]?)?token[=:]|"
    r"secret[=:]|password[=:])[^/]{6}"
)
_MOST_ESCAPES = 8  # backslashes before a character, from text that was escaped several times


def checked_key(key: str, source: str) -> str:
    """A key without the white space around it.

    Args:
        key: as it was given; empty where there is none.
        source: where it comes from, for the error.

    Raises:
        ValueError: it holds white space, control characters or more than ASCII. The message does not show it.
    """
    key = key.strip()
    if key and not re.fullmatch(r"[!-~]+", key):
        raise ValueError(
            f"the key in {source} must be printable ASCII without white space; it is not sent (was more than the key "
            "pasted?)"
        )
    return key


def check_url(url: str, source: str) -> None:
    """Refuse a URL of an endpoint that has a place for secrets: such URLs are written to tables, logs and names.

    Raises:
        ValueError: it is no http(s) URL with a host, or holds a user, password, query or fragment, or its path what
            looks like a key. The message does not show it.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        fits = fits and parts.port != 0
    except ValueError:  # brackets that do not close, a port beyond 65535
        fits = False
    if not fits or "?" in url or "#" in url or re.search(r"[\s\x00-\x1f]", url):
        raise ValueError(
            "the endpoint must be an http(s) URL without user and password, query and fragment; the key comes from "
            f"{source}"
        )
    if _KEY_IN_PATH.search(unquote(parts.path)):
        raise ValueError(f"the path of the endpoint's URL holds what looks like a key; the key comes from {source}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on the host.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "review.example", "")]
    [True, True, True, False, False, False]
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Redactor:
    """Removes a key from text, also where JSON, `repr`, a URL or HTML has escaped it, however often.

    Args:
        key: as it is sent; nothing is removed where it is empty or None.
    """

    def __init__(self, key: str | None) -> None:
        self._pattern = re.compile("".join(map(_written, key))) if key else None
        self._long = len(key or "") >= _LEAST_KEPT_FROM_TEXTS

    def hidden(self, text: str) -> str:
        """A text that is kept, such as a judge's reply, without the key; as it is where the key has under 8 characters.

        >>> Redactor("sk-12345678").hidden("You sent sk-12345678.")
        'You sent (key).'
        """
        return self._pattern.sub(_HIDDEN, text) if self._pattern is not None and self._long else text

    def __call__(self, text: str | bytes | bytearray, most: int) -> str:
        """Text without the key on one line, at most `most` characters of it. Cut last: no part of a key stays."""
        plain = text if isinstance(text, str) else bytes(text).decode("utf-8", "replace")
        if self._pattern is not None:
            plain = self._pattern.sub(_HIDDEN, plain)
        return " ".join(plain.split())[:most]


def _written(character: str) -> str:
    """Pattern of every way in which one character of a key may have been written."""
    code = ord(character)
    escapes = f"\\\\{{0,{_MOST_ESCAPES}}}"
    ways = [
        escapes + re.escape(character),
        escapes + rf"\\(?:u00|x)(?i:{code:02x})",
        rf"%(?:25)*(?i:{code:02x})",
        rf"&#0*{code};",
        rf"&#[xX]0*(?i:{code:x});",
    ]
    if (named := html.escape(character)) != character:
        ways.append(re.escape(named))
    return f"(?:{'|'.join(ways)})"
