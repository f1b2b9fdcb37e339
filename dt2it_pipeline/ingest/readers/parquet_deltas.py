"""The lengths of texts in a page of a delta encoding, read before Arrow takes memory for them.

A page in DELTA_LENGTH_BYTE_ARRAY gives the lengths of its texts first; one in DELTA_BYTE_ARRAY gives before them how
much of each text is the start of the one before it. Arrow takes four bytes for each of as many lengths as the page says
that it has, and for the texts of a list their full length, so that a few bytes can ask for gigabytes. The lengths are
numbers in DELTA_BINARY_PACKED: https://parquet.apache.org/docs/file-format/data-pages/encodings.

What belongs here: what the lengths sum up to. What does not: headers of pages (parquet_pages.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from dt2it_pipeline.ingest.readers.parquet_pages import (
    DELTA_BYTE_ARRAY,
    EncodedPage,
)
from dt2it_pipeline.ingest.readers.thrift_compact import FormatError, varint

_LENGTH = 4  # bytes that Arrow takes for each length
_BIT_PACKED = 4  # an encoding of levels; the other one gives its size before it
_WIDEST = 32  # bits of a difference of lengths
_LONGEST = 2**31  # bytes of a text, and one more
_PIECE = 1 << 15  # differences that are unpacked together at most
_PIECES = 1 << 12  # pieces that are in memory together, of 32 differences mostly
_HADOOP = ("UNKNOWN", "LZ4_HADOOP")  # PyArrow 26 has no name for the codec that Parquet calls LZ4
_BITS = 1 << 21  # of pieces that are unpacked together, at nine bytes for each


def shared_bytes(
    page: EncodedPage, codec: str, levels: tuple[int, int], check: Callable[[int], None], wanted: bool
) -> int:
    """Bytes of what texts of a page take from the text before them; 0 where that is not wanted.

    All else of a text stands in the page.

    Args:
        page: whose sizes have been found bearable.
        codec: that compresses it, by the name that Arrow's footer gives.
        levels: the column's highest level of repetition and of definition.
        check: is handed the bytes that Arrow takes for the lengths, as soon as they are known; may raise.
        wanted: whether to add them up.

    Raises:
        FormatError: it cannot be decompressed, or its lengths are none, or more than it has values.
    """
    content, size, total, at = values_of(page, codec, levels), 0, 0, 0
    if not content:  # nothing but nulls
        return 0
    sections = (wanted, False) if page.encoding == DELTA_BYTE_ARRAY else (False,)
    try:
        for added in sections:  # what is shared, and what is not
            count = _count(content, at)
            size += _LENGTH * count
            check(size)
            if count > page.values:
                raise FormatError(f"a page of {page.values:,} values gives {count:,} for the number of their lengths")
            found, at = _added(content, at, added)
            total += found
    except IndexError as error:
        raise FormatError("the lengths of a page's values end before the last one") from error
    return total


def values_of(page: EncodedPage, codec: str, levels: tuple[int, int]) -> memoryview:
    """The decompressed bytes of a page's values, behind those of its levels. Arguments are those of `shared_bytes`.

    Raises:
        FormatError: they cannot be decompressed, or the page ends within its levels.
    """
    import pyarrow as pa

    content, size, at = page.content, page.size, 0
    if page.levels is not None:  # they stand before what is compressed
        content, size = content[page.levels :], size - page.levels
    if page.compressed and codec != "UNCOMPRESSED" and size > 0:
        try:
            if codec in _HADOOP:
                content = _hadoop_lz4(content, size)
            else:
                name = "lz4_raw" if codec == "LZ4" else codec.lower()
                content = memoryview(pa.Codec(name).decompress(content, size)).cast("B")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise FormatError(f"a page compressed with {codec} cannot be decompressed ({error})") from error
    if page.levels is None:
        for level, encoding in zip(levels, page.level_encodings, strict=True):
            if level and encoding == _BIT_PACKED:
                at += -(-page.values * level.bit_length() // 8)
            elif level:
                at += 4 + int.from_bytes(content[at : at + 4], "little")
    if not 0 <= at <= len(content):
        raise FormatError("the levels of a page are longer than the page")
    return content[at:]


def _hadoop_lz4(content: memoryview, size: int) -> memoryview:
    """Decompress a page of the codec that Parquet calls LZ4 and advises against, as Arrow reads it.

    Hadoop wrote blocks, each behind two numbers: its bytes once decompressed, and before. Others wrote one block alone.
    """
    import pyarrow as pa

    lz4, left, blocks = pa.Codec("lz4_raw"), size, []
    rest = content
    try:
        while len(rest) >= 2 * _LENGTH:
            plain, stored = (int.from_bytes(rest[at : at + _LENGTH]) for at in (0, _LENGTH))
            block, rest = rest[2 * _LENGTH :][:stored], rest[2 * _LENGTH + stored :]
            left -= plain
            if left < 0 or len(block) < stored:
                break
            blocks.append(lz4.decompress(block, plain, asbytes=True) if plain else b"")
        if left == 0 and not rest:
            return memoryview(b"".join(blocks))
    except (pa.ArrowException, OSError, ValueError):
        blocks.clear()  # what looked like two numbers were none
    return memoryview(lz4.decompress(content, size)).cast("B")


def _count(octets: memoryview, at: int) -> int:
    _, at = varint(octets, at)
    _, at = varint(octets, at)
    return varint(octets, at)[0]


def _added(octets: memoryview, at: int, wanted: bool) -> tuple[int, int]:
    """The sum of the lengths that stand at `at`, 0 where it is not wanted, and where they end.

    Raises:
        FormatError: they are no lengths.
        IndexError: they do not end.
    """
    block, at = varint(octets, at)
    parts, at = varint(octets, at)
    count, at = varint(octets, at)
    last, at = _signed(octets, at)
    if not 0 < parts <= block or block % (parts * 8) or not 0 <= last < _LONGEST:
        raise FormatError(f"a page gives {block:,}, {parts:,} and {last:,} for the blocks of its lengths and the first")
    each, left = block // parts, count - 1
    total = last if wanted and count else 0
    pieces: list[_Piece] = []
    while left > 0:
        low, at = _signed(octets, at)
        if not -_LONGEST < low < _LONGEST:
            raise FormatError(f"lengths of a page differ by {low:,}")
        widths = octets[at : at + parts]
        at += len(widths)
        if len(widths) < parts:
            raise IndexError
        for width in widths:
            if left <= 0:
                break
            if width > _WIDEST:
                raise FormatError(f"a page gives differences of {width} bits between its lengths")
            used = min(each, left)
            if wanted:
                step = each if width == 0 else min(each, _PIECE)
                pieces += [
                    _Piece(width, at + first * width // 8, min(step, each - first), min(step, used - first), low)
                    for first in range(0, used, step)
                ]
            at += each * width // 8
            left -= used
            if at > len(octets):
                raise IndexError
            if len(pieces) >= _PIECES or (pieces and left <= 0):
                last, found = _sum(octets, pieces, last)
                total += found
                pieces = []
    return total, at


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """Differences that stand together: bits of each, where, how many there is room for and are used, the lowest."""

    width: int
    at: int
    room: int
    used: int
    low: int


def _sum(octets: memoryview, pieces: Sequence[_Piece], last: int) -> tuple[int, int]:
    """The last of the lengths that differences give, and the sum of them; `last` is the one before them."""
    alike: dict[tuple[int, int, int], list[int]] = {}
    for number, piece in enumerate(pieces):
        if piece.width:
            alike.setdefault((piece.width, piece.room, piece.used), []).append(number)
    found: list[Sequence[int] | None] = [None] * len(pieces)
    for (width, room, _), numbers in alike.items():
        most = max(1, _BITS // (width * room))
        for first in range(0, len(numbers), most):
            some = numbers[first : first + most]
            for number, sums in zip(some, _unpacked(octets, [pieces[each] for each in some]), strict=True):
                found[number] = sums
    total = 0
    for piece, steps in zip(pieces, found, strict=True):
        used, low = piece.used, piece.low
        # Without bits each is as much longer or shorter than the one before.
        plain = used * low, used * (used + 1) // 2 * low, min(low, used * low), max(low, used * low)
        end, added, least, greatest = plain if steps is None else steps
        if last + least < 0 or last + greatest >= _LONGEST:
            raise FormatError("the length of a value in a page is below 0, or 2 GiB and more")
        total += used * last + added
        last += end
    return last, total


def _unpacked(octets: memoryview, pieces: Sequence[_Piece]) -> list[list[int]]:
    """Of pieces that are alike: what all differences add up to, the sum over every step, the least and the greatest."""
    width, room, used = pieces[0].width, pieces[0].room, pieces[0].used
    size = room * width // 8
    starts = np.array([piece.at for piece in pieces], np.int64)
    whole = np.frombuffer(octets, np.uint8)
    if int(starts[-1]) + size > len(whole):
        raise IndexError
    bits = np.unpackbits(whole[starts[:, None] + np.arange(size)], axis=1, bitorder="little")
    places = np.float64(2) ** np.arange(width)  # exact: a difference has 32 bits at most
    steps: npt.NDArray[np.int64] = (
        (bits.reshape(-1, width) @ places).reshape(len(pieces), room)[:, :used].astype(np.int64)
    )
    steps += np.array([piece.low for piece in pieces], np.int64)[:, None]
    np.cumsum(steps, axis=1, out=steps)
    return np.stack([steps[:, -1], steps.sum(1), steps.min(1), steps.max(1)], axis=1).tolist()


def _signed(octets: memoryview, at: int) -> tuple[int, int]:
    number, at = varint(octets, at)
    return number >> 1 ^ -(number & 1), at
