"""Sources that are read within bounds: a row, the reading of a file, and tar archives put together."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.reading import read_rows
from dt2it_pipeline.ingest.rows import Quarantined, Row

ROW = {"question": "q", "chosen": "a", "rejected": "b"}
LINE = json.dumps(ROW).encode() + b"\n"


def read(file: Path) -> list[Row | Quarantined]:
    made = Manifest.model_validate({"name": "own", "kind": "preferences", "path": str(file), "licence": "MIT"})
    return list(read_rows(made, file.parent))


def tar_with(file: Path, mode: str, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(file, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def repeated(first: bytes, part: bytes, times: int) -> bytes:
    """A tar in gzip of which a part is there many times; it is compressed once, since files in gzip may be joined."""
    return gzip.compress(first) + gzip.compress(part) * times + gzip.compress(bytes(1024))
