"""Bounds of what a file may make of little: lines without end, and archives that expand without measure.

What belongs here: streams that stop. What does not: formats (file_formats.py).
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal, Protocol, TextIO

import pyarrow as pa

from dt2it_pipeline.ingest.rows import SourceError
from dt2it_pipeline.media.tar_files import BoundedMember, BoundedTar

LONGEST_LINE = 2**28  # bytes of a JSON line, an element or a CSV value, which may be an image in base64
LONGEST_OBJECT = 2**30  # characters of one JSON object that wraps all rows, which lies in memory whole
_FREE = 2**30  # bytes that any compressed file may expand to
_RATIO = 200  # times its size, beyond that; JSON of one row over and over has 100
ROW_BYTES = 256  # that a row takes in Python and in our tables, even one without values
_BLOCK = 1 << 20
DECOMPRESSED: dict[str, Callable[[IO[bytes]], Any]] = {  # by the end of a compressed file's name
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda stream: pa.CompressedInputStream(stream, "zstd"),
    ".lz4": lambda stream: pa.CompressedInputStream(stream, "lz4"),
}
_TARS = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}  # how compressed archives begin


class Openable(Protocol):
    """A file that can be opened, on this machine or elsewhere."""

    @property
    def name(self) -> str:
        """Its name, without folders."""

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Its bytes."""


class Expanding(io.RawIOBase):
    """A decompressed stream that ends with an error where it expands without measure.

    Args:
        stream: decompressed.
        taken: compressed bytes that have been read so far.
        name: of the file, for errors.
    """

    def __init__(self, stream: IO[bytes], taken: Callable[[], int], name: str) -> None:
        self._stream, self._taken, self._name = stream, taken, name
        self._at = 0  # not every stream says

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """As of the stream below: a Parquet file is read from its end."""
        return self._stream.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of the stream below, but what is passed over is decompressed too, and counts.

        Raises:
            SourceError: as for `readinto`.
        """
        target = offset + (self._at if whence == io.SEEK_CUR else 0)
        block = memoryview(bytearray(_BLOCK))
        while whence == io.SEEK_END or self._at < target:
            if not self.readinto(block if whence == io.SEEK_END else block[: target - self._at]):
                break  # the end
        if whence == io.SEEK_END:
            target += self._at
        if target < self._at:
            self._at = self._stream.seek(target)
        return self._at

    def tell(self) -> int:
        """Where it stands, in bytes."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer; see io.RawIOBase.

        Raises:
            SourceError: the file expands to more than 200 times its size, and to more than 1 GiB.
        """
        found = self._stream.read(min(len(buffer), _BLOCK))
        buffer[: len(found)] = found
        self._at += len(found)
        check_ratio(self._at, self._taken(), self._name)
        return len(found)


@contextlib.contextmanager
def bounded_tar(file: Openable) -> Iterator[BoundedTar]:
    """Open a tar archive, compressed (gzip, bzip2, xz) or not, to be read while the block runs.

    Raises:
        SourceError: in the block, it expands without measure.
        TarBoundsError: see `BoundedTar`.
        OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError: it cannot be read.
    """
    with file.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        kind = next((kind for magic, kind in _TARS.items() if start.startswith(magic)), None)
        if kind is None:
            stream: IO[bytes] = raw
        else:
            stream = io.BufferedReader(Expanding(DECOMPRESSED[kind](raw), raw.tell, file.name), _BLOCK)
        with BoundedTar(str(file), "r", stream, tarinfo=BoundedMember) as archive:
            yield archive


def check_ratio(size: int, compressed: int, name: str) -> None:
    """Raise SourceError where a file of `compressed` bytes expands to `size` bytes without measure.

    >>> check_ratio(3_000_000, 10_000, "rows.jsonl.gz")
    """
    if size > most_bytes(compressed):
        raise SourceError(
            f"{name} expands to more than {_RATIO} times its size ({size:,} bytes of {compressed:,}), as a file does "
            "that is meant to fill memory; unpack it yourself where you trust it"
        )


def most_bytes(compressed: int) -> int:
    """How many bytes a file of `compressed` bytes may expand to."""
    return max(_FREE, _RATIO * compressed)


def bounded_lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Lines of a stream; None in the place of one that is longer than LONGEST_LINE, of which no more lies in memory."""
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        while not line.endswith(b"\n") and (line := stream.readline(_BLOCK)):
            pass
        yield None


def bounded_text_lines(stream: TextIO, name: str) -> Iterator[str]:
    """Lines of a text. Raises SourceError at one longer than LONGEST_LINE: what is behind it has no known place."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise SourceError(f"line {number} of {name} is longer than {LONGEST_LINE:,} characters; mend the file")
        yield line
