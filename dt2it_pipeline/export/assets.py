"""Exports of what an artifact home holds: an asset's pairs, or a round's pairs that nobody has decided.

What belongs here: which pairs, with which lineage. What does not: how they are written (write.py).
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.export.lineage import lineage_of, sources_of
from dt2it_pipeline.export.write import Exported, export_pairs
from dt2it_pipeline.storage.artifacts import Store


def export_asset(store: Store, asset: str, number: str | None, folder: Path, format_name: str) -> Exported:
    """Write the pairs of an asset with their prompts, media and lineage.

    Args:
        store: the artifact home.
        asset: name of an asset that holds pairs, such as `curated_pairs`, `training_pairs` or `debiased_pairs`.
        number: round of the pairs; None for an asset that is not made by rounds.
        folder: folder to make; an earlier export is replaced.
        format_name: one of FORMATS.

    Raises:
        StoreError: the asset is not there.
        ExportError: as `export_pairs`.
    """
    artifact = store.read(asset, number)
    pairs = artifact["pairs"]
    return export_pairs(
        pairs,
        artifact["prompts"],
        store.media,
        folder,
        format_name,
        sources=sources_of(pairs, store),
        lineage=lineage_of(artifact, asset, number),
    )


def export_undecided(store: Store, number: str, folder: Path, format_name: str) -> Exported:
    """Write the contested pairs of a round that neither judges nor people decided, as tasks for people.

    Args:
        store: the artifact home.
        number: a finished round.
        folder: folder to make; an earlier export is replaced.
        format_name: `label_studio` or `argilla`.

    Raises:
        StoreError: the round is not there.
        ExportError: as `export_pairs`.
    """
    contested = store.read("contested_pairs", number)
    pairs = _undecided(store, number)
    return export_pairs(
        pairs,
        contested["prompts"],
        store.media,
        folder,
        format_name,
        sources=sources_of(pairs, store),
        title="Pairs that nobody has decided",
        lineage=lineage_of(contested, "contested_pairs", number),
    )


def _undecided(store: Store, number: str) -> pa.Table:
    """The pairs that were quarantined when they were to be annotated: contested, or verified and then reopened."""
    pairs = pa.concat_tables([store.read(name, number)["pairs"] for name in ("contested_pairs", "verified_pairs")])
    aside = store.read("annotated_pairs", number)["quarantine"]
    left = pc.coalesce(aside["pair_id"], aside["row_id"])  # earlier versions named pairs by `row_id`
    return pairs.filter(pc.is_in(pairs["pair_id"], left.combine_chunks()))
