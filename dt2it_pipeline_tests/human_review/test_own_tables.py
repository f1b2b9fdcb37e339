"""Tables of pairs that people hand in, however their files are named."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.human_review import own_tables
from dt2it_pipeline.human_review.own_tables import _opened
from dt2it_pipeline.human_review.spreadsheet import AuditError


@pytest.mark.parametrize("name", ["pairs.csv.gz", "PAIRS.CSV.GZ", "pairs.tsv.Gz"])
def test_a_compressed_table_is_read_whatever_letters_its_name_has(tmp_path: Path, name: str) -> None:
    mark = b"\t" if ".tsv" in name else b";"
    (tmp_path / name).write_bytes(gzip.compress(mark.join([b"prompt", b"chosen"]) + b"\n" + mark.join([b"a", b"b"])))
    assert list(_opened(tmp_path / name).names) == ["prompt", "chosen"]


def test_pieces_of_a_parquet_file_do_not_stay_in_memory(tmp_path: Path) -> None:
    file, text = tmp_path / "pairs.parquet", random.Random(0).randbytes(1_000_000).hex()
    part = pa.table({"prompt": [text[at : at + 1000] for at in range(0, len(text), 1000)]})
    pq.write_table(pa.concat_tables([part] * 20), file, row_group_size=2000, compression="none", use_dictionary=False)
    before, most, rows = pa.total_allocated_bytes(), 0, 0
    for piece in _opened(file).pieces(["prompt"]):
        rows += len(piece)
        most = max(most, pa.total_allocated_bytes() - before)
    assert rows == 40_000
    assert most < file.stat().st_size / 2


@pytest.mark.parametrize(
    ("ending", "packed"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress),
     (".zst", lambda content: pa.compress(content, "zstd", asbytes=True))],
)  # fmt: skip
@pytest.mark.parametrize(
    ("kind", "rows"),
    [(".csv", b"prompt,chosen\n" + b"a,b\n" * 9), (".jsonl", b'{"prompt": "a", "chosen": "b"}\n' * 9),
     (".json", b"[" + b'{"prompt": "a", "chosen": "b"},' * 8 + b'{"prompt": "a", "chosen": "b"}]')],
)  # fmt: skip
def test_a_table_that_would_lie_in_memory_is_bounded_by_what_it_holds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    rows: bytes,
    ending: str,
    packed: Callable[[bytes], bytes],
) -> None:
    file = tmp_path / f"pairs{kind}{ending}"
    file.write_bytes(packed(rows))
    monkeypatch.setattr(own_tables, "MOST_TEXT", len(rows))
    assert sum(map(len, _opened(file).pieces(["chosen"]))) == 9
    monkeypatch.setattr(own_tables, "MOST_TEXT", len(rows) - 1)
    with pytest.raises(AuditError, match=f"a table in {kind} lies in memory as a whole; write it as Parquet"):
        _opened(file)


def test_a_bomb_is_not_decompressed_beyond_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pairs.jsonl.gz"
    file.write_bytes(gzip.compress(b" " * (1 << 26)) + b"damaged behind 64 MiB")
    monkeypatch.setattr(own_tables, "MOST_TEXT", 1 << 20)
    with pytest.raises(AuditError, match="has more than 1 MiB of text"):
        _opened(file)
    file.write_bytes(gzip.compress(b" " * 99)[:-9])
    with pytest.raises(AuditError, match="is not compressed as its name says"):
        _opened(file)


def test_a_parquet_file_has_no_such_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_tables, "MOST_TEXT", 1)
    pq.write_table(pa.table({"chosen": ["a", "b"]}), tmp_path / "pairs.parquet")
    assert sum(map(len, _opened(tmp_path / "pairs.parquet").pieces(["chosen"]))) == 2
