"""Ids that are hashes of content, by which rows of all tables are found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))  # of content hashes


def content_hash(*parts: object) -> str:
    """Hash a sequence of JSON-able parts into 32 hex digits (128 bits of SHA-256); equal parts give equal hashes."""
    payload = _ENCODER.encode(parts)
    return hashlib.sha256(payload.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def prompt_id(system: str, turns: Sequence[Mapping[str, str]], media_hashes: Sequence[str]) -> str:
    """Id of a prompt: a hash of its system text, its turns (role and text) and its media content hashes, in order."""
    return content_hash("prompt", system, [[turn["role"], turn["text"]] for turn in turns], list(media_hashes))


def response_id(prompt: str, text: str) -> str:
    """Id of a response: a hash of the prompt's id and the response text, to the letter."""
    return content_hash("response", prompt, text)


def pair_id(prompt: str, first: str, second: str) -> str:
    """Id of a pair: a hash of the prompt's id and the two response ids in either order, so that a flip keeps it."""
    return content_hash("pair", prompt, sorted((first, second)))
