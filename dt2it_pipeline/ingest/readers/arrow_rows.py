"""Reads the rows of an Arrow file, as `datasets` writes them, in memory that its size bounds.

The file is mapped, not read: what Arrow makes of a batch are places in it. So each batch is checked before anything
follows them, and what its rows take in Python is counted before they are made.

What belongs here: batches of rows, and their values in Python. What does not: headers of messages (arrow_messages.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dt2it_pipeline.ingest.readers.arrow_messages import MessageError, body_bytes, is_big_endian
from dt2it_pipeline.ingest.readers.bounds import ROW_BYTES, check_ratio
from dt2it_pipeline.ingest.readers.record_batches import json_decoder, require_distinct_columns, values_of
from dt2it_pipeline.ingest.rows import Quarantined, Read, SourceError

_BATCH = 64  # rows at a time
_BATCH_BYTES = 2**28  # of the rows that are in memory together
_VALUE, _POINTER = 56, 8  # bytes of a text in Python beside its letters, and of a place in a list
_MAGIC = b"ARROW1\0\0"  # of a file; else it is a stream, which is what a file holds behind this


def arrow_rows(file: Path, name: str, prefix: str) -> Iterator[Read]:
    """The rows of an Arrow file or stream in order; one with a value that Python cannot hold as Quarantined.

    Args:
        file: not compressed as a whole; its batches may be.
        name: of the file, for errors.
        prefix: of the place of each row.

    Raises:
        SourceError: it is no whole Arrow file, has columns of a type that `datasets` does not write, or expands to
            more than 200 times its size, and to more than 1 GiB.
    """
    number = 0
    try:
        for batch, decode in _batches(file, name):
            for values in values_of(batch, decode):
                number += 1
                where = f"{prefix}row {number}"
                yield (where, values) if isinstance(values, dict) else Quarantined(where, "malformed value", values)
    except (pa.ArrowException, OSError, EOFError, MessageError, UnicodeDecodeError) as error:  # the last: of a name
        raise SourceError(f"{name} is no whole Arrow file (behind row {number}): {error}") from error


def _batches(file: Path, name: str) -> Iterator[tuple[pa.RecordBatch, Any]]:
    """Batches of a few rows, and what decodes their values."""
    if file.stat().st_size == 0:
        raise EOFError("it is empty")
    expanded = 0
    with pa.memory_map(str(file)) as source:
        size = source.size()
        source.seek(len(_MAGIC) if source.read(len(_MAGIC)) == _MAGIC else 0)
        messages = pa.ipc.MessageReader.open_stream(source)
        first = next(messages)
        if first.type != "schema":
            raise MessageError(f"it begins with a {first.type}")
        schema = pa.ipc.read_schema(first)
        if is_big_endian(memoryview(first.metadata)):
            raise MessageError("its numbers have their highest byte first")
        require_distinct_columns(schema, name)
        for column in schema:
            _check_type(column.type, f"column {column.name!r} of {name}")
        decode = json_decoder(schema)
        for message in messages:
            if message.type != "record batch":
                raise MessageError(f"a {message.type} stands between its record batches")
            body = memoryview(message.body if message.body is not None else b"")
            check_ratio(body_bytes(memoryview(message.metadata), body), len(body), f"a record batch of {name}")
            batch = _plain(pa.ipc.read_record_batch(message, schema))
            batch.validate()
            check_ratio(expanded + _weight(batch), size, name)  # looking at all values of views may take hours
            try:
                batch.validate(full=True)
            except pa.ArrowInvalid:
                # Texts that are not UTF-8 cost their rows alone (`values_of`); as bytes, only places can be at fault.
                _plain(pa.ipc.read_record_batch(message, _as_bytes(schema))).validate(full=True)
            for part in _parts(batch):
                expanded += _weight(part)
                check_ratio(expanded, size, name)
                yield part, decode


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in pieces of so few rows that they take little together; a large row is a piece of its own."""
    rows = _BATCH if _weight(batch) > _BATCH_BYTES else batch.num_rows
    first = 0
    while first < batch.num_rows:
        piece = batch.slice(first, rows)
        if piece.num_rows > 1 and _weight(piece) > _BATCH_BYTES:
            rows = max(1, piece.num_rows // 2)
            continue
        first += piece.num_rows
        for start in range(0, piece.num_rows, _BATCH):
            yield piece.slice(start, _BATCH)


def _weight(batch: pa.RecordBatch) -> int:
    """Bytes that the rows of a batch take in Python, about."""
    return ROW_BYTES * batch.num_rows + sum(map(_bytes_of, batch.columns))


def _bytes_of(array: pa.Array) -> int:
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _bytes_of(array.storage)
    if pa.types.is_struct(kind):
        return ROW_BYTES * len(array) + sum(_bytes_of(array.field(place)) for place in range(kind.num_fields))
    if pa.types.is_fixed_size_list(kind):
        inner = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        return _VALUE * len(array) + _bytes_of(inner)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if len(array) == 0:
            return 0
        first, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return _VALUE * len(array) + _bytes_of(array.values.slice(first, end - first))
    if pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return _POINTER * len(array)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):  # many may be the same place
        lengths = np.frombuffer(array.buffers()[1], np.int32)[:: 16 // 4][array.offset : array.offset + len(array)]
        return _VALUE * len(array) + int(np.maximum(lengths, 0).sum(dtype=np.int64))
    return _VALUE * len(array) + int(array.nbytes)


def _check_type(kind: pa.DataType, where: str) -> None:
    """Raise SourceError for types of which little in a file is much in memory, and which `datasets` does not write."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        _check_type(kind.storage_type, where)
    elif types.is_struct(kind):
        for field in kind:
            _check_type(field.type, where)
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        _check_type(kind.value_type, where)
    elif types.is_nested(kind) or types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        raise SourceError(f"{where} has the type {kind}, which is not read; write it as plain texts, numbers and lists")


def _as_bytes(schema: pa.Schema) -> pa.Schema:
    """A schema of the same batches in which texts are bytes, which lie in the same way."""
    return pa.schema([field.with_type(_type_as_bytes(field.type)) for field in schema])


def _type_as_bytes(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _type_as_bytes(kind.storage_type)
    if types.is_struct(kind):
        return pa.struct([field.with_type(_type_as_bytes(field.type)) for field in kind])
    if types.is_list(kind):
        return pa.list_(_type_as_bytes(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(_type_as_bytes(kind.value_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_type_as_bytes(kind.value_type), kind.list_size)
    texts = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    return texts.get(kind, kind)


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same batch without extension types in its columns; the values of arrays would be NumPy's."""
    columns = [each.storage if isinstance(each, pa.ExtensionArray) else each for each in batch.columns]
    if not columns:
        return batch
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
