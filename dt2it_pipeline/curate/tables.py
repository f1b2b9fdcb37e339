"""Arrow tables to pandas frames and back, for the pipeline that calls the curation steps.

What belongs here: conversion and the set-aside rows. What does not: any decision about a pair.
"""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from dt2it_pipeline.records import SCHEMAS, validate


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A frame of the table; nested columns such as `votes` stay Arrow-backed, without a Python object per row."""
    return table.to_pandas(types_mapper=lambda kind: pd.ArrowDtype(kind) if pa.types.is_nested(kind) else None)


def to_table(frame: pd.DataFrame, kind: str) -> pa.Table:
    """The table of a frame, with the columns of its kind; others, such as reason and detail, are left out.

    Raises:
        RecordError: a column is missing, a type cannot be cast or a required value is null.
    """
    names = [name for name in SCHEMAS[kind].names if name in frame.columns]
    return validate(pa.Table.from_pandas(frame[names], preserve_index=False).replace_schema_metadata(None), kind)


def set_aside_table(part: pd.DataFrame, stage: str) -> pa.Table:
    """Set-aside rows of `unscored` or `dropped` pairs: pair_id, the stage, reason, detail and source."""
    rows = pd.DataFrame(
        {
            "row_id": part["pair_id"].astype("str"),
            "stage": pd.Series(stage, index=part.index, dtype="str"),
            "reason": part["reason"].astype("str"),
            "detail": part["detail"].astype("str"),
            "source": part["source"].astype("str")
            if "source" in part
            else pd.Series("", index=part.index, dtype="str"),
        }
    )
    return to_table(rows, "set_aside")
