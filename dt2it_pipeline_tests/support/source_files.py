"""Rows of a source, and files of all formats that hold them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.reading import read_rows
from dt2it_pipeline.ingest.rows import Row

COMPRESSED: dict[str, Callable[[bytes], bytes]] = {  # by the ends of files' names
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
    "lz4": lambda content: pa.Codec("lz4").compress(content, asbytes=True),
}
ROWS = [{"question": f"q{n}, “ü”", "chosen": "a\nb", "rejected": "c" * n} for n in range(1, 6)]


def manifest(path: Path, **more: Any) -> Manifest:
    return Manifest(name="s", kind="preferences", path=str(path), licence="MIT", **more)


def values(made: Manifest, where: Path) -> list[Any]:
    return [dict(row.values) for row in read_rows(made, where) if isinstance(row, Row)]


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
