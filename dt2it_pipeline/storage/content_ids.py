"""Ids that are hashes of content, by which rows of all tables are found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring

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


def _json(value: object) -> str:
    """As content_hash has it; a text without an encoder of its own, which takes longer than the hash."""
    return encode_basestring(value) if isinstance(value, str) else _ENCODER.encode(value)


def _hash(payload: str) -> str:
    return hashlib.sha256(payload.encode("utf-8", "surrogatepass")).hexdigest()[:32]
