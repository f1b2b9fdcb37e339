"""Curation from files to files: the joint model, the published steps, and these by row-by-row dictionaries.

    python -m benchmarks.curation                       # 1,000,000 pairs, three voters; the reference on 200,000
    python -m benchmarks.curation --pairs 10000000 --reference-pairs 0 --runs 1

Pairs have 60 words a side; three voters score all responses, a verifier scores them again, and two judges vote on what
it contests. All ways read pairs, scores, verifier's scores and votes, and write the curated pairs.

- "joint": `dt2it clean` with three voters, two judges' verdicts on a tenth of the pairs, and fifty checked pairs.
- "steps": vote, flip, verify, resolve and merge of the published algorithm, step by step, as a round goes.
- "at_once": the same in one pass (`curate.out_of_core.published_steps.curate_files`), which decides alike.
- "dictionaries": JSON Lines, one dictionary a row, scores in a dictionary keyed by response; as scripts do it.

Each run is a process of its own; memory is its peak, Python and libraries included. The reference grows linearly, so it
runs on fewer pairs and the ratio is taken per pair. Inputs are made first and not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.environment import spread
from dt2it_pipeline.observe.memory import peak_memory
from dt2it_pipeline.storage import schemas

VOTERS = ("reward_model/0", "reward_model/1", "reward_model/2")
VERIFIER = "verifier_model/2"
WORDS = 60
_CHUNK = 100_000


def make_inputs(folder: Path, pairs: int) -> None:
    """Parquet files of pairs, of each voter's scores and of votes on every pair."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    vocabulary = np.array(["".join(generator.choice(letters, 1 + n)) for n in generator.poisson(3.7, 20_000)], object)
    with pq.ParquetWriter(folder / "pairs.parquet", schemas.SCHEMAS["pairs"], compression="zstd") as writer:
        for start in range(0, pairs, _CHUNK):
            count = min(_CHUNK, pairs - start)
            words = vocabulary[np.minimum(generator.zipf(1.3, (2 * count, WORDS)), len(vocabulary)) - 1]
            texts = [" ".join(row) for row in words]
            ids = [f"{value:032x}" for value in _numbers(generator, 4 * count)]
            table = {
                "pair_id": ids[:count],
                "prompt_id": ids[count : 2 * count],
                "chosen": texts[:count],
                "rejected": texts[count:],
                "chosen_id": ids[2 * count : 3 * count],
                "rejected_id": ids[3 * count :],
                "strength": pa.nulls(count, pa.float64()),
                "label": ["original"] * count,
                "round": pa.array(np.zeros(count, dtype=np.int32)),
                "source": ["synthetic"] * count,
                "votes": [[]] * count,
            }
            writer.write_table(schemas.validate(pa.table(table), "pairs"))
    names = pq.read_table(folder / "pairs.parquet", columns=["pair_id", "chosen_id", "rejected_id"])
    responses = pa.chunked_array([*names["chosen_id"].chunks, *names["rejected_id"].chunks])
    order = generator.permutation(len(responses))
    better = np.where(generator.random(len(names)) < 0.8, 1.0, -1.0)  # 80% of the labels are right
    worth = np.concatenate([better, -better])[order]
    responses = responses.combine_chunks().take(pa.array(order))
    for voter in (*VOTERS, VERIFIER):
        scores = pa.array((worth + generator.normal(size=len(responses)) * 1.5).astype(np.float32))
        voter_names = pa.DictionaryArray.from_arrays(np.zeros(len(responses), dtype=np.int32), [voter]).cast(
            pa.string()
        )
        table = pa.table({"response_id": responses, "voter": voter_names, "score": scores})
        pq.write_table(schemas.validate(table, "scores"), _scores(folder, voter), compression="zstd")
    checked = generator.choice(len(names), 50, replace=False)
    sides = names.take(pa.array(checked)).to_pandas()
    answers = np.where(better[checked] > 0, sides["chosen_id"], sides["rejected_id"])
    sides.assign(better_id=answers)[["pair_id", "better_id"]].to_parquet(folder / "audit.parquet")
    verdicts = np.array(["chosen", "rejected", "tie"], dtype=object)
    count = len(names)
    parts = [
        pa.table(
            {
                "pair_id": names["pair_id"].combine_chunks(),
                "judge": [judge] * count,
                "order": ["forward"] * count,
                "verdict": verdicts[generator.integers(0, 3, count)],
            }
        )
        for judge in ("judge a", "judge b")
    ]
    pq.write_table(schemas.validate(pa.concat_tables(parts), "votes"), folder / "votes.parquet", compression="zstd")


def _numbers(generator: np.random.Generator, count: int) -> Iterator[int]:
    return (int(a) << 64 | int(b) for a, b in generator.integers(0, 2**63, (count, 2)))


def _scores(folder: Path, voter: str) -> Path:
    return folder / f"scores.{voter.replace('/', '.')}.parquet"


def steps(inputs: Path, output: Path) -> dict[str, int]:
    """The pipeline's way; returns rows of the curated set, verified and contested."""
    from dt2it_pipeline.curate.out_of_core import published_steps

    published_steps.vote_and_flip_files(
        inputs / "pairs.parquet", [_scores(inputs, v) for v in VOTERS], output / "voted"
    )
    checked = published_steps.verify_files(
        output / "voted/pairs.parquet", [_scores(inputs, VERIFIER)], output / "checked"
    )
    published_steps.resolve_annotations_files(
        output / "checked/contested.parquet", inputs / "votes.parquet", output / "resolved"
    )
    merged = published_steps.merge_files(
        output / "checked/verified.parquet", output / "resolved/annotated.parquet", output / "curated", 2
    )
    return {"curated": merged["rows_out"], "verified": checked["verified"], "contested": checked["contested"]}


def at_once(inputs: Path, output: Path) -> dict[str, int]:
    """The pipeline's way where all scores and votes are there: one pass."""
    from dt2it_pipeline.curate.out_of_core import published_steps

    voters, verifier = [_scores(inputs, v) for v in VOTERS], [_scores(inputs, VERIFIER)]
    made = published_steps.curate_files(
        inputs / "pairs.parquet", voters, verifier, inputs / "votes.parquet", output / "at_once", round_number=2
    )
    return {"curated": made["rows_out"], "verified": made["verified"], "contested": made["contested"]}


def joint(inputs: Path, output: Path) -> dict[str, float]:
    """`dt2it clean` on the same files."""
    from dt2it_pipeline.curate.preference_files import clean_preference_files

    names = pq.read_table(inputs / "pairs.parquet", columns=["pair_id", "chosen_id", "rejected_id"])
    some = names.take(pa.array(np.random.default_rng(1).permutation(len(names))[: len(names) // 10])).to_pandas()
    votes = pq.read_table(inputs / "votes.parquet").to_pandas()
    votes[votes["pair_id"].isin(some["pair_id"])].to_parquet(output / "votes.parquet")
    del names, some, votes
    start = time.monotonic()
    cleaned = clean_preference_files(
        inputs / "pairs.parquet",
        output / "joint",
        [_scores(inputs, voter) for voter in VOTERS],
        output / "votes.parquet",
        inputs / "audit.parquet",
    )
    counts = cleaned.pairs["outcome"].value_counts()
    seconds = time.monotonic() - start
    return {"curated": int(counts.get("kept", 0) + counts.get("flipped", 0)), "seconds": seconds}


def as_json_lines(inputs: Path, output: Path) -> None:
    """The inputs as JSON Lines, for the reference."""
    for file in sorted(inputs.glob("*.parquet")):
        with (output / f"{file.stem}.jsonl").open("w", encoding="utf-8") as lines:
            for batch in pq.ParquetFile(file).iter_batches(10_000):
                lines.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())


def dictionaries(inputs: Path, output: Path) -> dict[str, int]:
    """The reference: every table a list of dictionaries, every step a loop."""
    pairs = _read(inputs / "pairs.jsonl")
    margins: list[list[float]] = [[] for _ in pairs]
    for voter in VOTERS:
        scores = _by_response(inputs, voter)
        for place, pair in enumerate(pairs):
            margins[place].append(scores[pair["chosen_id"]] - scores[pair["rejected_id"]])
    for pair, own in zip(pairs, margins, strict=True):
        pair["strength"] = sum(own) / len(own)
        pair["votes"] = [{"voter": voter, "margin": margin} for voter, margin in zip(VOTERS, own, strict=True)]
    negative = sorted((p for p in pairs if p["strength"] < 0), key=lambda p: (p["strength"], p["pair_id"]))
    for pair in negative[: len(negative) // 2]:
        _swap(pair)
        pair["label"] = "flipped"
        pair["votes"] = [{"voter": vote["voter"], "margin": -vote["margin"]} for vote in pair["votes"]]
    _write(pairs, output / "voted.jsonl")

    pairs, scores = _read(output / "voted.jsonl"), _by_response(inputs, VERIFIER)
    parts: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for pair in pairs:
        pair["strength"] = scores[pair["chosen_id"]] - scores[pair["rejected_id"]]
        pair["votes"].append({"voter": VERIFIER, "margin": pair["strength"]})
        parts[pair["strength"] > 0].append(pair)
    _write(parts[True], output / "verified.jsonl")
    _write(parts[False], output / "contested.jsonl")

    contested = _read(output / "contested.jsonl")
    cast: dict[str, list[str]] = {}
    for vote in _read(inputs / "votes.jsonl"):
        cast.setdefault(vote["pair_id"], []).append(vote["verdict"])
    annotated = []
    for pair in contested:
        weights = [{"chosen": 1.0, "tie": 0.5, "rejected": 0.0}[verdict] for verdict in cast.get(pair["pair_id"], [])]
        if len(weights) == 2 and sum(weights) != 1:
            if sum(weights) < 1:
                _swap(pair)
            pair["label"] = "annotated"
            annotated.append(pair)
    _write(annotated, output / "annotated.jsonl")
    curated = _read(output / "verified.jsonl") + _read(output / "annotated.jsonl")
    for pair in curated:
        pair["round"] = 2
    _write(curated, output / "curated.jsonl")
    return {"curated": len(curated), "verified": len(parts[True]), "contested": len(contested)}


def _by_response(inputs: Path, voter: str) -> dict[str, float]:
    return {row["response_id"]: row["score"] for row in _read(inputs / f"{_scores(inputs, voter).stem}.jsonl")}


def _swap(pair: dict[str, Any]) -> None:
    for side in ("", "_id"):
        pair["chosen" + side], pair["rejected" + side] = pair["rejected" + side], pair["chosen" + side]
    pair["strength"] = -pair["strength"]


def _read(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _write(rows: list[dict[str, Any]], file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


WAYS = {"joint": joint, "steps": steps, "at_once": at_once, "dictionaries": dictionaries}


def main() -> None:
    """Make the inputs, run both ways in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--reference-pairs", type=int, default=200_000, help="0: leave the reference out")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where inputs and outputs go (default: a temporary folder)")
    parser.add_argument("--one", choices=tuple(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        start = time.monotonic()
        inputs, output = arguments.folder / "inputs", arguments.folder / "output"
        counts = WAYS[arguments.one](inputs, output)
        peak = peak_memory() / 2**30
        print(json.dumps({"seconds": time.monotonic() - start, "gib": peak, **counts}))  # `joint` times itself
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        ways = {"joint": arguments.pairs, "steps": arguments.pairs, "at_once": arguments.pairs}
        if arguments.reference_pairs:
            ways["dictionaries"] = arguments.reference_pairs
        folders = {way: Path(temporary) / way for way in ways}
        for way, count in ways.items():
            (folders[way] / "output").mkdir(parents=True)
            if way in ("steps", "at_once"):
                (folders[way] / "inputs").symlink_to(folders["joint"] / "inputs")
                continue
            (folders[way] / "inputs").mkdir()
            make_inputs(folders[way] / "inputs", count)
        if "dictionaries" in ways:
            as_json_lines(folders["dictionaries"] / "inputs", folders["dictionaries"] / "inputs")
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(arguments.runs):
            for way, done in runs.items():
                command = [sys.executable, "-m", "benchmarks.curation", "--one", way, "--folder", str(folders[way])]
                done.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print("| way | pairs | seconds | pairs/s | peak GiB | curated |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for way, done in runs.items():
        seconds, memory = [run["seconds"] for run in done], [run["gib"] for run in done]
        rate = ways[way] / statistics.median(seconds)
        curated = done[0]["curated"]
        print(f"| {way} | {ways[way]:,} | {spread(seconds)} | {rate:,.0f} | {spread(memory, 2)} | {curated:,} |")


if __name__ == "__main__":
    main()
