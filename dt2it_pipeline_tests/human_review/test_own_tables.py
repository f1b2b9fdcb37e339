"""Tables of pairs that people hand in, however their files are named."""

import gzip
from pathlib import Path

import pytest

from dt2it_pipeline.human_review.own_tables import _opened


@pytest.mark.parametrize("name", ["pairs.csv.gz", "PAIRS.CSV.GZ", "pairs.tsv.Gz"])
def test_a_compressed_table_is_read_whatever_letters_its_name_has(tmp_path: Path, name: str) -> None:
    mark = b"\t" if ".tsv" in name else b";"
    (tmp_path / name).write_bytes(gzip.compress(mark.join([b"prompt", b"chosen"]) + b"\n" + mark.join([b"a", b"b"])))
    assert list(_opened(tmp_path / name).names) == ["prompt", "chosen"]
