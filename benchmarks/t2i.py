"""T2I reformulation column by column against row by row: the same pairs, time and peak memory.

    python -m benchmarks.t2i [--rows 1000000] [--row-by-row 100000]

Row by row, `verdict_pair` makes every prompt and pair as dictionaries, which then become tables; positions are the
same. Each way runs in a process of its own, so that peak memory is that of one way.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from dt2it_pipeline.config.sections.t2i import T2ISettings
from dt2it_pipeline.observe.memory import peak_memory
from dt2it_pipeline.reformulate.phrasings import load_phrasings
from dt2it_pipeline.reformulate.t2i import reformulate, verdict_pair
from dt2it_pipeline.storage import schemas

_WORDS = np.array([f"word{number}" for number in range(500)])


def preferences(rows: int) -> pa.Table:
    """A synthetic table of T2I preferences: captions of twelve words, every image another."""
    rng = np.random.default_rng(0)
    words = _WORDS[rng.integers(0, len(_WORDS), (rows, 12))]
    captions = [" ".join(line) for line in words.tolist()]
    names = [f"{value:032x}" for value in range(3 * rows)]
    media = [
        pa.StructArray.from_arrays(
            [pa.array(["image"] * rows), pa.array(part), pa.array([f"{name[:2]}/{name}.png" for name in part])],
            names=["kind", "sha256", "path"],
        )
        for part in (names[:rows], names[rows : 2 * rows])
    ]
    made = {
        "preference_id": pa.array(names[2 * rows :]),
        "caption": pa.array(captions),
        "preferred": media[0],
        "other": media[1],
        "strength": pa.array(rng.random(rows) + 0.1),
        "language": pa.array(np.where(rng.random(rows) < 0.2, "zh", "en").tolist()),
        "source": pa.array(np.where(rng.random(rows) < 0.5, "one", "two").tolist()),
    }
    return schemas.validate(pa.table(made), "t2i_preferences")


def by_rows(table: pa.Table) -> dict[str, pa.Table]:
    """Prompts and pairs as dictionaries, one row after the other, with the positions that `reformulate` draws."""
    first = [shown[0]["sha256"] for shown in reformulate(table, T2ISettings(), seed=0)["prompts"]["media"].to_pylist()]
    phrasings = load_phrasings()
    started = time.process_time()
    prompts, pairs = [], []
    for row, shown in zip(sorted(table.to_pylist(), key=lambda row: row["preference_id"]), first, strict=True):
        prompt, pair = verdict_pair(row, row["preferred"]["sha256"] == shown, phrasings)
        prompts.append(prompt)
        pairs.append(pair)
    made = {"prompts": schemas.table(prompts, "prompts"), "pairs": schemas.table(pairs, "pairs")}
    print(f"row by row       {len(pairs):>9,} rows {time.process_time() - started:8.1f} s of CPU", flush=True)
    return made


def by_columns(table: pa.Table) -> dict[str, pa.Table]:
    """What the pipeline does."""
    started, began = time.process_time(), time.perf_counter()
    artifact = reformulate(table, T2ISettings(), seed=0)
    seconds, wall = time.process_time() - started, time.perf_counter() - began
    rows = artifact["pairs"].num_rows
    print(f"column by column {rows:>9,} rows {seconds:8.1f} s of CPU, {wall:.1f} s of time", flush=True)
    return {kind: artifact[kind] for kind in ("prompts", "pairs")}


def _measured(way: Callable[[pa.Table], Any], rows: int) -> None:
    table = preferences(rows)
    before = peak_memory()
    way(table)
    peak = peak_memory()
    print(f"  peak memory {peak / 2**30:.2f} GiB, of which {before / 2**30:.2f} GiB before it started", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--row-by-row", type=int, default=100_000, help="rows for the slow way")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for way, rows in ((by_columns, given.rows), (by_columns, given.row_by_row), (by_rows, given.row_by_row)):
        process = context.Process(target=_measured, args=(way, rows))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
    small = preferences(min(5_000, given.row_by_row))
    same = all(made.equals(by_columns(small)[kind]) for kind, made in by_rows(small).items())
    print(f"same tables from both ways: {same}")


if __name__ == "__main__":
    main()
