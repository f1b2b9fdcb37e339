"""The headers of a Parquet file's pages, read before Arrow takes memory for what they announce.

A footer says how large a column is, and may say anything. Arrow takes the memory that a page's own header asks for,
up to 2 GiB. So the bytes of a row group are read here once, their headers are summed up, and Arrow reads the same bytes
from memory. What belongs here: `PageHeader` of parquet.thrift. What does not: its encoding (thrift_compact.py), rows
(parquet_rows.py), and how much is too much (bounds.py).
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from dt2it_pipeline.ingest.readers.parquet_footer import ColumnChunk, read_footer
from dt2it_pipeline.ingest.readers.thrift_compact import FormatError, struct

_DATA, _INDEX, _DICTIONARY, _DATA_V2 = range(4)  # kinds of pages
_KIND, _SIZE, _STORED = 1, 2, 3  # fields of a PageHeader: its kind, bytes of the page once decompressed, and before
_BODY = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}  # the field that tells more of a page, by its kind
_ENCODING = {_DATA: 2, _DATA_V2: 4}  # the field of that one which gives the encoding
_VALUES = 1  # the field of that one which gives the number of values
_LEVELS = {_DATA: (4, 3), _DATA_V2: (6, 5)}  # those which give encodings or sizes of levels: of repetition, definition
_COMPRESSED = 7  # the field of a page of version 2 which says whether its values are compressed
DELTA_LENGTH_BYTE_ARRAY = 6  # an encoding in which the lengths of all texts come first
DELTA_BYTE_ARRAY = 7  # one in which, besides, a value begins as the value before it
PLAIN = 0  # the encoding of a dictionary's own values
DICTIONARY_ENCODINGS = (2, 8)  # those in which values are places in a dictionary; the first one is old
_FEW = 1 << 10  # values of a dictionary that may take no byte, and pages that may hold no value


@dataclasses.dataclass(frozen=True)
class EncodedPage:
    """A page whose values may take more memory than their bytes; see parquet_deltas.py and parquet_dictionaries.py.

    Attributes:
        content: as it stands in the file.
        size: bytes of it once it is decompressed.
        values: how many it has, as its header says.
        encoding: DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY, or one of DICTIONARY_ENCODINGS; of a dictionary, PLAIN.
        levels: bytes of its levels, which stand before what is compressed; None where they are compressed, too.
        level_encodings: of the levels of repetition and definition, where they are compressed, too.
        compressed: whether its values are.
    """

    content: memoryview
    size: int
    values: int
    encoding: int
    levels: int | None
    level_encodings: tuple[int, int]
    compressed: bool


@dataclasses.dataclass(frozen=True)
class Pages:
    """What the pages of a column chunk announce.

    Attributes:
        size: bytes of all of them once they are decompressed.
        values: how many values their data pages have; of lists, all elements count.
        shared: bytes at most of one value that takes next to no room where it stands again.
        deltas: the pages in an encoding whose lengths say more.
        dictionary: the page of its dictionary.
        indexed: the pages whose values are places in it.
    """

    size: int
    values: int
    shared: int
    deltas: tuple[EncodedPage, ...] = ()
    dictionary: EncodedPage | None = None
    indexed: tuple[EncodedPage, ...] = ()


def pages_of(chunk: bytes, values: int) -> Pages:
    """What the pages at the start of a column chunk announce, up to the page with the last of its `values`.

    Raises:
        FormatError: a header is malformed, or gives sizes that no page has.
    """
    at = size = seen = dictionary = longest = empty = 0
    deltas: list[EncodedPage] = []
    indexed: list[EncodedPage] = []
    held: EncodedPage | None = None
    while seen < values:
        try:
            header, at = struct(chunk, at, 0)
            kind, unpacked, stored = header[_KIND], header[_SIZE], header[_STORED]
            body = header[_BODY[kind]] if kind in _BODY else {_VALUES: 0}
            count = body[_VALUES]
            encoding = body[_ENCODING[kind]] if kind in _ENCODING else -1
            delta = encoding in (DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY)
            encoded = delta or encoding in DICTIONARY_ENCODINGS
            levels = [int(body[field]) for field in _LEVELS[kind]] if encoded else []
        except (IndexError, KeyError, TypeError) as error:
            raise FormatError(f"no header of a page stands at byte {at:,} of its column") from error
        if min(unpacked, stored, count) < 0 or stored > len(chunk) - at:
            raise FormatError(f"a page gives {unpacked:,} and {stored:,} bytes, and {count:,} values, for its sizes")
        if encoded:
            apart = sum(levels) if kind == _DATA_V2 else None
            if apart is not None and not (min(levels) >= 0 and apart <= min(stored, unpacked)):
                raise FormatError(f"a page of {unpacked:,} bytes gives {apart:,} bytes for its levels")
            content = memoryview(chunk)[at : at + stored]
            compressed = kind == _DATA or body.get(_COMPRESSED) is not False  # by default they are
            page = EncodedPage(content, unpacked, count, encoding, apart, (levels[0], levels[1]), compressed)
            (deltas if delta else indexed).append(page)
        at += stored
        size += unpacked
        if kind == _DICTIONARY:
            if count > max(unpacked, _FEW):
                raise FormatError(f"a dictionary of {unpacked:,} bytes gives {count:,} for the number of its values")
            dictionary = max(dictionary, unpacked)
            held = EncodedPage(memoryview(chunk)[at - stored : at], unpacked, count, PLAIN, 0, (0, 0), True)
        else:
            seen += count
            longest = max(longest, unpacked if encoding == DELTA_BYTE_ARRAY else 0)
            empty += count == 0
        if empty > _FEW:
            raise FormatError("too many of its pages have no value")
    return Pages(size, seen, dictionary + longest, tuple(deltas), held, tuple(indexed))


class ChunkedFile(io.RawIOBase):
    """A Parquet file of which Arrow reads nothing but its footer, and column chunks that were read here before.

    Args:
        stream: the file; it must be seekable.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._chunks: dict[int, bytes] | None = None
        self._at = 0
        self.size: int = stream.seek(0, io.SEEK_END)

    def read_group(self, columns: Sequence[ColumnChunk]) -> list[Pages]:
        """Read all column chunks of a row group, which Arrow is to read next, and return what their pages announce.

        Args:
            columns: what the footer says of each.

        Raises:
            FormatError: the columns take more bytes than the file has; or see `pages_of`.
        """
        spans = {}
        for number, column in enumerate(columns):
            start = column.data_page_offset
            dictionary = column.dictionary_page_offset
            if dictionary is not None and 0 < dictionary < start:
                start = dictionary
            spans[number] = start, column.total_compressed_size
        if min(map(min, spans.values()), default=0) < 0 or sum(size for _, size in spans.values()) > self.size:
            raise FormatError("its columns take more bytes than it has")
        self._chunks, found = {}, {}
        for number, (start, size) in sorted(spans.items(), key=lambda span: span[1]):  # a compressed file goes forwards
            self._stream.seek(start)
            chunk = self._whole(size)
            found[number] = pages_of(chunk, columns[number].num_values)
            if len(chunk) >= len(self._chunks.get(start, b"")):
                self._chunks[start] = chunk
        return [found[number] for number in range(len(columns))]

    def footer(self) -> bytes:
        """The bytes of its FileMetaData, before any group is read. Raises FormatError where it ends within them."""
        return read_footer(self._stream, self.size)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.RawIOBase; nothing moves before something is read."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        """Where it stands, in bytes."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Bytes of the footer; once a group has been read, its chunks.

        Raises:
            FormatError: what is asked for is no chunk of the group that was read last.
        """
        if self._chunks is None:
            self._stream.seek(self._at)
            found = self._whole(self.size - self._at if size < 0 else size)
        else:
            chunk = self._chunks.pop(self._at, None if size else b"")
            if chunk is None:
                raise FormatError(f"a column begins at byte {self._at:,}, where its footer has none")
            found = chunk if size in (-1, len(chunk)) else chunk[:size]
        self._at += len(found)
        return found

    def _whole(self, size: int) -> bytes:
        """Bytes of the stream from here on. A decompressed stream gives less at a time than it is asked for."""
        found = self._stream.read(size)
        if len(found) == size or not found:
            return bytes(found)
        parts = [found]
        left = size - len(found)
        while left and (more := self._stream.read(left)):
            parts.append(more)
            left -= len(more)
        return b"".join(parts)
