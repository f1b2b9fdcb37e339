"""Ids as 128-bit numbers, so that joins of tens of millions of ids take numbers instead of strings.

Content ids are 32 hexadecimal digits, which are 128 bits as they stand: nothing is lost. Any other id is hashed to 128
bits; among ten billion ids, two that differ share one with a probability below 1e-18.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

_DIGITS = 32
_BATCH = 1 << 16  # ids; what is computed on the way stays in the processor's cache
_EACH = np.uint64(0x0101010101010101)  # times a byte: this byte in all eight places
_HASH_KEYS = ("dt2it id, part 1", "dt2it id, part 2")  # pandas wants 16 bytes
_SALTS = (0, 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0x2545F4914F6CDD1D)

Ids: TypeAlias = pd.Series | pa.Array | pa.ChunkedArray


def id_keys(ids: Ids) -> np.ndarray:
    """uint64 [n, 2], the 128 bits of every id; those of a null are no id's by chance alone (see `present`)."""
    parts = [_batch_keys(chunk.slice(start, _BATCH)) for chunk in chunks(ids) for start in range(0, len(chunk), _BATCH)]
    return np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.uint64)


def present(ids: Ids) -> np.ndarray:
    """Bool [n]: the id is not null."""
    valid = [chunk.is_valid().to_numpy(zero_copy_only=False) for chunk in chunks(ids)]
    return np.concatenate(valid) if valid else np.empty(0, dtype=bool)


class IdIndex:
    """Finds ids among those that it was made of; `codes` (int64 [n]) are their own positions, equal for equal ids."""

    def __init__(self, ids: Ids) -> None:
        keys = id_keys(ids)
        for salt in _SALTS:
            self._salt = np.uint64(salt)
            self.codes, unique = pd.factorize(self._short(keys))
            self._rest = np.empty(len(unique), dtype=np.uint64)
            self._rest[self.codes] = keys[:, 1]
            if np.array_equal(self._rest[self.codes], keys[:, 1]):
                break
        else:  # each salt fails with the probability of two ids in 2^64
            raise ValueError("ids collide under every salt; this cannot happen by chance")
        self._index = pd.Index(unique)

    def __len__(self) -> int:
        return len(self._index)

    def positions(self, ids: Ids) -> np.ndarray:
        """int64 [m]: the code of each id, -1 where it is not in the index."""
        keys = id_keys(ids)
        found = self._index.get_indexer(pd.Index(self._short(keys))).astype(np.int64)
        if len(self._rest):
            found[self._rest[found] != keys[:, 1]] = -1
        return found

    def _short(self, keys: np.ndarray) -> np.ndarray:
        return keys[:, 0] ^ (keys[:, 1] * self._salt)


def repeats(ids: Ids) -> np.ndarray:
    """Bool [n]: an earlier row has the same id."""
    codes = IdIndex(ids).codes
    repeated = np.ones(len(codes), dtype=bool)
    if len(codes):
        repeated[np.unique(codes, return_index=True)[1]] = False
    return repeated


def chunks(ids: Ids) -> list[pa.Array]:
    """The ids as Arrow arrays of strings."""
    array = pa.chunked_array([ids]) if isinstance(ids, pa.Array) else ids
    if isinstance(array, pd.Series):
        values = pa.array(array, from_pandas=True)
        array = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    if not pa.types.is_string(array.type):
        array = array.cast(pa.string())
    return list(array.chunks)


def _batch_keys(ids: pa.Array) -> np.ndarray:
    hexadecimal = _hexadecimal_keys(ids)
    if hexadecimal is not None:
        return hexadecimal
    values = ids.fill_null("").to_numpy(zero_copy_only=False)
    keys = np.stack([pd.util.hash_array(values, hash_key=key, categorize=False) for key in _HASH_KEYS], axis=1)
    lengths = np.array([len(value) for value in values])
    for row in np.flatnonzero(lengths == _DIGITS):  # a content id has the same key whatever stands beside it
        single = _hexadecimal_keys(ids.slice(row, 1))
        if single is not None:
            keys[row] = single[0]
    return keys


def _hexadecimal_keys(ids: pa.Array) -> np.ndarray | None:
    """Keys of ids that all are 32 lower-case hexadecimal digits; else None."""
    if ids.null_count or not len(ids):
        return None
    _, offsets_buffer, data = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    if data is None or not (np.diff(offsets) == _DIGITS).all():
        return None
    words = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].view(np.uint64).reshape(-1, 4)
    # Eight digits at a time, one in each byte of a word: "0" to "9" are 0x30 to 0x39, "a" to "f" are 0x61 to 0x66.
    values = (words & (_EACH * np.uint64(0x0F))) + ((words >> np.uint64(6)) & _EACH) * np.uint64(9)
    above_nine = ((values + _EACH * np.uint64(6)) >> np.uint64(4)) & _EACH
    written = values + _EACH * np.uint64(0x30) + above_nine * np.uint64(0x27)
    if not np.array_equal(written, words) or (values & (_EACH * np.uint64(0xF0))).any():
        return None  # another character
    for shift, kept in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF)):
        values = (values | (values >> np.uint64(shift))) & np.uint64(kept)
    return values[:, 0::2] | (values[:, 1::2] << np.uint64(32))
