"""Whole columns of prompts and pairs at once: the same texts and ids as `records` makes row by row.

An id is a hash of a small JSON text (`content_ids.content_hash`). Here that text is put together for all rows by Arrow,
and only the hashing itself goes row by row; the tests compare both ways.
"""

from __future__ import annotations

import binascii
import hashlib
import zlib
from collections.abc import Sequence
from json.encoder import encode_basestring  # what json.dumps uses for a string without ensure_ascii

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.storage import schemas


def draw(preference_id: str) -> int:
    """A number that follows from a preference's id and is spread evenly over preferences."""
    return zlib.crc32(preference_id.encode())


def constant(value: str, count: int) -> pa.Array:
    """One text, `count` times."""
    return pa.array([value]).take(pa.array(np.zeros(count, dtype=np.int64)))


def empty_lists(count: int, kind: pa.DataType) -> pa.Array:
    """`count` empty lists."""
    return pa.ListArray.from_arrays(
        pa.array(np.zeros(count + 1, dtype=np.int32)), pa.array([], kind.value_type), type=kind
    )


def fill(templates: Sequence[str], which: np.ndarray, mark: str, values: pa.Array) -> pa.Array:
    """Texts [rows]: template `which` of each row with its value in the place of `mark`, which stands there once."""
    halves = [template.split(mark) for template in templates]
    before, after = (pa.array([half[place] for half in halves]).take(pa.array(which)) for place in (0, 1))
    return pc.binary_join_element_wise(before, values, after, "")


def user_turns(texts: pa.Array) -> pa.Array:
    """Conversations of one user turn each."""
    turn = schemas.SCHEMAS["prompts"].field("turns").type.value_type
    values = pa.StructArray.from_arrays([constant("user", len(texts)), texts], fields=list(turn))
    return pa.ListArray.from_arrays(pa.array(np.arange(len(texts) + 1, dtype=np.int32)), values)


def prompt_ids(texts: pa.Array, media: Sequence[pa.Array]) -> pa.Array:
    """`content_ids.prompt_id("", [one user turn], media hashes)` of every row; `media` holds one column per image."""
    parts: list[pa.Array | str] = ['["prompt","",[["user",', _quoted(texts), "]],["]
    for place, column in enumerate(media):
        parts += [',"' if place else '"', column, '"']
    return _hashed([*parts, "]]"])


def response_ids(prompts: pa.Array, texts: pa.Array) -> pa.Array:
    """`content_ids.response_id` of every row."""
    return _hashed(['["response","', prompts, '",', _quoted_once(texts), "]"])


def pair_ids(prompts: pa.Array, first: pa.Array, second: pa.Array) -> pa.Array:
    """`content_ids.pair_id` of every row."""
    swap = pc.greater(first, second)
    low, high = pc.if_else(swap, second, first), pc.if_else(swap, first, second)
    return _hashed(['["pair","', prompts, '",["', low, '","', high, '"]]'])


def _quoted(texts: pa.Array) -> pa.Array:
    """Texts as JSON strings."""
    return pa.array([encode_basestring(text) for text in texts.to_pylist()], pa.string())


def _quoted_once(texts: pa.Array) -> pa.Array:
    """The same where few texts are distinct: each of those is quoted once."""
    words = texts.dictionary_encode()
    return _quoted(words.dictionary).take(words.indices)


def _hashed(parts: Sequence[pa.Array | str]) -> pa.Array:
    """Content hash of the JSON texts that the parts make up, row by row."""
    payloads = pc.binary_join_element_wise(*parts, "")
    payloads = payloads.combine_chunks() if isinstance(payloads, pa.ChunkedArray) else payloads
    sha256 = hashlib.sha256
    # 16 bytes a row, spelled out all at once: an id is 32 hex digits.
    digests = b"".join([sha256(text).digest()[:16] for text in payloads.cast(pa.binary()).to_pylist()])
    ends = np.arange(0, 32 * len(payloads) + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(len(payloads), pa.py_buffer(ends), pa.py_buffer(binascii.hexlify(digests)))
