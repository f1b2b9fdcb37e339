"""Rounds as partitions. The recipe bounds them, so they are static: nothing is to be seeded on a fresh instance."""

from __future__ import annotations

import dagster as dg

from dt2it_pipeline.storage.artifacts import Artifact, Store

GROUP = "rounds"
ROUND_JOB = "round"
FEEDBACK = "feedback_pairs"


def rounds_partitions(rounds: int) -> dg.StaticPartitionsDefinition:
    """One partition per round, "0" to `rounds` - 1."""
    return dg.StaticPartitionsDefinition([str(number) for number in range(rounds)])


def earlier_round(store: Store, name: str, number: int, needed_by: int) -> Artifact:
    """An asset's result of an earlier round, which Dagster cannot load itself: an asset may not depend on itself.

    Raises:
        dagster.Failure: that round has not run; the message says which command runs it. A retry would not help.
    """
    if store.current(name, str(number)) is None:
        raise dg.Failure(
            f"round {needed_by} needs {name} of round {number}, which has not been made in {store.home}. Run it first: "
            f"dt2it run {ROUND_JOB} --round {number}",
            allow_retries=False,
        )
    return store.read(name, str(number))


def announce_feedback(context: dg.AssetExecutionContext, curated: Artifact, next_round: int) -> None:
    """Record that `feedback_pairs` of the next round is there: what a finished round hands to the one after it.

    Both events are needed: the materialisation shows in the UI, and only the observation's data version makes what lies
    downstream of an external asset stale.
    """
    key, partition = dg.AssetKey(FEEDBACK), str(next_round)
    tags = {"dagster/data_version": curated.digest}
    metadata = {"pairs": curated["pairs"].num_rows, "path": dg.MetadataValue.path(str(curated.folder))}
    context.instance.report_runless_asset_event(
        dg.AssetMaterialization(asset_key=key, partition=partition, metadata=metadata, tags=tags)
    )
    context.instance.report_runless_asset_event(
        dg.AssetObservation(asset_key=key, partition=partition, metadata=metadata, tags=tags)
    )
