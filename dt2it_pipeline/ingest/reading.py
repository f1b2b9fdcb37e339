"""Reads the rows of a source, one after the other: data files (file_formats.py), archives of these, `datasets`.

Nothing is held in memory but the row (or batch) at hand. A local copy never touches the network.
"""

from __future__ import annotations

import itertools
import json
import lzma
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from dt2it_pipeline.ingest.adapters.mmpr import PART_ROOT
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.readers import hub
from dt2it_pipeline.ingest.readers.arrow_rows import arrow_rows
from dt2it_pipeline.ingest.readers.bounds import bounded_tar, check_ratio
from dt2it_pipeline.ingest.readers.dataset_folders import require_own_file, require_own_files
from dt2it_pipeline.ingest.readers.file_formats import (
    EXTENSIONS,
    format_of,
    json_lines,
    parsed,
    rows_of_stream,
    rows_under,
)
from dt2it_pipeline.ingest.readers.hub import RepositoryFile
from dt2it_pipeline.ingest.readers.webdataset import first_row, is_shard, rows_of_shard
from dt2it_pipeline.ingest.rows import Quarantined, Read, Row, SourceError, Unparsed
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.paths import confined
from dt2it_pipeline.media.tar_files import BoundedTar, TarBoundsError
from dt2it_pipeline.storage.table_files import no_file

__all__ = ["SourceError", "data_files", "read_named", "read_rows", "read_unparsed", "row_of"]

_DAMAGED = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    RuntimeError,
    UnicodeDecodeError,
)
# An archive; the last two for members of a .zip that are encrypted or compressed in a way that is not known here, and
# for damaged names of members.
_TARS = (".tar", ".tar.gz", ".tgz")
_ARCHIVES = (".zip", *_TARS)


def read_rows(manifest: Manifest, sources: Path) -> Iterator[Row | Quarantined]:
    """The rows of a source in order, at most `limit` of them, malformed ones among them as Quarantined.

    Raises:
        SourceError: the source is missing, is not of its format, or must come from the Hub and has no pinned revision.
    """
    return (row_of(manifest, read) for read in read_unparsed(manifest, sources))


def read_named(manifest: Manifest, data: Path) -> Iterator[Row | Quarantined]:
    """The rows of data that a person names and that are no source of a project, so that errors name the data alone.

    Args:
        manifest: how it is read; its `path` is the data.
        data: the same as it was given, for errors.

    Raises:
        SourceError: as `read_rows`, or there is no such file.
    """
    try:
        yield from read_rows(manifest, data.parent)
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError) and not data.exists():
            raise SourceError(no_file(data)) from error.__cause__
        raise SourceError(str(error).removeprefix(f"source {manifest.name!r}: ")) from error.__cause__


def row_of(manifest: Manifest, read: Unparsed) -> Row | Quarantined:
    """What was read as a row of the manifest's source; what is malformed as Quarantined."""
    found = parsed(read)
    if isinstance(found, Quarantined):
        return found
    where, values = found
    row_id = values.get(manifest.column("id"))
    own = row_id is not None and row_id != ""
    name, standing = (str(row_id), f"{where} (id {row_id!r})") if own else (where, where)
    return Row(name, values, manifest.columns, manifest.kind, standing, manifest.verdict)


def read_unparsed(manifest: Manifest, sources: Path) -> Iterator[Unparsed]:
    """The same, lines of JSON Lines being parsed by `row_of`; arguments and errors are those of `read_rows`."""
    data, media_root = manifest.located(sources)
    try:
        found = _hub(manifest) if data is None else _path(data, manifest, media_root or data.parent)
        yield from itertools.islice(found, manifest.limit)
    except (SourceError, TarBoundsError) as error:
        words = " ".join(str(error).split("\n"))  # Arrow and YAML write several lines
        raise SourceError(f"source {manifest.name!r}: {words}") from error.__cause__
    except (OSError, *_DAMAGED) as error:
        place = getattr(error, "filename", None) or data or manifest.hub
        raise SourceError(f"source {manifest.name!r}: cannot read {place}: {_reason(error)}") from error


def data_files(path: Path, format: str | None = None) -> list[Path]:
    """The data files of a local source: the file itself, or those of a folder in the order of their names.

    Raises:
        SourceError: there is none, or the folder holds several formats and `format` does not name one.
    """
    _require_regular(path)
    if not path.is_dir():
        return [path]
    found = [(file, _below(file, path)) for file in sorted(path.rglob("*")) if file.is_file()]
    files = [file for file, name in found if format_of(name) and not re.search(r"(?:^|/)\.", name)]
    files = [file for file in files if file.name not in ("dataset_info.json", "state.json", "dataset_dict.json")]
    kinds = {kind: _below(file, path) for file in reversed(files) if (kind := format_of(file.name))}
    if format is None and len(kinds) > 1:
        names = ", ".join(f"{kind} ({kinds[kind]})" for kind in sorted(kinds))
        raise SourceError(
            f"{path} holds files of several formats: {names}. Name one of its files in place of the folder, or a "
            "folder with those of one format; a manifest may name the one to read as `format`"
        )
    files = [file for file in files if format in (None, format_of(file.name))]
    if not files and format is None:  # shards of a WebDataset
        files = [file for file, name in found if name.endswith(_TARS) and not re.search(r"(?:^|/)\.", name)]
    if not files:
        raise SourceError(f"{path} holds no data file ({', '.join(EXTENSIONS)})")
    return files


def _path(path: Path, manifest: Manifest, media_root: Path) -> Iterator[Unparsed]:
    if manifest.format == "parts":
        yield from _parts(path, media_root)
    elif manifest.format == "dataset" or (manifest.format is None and hub.is_saved(path)):
        yield from _local_dataset(path, manifest)
    else:
        files = data_files(path, manifest.format)
        for file in files:
            yield from _file(file, manifest.format, f"{_below(file, path)} " if len(files) > 1 else "")


def _file(file: Path | RepositoryFile, format: str | None, prefix: str) -> Iterator[Unparsed]:
    if file.name.endswith(".zip"):
        with file.open("rb") as whole, zipfile.ZipFile(whole) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
            held = [entry for entry in entries if format_of(entry.filename)]
            for entry in held:
                check_ratio(entry.file_size, entry.compress_size, f"{entry.filename} of {file}")
            names = [entry.filename for entry in held]
            yield from _members(file, names, lambda number: archive.open(held[number]), format)
    elif file.name.endswith(_ARCHIVES):
        with bounded_tar(file) as archive:
            yield from _tar(file, archive, format)
    else:
        with file.open("rb") as stream:
            yield from rows_of_stream(stream, format or format_of(file.name), file.name, prefix)


def _tar(file: Path | RepositoryFile, archive: BoundedTar, format: str | None) -> Iterator[Unparsed]:
    """Rows of a tar archive: of a shard, or of the data files in it."""
    passing = archive.passing()
    first = first_row(passing)
    members = itertools.chain(first, passing)
    if format is None and is_shard(first):
        yield from rows_of_shard(archive, members, file.name)
        return
    links: list[tuple[str, str]] = []  # their rows are another member's, or lie outside the archive

    def data(member: tarfile.TarInfo) -> bool:
        named = format_of(member.name) is not None
        if named and (member.islnk() or member.issym()):
            links.append((member.name, member.linkname))
        return named

    places = archive.places(filter(data, members))
    stored = file.stat().st_size if isinstance(file, Path) else file.size
    for place in places:  # one with holes is larger than what is stored of it
        check_ratio(place.size, stored, f"{place.name} of {file}")
    names = [place.name for place in places]
    for name, target in sorted(links):
        yield Quarantined(name, "link in an archive", f"it leads to {target}")
    yield from _members(file, names, lambda number: archive.opened(places[number]), format)


def _below(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _members(
    file: Path | RepositoryFile, names: Sequence[str], opened: Callable[[int], IO[bytes]], format: str | None
) -> Iterator[Unparsed]:
    """Rows of an archive's members, which `opened` opens by their numbers.

    Raises:
        SourceError: there is none, or two would be one file: unpacking would let the last one replace the others.
    """
    times = Counter(name if (plain := posixpath.normpath(name)) == name else plain for name in names)  # no copies
    if repeated := sorted(name for name, count in times.items() if count > 1):
        raise SourceError(f"{file} holds {', '.join(repeated)} more than once; pack it anew, each file once")
    del times
    if not names:
        raise SourceError(f"{file} holds no data file ({', '.join(EXTENSIONS)})")
    for number, name in enumerate(names):
        with opened(number) as stream:
            yield from rows_of_stream(stream, format or format_of(name), name, f"{name} " if len(names) > 1 else "")


def _require_regular(path: Path) -> None:
    """Raise SourceError for a pipe or a device, which would never end; opening reports what is missing."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise SourceError(f"{path} is no regular file")


def _parts(path: Path, root: Path) -> Iterator[Read]:
    """Rows of all parts that an MMPR meta.json names; their `annotation` and `root` count from the media root."""
    try:
        parts = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(parts, dict):
        raise SourceError(f"{path} must be an object of parts, found {type(parts).__name__}")
    for name, part in parts.items():
        if not isinstance(part, dict) or not all(isinstance(part.get(key), str) for key in ("annotation", "root")):
            raise SourceError(f"part {name!r} of {path.name} must have `annotation` and `root`, found {part!r}"[:200])
        try:
            file = confined(part["annotation"], root, "file")
        except MediaError as error:
            raise SourceError(f"part {name!r} of {path.name}: {error}") from error
        _require_regular(file)
        with file.open("rb") as stream:
            for read in map(parsed, json_lines(stream, f"{name} ")):
                yield read if isinstance(read, Quarantined) else (read[0], {**read[1], PART_ROOT: part["root"]})


def _local_dataset(path: Path, manifest: Manifest) -> Iterator[Unparsed]:
    """A folder as `datasets` writes it (save_to_disk), or as it lies on the Hub (hf download)."""
    require_own_files(path)
    files = hub.saved_files(path, manifest.split) if hub.is_saved(path) else hub.folder_files(path, manifest)
    for file in files:
        assert isinstance(file.path, Path)
        require_own_file(file.path, path)
        _require_regular(file.path)
        rows = _dataset_file(file, f"{_below(file.path, path)} " if len(files) > 1 else "")
        yield from _with_columns(file, rows)


def _with_columns(file: hub.DataFile, rows: Iterator[Unparsed]) -> Iterator[Unparsed]:
    if file.columns is None and file.media is None:
        yield from rows
        return
    for read in map(parsed, rows):
        yield read if isinstance(read, Quarantined) else (read[0], _chosen(file, read[1]))


def _dataset_file(file: hub.DataFile, prefix: str) -> Iterator[Unparsed]:
    name = file.path.name
    if name.endswith(_ARCHIVES):
        if file.field is not None:
            raise SourceError(f"the card names the field {file.field!r} of {name}; unpack the archive")
        return _file(file.path, None, prefix)
    if file.format == "arrow":
        return _arrow(file.path, name, prefix)
    if file.field is not None:
        return _under(file.path, file.field, prefix)
    return _file(file.path, file.format, prefix)


def _arrow(file: Path | RepositoryFile, name: str, prefix: str) -> Iterator[Read]:
    if isinstance(file, Path):
        yield from arrow_rows(file, name, prefix)
        return
    with file.copied() as copy:  # it is mapped into memory
        yield from arrow_rows(copy, name, prefix)


def _under(file: Path | RepositoryFile, field: str, prefix: str) -> Iterator[Read]:
    with file.open("rb") as stream:
        yield from rows_under(stream, field, file.name, prefix)


def _chosen(file: hub.DataFile, values: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the columns that the folder's card asks for, and with its media."""
    found = {name: value for name, value in values.items() if file.columns is None or name in file.columns}
    return found if file.media is None else hub.with_medium(file, found)


def _hub(manifest: Manifest) -> Iterator[Unparsed]:
    if manifest.revision is None:
        copy = f", or put a local copy in {manifest.path}" if manifest.path else ""
        raise SourceError(
            f"`revision` is not set: fill in the commit (40 hex digits) of {manifest.hub} that you mean; "
            f"`git ls-remote https://huggingface.co/datasets/{manifest.hub} HEAD` prints the newest{copy}"
        )
    files = hub.repository_files(manifest)
    for file in files:
        assert isinstance(file.path, RepositoryFile)
        try:
            yield from _with_columns(file, _dataset_file(file, f"{file.path.below} " if len(files) > 1 else ""))
        except (SourceError, TarBoundsError):
            raise
        except Exception as error:  # of the connection, in any of several libraries
            raise SourceError(f"cannot read {file.path}: {error}") from error


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
