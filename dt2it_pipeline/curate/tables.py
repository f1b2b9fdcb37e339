"""Arrow tables to pandas frames and back, for the pipeline that calls the curation steps.

What belongs here: conversion and the quarantine rows. What does not: any decision about a pair.

A lean frame stands for a table of pairs whose long columns no decision looks at: instead of the texts it has the number
of its row and two columns that change sides as every chosen<x> and rejected<x> does.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.storage.schemas import SCHEMAS, validate

CARRIED = ("prompt_id", "chosen", "rejected")  # columns of pairs that a lean frame is without
_ROW = "row of the table"
_SIDES = ("chosen was rejected", "rejected was rejected")


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A frame of the table; nested columns such as `votes` stay Arrow-backed, without a Python object per row."""
    # A file that pandas wrote may say that a column is its index.
    return table.to_pandas(
        types_mapper=lambda kind: pd.ArrowDtype(kind) if pa.types.is_nested(kind) else None, ignore_metadata=True
    )


def plain_strings(table: pa.Table) -> pa.Table:
    """The same with plain strings where columns are dictionaries or views, as other writers choose to store strings."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type) or pa.types.is_string_view(field.type):
            kind = field.type.value_type if pa.types.is_dictionary(field.type) else pa.string()
            table = table.set_column(place, field.name, table.column(place).cast(kind))
    return table


def to_table(frame: pd.DataFrame, kind: str) -> pa.Table:
    """The table of a frame, with the columns of its kind; others, such as reason and detail, are left out.

    Raises:
        RecordError: a column is missing, a type cannot be cast or a required value is null.
    """
    names = [name for name in SCHEMAS[kind].names if name in frame.columns]
    return validate(pa.Table.from_pandas(frame[names], preserve_index=False).replace_schema_metadata(None), kind)


def lean_frame(pairs: pa.Table) -> pd.DataFrame:
    """A frame of pairs without their texts, for the functions of `published_algorithm`; see `whole_table`."""
    frame = to_frame(pairs.drop_columns([name for name in CARRIED if name in pairs.column_names]))
    frame[_ROW] = np.arange(len(frame))
    for column, value in zip(_SIDES, (False, True), strict=True):
        frame[column] = np.full(len(frame), value)
    return frame


def table_rows(lean: pd.DataFrame) -> np.ndarray:
    """Int [n]: the row of its table that each row of a lean frame stands for."""
    return lean[_ROW].to_numpy()


def in_table_order(lean: pd.DataFrame) -> pd.DataFrame:
    """A lean frame's rows in the order of their table."""
    return lean.iloc[table_rows(lean).argsort(kind="stable")].reset_index(drop=True)


def whole_table(lean: pd.DataFrame, pairs: pa.Table) -> pa.Table:
    """The table of kind `pairs` of a lean frame, made by any selection and swapping of the rows of `pairs`'s own.

    Raises:
        RecordError: as `to_table`.
    """
    rows, swapped = table_rows(lean), pa.array(lean[_SIDES[0]].to_numpy(dtype=bool))
    carried = pairs.select([name for name in CARRIED if name in pairs.column_names])
    if not np.array_equal(rows, np.arange(len(pairs))):
        carried = carried.take(pa.array(rows))
    kept = pa.Table.from_pandas(
        lean[[name for name in SCHEMAS["pairs"].names if name in lean.columns]], preserve_index=False
    ).replace_schema_metadata(None)
    for name in carried.column_names:
        column = carried[name]
        if name in ("chosen", "rejected"):
            other = carried["rejected" if name == "chosen" else "chosen"]
            column = pc.if_else(swapped, other, column)
        kept = kept.append_column(name, column)
    return validate(kept, "pairs")


def quarantine_table(part: pd.DataFrame, stage: str) -> pa.Table:
    """The table `quarantine` of `unscored` or `dropped` pairs: source row, stage, reason, detail, source and pair.

    A pair that comes from no row of a source has its own id there.
    """
    pair_ids = part["pair_id"].astype("str")
    rows = pd.DataFrame(
        {
            "row_id": part["row_id"].astype("object").fillna(pair_ids) if "row_id" in part else pair_ids,
            "stage": pd.Series(stage, index=part.index, dtype="str"),
            "reason": part["reason"].astype("str"),
            "detail": part["detail"].astype("str"),
            "source": part["source"].astype("str")
            if "source" in part
            else pd.Series("", index=part.index, dtype="str"),
            "pair_id": pair_ids,
        }
    )
    return to_table(rows, "quarantine")
