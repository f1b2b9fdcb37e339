"""Random tables of awkward texts come back equal from every file format."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from dt2it_pipeline import read_preferences

PIECES = (
    "word", " ", "\n", "\r\n", "\t", ",", ";", '"', '""', "'", "\\", "\\n", "[1, 2]", '{"a": "b"}', "<image>",
    r"\<image>", "Human: ", "\n\nAssistant: ", "nan", "null", "NULL", "NA", "true", "1.0", "=1+1", "\u2028", "\u200b",
    "\ufeff", "é", "图片", "😀", "\x0b", "A", "B", "tie", "|", "#", "%", "&amp;", "</s>", "<|im_end|>",
)  # fmt: skip
Row = dict[str, str]


def table(seed: int, rows: int = 40) -> list[Row]:
    rng = random.Random(seed)

    def text() -> str:
        return "x" + "".join(rng.choices(PIECES, k=rng.randint(1, 8))) + "x"

    return [{"id": str(n), "question": text(), "chosen": text() + "+", "rejected": text()} for n in range(rows)]


def as_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def as_lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_zip(rows: list[Row], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/pairs.jsonl", as_lines(rows))
        archive.writestr("__MACOSX/folder/._pairs.jsonl", b"\0\1")


def as_tar(rows: list[Row], path: Path) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        member = tarfile.TarInfo("folder/pairs.jsonl")
        member.size = len(as_lines(rows))
        archive.addfile(member, io.BytesIO(as_lines(rows)))


def as_zst(rows: list[Row], path: Path) -> None:
    with pa.output_stream(path, compression="zstd") as stream:
        stream.write(as_lines(rows))


def as_saved(rows: list[Row], path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(path)


FORMATS: dict[str, Callable[[list[Row], Path], object]] = {
    "pairs.jsonl": lambda rows, path: path.write_bytes(as_lines(rows)),
    "lines.json": lambda rows, path: path.write_bytes(as_lines(rows)),
    "pairs.json": lambda rows, path: path.write_text(json.dumps(rows, indent=1), encoding="utf-8-sig"),
    "pairs.csv": as_csv,
    "pairs.tsv": as_csv,
    "pandas.csv": lambda rows, path: pd.DataFrame(rows).to_csv(path, index=False),
    "pairs.parquet": lambda rows, path: pd.DataFrame(rows).to_parquet(path),
    "pairs.jsonl.gz": lambda rows, path: path.write_bytes(gzip.compress(as_lines(rows))),
    "pairs.jsonl.zst": as_zst,
    "pandas.csv.gz": lambda rows, path: pd.DataFrame(rows).to_csv(path, index=False),
    "pairs.zip": as_zip,
    "pairs.tar": as_tar,
    "pairs.tar.gz": as_tar,
    "saved": as_saved,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FORMATS)
def test_random_tables_come_back_equal(tmp_path: Path, name: str, seed: int) -> None:
    rows = table(seed)
    FORMATS[name](rows, tmp_path / name)
    pairs, quarantine = read_preferences(tmp_path / name)
    assert quarantine.empty
    asked = [turns[0]["text"] for turns in pairs["turns"]]
    assert list(zip(asked, pairs["chosen"], pairs["rejected"], strict=True)) == [
        (row["question"], row["chosen"], row["rejected"]) for row in rows
    ]
    assert pairs["row_id"].tolist() == [row["id"] for row in rows]
