"""Tables that people hand in: every format and compression gives the same rows, and ids match between files."""

from __future__ import annotations

import bz2
import gzip
import lzma
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from dt2it_pipeline.storage.table_files import (
    TableFileError,
    as_keys,
    delimiter_in,
    kind_of_file,
    plain_bytes,
    read_table_file,
)

ROWS = pd.DataFrame({"pair_id": ["007", "8"], "share": [0.175, 0.1]})


def test_a_csv_file_s_ids_stay_text_in_every_column_that_names_one(tmp_path: Path) -> None:
    ids = ["pair_id", "chosen_id", "rejected_id", "response_id", "better_id", "shown_first"]
    pd.DataFrame({name: ["007", "010"] for name in ids}).to_csv(tmp_path / "rows.csv", index=False)
    assert read_table_file(tmp_path / "rows.csv").to_dict("list") == {name: ["007", "010"] for name in ids}


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_compressed_bytes_are_no_delimiters(tmp_path: Path, mark: str, ending: str) -> None:
    file = tmp_path / f"rows.csv{ending}"
    for marked in (b",", b";"):  # the first is the time that the header of a .gz holds
        compress = COMPRESS[ending] if ending != ".gz" else partial(gzip.compress, mtime=marked[0])
        file.write_bytes(compress(ROWS.to_csv(index=False, sep=mark).encode()))
        assert delimiter_in(file) == mark


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_csv_file_need_not_have_commas(tmp_path: Path, mark: str) -> None:
    (tmp_path / "rows.csv").write_text(ROWS.to_csv(index=False, sep=mark), encoding="utf-8-sig")
    (tmp_path / "commas.csv").write_text(ROWS.to_csv(index=False))
    pd.testing.assert_frame_equal(read_table_file(tmp_path / "rows.csv"), read_table_file(tmp_path / "commas.csv"))


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json"])
def test_rows_are_the_same_in_every_format_and_compression(tmp_path: Path, kind: str, compression: str) -> None:
    if kind in (".csv", ".tsv"):
        text = ROWS.to_csv(index=False, sep="\t" if kind == ".tsv" else ",")
    else:
        text = ROWS.to_json(orient="records", lines=kind == ".jsonl")
    file = tmp_path / f"rows.v1{kind}{compression}"
    file.write_bytes(COMPRESS[compression](text.encode()))
    assert read_table_file(file).to_dict("records") == ROWS.to_dict("records")
    assert b"007" in plain_bytes(file) and kind_of_file(file) == kind


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_file_that_is_cut_or_not_compressed_as_its_name_says_is_an_error(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x.csv{suffix}"
    for content in (b"pair_id\n1\n", COMPRESS[suffix](b"pair_id\n1\n" * 99)[:-9]):
        file.write_bytes(content)
        with pytest.raises(OSError, match=r"."):
            plain_bytes(file)
        with pytest.raises(TableFileError, match=r"x\.csv\.[a-z0-9]+ cannot be read: .*; give \.parquet"):
            read_table_file(file)


def test_numbers_and_texts_are_one_id() -> None:
    for ids in ([3, 4], [3.0, 4.0], ["3", "4"]):
        assert as_keys(pd.Series(ids)).tolist() == ["3", "4"]
    assert as_keys(pd.Series([3.0, None])).tolist() == ["3", None]
