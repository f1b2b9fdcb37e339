"""Tables of pairs that people hand in, however their files are named."""

import gzip
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.human_review.own_tables import _opened


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
