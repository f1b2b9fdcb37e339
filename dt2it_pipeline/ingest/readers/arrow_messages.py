"""What the header of a message of Arrow's IPC format says of its body, read before Arrow follows it.

A body may be compressed: each of its buffers begins with its length once decompressed, and Arrow takes that much
memory, whatever the length is. Buffers may also be one place of the body many times. Headers are FlatBuffers:
https://arrow.apache.org/docs/format/Columnar.html, and Message.fbs and Schema.fbs of Arrow.

What belongs here: fields of headers. What does not: rows (arrow_rows.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from dt2it_pipeline.ingest.rows import SourceError

_HEADER = 2  # number of a field of Message; the numbers below are those of other tables
_BUFFERS, _COMPRESSION = 2, 3  # of RecordBatch
_ENDIANNESS = 0  # of Schema
_LENGTH = struct.Struct("<q")


class MessageError(SourceError):
    """The header of a message is none, or does not fit its body."""


class _Table(NamedTuple):
    """A table of a FlatBuffer: the octets, and where it begins in them."""

    octets: memoryview
    at: int

    def place(self, field: int) -> int | None:
        """Where a field stands; None where the table has not got it."""
        names = self.at - _number("<i", self.octets, self.at)
        if 4 + 2 * field >= _number("<H", self.octets, names):
            return None
        offset = _number("<H", self.octets, names + 4 + 2 * field)
        return self.at + offset if offset else None

    def table(self, field: int) -> _Table | None:
        """The table that a field leads to."""
        place = self.place(field)
        return None if place is None else _Table(self.octets, place + _number("<I", self.octets, place))


def body_bytes(metadata: memoryview, body: memoryview) -> int:
    """Bytes that the buffers of a record batch take, decompressed where they are compressed.

    Raises:
        MessageError: they lie outside of the body, or take more of it than it has.
    """
    about = _header(metadata)
    compressed = about.place(_COMPRESSION) is not None
    stored = total = 0
    for offset, length in _buffers(about):
        if offset < 0 or length < 0 or offset + length > len(body):
            raise MessageError("a column lies outside of its record batch")
        stored += length
        total += length
        if compressed and length >= _LENGTH.size:
            plain = _number("<q", body, offset)
            if plain < -1:
                raise MessageError(f"a column gives {plain:,} for its length once decompressed")
            total += max(plain, 0)  # -1: this one is not compressed
    if stored > len(body):
        raise MessageError(f"its columns take {stored:,} bytes of a record batch of {len(body):,}")
    return total


def is_big_endian(metadata: memoryview) -> bool:
    """Whether numbers stand with their highest byte first, by the message of a schema. Raises MessageError."""
    about = _header(metadata)
    place = about.place(_ENDIANNESS)
    return place is not None and _number("<h", about.octets, place) != 0


def _header(metadata: memoryview) -> _Table:
    root = _Table(metadata, _number("<I", metadata, 0))
    found = root.table(_HEADER)
    if found is None:
        raise MessageError("a message without a header")
    return found


def _buffers(batch: _Table) -> Iterator[tuple[int, int]]:
    """Offset and length of every buffer."""
    place = batch.place(_BUFFERS)
    if place is None:
        return
    vector = place + _number("<I", batch.octets, place)
    first, count = vector + 4, _number("<I", batch.octets, vector)
    if first + 16 * count > len(batch.octets):
        raise MessageError("a header ends within its list of columns")
    yield from struct.iter_unpack("<qq", batch.octets[first : first + 16 * count])


def _number(form: str, octets: memoryview, at: int) -> int:
    if at < 0:
        raise MessageError("a header leads to a place before it")
    try:
        return int(struct.unpack_from(form, octets, at)[0])
    except struct.error as error:
        raise MessageError("a header ends too early") from error
