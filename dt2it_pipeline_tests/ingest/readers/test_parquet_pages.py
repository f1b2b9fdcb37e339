"""Parquet files of all kinds of pages are read whole: the headers of their pages are read here before Arrow does."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline_tests.support.source_files import manifest, values


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
@pytest.mark.parametrize("compression", ["snappy", "zstd", "none", "gzip", "brotli", "lz4"])
def test_pages_of_every_kind_are_read(tmp_path: Path, version: str, encoding: str, compression: str) -> None:
    table = pa.table(
        {
            "text": [f"{'x' * (row % 90)}{row}" for row in range(900)],
            "lists": [list(range(row % 4)) or None for row in range(900)],
            "structs": [{"inner": [{"name": str(row)}] * (row % 3)} for row in range(900)],
            "nothing": pa.nulls(900, pa.int32()),
            "maps": pa.array([[("key", row)] for row in range(900)], pa.map_(pa.string(), pa.int64())),
        }
    )
    for number, more in enumerate(
        ({}, {"data_page_size": 500, "write_page_checksum": True}, {"write_statistics": False})
    ):
        pq.write_table(
            table, tmp_path / "rows.parquet", row_group_size=400, compression=compression, data_page_version=version,
            write_page_index=number == 1, column_encoding={"text": encoding}, use_dictionary=["maps.key_value.key"],
            **more,
        )  # fmt: skip
        assert values(manifest(tmp_path / "rows.parquet"), tmp_path) == table.to_pylist()


def test_an_empty_table_between_others_is_read_as_no_row(tmp_path: Path) -> None:
    """PyArrow writes a row group without rows for it, and says that each of its columns begins at byte 0."""
    kind = pa.schema({"text": pa.string(), "lists": pa.list_(pa.string()), "more": pa.list_(pa.string())})
    rows = [{"text": "a", "lists": ["b"], "more": []}, {"text": None, "lists": None, "more": [None, "c"]}]
    with pq.ParquetWriter(tmp_path / "rows.parquet", kind) as writer:
        for some in ([], rows[:1], [], rows[1:], []):
            writer.write_table(pa.Table.from_pylist(some, kind))
    assert values(manifest(tmp_path / "rows.parquet"), tmp_path) == rows
    pq.write_table(pa.Table.from_pylist([], kind), tmp_path / "none.parquet")
    assert values(manifest(tmp_path / "none.parquet"), tmp_path) == []
