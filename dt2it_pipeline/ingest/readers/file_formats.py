"""Reads the rows of one data file: JSON Lines, JSON, CSV, TSV or Parquet, maybe compressed.

JSON and CSV are read here, so that a malformed line is set aside with its number instead of ending the source. What a
Mac puts beside files (`._*`, `__MACOSX`) is no data. What belongs here: formats, and what is wrong with a line or an
element. What does not: which files there are (reading.py).
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

from dt2it_pipeline.config.strict_yaml import distinct_keys
from dt2it_pipeline.ingest.forms.chats import is_chat
from dt2it_pipeline.ingest.forms.sides import is_content
from dt2it_pipeline.ingest.manifest import FORMATS
from dt2it_pipeline.ingest.readers.bounds import (
    DECOMPRESSED,
    LONGEST_LINE,
    LONGEST_OBJECT,
    Expanding,
    bounded_lines,
    bounded_text_lines,
)
from dt2it_pipeline.ingest.readers.parquet_rows import parquet_rows
from dt2it_pipeline.ingest.rows import Line, Quarantined, Read, SourceError, Unparsed
from dt2it_pipeline.storage.table_files import delimiter_of

EXTENSIONS = {f".{name}": name for name in FORMATS if name not in ("parts", "dataset")} | {".ndjson": "jsonl"}
CHUNK = 1 << 20  # characters
_JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SHOWN = 8  # keys in a message
_PEEK = 1 << 16  # bytes that are looked at to tell JSON from JSON Lines


def format_of(name: str) -> str | None:
    """Format of a data file, by its path within its folder or archive; None for other files."""
    *folders, last = name.split("/")
    if last.startswith("._") or "__MACOSX" in folders:  # of a Mac: what is known of the file of that name
        return None
    plain = last.lower()
    for extension in DECOMPRESSED:
        plain = plain.removesuffix(extension)
    return next((kind for extension, kind in EXTENSIONS.items() if plain.endswith(extension)), None)


def rows_of_stream(stream: IO[bytes], format: str | None, name: str, prefix: str) -> Iterator[Unparsed]:
    """Rows of a data file, malformed ones among them as Quarantined; of JSON Lines its lines, for `parsed`.

    Args:
        stream: of its bytes.
        format: one of EXTENSIONS' values, or `text`, each of whose lines is a row.
        name: of the file, for errors; by its end it may be compressed.
        prefix: of the place of each row.

    Raises:
        SourceError: the format is not known, or the file is not of it.
    """
    stream = _decompressed(stream, name)
    if format == "parquet":
        yield from parquet_rows(stream if stream.seekable() else _in_memory(stream, name), name, prefix)
    elif format in ("json", "jsonl", "csv", "tsv", "text"):
        text = io.BufferedReader(stream, _PEEK)  # type: ignore[type-var]
        if text.peek(2)[:2] in _UTF_16:
            raise SourceError(f"{name} is text in UTF-16; save it as UTF-8")
        if format == "json" and _holds_lines(text.peek(_PEEK)):
            yield from _one_or_lines(text, name, prefix)
        elif format == "json":
            yield from _json_array(text, name, prefix)
        elif format in ("csv", "tsv"):
            yield from _csv(text, name, prefix, "\t" if format == "tsv" else ",")
        elif format == "text":
            yield from _texts(text, name, prefix)
        else:
            yield from json_lines(text, prefix)
    else:
        raise SourceError(
            f"the format of {name} is not known: let its name end in one of {', '.join(EXTENSIONS)}, or set `format` "
            f"in its manifest ({', '.join(FORMATS)})"
        )


def _decompressed(stream: IO[bytes], name: str) -> IO[bytes]:
    for extension, plain in DECOMPRESSED.items():
        if name.lower().endswith(extension):
            return cast("IO[bytes]", Expanding(plain(stream), stream.tell, name))
    return stream


def _in_memory(stream: IO[bytes], name: str) -> io.BytesIO:
    content = stream.read(LONGEST_OBJECT + 1)
    if len(content) > LONGEST_OBJECT:
        raise SourceError(f"{name} is larger than {LONGEST_OBJECT:,} bytes and cannot be read in place; unpack it")
    return io.BytesIO(content)


def _holds_lines(start: bytes) -> bool:
    """Whether a file that is called JSON holds one object per line, by how it starts."""
    first, newline, _ = start.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    return first.startswith(b"{") and (first.rstrip().endswith(b"}") or not newline)


def json_lines(stream: IO[bytes], prefix: str) -> Iterator[Line | Quarantined]:
    """One JSON object per line, unparsed; blank lines are left out."""
    for number, raw in enumerate(bounded_lines(stream), start=1):
        if raw is None:
            yield Quarantined(f"{prefix}line {number}", "line too long", f"more than {LONGEST_LINE:,} bytes")
            continue
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        if not line.strip():
            continue
        yield Line(f"{prefix}line {number}", line)


def _texts(stream: IO[bytes], name: str, prefix: str) -> Iterator[Read]:
    """A row `text` for each line, as `datasets` reads texts."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(bounded_text_lines(text, name), start=1):
        yield f"{prefix}line {number}", {"text": line.rstrip("\n")}


def rows_under(stream: IO[bytes], field: str, name: str, prefix: str) -> Iterator[Read]:
    """The rows that one JSON object has under a key; arguments are those of `rows_of_stream`.

    Raises:
        SourceError: it is none, too long, or has no list there.
    """
    content = _decompressed(stream, name).read(LONGEST_OBJECT + 1)
    if len(content) > LONGEST_OBJECT:
        raise SourceError(f"{name} is one JSON object of more than {LONGEST_OBJECT:,} bytes; write JSON Lines")
    try:
        value = json.loads(content.decode("utf-8-sig", "surrogateescape"), object_pairs_hook=distinct_keys)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{name} is not valid JSON: {error}") from error
    rows = value.get(field) if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise SourceError(f"{name} has no list of rows under {field!r}, which the card of its folder names")
    yield from _elements(rows, prefix)


def parsed(read: Unparsed) -> Read:
    """What a line holds; anything that is read otherwise is returned as it is."""
    if not isinstance(read, Line):
        return read
    try:
        value = json.loads(read.raw.decode("utf-8", "surrogateescape"), object_pairs_hook=distinct_keys)
        if not isinstance(value, dict):
            raise ValueError(_no_object(value))
    except (ValueError, RecursionError) as error:
        return Quarantined(read.where, "malformed JSON", str(error))
    return read.where, value


def _one_or_lines(stream: IO[bytes], name: str, prefix: str) -> Iterator[Unparsed]:
    """The objects of a file that is called JSON, one per line; of a single one, maybe the rows that it wraps."""
    lines = json_lines(stream, prefix)
    start = [parsed(read) for read in (next(lines, None), next(lines, None)) if read is not None]
    if len(start) == 1 and isinstance(start[0], tuple) and (rows := _wrapped(start[0][1], name)) is not None:
        yield from _elements(rows, prefix)
        return
    yield from start
    yield from lines


def _wrapped(value: Mapping[str, Any], name: str) -> list[Any] | None:
    """The rows of an object that has one list of objects; None where it has none, or is a row itself.

    Raises SourceError where it has several such lists, inside of other values too: the others would be lost.
    """
    there = {key: found for key, found in value.items() if _is_list_of_objects(found)}
    if not there or any(map(is_content, value)) or any(map(is_chat, there.values())):
        return None
    names = _lists_of_objects(value, "")
    if len(names) > 1:
        raise SourceError(
            f"{name} is one JSON object with {len(names)} lists of objects ({', '.join(names)}), and rows are those of "
            "one: write the list that counts to a file of its own"
        )
    return next(iter(there.values()))


def _lists_of_objects(value: Any, where: str) -> list[str]:
    """The keys under which a JSON value has lists of objects, joined by dots; those inside of such lists left out."""
    if _is_list_of_objects(value):
        return [where]
    if not isinstance(value, dict):
        return []
    return [found for key, part in value.items() for found in _lists_of_objects(part, f"{where}.{key}".lstrip("."))]


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def _elements(rows: list[Any], prefix: str) -> Iterator[Read]:
    for number, value in enumerate(rows, start=1):
        where = f"{prefix}row {number}"
        yield (where, value) if isinstance(value, dict) else Quarantined(where, "malformed JSON", _no_object(value))


def _no_object(value: Any) -> str:
    return f"expected an object, found {type(value).__name__}"


def _json_object(text: str, name: str, prefix: str) -> Iterator[Read]:
    """The rows of one long JSON object that wraps them. Raises SourceError where it is none."""
    fault = f"{name} is neither a JSON array nor one JSON object per line, nor one object with a list of rows"
    try:
        value = json.loads(text, object_pairs_hook=distinct_keys)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{fault}: {error}") from error
    rows = _wrapped(value, name)
    if rows is None:
        raise SourceError(f"{fault}; it has {sorted(value)[:_SHOWN]}")
    yield from _elements(rows, prefix)


def _json_array(stream: IO[bytes], name: str, prefix: str) -> Iterator[Read]:
    """Elements of one long JSON array, decoded one by one as the file is read.

    Raises:
        SourceError: it is no array, ends within an element or goes on behind its end: nobody knows how many are lost.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
    decoder = json.JSONDecoder(object_pairs_hook=distinct_keys)
    buffer, number, ended = text.read(CHUNK).lstrip(), 0, False
    if buffer.startswith("{"):
        buffer += text.read(LONGEST_OBJECT)
        if len(buffer) > LONGEST_OBJECT:
            raise SourceError(f"{name} is one JSON object of more than {LONGEST_OBJECT:,} characters; write JSON Lines")
        yield from _json_object(buffer, name, prefix)
        return
    if not buffer.startswith("["):
        raise SourceError(f"{name} is neither a JSON array nor one JSON object per line")
    at = 1
    while True:
        at = _skip(buffer, at, " \t\r\n,")
        if at < len(buffer) and buffer[at] == "]":
            rest = buffer[at + 1 :].lstrip()
            while not rest and (more := text.read(CHUNK)):
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
            if len(buffer) - at > LONGEST_LINE:
                raise SourceError(f"element {number + 1} of {name} is longer than {LONGEST_LINE:,} characters")
            more = text.read(max(CHUNK, len(buffer) - at))  # doubling: an element is never decoded often
            buffer, at, ended = buffer[at:] + more, 0, not more
            continue
        number, size, at = number + 1, end - at, end
        where = f"{prefix}row {number}"
        if isinstance(value, dict):
            yield where, value
        else:
            fault = fault and f"{fault}, in the {size} characters up to the next element"
            yield Quarantined(where, "malformed JSON", fault or _no_object(value))
        if at > CHUNK:
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
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    lines = bounded_text_lines(text, name)
    first = next(lines, "")
    if delimiter == ",":
        delimiter = delimiter_of(first)
    reader = csv.DictReader(itertools.chain([first], lines), delimiter=delimiter)
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
