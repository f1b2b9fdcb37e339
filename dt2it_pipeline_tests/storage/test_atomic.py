"""What an error of the file system names where a file or folder is written through a temporary one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from dt2it_pipeline.storage.atomic import StoreError, atomic_directory, replace_text, temporary_beside, write_parquet


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
