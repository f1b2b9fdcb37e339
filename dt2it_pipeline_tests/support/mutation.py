"""Values and files with something wrong somewhere in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

# What text formats, paths and numbers are known to trip over.
_TOKENS = (
    b"\0", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b"\t", b" ", b'"', b"'",
    b"\\", b"\\u0000", b"\\ud800", b",", b":", b": ", b"- ", b"#", b"{", b"}", b"[", b"]", b"[" * 3000, b"null",
    b"true", b"NaN", b"Infinity", b"-1", b"0", b"1e400", b"9" * 400, b"../", b"/etc/passwd", b"file:///etc/passwd",
    b"http://127.0.0.1:9/", b"&a [*a, *a]", b"!!python/object:os.system", b"<image>", b"<|im_end|>", b"=cmd()",
)  # fmt: skip
_LARGEST = 1 << 20


def mutated_bytes(random: Random, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """The content of a file with one to four things wrong: bits, bytes, lost, moved, repeated or strange parts."""
    made = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        start = random.randrange(len(made) + 1)
        end = min(len(made), start + random.choice((1, 1, 2, 4, 8, 64, 1024)))
        kind = random.randrange(9)
        if kind == 0 and start < len(made):
            made[start] ^= 1 << random.randrange(8)
        elif kind == 1:
            made[start:end] = random.randbytes(end - start)
        elif kind == 2:
            del made[start:end]
        elif kind == 3:
            del made[start:]
        elif kind == 4:
            made[start:start] = random.choice(_TOKENS)
        elif kind == 5:
            made[start:end] = random.choice(_TOKENS)
        elif kind == 6 and end > start:
            made[start:start] = bytes(made[start:end]) * random.choice((1, 2, 50))
        elif kind == 7:
            other = random.choice(others or (content,))
            made[start:] = other[random.randrange(len(other) + 1) :]
        else:
            made[start:end] = bytes((random.choice((0, 0x7F, 0x80, 0xFF)),)) * (end - start)
    return bytes(made[:_LARGEST])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a row, at any depth."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def mutated_value(random: Random, value: dict[str, Any], odd: Sequence[Any]) -> dict[str, Any]:
    """A copy with one or two parts, at any depth, that are odd, missing or there twice."""
    made = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2))):
        there = list(places(made))
        *path, last = random.choice(there or [("new",)])
        holder: Any = made
        for key in path:
            holder = holder[key]
        if there and random.random() < 0.15:
            del holder[last]
        elif random.random() < 0.1 and isinstance(holder, list):
            holder.append(holder[last])
        else:
            holder[last] = copy.deepcopy(random.choice(odd))
    return made
