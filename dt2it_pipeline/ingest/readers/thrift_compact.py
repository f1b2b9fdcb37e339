"""Values in Thrift's compact protocol, in which Parquet writes footers and headers: read, or passed over.

What belongs here: structures of numbers, and where values end. What does not: what they mean (parquet_pages.py,
parquet_footer.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dt2it_pipeline.ingest.rows import SourceError

FALSE, BYTE, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 2, 3, 5, 6, 7, 8, 9, 10, 11, 12  # kinds of values
_DEEPEST = 12  # structures and lists in each other; a footer has seven


class FormatError(SourceError):
    """A part of a Parquet file is not what the format says."""


def struct(octets: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The fields of a structure by their numbers, and where it ends. Texts, lists and doubles are passed over: None.

    Raises:
        FormatError: it holds structures in structures in structures, without end.
        IndexError: it does not end.
    """
    if depth > _DEEPEST:
        raise FormatError("its structures hold each other without end")
    fields: dict[int, Any] = {}
    number = 0
    while octet := octets[at]:
        at += 1
        kind = octet & 0x0F
        if octet >> 4:
            number += octet >> 4
        else:
            field, at = varint(octets, at)
            number = field >> 1 ^ -(field & 1)
        if kind == I32:  # the one that a page's header is full of
            value = octets[at]
            at += 1
            if value >= 0x80:
                value, at = varint(octets, at - 1)
                value &= 0xFFFFFFFF  # as Thrift's own reader cuts it
            fields[number] = value >> 1 ^ -(value & 1)
        elif kind == STRUCT:
            fields[number], at = struct(octets, at, depth + 1)
        elif kind == BINARY and octets[at] < 0x80:  # of a page's statistics
            at += 1 + octets[at]
        elif kind > FALSE:
            at = behind(octets, at, kind, depth)
        else:
            fields[number] = kind != FALSE
    return fields, at + 1


def behind(octets: bytes, at: int, kind: int, depth: int = 0) -> int:
    """Where a value ends that nobody asks for. Errors are those of `struct`."""
    if depth > _DEEPEST:
        raise FormatError("its structures hold each other without end")
    if kind <= BYTE:  # a flag in a list takes a byte, as a number of one byte does
        at += 1
    elif kind <= I64:
        _, at = varint(octets, at)
    elif kind == DOUBLE:
        at += 8
    elif kind == BINARY:
        length, at = varint(octets, at)
        at += length
    elif kind in (LIST, SET):
        count, inner = octets[at] >> 4, octets[at] & 0x0F
        at += 1
        if count == 0x0F:
            count, at = varint(octets, at)
        for _ in range(count):
            at = behind(octets, at, inner, depth + 1)
    elif kind == MAP:
        count, at = varint(octets, at)
        if count:
            kinds = octets[at]
            at += 1
            for _ in range(count):
                at = behind(octets, at, kinds >> 4, depth + 1)
                at = behind(octets, at, kinds & 0x0F, depth + 1)
    elif kind == STRUCT:
        _, at = struct(octets, at, depth + 1)
    else:
        raise FormatError(f"it has a value of a kind ({kind}) that there is not")
    if at > len(octets):
        raise IndexError
    return at


def varint(octets: bytes | memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    octet = octets[at]
    if octet < 0x80:
        return octet, at + 1
    number, shift = octet & 0x7F, 7
    while True:
        at += 1
        octet = octets[at]
        number |= (octet & 0x7F) << shift
        if octet < 0x80:
            return number, at + 1
        shift += 7
        if shift > 63:
            raise FormatError("it has a number of more than ten bytes")


def fields_of(octets: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Number, kind and place of each field of a structure, whatever its kind.

    `struct` reads the same heads: it is called for every page, and a generator would double its time.
    """
    number = 0
    while octet := octets[at]:
        at += 1
        kind = octet & 0x0F
        if octet >> 4:
            number += octet >> 4
        else:
            field, at = varint(octets, at)
            number = field >> 1 ^ -(field & 1)
        yield number, kind, at
        at = behind(octets, at, kind) if kind > FALSE else at  # a flag is its own kind


def elements_of(octets: bytes, at: int, expected: int) -> Iterator[int]:
    """The places of a list's elements. Raises KeyError where they are of another kind."""
    count, kind = octets[at] >> 4, octets[at] & 0x0F
    at += 1
    if count == 0x0F:
        count, at = varint(octets, at)
    if count and kind != expected:
        raise KeyError(kind)
    for _ in range(count):
        yield at
        at = behind(octets, at, kind)


def signed(octets: bytes, at: int) -> int:
    """A number with its sign."""
    number, _ = varint(octets, at)
    return number >> 1 ^ -(number & 1)


def text(octets: bytes, at: int) -> str:
    """A text with its length before it."""
    length, at = varint(octets, at)
    return octets[at : at + length].decode("utf-8", "replace")
