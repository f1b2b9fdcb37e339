"""Exports the pairs that a round has curated.

    python -m dt2it_pipeline.export --round 0 --format huggingface --output FOLDER [--home DT2IT_HOME]

`--asset` names another table of pairs, such as training_pairs or, without a round, debiased_pairs. `--undecided` takes
the contested pairs of a round that are left out, because judges did not decide them or the budget did not reach them;
with the formats label_studio and argilla people can decide them (see dt2it_pipeline.human_review.answers).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.config.paths import artifact_home
from dt2it_pipeline.export.lineage import lineage_of, sources_of
from dt2it_pipeline.export.write import DATASETS, FORMATS, TITLE, ExportError, export_pairs
from dt2it_pipeline.storage.artifacts import Store
from dt2it_pipeline.storage.atomic import StoreError


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dt2it_pipeline.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--round", help="round of the pairs, for an asset that is made for each round, as curated_pairs is"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--asset", default="curated_pairs", help="asset that holds the pairs")
    which.add_argument("--undecided", action="store_true", help="the round's doubtful pairs that nobody decided")
    parser.add_argument("--format", default="huggingface", choices=sorted(FORMATS))
    parser.add_argument("--output", required=True, type=Path, help="folder to make; an earlier export is replaced")
    parser.add_argument("--home", type=Path, default=artifact_home(), help="artifact home; by default DT2IT_HOME")
    given = parser.parse_args(arguments)
    if given.undecided and given.format in DATASETS:
        people = " or ".join(sorted(FORMATS.keys() - DATASETS.keys()))
        parser.error(f"--undecided needs --format {people}: nobody has said which side of these pairs is better")
    store = Store(given.home)
    try:
        asset = "contested_pairs" if given.undecided else given.asset
        artifact = store.read(asset, given.round)
        pairs = _undecided(store, given.round) if given.undecided else artifact["pairs"]
        done = export_pairs(
            pairs,
            artifact["prompts"],
            store.media,
            given.output,
            given.format,
            sources=sources_of(pairs, store.home),
            title="Pairs that nobody has decided" if given.undecided else TITLE,
            lineage=lineage_of(artifact, asset, given.round),
        )
    except (ExportError, StoreError) as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:
        raise SystemExit(f"error: cannot write {given.output}: {error}") from None
    print(f"{done.folder}: {done.pairs} pairs")
    for row in done.quarantine.to_pylist():
        print(f"not exported: {row['row_id']}: {row['reason']} ({row['detail']})")


def _undecided(store: Store, number: str | None) -> pa.Table:
    """The pairs that were quarantined when they were to be annotated: contested, or verified and shaken by verdicts."""
    pairs = pa.concat_tables([store.read(name, number)["pairs"] for name in ("contested_pairs", "verified_pairs")])
    aside = store.read("annotated_pairs", number)["quarantine"]
    left = pc.coalesce(aside["pair_id"], aside["row_id"])  # earlier versions named pairs by `row_id`
    return pairs.filter(pc.is_in(pairs["pair_id"], left.combine_chunks()))


if __name__ == "__main__":
    main()
