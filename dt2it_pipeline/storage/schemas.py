"""Arrow schemas of every table, and the content ids by which rows are found.

What belongs here: the shape of the tables and the ids. What does not: where tables lie (store.py) and how they are made
(the stage packages).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import pyarrow as pa

from dt2it_pipeline.errors import UserError

_MEDIUM = pa.struct([pa.field("kind", pa.string()), pa.field("sha256", pa.string()), pa.field("path", pa.string())])
_TURN = pa.struct([pa.field("role", pa.string()), pa.field("text", pa.string())])
_VOTE = pa.struct([pa.field("voter", pa.string()), pa.field("margin", pa.float64())])


def _schema(*fields: tuple[str, pa.DataType] | tuple[str, pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(f[0], f[1], nullable=len(f) > 2 and bool(f[2])) for f in fields])


NULLABLE = True

SCHEMAS: dict[str, pa.Schema] = {
    # A question with its images. `turns` hold one `<image>` or `<video>` marker per medium, in the order of `media`.
    "prompts": _schema(
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("system", pa.string()),
        ("turns", pa.list_(_TURN)),
        ("media", pa.list_(_MEDIUM)),
        ("reference", pa.string(), NULLABLE),
        ("language", pa.string()),
        ("meta", pa.string()),  # JSON object with what else the source has
    ),
    "responses": _schema(
        ("response_id", pa.string()), ("prompt_id", pa.string()), ("text", pa.string()), ("generator", pa.string())
    ),
    "judgements": _schema(
        ("prompt_id", pa.string()),
        ("response_id", pa.string()),
        ("judge", pa.string()),
        ("mode", pa.string()),  # listwise, pointwise or pairwise
        ("order", pa.list_(pa.int32())),  # presentation order of the list; empty when pointwise
        ("score", pa.float64(), NULLABLE),
        ("criteria", pa.string()),  # JSON object: criterion -> {weight, score}
        ("status", pa.string()),
        ("template_hash", pa.string()),
    ),
    "pairs": _schema(
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("strength", pa.float64(), NULLABLE),
        ("label", pa.string()),
        ("round", pa.int32()),
        ("source", pa.string()),
        ("votes", pa.list_(_VOTE)),
        # The row of the source that the pair comes from: the source's own id of it, else its place there, such as
        # `line 17`. Rankings and ratings give several pairs of one row. Null for pairs that the pipeline constructs.
        ("row_id", pa.string(), NULLABLE),
    ),
    "scores": _schema(("response_id", pa.string()), ("voter", pa.string()), ("score", pa.float32())),
    "votes": _schema(
        ("pair_id", pa.string()), ("judge", pa.string()), ("order", pa.string()), ("verdict", pa.string(), NULLABLE)
    ),
    # People's answers about pairs: the id of the response that they prefer, null for neither.
    "people_votes": _schema(("pair_id", pa.string()), ("person", pa.string()), ("preferred_id", pa.string(), NULLABLE)),
    # Human T2I preferences as they are found: two images for one caption.
    "t2i_preferences": _schema(
        ("preference_id", pa.string()),  # hash of the caption and both images
        ("caption", pa.string()),
        ("preferred", _MEDIUM),
        ("other", _MEDIUM),
        ("strength", pa.float64(), NULLABLE),
        ("language", pa.string()),
        ("source", pa.string()),
        ("row_id", pa.string(), NULLABLE),  # as that of pairs
    ),
    "benchmark_items": _schema(
        ("item_id", pa.string()),
        ("benchmark", pa.string()),
        ("group", pa.string()),
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
    ),
    "benchmark_scores": _schema(
        ("model", pa.string()),
        ("benchmark", pa.string()),
        ("group", pa.string()),
        ("pairs", pa.int64()),
        ("correct", pa.int64()),
        ("ties", pa.int64()),
        ("unscored", pa.int64()),
        ("accuracy", pa.float64(), NULLABLE),
    ),
    # Every figure of a benchmark's entry with its bootstrap interval; `count` is of what it is a share: pairs, or ids.
    "benchmark_figures": _schema(
        ("model", pa.string()),
        ("benchmark", pa.string()),
        ("figure", pa.string()),
        ("value", pa.float64(), NULLABLE),
        ("low", pa.float64(), NULLABLE),
        ("high", pa.float64(), NULLABLE),
        ("count", pa.int64()),
    ),
    # What a model made of every single pair of a benchmark.
    "benchmark_results": _schema(
        ("model", pa.string()),
        ("benchmark", pa.string()),
        ("item_id", pa.string()),
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("group", pa.string()),
        ("chosen_score", pa.float64(), NULLABLE),
        ("rejected_score", pa.float64(), NULLABLE),
        ("outcome", pa.string()),  # correct, wrong, tie or unscored
    ),
    # Rows that a stage could not use. Nothing is lost silently: rows in = rows out + rows here.
    "quarantine": _schema(
        ("row_id", pa.string()),  # the source's row where there is one, else the id of what was quarantined
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("source", pa.string()),
        ("pair_id", pa.string(), NULLABLE),  # of the pair that was quarantined, or that the row repeats
    ),
}

# Columns that tables of earlier versions lack; such a table is read with null in their place.
ADDED_COLUMNS = {"pairs": ("row_id",), "t2i_preferences": ("row_id",), "quarantine": ("pair_id",)}

LABELS = ("original", "flipped", "annotated", "constructed", "reformulated")


class RecordError(UserError, ValueError):
    """A table does not have the columns or types of its kind."""

    help_page: ClassVar[str] = "troubleshooting#tables"


def table(rows: Iterable[Mapping[str, Any]], kind: str) -> pa.Table:
    """Build a table of one kind from row dictionaries. Raises RecordError as `validate` does."""
    schema = _schema_of(kind)
    try:
        made = pa.Table.from_pylist(list(rows), schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
        raise RecordError(f"table {kind!r}: {error}") from error
    return validate(made, kind)


def validate(given: pa.Table, kind: str) -> pa.Table:
    """Return `given` in the schema of its kind: columns in order, types cast where nothing is lost.

    A column of ADDED_COLUMNS that is missing is null throughout.

    Raises:
        RecordError: a column is missing or unknown, a type cannot be cast, or a required value is null.
    """
    schema = _schema_of(kind)
    for name in ADDED_COLUMNS.get(kind, ()):
        if name not in given.column_names:
            given = given.append_column(name, pa.nulls(given.num_rows, schema.field(name).type))
    missing = [name for name in schema.names if name not in given.column_names]
    unknown = [name for name in given.column_names if name not in schema.names]
    if missing or unknown:
        raise RecordError(f"table {kind!r}: missing columns {missing}, unknown columns {unknown}")
    columns = []
    for field in schema:
        column = given.column(field.name)
        if not column.type.equals(field.type):
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise RecordError(f"table {kind!r}, column {field.name!r}: {error}") from error
        if not field.nullable and column.null_count:
            where = next(i for i, value in enumerate(column) if not value.is_valid)
            raise RecordError(f"table {kind!r}, column {field.name!r}: {column.null_count} null, first in row {where}")
        columns.append(column.combine_chunks() if column.num_chunks > 1 else column)
    return pa.table(columns, schema=schema)


def _schema_of(kind: str) -> pa.Schema:
    try:
        return SCHEMAS[kind]
    except KeyError:
        raise RecordError(f"unknown table kind {kind!r}; known: {', '.join(SCHEMAS)}") from None
