"""The two jobs that people run: `construct` makes D0, `round` runs one round on it."""

from __future__ import annotations

from typing import NamedTuple

import dagster as dg

from dt2it_pipeline.orchestrate.assets import construction, evaluation, raw
from dt2it_pipeline.orchestrate.partitions import FEEDBACK, GROUP, ROUND_JOB


class Jobs(NamedTuple):
    """The jobs of the code location."""

    construct: dg.UnresolvedAssetJobDefinition
    round: dg.UnresolvedAssetJobDefinition


def build_jobs(partitions: dg.PartitionsDefinition) -> Jobs:
    """Jobs `construct` (sources and D0) and `round` (one partition)."""
    construct = dg.define_asset_job(
        "construct",
        dg.AssetSelection.groups(raw.GROUP, construction.GROUP),
        description="Read the sources, sample and judge answers, form debiased and two-image pairs.",
    )
    one_round = dg.define_asset_job(
        ROUND_JOB,
        dg.AssetSelection.groups(GROUP, evaluation.GROUP) - dg.AssetSelection.assets(FEEDBACK),
        partitions_def=partitions,
        description="Train, score, vote, verify, annotate, merge and benchmark one round.",
    )
    return Jobs(construct, one_round)
