"""Throughput and memory of ingestion on made-up sources: `python -m benchmarks.ingest` (see README.md).

Every step runs in a process of its own, so that its peak memory is its own. Rates are by CPU time (user and system, of
all processes of the step), which other work on the machine changes less than the wall clock's. Another checkout of the
project is measured by the same steps, in turn with this one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.first_version import is_first
from benchmarks.watched import Watched, put_aside
from dt2it_pipeline.config.sections.cleaning import DecontaminationSettings
from dt2it_pipeline.ingest.clean import clean_pairs
from dt2it_pipeline.ingest.decontaminate import benchmark_content, decontaminate
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.rows import Medium
from dt2it_pipeline.ingest.sources import items_of, read_source
from dt2it_pipeline.media.bulk_import import MediaImporter
from dt2it_pipeline.media.root import MediaRoot
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet

_WORDS = ("the", "a", "red", "blue", "small", "large", "boat", "lake", "hill", "sky", "cloud", "tree", "lies", "near")
_SIDE = 40  # words of a response
_BENCHMARK_IMAGES = 5000
_START = """import runpy, sys
checkout, ours, *sys.argv = sys.argv[1:]
sys.path.insert(0, checkout)
import dt2it_pipeline
sys.path.insert(0, ours)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)"""


def write_source(folder: Path, rows: int, images: int, photographs: Path | None = None) -> None:
    """A JSON Lines file of pairs over `images` noise photographs (JPEG, 640 x 480); every 100th row is repeated.

    With a folder of photographs, these are taken in turn, each scaled to 640 pixels, cut and compressed anew, so that
    no two files are one.
    """
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    taken = sorted(photographs.glob("*.jpg")) if photographs else []
    for number in range(images):
        if taken:
            with Image.open(taken[number % len(taken)]) as photograph:
                photograph.draft("RGB", (640, 640))
                photograph.thumbnail((640, 640))
                turn = number // len(taken)
                cut = photograph.convert("RGB").crop((turn // 25 % 64, 0, *photograph.size))
                cut.save(folder / f"images/{number}.jpg", quality=70 + turn % 25)
            continue
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


class Step(NamedTuple):
    """What is measured, once everything that it needs lies ready."""

    count: int
    of: str
    run: Callable[[], Any]


def read_and_adapt(folder: Path, processes: int) -> Step:
    """Rows to neutral items, nothing kept."""
    return Step(_rows(folder), "rows", lambda: sum(1 for _ in items_of(manifest(folder), folder)))


def import_images(folder: Path, processes: int) -> Step:
    """Decode, hash and store every image."""
    files = sorted((folder / "images").iterdir())
    put_aside(folder / "store")

    def run() -> None:
        importer = MediaImporter(MediaRoot(folder), folder / "store", processes)  # threads: decoding holds no lock
        for start in range(0, len(files), 256):
            found = importer.rows([Medium("image", f"images/{file.name}") for file in files[start : start + 256]])
            assert all(isinstance(one, dict) for one in found)
        importer.close()

    return Step(len(files), "images", run)


def whole_source(folder: Path, processes: int) -> Step:
    """The source to tables, its images being in the store already (as after a killed import)."""

    def run() -> None:
        more: dict[str, Any] = {"processes": processes} if processes > 1 else {}
        artifact = read_source(manifest(folder), folder, folder / "store", **more)
        assert artifact.metadata["rows_in"] == artifact.metadata["rows_out"] + artifact.metadata["rows_quarantined"]
        for kind in ("pairs", "prompts"):
            write_parquet(artifact[kind], folder / f"{kind}.parquet")

    return Step(_rows(folder), "rows", run)


def source_and_images(folder: Path, processes: int) -> Step:
    """The same with an empty store."""
    put_aside(folder / "store")
    return whole_source(folder, processes)


def clean(folder: Path, processes: int) -> Step:
    """Repeated, contradictory and near-duplicate pairs."""
    pairs, prompts = (read_parquet(folder / f"{kind}.parquet", kind) for kind in ("pairs", "prompts"))
    more: dict[str, Any] = {"processes": processes} if processes > 1 else {}
    return Step(pairs.num_rows, "pairs", lambda: clean_pairs(pairs, prompts, 0.9, "ingest", **more))


def decontaminated(folder: Path, processes: int) -> Step:
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

    more: dict[str, Any] = {"processes": processes} if processes > 1 else {}

    def run() -> None:
        content = benchmark_content(items, theirs)
        clean, removed, _ = decontaminate(pairs, prompts, content, DecontaminationSettings(), hashes, **more)
        assert removed.num_rows >= theirs.num_rows and clean.num_rows + removed.num_rows == pairs.num_rows

    return Step(pairs.num_rows, "pairs", run)


STEPS: dict[str, Callable[[Path, int], Step]] = {
    "read and adapt": read_and_adapt,
    "import images": import_images,
    "source and images": source_and_images,
    "whole source": whole_source,
    "clean": clean,
    "decontaminate": decontaminated,
}


def main() -> None:
    """Make the source, run each step in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--photographs", type=Path, help="folder of JPEG files, which take the place of made-up images")
    compare_steps(parser, "benchmarks.ingest", STEPS, _written)


def _written(folder: Path, given: argparse.Namespace) -> str:
    write_source(folder, given.rows, given.images, given.photographs)
    size = (folder / "rows.jsonl").stat().st_size / 2**20
    return f"{given.rows} rows ({size:.0f} MiB of JSON), {given.images} images"


def compare_steps(
    parser: argparse.ArgumentParser,
    module: str,
    steps: Mapping[str, Callable[[Path, int], Step]],
    write: Callable[[Path, argparse.Namespace], str],
) -> None:
    """The command line of a benchmark: every step in a process of its own, in turn with another checkout.

    Args:
        parser: with what is written; options of all such benchmarks are added.
        module: the benchmark's own, which runs one step when it is asked to.
        steps: by name; each makes what is measured from the folder and the number of processes.
        write: makes what the steps need in a folder, and says what that is.
    """
    parser.add_argument("--turns", type=int, default=1, help="medians of so many, one step after the other")
    parser.add_argument("--processes", type=int, default=1, help="that share the work, here and not in --against")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--only", nargs="*", choices=steps, help="steps; later ones need the tables of earlier ones")
    parser.add_argument("--step", choices=steps, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(_measured(steps[given.step](given.folder, given.processes))))
        return
    ours = Path(__file__).resolve().parents[1]
    checkouts = [ours] if given.against is None else [given.against.resolve(), ours]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "made_up"
        print(f"{write(folder, given)}, medians of {given.turns} turns\n")
        heading = "| step | count | CPU seconds | per second of CPU time | wall seconds | peak memory, MiB |"
        heading += " and of each process | CPU seconds of the first process |" * (given.processes > 1)
        heading += " times before, by CPU time | by the clock |" * (given.against is not None)
        print(f"{heading}\n{'|---' * (heading.count('|') - 1)}|")
        for name in given.only or steps:
            turns = [
                [_turn(module, name, folder, root, given.processes if root == ours else 1) for root in checkouts]
                for _ in range(given.turns)
            ]
            found = {key: statistics.median(turn[-1][key] for turn in turns) for key in turns[0][-1] if key != "of"}
            line = f"| {name} | {found['count']:,.0f} {turns[0][-1]['of']} | {found['cpu']:.1f} | "
            line += f"{found['count'] / found['cpu']:,.0f} | {found['wall']:.1f} | {found['peak_mib']:.0f} |"
            if given.processes > 1:
                line += f" {found['others_mib']:.0f} | {found['own']:.1f} |"
            if given.against is not None:
                for clock in ("cpu", "wall"):
                    ratios = sorted(turn[0][clock] / turn[1][clock] for turn in turns)
                    line += f" {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
            print(line, flush=True)
        print(f"\nload of the machine at the end: {os.getloadavg()[0]:.1f}")


def _turn(module: str, name: str, folder: Path, checkout: Path, processes: int) -> dict[str, Any]:
    """One turn of a step with the package of a checkout; the steps are those of this checkout's benchmarks."""
    module = "benchmarks.first_version" if is_first(checkout) else module
    command = [sys.executable, "-c", _START, str(checkout), str(Path(__file__).resolve().parents[1]), module]
    command += ["--step", name, "--folder", str(folder)]
    done = subprocess.run([*command, "--processes", str(processes)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measured(step: Step) -> dict[str, Any]:
    watched, started = Watched(), time.monotonic()
    step.run()
    wall = time.monotonic() - started
    return {"count": step.count, "of": step.of, "wall": wall, **watched.end()}


def _rows(folder: Path) -> int:
    with (folder / "rows.jsonl").open("rb") as file:
        return sum(1 for _ in file)


if __name__ == "__main__":
    main()
