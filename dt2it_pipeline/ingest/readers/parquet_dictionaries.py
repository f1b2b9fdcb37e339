"""How many bytes the elements of lists take from a dictionary, read before Arrow takes memory for them.

A dictionary holds a long text once, and a page gives for each element of a list the place of its text there: a run of
a billion equal places takes a few bytes. Arrow writes the texts out, those of a row together. Places stand in runs,
and packed by bits: https://parquet.apache.org/docs/file-format/data-pages/encodings.

What belongs here: what the texts sum up to. What does not: headers of pages (parquet_pages.py).
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from dt2it_pipeline.ingest.readers.parquet_deltas import values_of
from dt2it_pipeline.ingest.readers.parquet_pages import Pages
from dt2it_pipeline.ingest.readers.thrift_compact import FormatError, varint

_WIDEST = 32  # bits of a place
_AT_ONCE = 1 << 18  # places that are unpacked together, at nine bytes for each bit of them
_LENGTH = struct.Struct("<i")


def taken_bytes(announced: Pages, codec: str, levels: tuple[int, int], fixed: int | None, most: int) -> int:
    """Bytes that the elements of a column of lists take from its dictionary.

    Where a bound shows that they are `most` at most, it is the bound; the texts are counted only else, and no further
    than to more than that. Places are packed by eight, so that up to seven more of a page may be counted.

    Args:
        announced: what the column's pages announce, whose sizes have been found bearable.
        codec: that compresses them, by the name that Arrow's footer gives.
        levels: the column's highest level of repetition and of definition.
        fixed: bytes of each value, None where they are texts.
        most: bytes that are bearable.

    Raises:
        FormatError: a page cannot be decompressed; or the dictionary's lengths, or places in it, are none.
    """
    held, pages = announced.dictionary, announced.indexed
    count = sum(page.values for page in pages)
    if held is None or count * held.size <= most:
        return 0 if held is None else count * held.size
    if fixed is not None:
        return count * fixed
    lengths = _lengths(values_of(held, codec, (0, 0)), held.values)
    longest = int(lengths.max(initial=0))
    if count * longest <= most:
        return count * longest
    total = 0
    for page in pages:
        total += _taken(values_of(page, codec, levels), page.values, lengths, most - total)
        if total > most:
            break
    return total


def _lengths(octets: memoryview, count: int) -> npt.NDArray[np.int64]:
    """The lengths of a dictionary's texts, each of which stands behind its own."""
    found, at = [], 0
    try:
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(octets, at)
            if length < 0:
                raise FormatError(f"a dictionary gives {length:,} for the length of a text")
            found.append(length)
            at += _LENGTH.size + length
    except struct.error as error:
        raise FormatError("a dictionary ends before its last text") from error
    if at > len(octets):
        raise FormatError("a dictionary ends within its last text")
    return np.array(found, np.int64)


def _taken(octets: memoryview, values: int, lengths: npt.NDArray[np.int64], most: int) -> int:
    """Bytes of the texts whose places a page gives, counted no further than to more than `most`."""
    if not octets:  # nothing but nulls
        return 0
    width, at, left, total = octets[0], 1, values, 0
    if width > _WIDEST:
        raise FormatError(f"a page gives places of {width} bits in a dictionary")
    octet_width = -(-width // 8)
    while left > 0 and at < len(octets) and total <= most:
        try:
            header, at = varint(octets, at)
        except IndexError as error:
            raise FormatError("a page ends within a run of places in a dictionary") from error
        if header & 1:
            room = header >> 1  # groups of eight
            size = min(room * width, len(octets) - at)
            total += _packed(octets[at : at + size], width, min(left, room * 8), lengths)
            at, used = at + size, room * 8
        else:
            place = int.from_bytes(octets[at : at + octet_width], "little")
            at, used = at + octet_width, header >> 1
            total += min(left, used) * int(lengths[place]) if place < len(lengths) else 0  # Arrow refuses such a place
        if used == 0:
            raise FormatError("a page has a run of no places in a dictionary")
        left -= used
    return total


def _packed(octets: memoryview, width: int, count: int, lengths: npt.NDArray[np.int64]) -> int:
    """Bytes of the texts at places that are packed by bits."""
    if width == 0:
        return count * int(lengths[0]) if len(lengths) else 0
    total, step = 0, _AT_ONCE // width // 8 * 8
    weights = 1 << np.arange(width, dtype=np.int64)
    for first in range(0, count, step):
        piece = np.frombuffer(octets[first * width // 8 : (first + step) * width // 8], np.uint8)
        bits = np.unpackbits(piece, bitorder="little")
        whole = len(bits) // width * width
        places = bits[:whole].reshape(-1, width) @ weights
        places = places[: count - first]
        total += int(lengths[places[places < len(lengths)]].sum())
    return total
