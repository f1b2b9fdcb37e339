"""The footer's columns as the package reads them: as PyArrow does, but for files at which PyArrow ends the process."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.curate.preference_files import clean_preference_files
from dt2it_pipeline.curate.voters.margins import CurationError
from dt2it_pipeline.human_review.own_tables import read_own_pairs
from dt2it_pipeline.ingest.readers.parquet_footer import row_groups
from dt2it_pipeline.ingest.readers.parquet_pages import ChunkedFile
from dt2it_pipeline.ingest.readers.thrift_compact import FormatError
from dt2it_pipeline.ingest.rows import SourceError
from dt2it_pipeline_tests.support import parquet_lies
from dt2it_pipeline_tests.support.mutation import mutated_bytes
from dt2it_pipeline_tests.support.source_files import manifest, values

NAMES = (
    "path_in_schema", "physical_type", "compression", "num_values", "total_uncompressed_size", "total_compressed_size",
    "data_page_offset", "dictionary_page_offset",
)  # fmt: skip


def written(**how: Any) -> bytes:
    table = pa.table(
        {
            "text": [f"{'x' * (row % 90)}{row}" for row in range(900)],
            "lists": [list(range(row % 4)) or None for row in range(900)],
            "structs": [{"inner": [{"a name": str(row), "flag": row % 2 == 0}]} for row in range(900)],
            "time": pa.array(range(900), pa.timestamp("us")),
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out, **how)
    return out.getvalue()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"row_group_size": 100, "write_page_index": True},
        {"compression": "gzip", "use_dictionary": False, "write_statistics": False},
        {"compression": "none", "data_page_version": "2.0", "write_page_checksum": True, "version": "1.0"},
        {"compression": "lz4", "store_schema": False},
        {"compression": "zstd", "sorting_columns": [pq.SortingColumn(0)]},
    ],
    ids=str,
)
def test_columns_are_those_that_pyarrow_names(how: dict[str, Any]) -> None:
    content = written(**how)
    found, expected = row_groups(ChunkedFile(io.BytesIO(content)).footer()), pq.read_metadata(io.BytesIO(content))
    assert len(found) == expected.num_row_groups
    for number, group in enumerate(found):
        one = expected.row_group(number)
        assert group.num_rows == one.num_rows and len(group.columns) == one.num_columns
        for place, column in enumerate(group.columns):
            assert [getattr(column, name) for name in NAMES] == [getattr(one.column(place), name) for name in NAMES]


def test_a_column_that_ends_pyarrows_process_costs_its_source(tmp_path: Path) -> None:
    """Its repetition is none that there is, so that its statistics do not fit: PyArrow's accessor calls terminate()."""
    content = written()
    damaged = content.replace(b"%\x02\x18\x04text", b"%\x06\x18\x04text")
    assert damaged != content
    (tmp_path / "rows.parquet").write_bytes(damaged)
    with pytest.raises(SourceError, match="is no whole Parquet file"):
        values(manifest(tmp_path / "rows.parquet"), tmp_path)


def test_whatever_is_wrong_with_a_footer_is_an_error_of_its_own() -> None:
    footer = ChunkedFile(io.BytesIO(written(row_group_size=300))).footer()
    random, refused = Random(5), 0
    for _ in range(600):
        try:
            row_groups(mutated_bytes(random, footer))
        except FormatError:
            refused += 1
    assert 100 < refused < 600
    with pytest.raises(FormatError, match="its footer is longer than the file"):
        ChunkedFile(io.BytesIO(b"PAR1\xff\xff\xff\x00PAR1")).footer()


def test_a_footer_with_two_lists_of_row_groups_is_refused() -> None:
    """PyArrow takes the second; what had been checked would be the first."""
    footer = ChunkedFile(io.BytesIO(written())).footer()
    assert footer.endswith(b"\0")
    another = footer[:-1] + bytes([0x09]) + parquet_lies.i32(4) + parquet_lies.a_list(12, []) + b"\0"
    with pytest.raises(FormatError, match="2 lists of row groups"):
        row_groups(another)


def test_a_damaged_column_that_nobody_reads_ends_no_command(tmp_path: Path) -> None:
    out = io.BytesIO()
    names = ("chosen", "rejected", "unread")
    pq.write_table(pa.table({name: [f"{name} {row}" for row in range(40)] for name in names}), out)
    damaged = out.getvalue().replace(b"%\x02\x18\x06unread", b"%\x06\x18\x06unread")
    assert damaged != out.getvalue()
    (tmp_path / "pairs.parquet").write_bytes(damaged)
    assert len(next(read_own_pairs(tmp_path / "pairs.parquet").pieces(["chosen"]))) == 40
    with contextlib.suppress(CurationError):  # read or refused
        clean_preference_files(tmp_path / "pairs.parquet", tmp_path / "out", chosen="chosen", rejected="rejected")
