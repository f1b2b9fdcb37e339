"""Tar archives of strangers, read in memory that is bounded, whatever their headers say.

What belongs here: members and their headers. What does not: how far a compressed archive may expand
(ingest/readers/bounds.py), and what members mean.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, Any, ClassVar, NamedTuple

from dt2it_pipeline.errors import UserError

_MOST_EMPTY = 100_000  # members of a tar without content, beyond those with some; each takes 25 us
_MOST_FILES = 1_000_000  # data files of a tar, whose names lie in memory: 0.2 kB for each
_LONGEST_HEADER = 1 << 20  # bytes of a tar member's name or attributes
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip


class TarBoundsError(UserError, tarfile.TarError):
    """A tar archive has more members, or a longer header, than one has that is not meant to fill memory."""

    help_page: ClassVar[str] = "troubleshooting#source"


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


class BoundedTar(tarfile.TarFile):
    """An archive that keeps none of its members in memory, and counts those that take no room in the file."""

    _balance = 0  # members without content, less those with some

    def passing(self) -> Iterator[tarfile.TarInfo]:
        """The members, each once, in their order.

        Raises:
            TarBoundsError: more than 100,000 of them have no content, beyond those with some.
            tarfile.TarError: a header is malformed.
        """
        while (member := self._following()) is not None:
            self.members.clear()  # type: ignore[attr-defined]
            self._balance += 1 if member.size == 0 else -1
            if self._balance > _MOST_EMPTY:
                raise TarBoundsError(
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
            TarBoundsError: there are more than a million.
        """
        found: list[TarPlace] = []
        for member in members:
            if member.isreg():
                found.append(TarPlace(member.name, member.size, member.offset_data, member.sparse))
            if len(found) > _MOST_FILES:
                raise TarBoundsError(
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


class BoundedMember(tarfile.TarInfo):
    """A member whose header is bounded: long names and attributes lie in memory whole, whatever size they give."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > _LONGEST_HEADER:
            raise TarBoundsError(
                f"a header of {self.size:,} bytes in {archive.name!r}, as no archive has; pack it anew"
            )
        return super()._proc_member(archive)  # type: ignore[misc]

    # Maps of holes stand before the content in two forms, and say themselves how long they are.
    def _proc_sparse(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        with _little_is_read(archive):
            return super()._proc_sparse(archive)  # type: ignore[misc]

    def _proc_gnusparse_10(self, member: tarfile.TarInfo, headers: Any, archive: tarfile.TarFile) -> None:
        with _little_is_read(archive):
            super()._proc_gnusparse_10(member, headers, archive)  # type: ignore[misc]


@contextlib.contextmanager
def _little_is_read(archive: tarfile.TarFile) -> Iterator[None]:
    """Raise TarBoundsError where more is read of an archive meanwhile than a header may have."""
    whole = archive.fileobj
    archive.fileobj = _Little(whole, str(archive.name))  # type: ignore[assignment]
    try:
        yield
    finally:
        archive.fileobj = whole


class _Little:
    """A stream of which no more is read than a header may have."""

    def __init__(self, whole: Any, name: str) -> None:
        self._whole, self._name, self._left = whole, name, _LONGEST_HEADER

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise TarBoundsError(
                f"a map of holes of more than {_LONGEST_HEADER:,} bytes in {self._name!r}; pack it without --sparse"
            )
        found: bytes = self._whole.read(size)
        return found

    def tell(self) -> int:
        at: int = self._whole.tell()
        return at
