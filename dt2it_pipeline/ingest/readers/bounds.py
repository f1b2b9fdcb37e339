"""Bounds of what a file may make of little: lines without end, and archives that expand without measure.

What belongs here: streams that stop. What does not: formats (file_formats.py).
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

from dt2it_pipeline.ingest.rows import SourceError

LONGEST_LINE = 2**28  # bytes of a JSON line, an element or a CSV value, which may be an image in base64
LONGEST_OBJECT = 2**30  # characters of one JSON object that wraps all rows, which lies in memory whole
_FREE = 2**30  # bytes that any compressed file may expand to
_RATIO = 200  # times its size, beyond that; JSON of one row over and over has 100
ROW_BYTES = 256  # that a row takes in Python and in our tables, even one without values
_BLOCK = 1 << 20
_MOST_EMPTY = 100_000  # members of a tar without content, beyond those with some; each takes 25 us
_MOST_FILES = 1_000_000  # data files of a tar, whose names lie in memory: 0.2 kB for each
_LONGEST_HEADER = 1 << 20  # bytes of a tar member's name or attributes
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
_TAR_STREAMS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}


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


class TarPlace(NamedTuple):
    """Where a file lies in a tar archive, in a third of the memory that `tarfile` takes for a member.

    Attributes:
        name: of the member.
        size: bytes of its content, holes among them.
        offset: of its content in the archive.
        holes: what `tarfile` knows of these, None of a file without any.
    """

    name: str
    size: int
    offset: int
    holes: Any


@contextlib.contextmanager
def bounded_tar(file: Path) -> Iterator[BoundedTar]:
    """Open a tar archive, compressed (gzip, bzip2, xz) or not, to be read while the block runs.

    Raises:
        SourceError: in the block, it expands without measure: all of it, or a member's header; or it has more members
            without content than others, and more than 100,000 of them.
        OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError: it cannot be read.
    """
    with file.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        plain = next((opened for magic, opened in _TAR_STREAMS.items() if start.startswith(magic)), None)
        if plain is None:
            stream: IO[bytes] = raw
        else:
            stream = io.BufferedReader(Expanding(plain(raw), raw.tell, file.name), _BLOCK)
        with BoundedTar(file, "r", stream, tarinfo=_BoundedMember) as archive:
            yield archive


class BoundedTar(tarfile.TarFile):
    """An archive that keeps none of its members in memory, and counts those that take no room in the file."""

    _balance = 0  # members without content, less those with some

    def passing(self) -> Iterator[tarfile.TarInfo]:
        """The members, each once, in their order.

        Raises:
            SourceError: more of them than `bounded_tar` says have no content.
        """
        while (member := self._following()) is not None:
            self.members.clear()  # type: ignore[attr-defined]
            self._balance += 1 if member.size == 0 else -1
            if self._balance > _MOST_EMPTY:
                raise SourceError(
                    f"{self.name!r} has more than {_MOST_EMPTY:,} members without content (empty files, folders, "
                    "links) beyond those with some, as a file does that is meant to fill memory; pack it without them"
                )
            yield member

    def _following(self) -> tarfile.TarInfo | None:
        try:
            return self.next()
        except ValueError as error:  # of a number in a header, which is no fault of a row
            raise tarfile.ReadError(f"a malformed header ({error})") from error

    def places(self, members: Iterable[tarfile.TarInfo]) -> list[TarPlace]:
        """Where the files among some members lie, in the order of their names.

        Raises:
            SourceError: there are more than a million.
        """
        found: list[TarPlace] = []
        for member in members:
            if member.isreg():
                found.append(TarPlace(member.name, member.size, member.offset_data, member.sparse))
            if len(found) > _MOST_FILES:
                raise SourceError(
                    f"{self.name!r} has more than {_MOST_FILES:,} data files; join them to fewer, as JSON Lines with "
                    "a row in each line"
                )
        found.sort(key=lambda place: place.name)
        return found

    def opened(self, place: TarPlace) -> IO[bytes]:
        """The content of a file of this archive."""
        member = tarfile.TarInfo(place.name)
        member.size, member.offset_data, member.sparse = place.size, place.offset, place.holes
        stream = self.extractfile(member)
        assert stream is not None  # of a regular member
        return stream


class _BoundedMember(tarfile.TarInfo):
    """A member whose header is bounded: long names and attributes lie in memory whole, whatever size they give."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > _LONGEST_HEADER:
            raise SourceError(f"a header of {self.size:,} bytes in {archive.name!r}, as no archive has; pack it anew")
        return super()._proc_member(archive)  # type: ignore[misc]


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
