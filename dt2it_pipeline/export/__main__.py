"""Exports the pairs that a round has curated.

    python -m dt2it_pipeline.export --round 0 --format huggingface --output FOLDER [--home DT2IT_HOME]

`--asset` names another table of pairs, such as training_pairs or, without a round, debiased_pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dt2it_pipeline.export.lineage import lineage_of, sources_of
from dt2it_pipeline.export.write import FORMATS, ExportError, export_pairs
from dt2it_pipeline.recipe import artifact_home
from dt2it_pipeline.store import Store, StoreError


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dt2it_pipeline.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--round", help="round of the pairs; without it the asset has none")
    parser.add_argument("--asset", default="curated_pairs", help="asset that holds the pairs")
    parser.add_argument("--format", default="huggingface", choices=sorted(FORMATS))
    parser.add_argument("--output", required=True, type=Path, help="folder to make; an earlier export is replaced")
    parser.add_argument("--home", type=Path, default=artifact_home(), help="artifact home; by default DT2IT_HOME")
    given = parser.parse_args(arguments)
    store = Store(given.home)
    try:
        bundle = store.read(given.asset, given.round)
        done = export_pairs(
            bundle["pairs"],
            bundle["prompts"],
            store.media,
            given.output,
            given.format,
            sources=sources_of(bundle["pairs"], store.home),
            lineage=lineage_of(bundle, given.asset, given.round),
        )
    except (ExportError, StoreError) as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:
        raise SystemExit(f"error: cannot write {given.output}: {error}") from None
    print(f"{done.folder}: {done.pairs} pairs")
    for row in done.set_aside.to_pylist():
        print(f"not exported: {row['row_id']}: {row['reason']} ({row['detail']})")


if __name__ == "__main__":
    main()
