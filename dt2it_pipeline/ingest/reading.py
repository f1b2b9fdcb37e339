"""Reads the rows of a source, one after the other: JSON Lines, JSON, CSV, TSV, Parquet, archives of these, `datasets`.

Each file may be compressed (.gz, .zst). Nothing is held in memory but the row (or batch) at hand. JSON and CSV are read
here, so that a malformed line is set aside with its number instead of ending the source. A local copy never touches the
network. What a Mac puts beside files (`._*`, `__MACOSX`) is no data.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import lzma
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from dt2it_pipeline.ingest import hub
from dt2it_pipeline.ingest.adapters.mmpr import PART_ROOT
from dt2it_pipeline.ingest.manifest import FORMATS, Manifest
from dt2it_pipeline.ingest.rows import Quarantined, Read, Row, SourceError
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.paths import confined

__all__ = ["SourceError", "data_files", "read_rows"]

_JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
_CHUNK = 1 << 20  # characters
_BATCH = 64  # rows of a Parquet file at a time; each may hold an image
_EXTENSIONS = {f".{name}": name for name in FORMATS if name not in ("parts", "dataset")} | {".ndjson": "jsonl"}
_COMPRESSED = (".gz", ".zst")
_LONGEST_CELL = 2**28  # characters of a CSV value, which may be an image in base64; a text without end is no value
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_PEEK = 1 << 16  # bytes that are looked at to tell JSON from JSON Lines
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, RuntimeError)  # an archive; the
# last for members of a .zip that are encrypted or compressed in a way that is not known here
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")

_Member = TypeVar("_Member", zipfile.ZipInfo, tarfile.TarInfo)


def read_rows(manifest: Manifest, sources: Path) -> Iterator[Row | Quarantined]:
    """The rows of a source in order, at most `limit` of them, malformed ones among them as Quarantined.

    Raises:
        SourceError: the source is missing, is not of its format, or must come from the Hub and has no pinned revision.
    """
    data, media_root = manifest.located(sources)
    try:
        found = _hub(manifest) if data is None else _path(data, manifest, media_root or data.parent)
        for number, read in enumerate(found):
            if manifest.limit is not None and number >= manifest.limit:
                return
            if isinstance(read, Quarantined):
                yield read
                continue
            where, values = read
            row_id = values.get(manifest.column("id"))
            if row_id is None or row_id == "":
                yield Row(where, values, manifest.columns, manifest.kind, where)
            else:
                yield Row(str(row_id), values, manifest.columns, manifest.kind, f"{where} (id {row_id!r})")
    except SourceError as error:
        raise SourceError(f"source {manifest.name!r}: {error}") from error.__cause__
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
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and _format_of(_below(file, path))]
    files = [file for file in files if file.name not in ("dataset_info.json", "state.json", "dataset_dict.json")]
    kinds = sorted({kind for file in files if (kind := _format_of(file.name))})
    if format is None and len(kinds) > 1:
        raise SourceError(
            f"{path} holds files of several formats {kinds}; set `format` in the manifest, or name a file"
        )
    files = [file for file in files if format in (None, _format_of(file.name))]
    if not files:
        raise SourceError(f"{path} holds no data file ({', '.join(_EXTENSIONS)})")
    return files


def _path(path: Path, manifest: Manifest, media_root: Path) -> Iterator[Read]:
    if manifest.format == "parts":
        yield from _parts(path, media_root)
    elif manifest.format == "dataset":
        yield from _local_dataset(path, manifest)
    else:
        files = data_files(path, manifest.format)
        for file in files:
            yield from _file(file, manifest.format, f"{file.name} " if len(files) > 1 else "")


def _file(file: Path, format: str | None, prefix: str) -> Iterator[Read]:
    if file.name.endswith(".zip"):
        with zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
            named = [(entry.filename, entry) for entry in entries if _format_of(entry.filename)]
            _refuse_repeated(file, [name for name, _ in named])
            yield from _members(file, named, archive.open, format)
    elif file.name.endswith(_ARCHIVES):
        with tarfile.open(file) as archive:
            found = sorted((m for m in archive.getmembers() if _format_of(m.name)), key=lambda member: member.name)
            held = [(member.name, member) for member in found if member.isreg()]
            _refuse_repeated(file, [name for name, _ in held])
            for member in found:
                if member.islnk() or member.issym():  # its rows are another member's, or lie outside the archive
                    yield Quarantined(member.name, "link in an archive", f"it leads to {member.linkname}")
            yield from _members(file, held, lambda member: _some(archive.extractfile(member)), format)
    else:
        with file.open("rb") as stream:
            yield from _stream(stream, format or _format_of(file.name), file.name, prefix)


def _below(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _refuse_repeated(file: Path, names: Sequence[str]) -> None:
    """Raise SourceError where two members would be one file: unpacking would let the last one replace the others."""
    times = Counter(posixpath.normpath(name) for name in names)
    if repeated := sorted(name for name, count in times.items() if count > 1):
        raise SourceError(f"{file} holds {', '.join(repeated)} more than once; pack it anew, each file once")


def _members(
    file: Path, members: list[tuple[str, _Member]], opened: Callable[[_Member], IO[bytes]], format: str | None
) -> Iterator[Read]:
    """Rows of an archive's members."""
    if not members:
        raise SourceError(f"{file} holds no data file ({', '.join(_EXTENSIONS)})")
    for name, member in members:
        with opened(member) as stream:
            yield from _stream(stream, format or _format_of(name), name, f"{name} " if len(members) > 1 else "")


def _stream(stream: IO[bytes], format: str | None, name: str, prefix: str) -> Iterator[Read]:
    stream = _decompressed(stream, name)
    if format == "parquet":
        yield from _parquet(stream if stream.seekable() else io.BytesIO(stream.read()), name, prefix)
    elif format in ("json", "jsonl", "csv", "tsv"):
        text = io.BufferedReader(stream, _PEEK)  # type: ignore[type-var]
        if text.peek(2)[:2] in _UTF_16:
            raise SourceError(f"{name} is text in UTF-16; save it as UTF-8")
        if format == "json" and not _holds_lines(text.peek(_PEEK)):
            yield from _json_array(text, name, prefix)
        elif format in ("csv", "tsv"):
            yield from _csv(text, name, prefix, "\t" if format == "tsv" else ",")
        else:
            yield from _json_lines(text, prefix)
    else:
        raise SourceError(f"the format of {name} is not known; set `format` in the manifest ({', '.join(FORMATS)})")


def _decompressed(stream: IO[bytes], name: str) -> IO[bytes]:
    if name.lower().endswith(".gz"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
    if name.lower().endswith(".zst"):
        import pyarrow as pa

        return pa.CompressedInputStream(stream, "zstd")
    return stream


def _holds_lines(start: bytes) -> bool:
    """Whether a file that is called JSON holds one object per line, by how it starts."""
    first, newline, _ = start.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    return first.startswith(b"{") and (first.rstrip().endswith(b"}") or not newline)


def _json_lines(stream: IO[bytes], prefix: str) -> Iterator[Read]:
    for number, raw in enumerate(stream, start=1):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        if not line.strip():
            continue
        where = f"{prefix}line {number}"
        try:
            value = json.loads(line.decode("utf-8", "surrogateescape"))
            if not isinstance(value, dict):
                raise ValueError(f"expected an object, found {type(value).__name__}")
        except (ValueError, RecursionError) as error:
            yield Quarantined(where, "malformed JSON", str(error))
            continue
        yield where, value


def _json_array(stream: IO[bytes], name: str, prefix: str) -> Iterator[Read]:
    """Elements of one long JSON array, decoded one by one as the file is read.

    Raises:
        SourceError: it is no array, ends within an element or goes on behind its end: nobody knows how many are lost.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
    decoder = json.JSONDecoder()
    buffer, number, ended = text.read(_CHUNK).lstrip(), 0, False
    if not buffer.startswith("["):
        raise SourceError(f"{name} is neither a JSON array nor one JSON object per line")
    at = 1
    while True:
        at = _skip(buffer, at, " \t\r\n,")
        if at < len(buffer) and buffer[at] == "]":
            rest = buffer[at + 1 :].lstrip()
            while not rest and (more := text.read(_CHUNK)):
                rest = more.lstrip()
            if rest:
                raise SourceError(f"{name} goes on behind the end of its array of {number} elements: {rest[:40]!r}")
            return
        fault = ""
        try:
            value, end = decoder.raw_decode(buffer, at)
            whole = end < len(buffer) or ended  # a number at the end of what was read may go on
        except (ValueError, RecursionError) as error:
            value, end, fault = None, _element_end(buffer, at), getattr(error, "msg", str(error))
            whole = end > at
            if ended and not whole:
                raise SourceError(f"{name} is malformed behind element {number}: {error}") from error
        if not whole:
            more = text.read(max(_CHUNK, len(buffer) - at))  # doubling: an element is never decoded often
            buffer, at, ended = buffer[at:] + more, 0, not more
            continue
        number, size, at = number + 1, end - at, end
        where = f"{prefix}row {number}"
        if isinstance(value, dict):
            yield where, value
        else:
            fault = fault and f"{fault}, in the {size} characters up to the next element"
            yield Quarantined(where, "malformed JSON", fault or f"expected an object, found {type(value).__name__}")
        if at > _CHUNK:
            buffer, at = buffer[at:], 0


def _element_end(text: str, at: int) -> int:
    """Where the malformed element at `at` ends: before the comma or `]` behind it; -1 if the text ends before."""
    depth = 0
    for token in _JSON_TOKEN.finditer(text, at):
        mark = token[0]
        if mark == '"':  # a text that is not closed
            return -1
        if depth == 0 and mark in ",]":
            return token.start()
        depth += (mark in "[{") - (mark in "]}" and depth > 0)
    return -1


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def _csv(stream: IO[bytes], name: str, prefix: str, delimiter: str) -> Iterator[Read]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text, delimiter=delimiter)
    try:
        heading = reader.fieldnames or ()
    except csv.Error as error:
        raise SourceError(f"the heading of {name} cannot be read: {error}") from error
    repeated = sorted(column for column, times in Counter(heading).items() if times > 1)
    if repeated:
        raise SourceError(f"the heading of {name} names columns more than once: {repeated}")
    number = 0
    while True:
        number += 1
        where = f"{prefix}row {number}"  # a row may take several lines
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Quarantined(where, "malformed CSV", f"line {reader.line_num}: {error}")
            continue
        if None in values or any(value is None for value in values.values()):
            yield Quarantined(
                where, "malformed CSV", f"line {reader.line_num}: not the {len(heading)} values of the heading"
            )
        else:
            yield where, {key: value if value != "" else None for key, value in values.items()}


def _parquet(stream: Any, name: str, prefix: str) -> Iterator[Read]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=_BATCH):
            try:
                rows: list[Any] = batch.to_pylist()
            except (ValueError, OverflowError):  # text that is not UTF-8, a time that Python has not: which row's?
                rows = [_one_row(batch.slice(row, 1)) for row in range(batch.num_rows)]
            for values in rows:
                number += 1
                where = f"{prefix}row {number}"
                yield (where, values) if isinstance(values, dict) else Quarantined(where, "malformed value", values)
    except (pa.ArrowInvalid, OSError) as error:  # OSError: damaged pages
        raise SourceError(f"{name} is no whole Parquet file (behind row {number}): {error}") from error


def _require_regular(path: Path) -> None:
    """Raise SourceError for a pipe or a device, which would never end; opening reports what is missing."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise SourceError(f"{path} is no regular file")


def _one_row(batch: Any) -> dict[str, Any] | str:
    """The values of a batch of one row, or which of them Python cannot hold."""
    values: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except (ValueError, OverflowError) as error:
            return f"column {name!r}: {error}"
    return values


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
            for read in _json_lines(stream, f"{name} "):
                yield read if isinstance(read, Quarantined) else (read[0], {**read[1], PART_ROOT: part["root"]})


def _local_dataset(path: Path, manifest: Manifest) -> Iterator[Read]:
    """A folder as `datasets` writes it (save_to_disk), or as it lies on the Hub (hf download)."""
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        yield from hub.undecoded(hub.saved(path, manifest.split), path)
        return
    builder = hub.dataset_builder(path, manifest, None)
    files = _json_files(builder, manifest.split)
    for file, format in files:
        yield from _file(file, format, f"{file.name} " if len(files) > 1 else "")
    if not files:
        yield from hub.undecoded(hub.streamed(builder, path, manifest.split), path)


def _hub(manifest: Manifest) -> Iterator[Read]:
    if manifest.revision is None:
        copy = f", or put a local copy in {manifest.path}" if manifest.path else ""
        raise SourceError(
            f"`revision` is not set: fill in the commit (40 hex digits) of {manifest.hub} that you mean; "
            f"`git ls-remote https://huggingface.co/datasets/{manifest.hub} HEAD` prints the newest{copy}"
        )
    builder = hub.dataset_builder(manifest.hub, manifest, manifest.revision)
    yield from hub.undecoded(hub.streamed(builder, manifest.hub, manifest.split), manifest.hub)


def _json_files(builder: Any, split: str | None) -> list[tuple[Path, str]]:
    """The files of a split and their formats, if all are JSON that we read too; else none.

    `datasets` ends at a malformed line, and makes JSON texts of a column's values from the first one of another type.
    """
    if builder.info.features is not None or getattr(builder.config, "field", "") is not None:
        return []  # columns or a part of the file that the dataset's card asks for; other builders have no `field`
    paths = [Path(name) for name in (builder.config.data_files or {}).get(split or "train", ())]
    formats = [_json_format(path) if path.is_file() else None for path in paths]
    return [] if None in formats else [(path, format) for path, format in zip(paths, formats, strict=True) if format]


def _json_format(path: Path) -> str | None:
    """`jsonl` or `json`; files named .json on the Hub may be either."""
    format = _format_of(path.name)
    if format != "json":
        return format if format == "jsonl" else None
    with path.open("rb") as stream:
        first = stream.readline(_CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()
    return "json" if first.startswith(b"[") else "jsonl" if first.rstrip().endswith(b"}") else None


def _format_of(name: str) -> str | None:
    """Format of a data file, by its path within its folder or archive; None for other files."""
    *folders, last = name.split("/")
    if last.startswith("._") or "__MACOSX" in folders:  # of a Mac: what is known of the file of that name
        return None
    plain = last.lower()
    for extension in _COMPRESSED:
        plain = plain.removesuffix(extension)
    return next((kind for extension, kind in _EXTENSIONS.items() if plain.endswith(extension)), None)


def _some(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # only regular members are asked for
    return stream


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
