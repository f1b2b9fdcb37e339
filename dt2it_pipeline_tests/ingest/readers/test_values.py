"""What the texts of a file mean: numbers, flags, nothing, and long values."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.ingest.readers import file_formats
from dt2it_pipeline.ingest.reading import SourceError
from dt2it_pipeline.ingest.sources import read_source
from dt2it_pipeline_tests.support.source_files import ROWS, as_csv, lines, manifest, values


def test_long_values_of_a_csv_are_read_and_a_heading_without_end_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [ROWS[0] | {"rejected": "A" * 1_000_000}]
    (tmp_path / "rows.csv").write_bytes(as_csv(rows))
    assert values(manifest(tmp_path / "rows.csv"), tmp_path) == rows
    monkeypatch.setattr(file_formats, "LONGEST_LINE", 10)
    before = csv.field_size_limit(10)
    try:
        (tmp_path / "rows.csv").write_bytes(b"x" * 200_000 + b",a\n1,2\n")
        with pytest.raises(SourceError, match=r"heading of rows\.csv cannot be read: field larger"):
            values(manifest(tmp_path / "rows.csv"), tmp_path)
    finally:
        csv.field_size_limit(before)


TYPED = [  # as CSV has it, and what it means: strength, and the reason for which a row is quarantined
    ({"strength": "1.5"}, 1.5),
    ({"strength": " 2 "}, 2.0),
    ({"strength": "0.5e1"}, 5.0),
    ({"strength": ""}, None),
    ({"strength": " "}, None),
    ({"strength": "nan"}, None),
    ({"strength": "much"}, "not a number"),
    ({"tie": "False"}, None),
    ({"tie": "0"}, None),
    ({"tie": "no"}, None),
    ({"tie": ""}, None),
    ({"tie": "TRUE"}, "tie"),
    ({"tie": "1"}, "tie"),
    ({"tie": "yes"}, "tie"),
    ({"tie": "perhaps"}, "not true or false"),
]


@pytest.mark.parametrize(("cells", "meant"), TYPED)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.tsv"])
def test_texts_that_mean_numbers_and_flags_are_read_as_such(
    tmp_path: Path, name: str, cells: dict[str, str], meant: float | str | None
) -> None:
    row = {"question": "q?", "chosen": "good", "rejected": "bad", **cells}
    content = lines([row]) if name.endswith("jsonl") else as_csv([row], "\t" if name.endswith("tsv") else ",")
    (tmp_path / name).write_bytes(content)
    found = read_source(manifest(tmp_path / name), tmp_path, tmp_path / "media")
    if isinstance(meant, str):
        assert found["quarantine"]["reason"].to_pylist() == [meant]
    else:
        assert found["pairs"]["strength"].to_pylist() == [meant]


def test_decimals_and_what_pandas_writes_for_nothing_are_read(tmp_path: Path) -> None:
    table = pa.table(
        {
            "question": ["a?", "b?"],
            "chosen": pa.array(["good", "fine"], pa.large_string()),
            "rejected": ["bad", "poor"],
            "image": [float("nan"), float("nan")],
            "strength": pa.array([Decimal("1.25"), None], pa.decimal128(5, 2)),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    found = read_source(manifest(tmp_path / "rows.parquet"), tmp_path, tmp_path / "media")
    assert found["pairs"]["strength"].to_pylist() == [1.25, None] and found["quarantine"].num_rows == 0
