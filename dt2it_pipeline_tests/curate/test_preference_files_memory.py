"""What cleaning of files keeps in memory: neither texts nor row groups that were read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dt2it_pipeline.curate import preference_files
from dt2it_pipeline.curate.out_of_core import preference_streams, streaming
from dt2it_pipeline.curate.preference_files import clean_preference_files


def test_texts_do_not_lie_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(file: Path) -> pd.DataFrame:
        raise AssertionError(f"{file} was read as a whole")

    monkeypatch.setattr(preference_files, "_read", whole)
    rows = range(3000)
    pairs = pd.DataFrame({
        "pair_id": [f"p{row}" for row in rows], "chosen": ["long " * 200] * 3000, "rejected": ["text"] * 3000,
        "up": np.arange(3000.0) - 300, "down": 0.0,
    })  # fmt: skip
    pairs.to_parquet(tmp_path / "pairs.parquet", row_group_size=500)
    largest = []
    taken = preference_streams._batches

    def measured(*given: Any) -> Any:
        for batch in taken(*given):
            largest.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(preference_streams, "_batches", measured)
    monkeypatch.setattr(preference_streams, "_BATCH_BYTES", 1 << 12)
    monkeypatch.setattr(preference_streams, "_FEWEST", 1)
    before = pa.total_allocated_bytes()
    found = clean_preference_files(
        tmp_path / "pairs.parquet", tmp_path / "out", chosen_scores=["up"], rejected_scores=["down"]
    )
    assert len(found.pairs) == 3000 and len(largest) > 10
    assert max(largest) < 600_000 and pa.total_allocated_bytes() - before < 600_000  # of three million bytes of texts


def test_reading_keeps_nothing_of_the_row_groups_before(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    texts = [random.bytes(500).hex() for _ in range(4000)]  # which cannot be compressed to much less than half
    pq.write_table(pa.table({"text": texts}), tmp_path / "texts.parquet", row_group_size=200, compression="zstd")
    size = (tmp_path / "texts.parquet").stat().st_size
    peaks = []
    for _ in range(3):  # threads that earlier tests left behind may allocate meanwhile, hardly three times
        before, most, rows = pa.total_allocated_bytes(), 0, []
        with pq.ParquetFile(tmp_path / "texts.parquet") as reader:
            for batch in streaming.piecewise(reader, 300, ["text"]):
                rows.append(batch.num_rows)
                most = max(most, pa.total_allocated_bytes() - before)
        assert sum(rows) == 4000 and max(rows) == 300
        peaks.append(most)
    assert min(peaks) < size / 2
