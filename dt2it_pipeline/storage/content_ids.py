"""Ids that are hashes of content, by which rows of all tables are found, and equal things numbered by such hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
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


def digests(texts: Iterable[str]) -> bytes:
    """The digests of texts, one after the other."""
    return b"".join(map(digest, texts))


def numbered(found: bytes | bytearray) -> tuple[np.ndarray, np.ndarray]:
    """Number things by their digests, equal ones alike, in the order in which they are met.

    A dictionary of a million digests would take several times the memory.

    Examples:
        >>> new, number = numbered(digests(["b", "a", "b"]))
        >>> new.tolist(), number.tolist()
        ([True, True, False], [0, 1, 0])

    Args:
        found: as `digests` gives them.

    Returns:
        Which are the first of their kind, bool [digests], and the number of each, int32 [digests].
    """
    halves = np.frombuffer(found, dtype=np.uint64).reshape(-1, 2).T
    count = halves.shape[1]
    order = np.argsort(halves[0], kind="stable")  # the first of equal ones comes first
    starts = np.ones(count, dtype=bool)
    starts[1:] = _changes(halves[0], order)
    if (_changes(halves[1], order) & ~starts[1:]).any():  # different ones that begin alike, by a rare chance
        order = np.lexsort((halves[1], halves[0]))
        starts[1:] = _changes(halves[0], order) | _changes(halves[1], order)
    first_of = np.empty(count, dtype=np.int32)
    if count:
        first_of[order] = order[starts].astype(np.int32)[np.cumsum(starts, dtype=np.int32) - 1]
    new = first_of == np.arange(count, dtype=np.int32)
    return new, (np.cumsum(new, dtype=np.int32) - 1)[first_of]


def _changes(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    ordered = values[order]
    changed: np.ndarray = ordered[1:] != ordered[:-1]
    return changed


def _json(value: object) -> str:
    """As content_hash has it; a text without an encoder of its own, which takes longer than the hash."""
    return encode_basestring(value) if isinstance(value, str) else _ENCODER.encode(value)


def _hash(payload: str) -> str:
    return hashlib.sha256(payload.encode("utf-8", "surrogatepass")).hexdigest()[:32]
