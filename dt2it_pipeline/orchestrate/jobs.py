"""The jobs that people run: `construct` makes D0 and `round` one round on it; `benchmark` and `export` on demand."""

from __future__ import annotations

from typing import NamedTuple

import dagster as dg

from dt2it_pipeline.orchestrate.assets import construction, evaluation, export, raw
from dt2it_pipeline.orchestrate.partitions import FEEDBACK, GROUP, ROUND_JOB

IN_TURN = "dt2it/round"  # dagster.yaml lets one queued run that has this tag run at a time, in the order of the queue


class Jobs(NamedTuple):
    """The jobs of the code location."""

    construct: dg.UnresolvedAssetJobDefinition
    round: dg.UnresolvedAssetJobDefinition
    benchmark: dg.UnresolvedAssetJobDefinition
    export: dg.UnresolvedAssetJobDefinition


def build_jobs() -> Jobs:
    """Jobs `construct` (sources and D0), `round` and `export` (one partition each), `benchmark` (any checkpoint).

    Dagster takes the partitions of a job from its assets.
    """
    construct = dg.define_asset_job(
        "construct",
        dg.AssetSelection.groups(raw.GROUP, construction.GROUP),
        description="Read the sources, sample and judge answers, form debiased and two-image pairs.",
    )
    one_round = dg.define_asset_job(
        ROUND_JOB,
        dg.AssetSelection.groups(GROUP, evaluation.GROUP) - dg.AssetSelection.assets(FEEDBACK),
        tags={IN_TURN: "in turn"},
        description="Train, score, vote, verify, annotate, merge and benchmark one round.",
    )
    benchmark = dg.define_asset_job(
        "benchmark",
        dg.AssetSelection.assets(evaluation.CHECKPOINT_SCORES),
        description="Benchmark any checkpoint or pooling server that the run's configuration names.",
    )
    exported = dg.define_asset_job(
        "export",
        dg.AssetSelection.assets(export.EXPORTED),
        description="Write one round's curated pairs for Hugging Face, LLaMA-Factory and TRL.",
    )
    return Jobs(construct, one_round, benchmark, exported)
