"""Folders of Hugging Face `datasets` as sources: read without network, decoded, and odd rows at their cost alone."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest

from dt2it_pipeline.ingest.reading import SourceError
from dt2it_pipeline.ingest.sources import fingerprint, read_source
from dt2it_pipeline_tests.support.ingest_world import image
from dt2it_pipeline_tests.support.source_files import ROWS, lines, manifest, values


@pytest.mark.parametrize("saved", [True, False])
def test_a_local_dataset_is_read_without_network_and_without_decoding(tmp_path: Path, saved: bool) -> None:
    import datasets

    whole = image(tmp_path / "a.png").read_bytes()
    features = datasets.Features({name: datasets.Value("string") for name in ROWS[0]} | {"image": datasets.Image()})
    rows = [
        row | {"image": {"bytes": content, "path": None}}
        for row, content in zip(ROWS, [whole, b"damaged"], strict=False)
    ]
    made = datasets.Dataset.from_list(rows, features=features)
    (tmp_path / "copy").mkdir()
    if saved:
        datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "copy"))
    else:
        made.to_parquet(str(tmp_path / "copy/train-00000.parquet"))
    source = manifest(tmp_path / "copy", format="dataset", hub="someone/something", adapter="rlaif_v")
    artifact = read_source(source, tmp_path, tmp_path / "media")
    assert artifact["pairs"].num_rows == 1
    assert artifact["quarantine"]["reason"].to_pylist() == ["unreadable image"]
    assert fingerprint(source, tmp_path)
    with pytest.raises(SourceError, match=r"source 's': .*copy has no split 'gone'; it has train"):
        values(source.model_copy(update={"split": "gone"}), tmp_path)


COMPRESSED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
    "lz4": lambda content: pa.Codec("lz4").compress(content, asbytes=True),
}
ODD = [b'{"question": "q9", "chosen": "x", "rejected": {"b": 1}}\n', b'{"question": bad\n']


@pytest.mark.parametrize("place", ["same file", "next file"])
def test_an_odd_row_or_line_of_a_dataset_changes_no_other_row(tmp_path: Path, place: str) -> None:
    """`datasets` makes JSON texts of a column's values as soon as one has another type."""
    (tmp_path / "copy").mkdir()
    first, last = lines(ROWS[:2]), b"".join(ODD) + lines(ROWS[2:])
    files = [first + last] if place == "same file" else [first, last]
    for number, content in enumerate(files):
        (tmp_path / f"copy/train-{number}.jsonl").write_bytes(content)
    artifact = read_source(manifest(tmp_path / "copy", format="dataset"), tmp_path, tmp_path / "media")
    assert artifact["pairs"].select(["chosen", "rejected"]).to_pylist() == [
        {"chosen": row["chosen"], "rejected": row["rejected"]} for row in ROWS
    ]
    assert sorted(artifact["quarantine"]["reason"].to_pylist()) == ["malformed JSON", "not text"]


def test_a_dataset_in_json_of_any_kind_is_read_whole(tmp_path: Path) -> None:
    for number, content in enumerate((json.dumps(ROWS).encode(), lines(ROWS))):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/train.json").write_bytes(content)
        assert values(manifest(tmp_path / f"{number}", format="dataset"), tmp_path) == ROWS


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst", "lz4"])
def test_an_odd_row_of_a_compressed_file_changes_no_other_row(tmp_path: Path, ending: str) -> None:
    (tmp_path / "copy").mkdir()
    content = lines(ROWS[:2]) + ODD[1] + lines(ROWS[2:])
    (tmp_path / f"copy/train.jsonl.{ending}").write_bytes(COMPRESSED[ending](content))
    assert values(manifest(tmp_path / "copy", format="dataset"), tmp_path) == ROWS


@pytest.mark.parametrize("saved", [True, False])
def test_json_columns_of_a_dataset_are_decoded(tmp_path: Path, saved: bool) -> None:
    import datasets

    rows = [ROWS[0], ROWS[1] | {"rejected": {"b": 1}}]
    features = datasets.Features({name: datasets.Value("string") for name in ROWS[0]} | {"rejected": datasets.Json()})
    made = datasets.Dataset.from_list(rows, features=features)
    if saved:
        made.save_to_disk(str(tmp_path / "copy"))
    else:
        (tmp_path / "copy").mkdir()
        made.to_parquet(str(tmp_path / "copy/train.parquet"))
    assert values(manifest(tmp_path / "copy", format="dataset"), tmp_path) == rows
