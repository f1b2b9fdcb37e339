"""Ids that are hashes of content, by which rows of all tables are found, and equal things numbered by such hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring

import numpy as np

_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))  # of content hashes


def content_hash(*parts: object) -> str:
    """Hash a sequence of JSON-able parts into 32 hex digits (128 bits of SHA-256); equal parts give equal hashes."""
    return _hash(_ENCODER.encode(parts))


def prompt_id(system: str, turns: Sequence[Mapping[str, str]], media_hashes: Sequence[str]) -> str:
    """Id of a prompt: a hash of its system text, its turns (role and text) and its media content hashes, in order."""
    asked = ",".join([f"[{_json(turn['role'])},{_json(turn['text'])}]" for turn in turns])
    return _hash(f'["prompt",{_json(system)},[{asked}],[{",".join(map(_json, media_hashes))}]]')


def response_id(prompt: str, text: str) -> str:
    """Id of a response: a hash of the prompt's id and the response text, to the letter."""
    return _hash(f'["response",{_json(prompt)},{_json(text)}]')


def pair_id(prompt: str, first: str, second: str) -> str:
    """Id of a pair: a hash of the prompt's id and the two response ids in either order, so that a flip keeps it."""
    one, other = sorted((first, second))
    return _hash(f'["pair",{_json(prompt)},[{_json(one)},{_json(other)}]]')


def digest(text: str) -> bytes:
    """16 bytes that stand for a text, to find equal ones of millions; no id that is written."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def numbered(digests: Sequence[bytes], kept: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Number things by their digests, equal ones alike, in the order in which they are met.

    A dictionary of a million digests would take six times the memory.

    Examples:
        >>> new, number = numbered([digest("b") + digest("a"), digest("b")])
        >>> new.tolist(), number.tolist()
        ([True, True, False], [0, 1, 0])

    Args:
        digests: of `digest`, one or several in each.
        kept: which of them count, bool; all by default.

    Returns:
        Which are the first of their kind, bool [digests], and the number of each, int32 [digests].
    """
    halves = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
    halves = halves if kept is None else halves[kept]
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: the first of equal ones comes first
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = False
    for half in halves.T:
        ordered = half[order]
        starts[1:] |= ordered[1:] != ordered[:-1]
    first_of = np.empty(len(order), dtype=np.int64)
    if len(order):
        first_of[order] = order[starts][np.cumsum(starts) - 1]
    new = first_of == np.arange(len(order))
    return new, (np.cumsum(new) - 1).astype(np.int32)[first_of]


def _json(value: object) -> str:
    """As content_hash has it; a text without an encoder of its own, which takes longer than the hash."""
    return encode_basestring(value) if isinstance(value, str) else _ENCODER.encode(value)


def _hash(payload: str) -> str:
    return hashlib.sha256(payload.encode("utf-8", "surrogatepass")).hexdigest()[:32]
