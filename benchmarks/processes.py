"""From which size on two processes take less time than one: `python -m benchmarks.processes` (see README.md).

The stages that share the work on a table do so from a number of rows on. Here each runs at sizes around that number,
with one process and with two, every time in a process of its own, so that the start of the two is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd

from benchmarks import construction, ingest
from benchmarks.ingest import Step
from dt2it_pipeline.construct import pairs
from dt2it_pipeline.ingest import clean, decontaminate
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet
from dt2it_pipeline.style import features

_RESPONSES, _SCORES = 6, 18  # of a prompt of benchmarks.construction


class Shared(NamedTuple):
    """A stage that processes share: where its threshold stands, its sizes, its step, and what makes its tables."""

    module: ModuleType
    threshold: str
    of: str
    sizes: tuple[int, ...]
    step: Callable[[Path, int], Step]
    write: Callable[[Path, Path, int], None]


def write_pairs(source: Path, folder: Path, size: int) -> None:
    """The first pairs of a large table, and their prompts, each of which has one."""
    for kind in ("pairs", "prompts"):
        write_parquet(read_parquet(source / f"{kind}.parquet", kind).slice(0, size), folder / f"{kind}.parquet")


def write_responses(_: Path, folder: Path, size: int) -> None:
    """Judged responses in this number."""
    construction.write_judged(folder, size // _RESPONSES)


def write_texts(source: Path, folder: Path, size: int) -> None:
    """Pairs with this number of texts."""
    write_pairs(source, folder, size // 2)


def style(folder: Path, processes: int) -> Step:
    """How every side of the pairs is written."""
    table = read_parquet(folder / "pairs.parquet", "pairs")
    texts = pd.Series([*table["chosen"].to_pylist(), *table["rejected"].to_pylist()])
    return Step(len(texts), "texts", lambda: features.style_features(texts, processes))


STAGES = {
    "clean": Shared(clean, "_LONG", "pairs", (125_000, 250_000, 500_000), ingest.clean, write_pairs),
    "decontaminate": Shared(
        decontaminate, "_LONG", "prompts", (125_000, 250_000, 500_000), ingest.decontaminated, write_pairs
    ),
    "form pairs": Shared(pairs, "_MANY", "responses", (12_000, 24_000, 48_000), construction.form, write_responses),
    "style features": Shared(features, "_MANY", "texts", (50_000, 100_000, 200_000), style, write_texts),
}


def main() -> None:
    """Make the tables, run each stage at each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="medians of so many, one and two processes in turn")
    parser.add_argument("--only", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--sizes", type=int, nargs="*", help="instead of those around each threshold")
    parser.add_argument("--step", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        stage = STAGES[given.step]
        setattr(stage.module, stage.threshold, 0)
        print(json.dumps(ingest._measured(stage.step(given.folder, given.processes))))
        return
    sizes = {name: given.sizes or STAGES[name].sizes for name in given.only}
    heading = (
        "| stage | size | wall seconds, one process | two | one / two, by the clock | CPU seconds, one process | two"
    )
    heading += " | of these the first process | load |"
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        if needed := [max(of) for name, of in sizes.items() if STAGES[name].write is not write_responses]:
            ingest.write_source(source, max(needed), 100)
            ingest.whole_source(source, 2).run()
        print(f"{heading}\n{'|---' * (heading.count('|') - 1)}|")
        for name in given.only:
            for size in sizes[name]:
                folder = Path(temporary) / f"{name} {size}"
                folder.mkdir()
                STAGES[name].write(source, folder, size)
                print(_line(name, size, folder, given.turns), flush=True)


def _line(name: str, size: int, folder: Path, turns: int) -> str:
    found = [[_turn(name, folder, processes) for processes in (1, 2)] for _ in range(turns)]

    def median(way: int, what: str) -> float:
        return statistics.median(turn[way][what] for turn in found)

    ratios = sorted(one["wall"] / two["wall"] for one, two in found)
    line = f"| {name} | {size:,} {STAGES[name].of} | {median(0, 'wall'):.2f} | {median(1, 'wall'):.2f}"
    line += f" | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    line += f" | {median(0, 'cpu'):.2f} | {median(1, 'cpu'):.2f} | {median(1, 'own'):.2f} | {os.getloadavg()[0]:.0f} |"
    return line


def _turn(name: str, folder: Path, processes: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.processes", "--step", name, "--folder", str(folder)]
    done = subprocess.run([*command, "--processes", str(processes)], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
