"""Preparing a training: pairs per second, memory of the rank, bytes on disk, and seconds to open what was prepared.

    python -m benchmarks.preparation --pairs 100000

Pairs are synthetic: a prompt of its own for each, with one image, and two responses of random words, about 650 tokens a
pair. A few thousand small image files, each with a hash of its own in the table, stand for as many images as prompts.
The prepared table is made as by the first rank of a training, and opened again as by a training that is resumed. Every
step runs in a process of its own; memory and CPU time are of that process, libraries included, without the encoding
processes that it starts. With `--processes 1` it starts none, and its CPU time is all the work that there is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import run_as_worker
from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.observe.memory import peak_memory

FILES = 2000  # images on disk
SIDE = 256  # pixels
WORDS = 20_000  # of the vocabulary
TEXTS = 25, 30  # words of a prompt and of a response; with the demo's tokenizer, see the tokens that are printed
_PIECE = 20_000  # pairs that are written at a time


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO_BASE_MODEL, help="base model folder; `demo` ships with the package")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--words", type=int, nargs=2, default=TEXTS, help="of a prompt and of a response")
    parser.add_argument("--processes", type=int, default=0, help="that encode; 0: one for every core")
    parser.add_argument("--folder", type=Path, help="where tables are written and kept; by default they are removed")
    given = parser.parse_args()
    run_as_worker("benchmarks.preparation")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        _apart(write_tables, folder, given.pairs, *given.words)
        print("| step | seconds | CPU seconds of the rank | pairs/s | its peak memory, MiB | grown by, MiB |")
        print("|---|---|---|---|---|---|")
        for name in ("prepare", "open", "read 1,000 batches of 8"):
            seconds, busy, peak, grown = _apart(measure, folder, given, name)
            speed = f"{given.pairs / seconds:,.0f}" if name == "prepare" else ""
            print(f"| {name} | {seconds:.1f} | {busy:.1f} | {speed} | {peak:,.0f} | {grown:,.0f} |", flush=True)
        files = [file for file in (folder / "work").rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        print(f"\n{size / given.pairs:,.0f} bytes a pair on disk ({size / 2**30:.2f} GiB)")


def write_tables(folder: Path, pairs: int, prompt: int, response: int) -> None:
    """Write prompts, pairs and images, as an import leaves them."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from dt2it_pipeline.storage import records, schemas

    if (folder / "pairs.parquet").exists():
        return
    generator = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in generator.integers(0, 26, 2 + n % 7)) for n in range(WORDS)]
    (folder / "media").mkdir(parents=True)
    for number in range(FILES):
        block = generator.integers(0, 255, size=(SIDE // 32, SIDE // 32, 3), dtype=np.uint8)
        Image.fromarray(block.repeat(32, 0).repeat(32, 1)).save(folder / "media" / f"{number}.png")

    def text(count: int) -> str:
        return " ".join(words[n] for n in generator.integers(0, WORDS, count))

    kinds = ("prompts", "pairs")
    writers = [
        pq.ParquetWriter(folder / f"{kind}.parquet", schemas.SCHEMAS[kind], compression="zstd") for kind in kinds
    ]
    for first in range(0, pairs, _PIECE):
        rows: tuple[list[Any], list[Any]] = ([], [])
        for number in range(first, min(first + _PIECE, pairs)):
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            media = [{"kind": "image", "sha256": digest, "path": f"{number % FILES}.png"}]
            turns = [{"role": "user", "text": f"<image>{text(prompt)}"}]
            rows[0].append(
                {"prompt_id": digest[:32], "source": "made", "system": "", "turns": turns, "media": media,
                 "reference": None, "language": "en", "meta": "{}"}
            )  # fmt: skip
            rows[1].append(
                records.make_pair(digest[:32], text(response), text(response), source="made", row_id=str(number))
            )
        for writer, kind, part in zip(writers, kinds, rows, strict=True):
            table: pa.Table = schemas.table(part, kind)
            writer.write_table(table)
    for writer in writers:
        writer.close()


def measure(folder: Path, given: argparse.Namespace, name: str) -> tuple[float, float, float, float]:
    """Seconds, CPU seconds, peak memory and its growth in MiB of one step in this process, which does nothing else."""
    import torch

    from dt2it_pipeline.reward.checkpoints.checkpoint import family_of
    from dt2it_pipeline.reward.data import preparation, table_building
    from dt2it_pipeline.reward.data.collation import collate
    from dt2it_pipeline.reward.data.encoding_workers import EncoderSource
    from dt2it_pipeline.reward.data.lists import TrainingExamples
    from dt2it_pipeline.reward.data.table_building import TableSource
    from dt2it_pipeline.reward.training.distributed import Alone

    torch.set_num_threads(1)
    base = Path(model_path(given.model))
    encoder = EncoderSource(base, base, "You judge.", family_of(base), folder / "media", 268_324)
    source = TableSource(folder / "pairs.parquet", folder / "prompts.parquet", encoder, 4096, use_strength=False)
    here = encoder.encoder()
    if given.processes:
        table_building.available_processes = lambda: given.processes
    before = _peak()
    started, busy = time.perf_counter(), time.process_time()
    table = preparation.prepare(source, folder / "work", here, Alone())
    prepared = preparation.PreparedPairs(table)
    if name.startswith("read"):
        examples = TrainingExamples(prepared, "pairwise")
        started, busy = time.perf_counter(), time.process_time()
        for members in np.random.default_rng(0).integers(0, len(examples), (1000, 8)).tolist():
            collate([examples.packed(member, here.layout, here.registry) for member in members])
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    if name == "prepare":
        lengths = table.lengths_of(prepared.responses())
        tokens = float(prepared.prompt_lengths().mean() + lengths.sum(axis=1).mean())
        print(f"<!-- {tokens:.0f} tokens a pair, {len(os.sched_getaffinity(0))} cores -->", file=sys.stderr)
    return seconds, busy, _peak(), _peak() - before


def _peak() -> float:
    return peak_memory() / 2**20


def _apart(function: Any, *arguments: Any) -> Any:
    """The result of a function in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    main()
