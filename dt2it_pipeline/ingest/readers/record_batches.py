"""The rows of Arrow's record batches in Python, for Parquet and Arrow files alike.

`datasets` writes values of any type as JSON texts, and says so beside the schema, under `huggingface`. Nothing else of
its types changes a value: an image is {bytes, path} as it lies, and the numbers of classes stay numbers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from dt2it_pipeline.config.strict_yaml import distinct_keys
from dt2it_pipeline.ingest.rows import SourceError

_TYPE = "_type"
_Decoder = Callable[[Any], Any]


def values_of(batch: pa.RecordBatch, decode: Callable[[dict[str, Any]], dict[str, Any] | str]) -> Iterator[Any]:
    """The values of each row of a batch by their columns, or in words which of them Python cannot hold.

    Args:
        batch: of few rows.
        decode: what `json_decoder` gave.
    """
    try:
        rows: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, a time that Python has not: which row's?
        rows = [_one_row(batch.slice(row, 1)) for row in range(batch.num_rows)]
    for values in rows:
        yield decode(values) if isinstance(values, dict) else values


def require_distinct_columns(schema: pa.Schema, name: str) -> None:
    """Raise SourceError where two columns of a file have one name: of two values a row would have one."""
    repeated = sorted(column for column, times in Counter(schema.names).items() if times > 1)
    if repeated:
        raise SourceError(f"{name} names columns more than once: {', '.join(repeated)[:200]}; rename them")


def json_decoder(schema: pa.Schema) -> Callable[[dict[str, Any]], dict[str, Any] | str]:
    """What puts the values of JSON texts in their place in a row; it returns what is wrong with a malformed one.

    >>> schema = pa.schema({"answer": pa.json_()})
    >>> json_decoder(schema)({"answer": '{"text": "yes"}'}), json_decoder(schema)({"answer": "{"})[:17]
    ({'answer': {'text': 'yes'}}, "column 'answer': ")
    """
    known = _features(schema)
    decoders = {field.name: found for field in schema if (found := _of(known.get(field.name), field.type))}

    def decoded(values: dict[str, Any]) -> dict[str, Any] | str:
        for column, decode in decoders.items():
            try:
                values[column] = decode(values[column])
            except (ValueError, RecursionError, TypeError, AttributeError) as error:  # the last two: another type
                return f"column {column!r}: {error}"
        return values

    return decoded


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """The types that `datasets` wrote beside a schema; none where that cannot be read."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _of(feature: Any, kind: pa.DataType) -> _Decoder | None:
    """What decodes the values of one type; None where they stay as they are."""
    if isinstance(kind, pa.JsonType) or (isinstance(feature, dict) and feature.get(_TYPE) == "Json"):
        return lambda value: None if value is None else json.loads(value, object_pairs_hook=distinct_keys)
    if pa.types.is_struct(kind):
        inner = feature if isinstance(feature, dict) else {}
        fields = {field.name: found for field in kind if (found := _of(inner.get(field.name), field.type))}
        if not fields:
            return None

        def of_struct(value: Any) -> Any:
            if value is None:
                return None
            return value | {name: decode(value[name]) for name, decode in fields.items()}

        return of_struct
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        first = feature[0] if isinstance(feature, list) and feature else None
        decode = _of(feature.get("feature") if isinstance(feature, dict) else first, kind.value_type)
        return decode and (lambda value: None if value is None else [decode(each) for each in value])
    return None


def _one_row(batch: pa.RecordBatch) -> dict[str, Any] | str:
    """The values of a batch of one row, or which of them Python cannot hold."""
    values: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except (ValueError, OverflowError) as error:
            return f"column {name!r}: {error}"
    return values
