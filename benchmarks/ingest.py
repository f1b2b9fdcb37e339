"""Throughput and memory of ingestion on made-up sources: `python -m benchmarks.ingest` (see README.md).

Every step runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dt2it_pipeline.config.sections.cleaning import DecontaminationSettings
from dt2it_pipeline.ingest.clean import clean_pairs
from dt2it_pipeline.ingest.decontaminate import benchmark_content, decontaminate
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.rows import Medium
from dt2it_pipeline.ingest.sources import items_of, read_source
from dt2it_pipeline.media.bulk_import import MediaImporter
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.observe.memory import peak_memory
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet

_WORDS = ("the", "a", "red", "blue", "small", "large", "boat", "lake", "hill", "sky", "cloud", "tree", "lies", "near")
_SIDE = 40  # words of a response
_BENCHMARK_IMAGES = 5000


def write_source(folder: Path, rows: int, images: int) -> None:
    """A JSON Lines file of pairs over `images` noise photographs (JPEG, 640 x 480); every 100th row is repeated."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"images/{number}.jpg", quality=85)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            words = rng.integers(0, len(_WORDS), 2 * _SIDE).tolist()
            sides = [" ".join(_WORDS[w] for w in words[start::2]) for start in (0, 1)]
            row = {
                "id": f"r{number}",
                "image": f"images/{number % images}.jpg",
                "question": f"What is seen in {number}?",
            }
            line = json.dumps(row | {"chosen": sides[0], "rejected": sides[1]}) + "\n"
            file.write(line * (2 if number % 100 == 0 else 1))


def manifest(folder: Path) -> Manifest:
    """What describes that file."""
    return Manifest(
        name="made_up", kind="preferences", path=str(folder / "rows.jsonl"), media_root=str(folder), licence="none"
    )


def read_and_adapt(folder: Path) -> tuple[int, str]:
    """Rows to neutral items, nothing kept."""
    return sum(1 for _ in items_of(manifest(folder), folder)), "rows"


def import_images(folder: Path) -> tuple[int, str]:
    """Decode, hash and store every image."""
    files = sorted((folder / "images").iterdir())
    importer = MediaImporter(MediaRoot(folder), folder / "store")
    for start in range(0, len(files), 256):
        importer.rows([Medium("image", f"images/{file.name}") for file in files[start : start + 256]])
    importer.close()
    return len(files), "images"


def whole_source(folder: Path) -> tuple[int, str]:
    """The source to tables, its images being in the store already (as after a killed import)."""
    artifact = read_source(manifest(folder), folder, folder / "store")
    assert artifact.metadata["rows_in"] == artifact.metadata["rows_out"] + artifact.metadata["rows_quarantined"]
    for kind in ("pairs", "prompts"):
        write_parquet(artifact[kind], folder / f"{kind}.parquet")
    return artifact.metadata["rows_in"], "rows"


def clean(folder: Path) -> tuple[int, str]:
    """Repeated, contradictory and near-duplicate pairs."""
    pairs = read_parquet(folder / "pairs.parquet", "pairs")
    clean_pairs(pairs, read_parquet(folder / "prompts.parquet", "prompts"), 0.9, "ingest")
    return pairs.num_rows, "pairs"


def decontaminated(folder: Path) -> tuple[int, str]:
    """Against a benchmark of 5,000 images by content and perceptual hash, and by question and answer.

    Every row is given an image of its own here, so that as many hashes are compared as a million images have.
    """
    pairs = read_parquet(folder / "pairs.parquet", "pairs")
    prompts = read_parquet(folder / "prompts.parquet", "prompts")
    rng = np.random.default_rng(1)
    ids = prompts["prompt_id"].to_pylist()
    media = pa.array(
        [[{"kind": "image", "sha256": key, "path": key}] for key in ids], type=prompts.schema.field("media").type
    )
    prompts = prompts.set_column(prompts.column_names.index("media"), prompts.schema.field("media"), media)
    hashes = dict(zip(ids, rng.integers(0, 2**63, len(ids)).tolist(), strict=True))
    theirs = prompts.slice(0, _BENCHMARK_IMAGES)
    first = pairs.slice(0, theirs.num_rows)
    columns = {name: first[name] for name in ("pair_id", "prompt_id", "chosen_id", "rejected_id", "chosen", "rejected")}
    named = {name: pa.array(["x"] * first.num_rows) for name in ("item_id", "benchmark", "group")}
    items = schemas.validate(pa.table(columns | named), "benchmark_items")
    clean, removed, _ = decontaminate(
        pairs, prompts, benchmark_content(items, theirs), DecontaminationSettings(), hashes
    )
    assert removed.num_rows >= theirs.num_rows and clean.num_rows + removed.num_rows == pairs.num_rows
    return pairs.num_rows, "pairs"


STEPS: dict[str, Callable[[Path], tuple[int, str]]] = {
    "read and adapt": read_and_adapt,
    "import images": import_images,
    "whole source": whole_source,
    "clean": clean,
    "decontaminate": decontaminated,
}


def main() -> None:
    """Make the source, run each step in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(_measured(STEPS[given.step], given.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "made_up"
        write_source(folder, given.rows, given.images)
        size = (folder / "rows.jsonl").stat().st_size / 2**20
        print(f"{given.rows} rows ({size:.0f} MiB of JSON), {given.images} images\n")
        print("| step | count | seconds | per second | peak memory, MiB |\n|---|---|---|---|---|")
        for name in STEPS:
            command = [sys.executable, "-m", "benchmarks.ingest", "--step", name, "--folder", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rate = found["count"] / found["seconds"]
            figures = f"{found['seconds']:.1f} | {rate:,.0f} | {found['peak_mib']:.0f}"
            print(f"| {name} | {found['count']:,} {found['of']} | {figures} |", flush=True)


def _measured(step: Callable[[Path], tuple[int, str]], folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    count, of = step(folder)
    seconds = time.monotonic() - started
    peak = peak_memory() / 2**20
    return {"count": count, "of": of, "seconds": seconds, "peak_mib": peak}


if __name__ == "__main__":
    main()
