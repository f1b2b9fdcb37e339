"""WebDataset shards: tar files whose members share a name per row: fields in JSON, and the images."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from dt2it_pipeline.ingest.rows import Quarantined, Read, SourceError
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.images import check_bytes

_IMAGES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")
_TEXTS = ("txt", "text", "caption")
_FIELDS = "json"
_LONGEST = 64 << 20  # bytes of a row's JSON
_MOST_MEMBERS = 10_000  # of a row


def first_row(members: Iterator[tarfile.TarInfo]) -> list[tarfile.TarInfo]:
    """The members of a tar up to the first one of its second row, as many as `is_shard` looks at."""
    found: list[tarfile.TarInfo] = []
    key = None
    for member in members:
        found.append(member)
        if member.isreg() and not _is_hidden(member):
            own, _ = _split(member.name)
            key = own if key is None else key
            if own != key:
                break
        if len(found) > _MOST_MEMBERS:
            break
    return found


def is_shard(first: Sequence[tarfile.TarInfo]) -> bool:
    """Whether a tar file holds rows in this form: its first members share a name, and one has fields in JSON."""
    members = [_split(member.name) for member in first if member.isreg() and not _is_hidden(member)]
    row = [extension for key, extension in members if key == members[0][0]]
    return _FIELDS in row and len(row) > 1


def rows_of_shard(archive: tarfile.TarFile, members: Iterable[tarfile.TarInfo], name: str) -> Iterator[Read]:
    """The rows of a shard, in its order: the fields of the JSON, `__key__`, and the images under `images`.

    Images of a row come in the order of their names; a member with text is a field under its extension. A row whose
    JSON is malformed or missing, one of whose members is a link or too large, or that has more than 10,000 members, is
    quarantined.
    """
    shown = ((*_split(member.name), member) for member in members if not (member.isdir() or _is_hidden(member)))
    for key, group in groupby(shown, lambda member: member[0]):
        where = f"{name} {key}"
        try:
            yield where, _row(archive, key, group)
        except SourceError:  # of the archive, which has no row behind it
            raise
        except MediaError as error:
            yield Quarantined(where, error.reason, error.detail)
        except (ValueError, RecursionError) as error:
            yield Quarantined(where, "malformed JSON", str(error)[:200])


def _row(archive: tarfile.TarFile, key: str, parts: Iterable[tuple[str, str, tarfile.TarInfo]]) -> dict[str, Any]:
    """A row of its members, each of which is read as it passes: a compressed archive goes back only from its start."""
    values: dict[str, Any] = {}
    images: list[tuple[str, bytes]] = []
    has_fields = False
    for number, (_, extension, member) in enumerate(parts):
        if number == _MOST_MEMBERS:
            raise MediaError(
                "too many members",
                f"more than {_MOST_MEMBERS:,} of the archive's members share its name; give each row a name of its own",
            )
        if not member.isreg():  # its content is another member's, or lies outside the archive
            raise MediaError("link in an archive", f"{member.name} leads to {member.linkname}")
        kind = extension.rpartition(".")[2]
        if kind in _IMAGES:
            check_bytes(member.size, member.name)
            images.append((extension, _content(archive, member)))
        elif kind in (_FIELDS, *_TEXTS):
            if member.size > _LONGEST:
                raise ValueError(f"{member.name} has {member.size} bytes")
            text = _content(archive, member).decode("utf-8-sig")
            found = json.loads(text) if kind == _FIELDS else {extension: text}
            if not isinstance(found, dict):
                raise ValueError(f"{member.name} is not a JSON object")
            values |= found
            has_fields |= kind == _FIELDS
    if not has_fields:
        raise ValueError(f"{key} has no member with its fields in JSON")
    values["__key__"] = key
    if images:
        values["images"] = [content for _, content in sorted(images)]
    return values


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None  # a regular member
    return stream.read()


def _is_hidden(member: tarfile.TarInfo) -> bool:
    """Whether a member is what a Mac puts beside a file, or another hidden one."""
    return posixpath.basename(member.name).startswith(".")


def _split(name: str) -> tuple[str, str]:
    """The key of a member's row, and what the member is of it: all behind the first dot of its last part."""
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    return posixpath.join(folder, stem), extension.lower()
