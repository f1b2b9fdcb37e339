"""Files written through a temporary one, what their errors name, and what Arrow reads from."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.storage.atomic import (
    StoreError,
    arrow_bytes,
    atomic_directory,
    read_parquet,
    replace_text,
    temporary_beside,
    write_json_atomic,
    write_parquet,
)


@pytest.mark.parametrize(
    "write", [lambda path: replace_text(path, "x"), lambda path: write_parquet(pa.table({"a": [1]}), path)]
)
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "out.parquet").mkdir()
    with pytest.raises(OSError, match=f"{re.escape(str(tmp_path / 'out.parquet'))}'$") as raised:
        write(tmp_path / "out.parquet")
    assert raised.value.filename == str(tmp_path / "out.parquet") and "/." not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_a_name_that_is_too_long_is_named_as_it_was_given(tmp_path: Path) -> None:
    for making in (atomic_directory, temporary_beside):
        with pytest.raises(OSError) as raised, making(tmp_path / ("x" * 300)):
            pass
        assert raised.value.filename == str(tmp_path / ("x" * 300))


def test_a_file_within_a_folder_that_is_being_made_is_named_by_its_last_place(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, atomic_directory(tmp_path / "out") as folder:
        (folder / "none" / "file").write_text("x")
    assert raised.value.filename == str(tmp_path / "out" / "none" / "file")
    with pytest.raises(FileNotFoundError) as raised, atomic_directory(tmp_path / "out") as folder:
        pa.OSFile(str(folder / "gone"))
    assert str(tmp_path / "out" / "gone") in str(raised.value) and "/." not in str(raised.value)


def test_errors_about_other_files_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, atomic_directory(tmp_path / "out"):
        (tmp_path / "other").read_text()
    assert raised.value.filename == str(tmp_path / "other")


def test_a_file_in_the_place_of_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError) as raised:
        replace_text(tmp_path / "file" / "out.jsonl", "x")
    expected = f"cannot make the folder {tmp_path / 'file'}: File exists; choose a folder that can be written to"
    assert str(raised.value) == expected


def test_json_keeps_text_that_has_no_utf_8_form(tmp_path: Path) -> None:
    value = {"half \ud800": ["\udfff end", "\U0001f600 é"], "path": "\\ud800", "odd": "\\\ud800"}
    write_json_atomic(value, tmp_path / "value.json")
    written = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(written) == value
    assert "\U0001f600 é" in written and "half \\ud800" in written  # all else stays as it is


def test_arrow_reads_bytes_that_python_may_free() -> None:
    """Arrow's threads let go late of what they read: Python's bytes, let go while the interpreter ends, abort it."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2]}), sink)
    content = sink.getvalue().to_pybytes()
    before = sys.getrefcount(content)
    file = arrow_bytes(content)
    assert sys.getrefcount(content) == before
    assert read_parquet(file).to_pydict() == {"a": [1, 2]}


def test_no_bit_of_a_page_changes_unnoticed(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    write_parquet(pa.table({"a": np.random.default_rng(0).normal(size=4000)}), file)
    whole = read_parquet(file)
    content = bytearray(file.read_bytes())
    for place in range(200, 30_000, 3_000):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises((OSError, pa.ArrowException)):
            read_parquet(file)
    file.write_bytes(content)
    assert read_parquet(file).equals(whole)
