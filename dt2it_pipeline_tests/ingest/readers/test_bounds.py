"""Files that make much of little cost their own source, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.ingest.manifest import Manifest, ManifestError, load_manifest
from dt2it_pipeline.ingest.readers import bounds, file_formats
from dt2it_pipeline.ingest.reading import read_rows
from dt2it_pipeline.ingest.rows import Quarantined, Row, SourceError

ROW = {"question": "q", "chosen": "a", "rejected": "b"}
LINE = json.dumps(ROW).encode() + b"\n"
SMALL = 4096


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can pass quickly."""
    for name, value in {"LONGEST_LINE": SMALL, "LONGEST_OBJECT": 3 * SMALL, "_FREE": 1 << 16}.items():
        monkeypatch.setattr(bounds, name, value)
        if hasattr(file_formats, name):
            monkeypatch.setattr(file_formats, name, value)


def read(file: Path) -> list[Row | Quarantined]:
    made = Manifest.model_validate({"name": "own", "kind": "preferences", "path": str(file), "licence": "MIT"})
    return list(read_rows(made, file.parent))


@pytest.mark.usefixtures("small")
def test_a_line_without_end_costs_that_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(LINE + b"x" * (3 * SMALL) + b"\n" + LINE + b'{"a": "' + b"x" * SMALL)
    found = read(tmp_path / "rows.jsonl")
    assert [isinstance(each, Row) for each in found] == [True, False, True, False]
    assert found[1] == Quarantined("line 2", "line too long", "more than 4,096 bytes")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("rows.csv", b"a,b\n1,2\n" + b"x" * 9000, "line 3 of rows.csv is longer than 4,096 characters"),
        ("rows.json", b"[" + LINE + b', {"a": "' + b"x" * 3_000_000, "element 2 of rows.json is longer than 4,096"),
        ("rows.json", b'{\n"a": "' + b"x" * 3_000_000, "rows.json is one JSON object of more than 12,288 characters"),
        ("rows.jsonl.gz", gzip.compress(LINE + b"\n" * 900_000), "rows.jsonl.gz expands to more than 200 times"),
        ("rows.jsonl.zst", pa.compress(b"\n" * 3_000_000, "zstd", asbytes=True), "rows.jsonl.zst expands to more than"),
    ],
)
def test_what_is_meant_to_fill_memory_ends_with_one_error(
    tmp_path: Path, name: str, content: bytes, fault: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"source 'own': {fault}"):
        read(tmp_path / name)


@pytest.mark.usefixtures("small")
def test_members_of_archives_and_columns_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("rows.jsonl", LINE + b"\n" * 900_000)
    with pytest.raises(SourceError, match=r"rows.jsonl of .*rows.zip expands to more than 200 times"):
        read(tmp_path / "rows.zip")
    table = pa.table({"question": ["x" * 2_000_000], "chosen": ["a"], "rejected": ["b"]})
    pq.write_table(table, tmp_path / "rows.parquet", compression="zstd")
    with pytest.raises(SourceError, match=r"column 'question' of rows.parquet expands to more than 200 times"):
        read(tmp_path / "rows.parquet")


def test_ordinary_files_are_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINE * 5000))
    assert len(read(tmp_path / "rows.jsonl.gz")) == 5000
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([ROW] * 500), buffer)
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress(buffer.getvalue()))
    assert len(read(tmp_path / "rows.parquet.gz")) == 500


@pytest.mark.heavy
def test_a_bomb_of_gigabytes_takes_bounded_memory(tmp_path: Path) -> None:
    """More than a gigabyte without a line's end, in one megabyte."""
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"a" * (1 << 24)) * 72)
    code = (
        "import sys\nfrom pathlib import Path\nfrom dt2it_pipeline.observe.memory import peak_memory\n"
        "from dt2it_pipeline_tests.ingest.readers.test_bounds import read\n"
        "try:\n    read(Path(sys.argv[1]))\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
        "print(peak_memory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rows.jsonl.gz")], capture_output=True, text=True, timeout=120
    )
    *said, peak = done.stdout.splitlines()
    assert said and said[0].startswith("SourceError source 'own': rows.jsonl.gz expands to more than 200 times")
    assert int(peak) < 1_200_000_000, f"{int(peak) / 1e9:.2f} GB"


@pytest.mark.parametrize("name", ["x" * 101, "..", "-x", "a/b", "a\nb", ""])
def test_names_of_sources_fit_into_files_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "own.yaml").write_text(json.dumps({"name": name, "kind": "preferences", "path": "x", "licence": "MIT"}))
    with pytest.raises(ManifestError, match="name"):
        load_manifest(tmp_path / "own.yaml")
