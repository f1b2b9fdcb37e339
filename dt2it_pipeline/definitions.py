"""The code location: everything that Dagster shows and runs, for one recipe and one artifact home."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from dt2it_pipeline.config.paths import artifact_home
from dt2it_pipeline.config.recipe import Recipe, load_recipe
from dt2it_pipeline.config.recipe_files import require_files
from dt2it_pipeline.orchestrate.assets.construction import build_construction_assets
from dt2it_pipeline.orchestrate.assets.curation import build_curation_assets
from dt2it_pipeline.orchestrate.assets.evaluation import build_evaluation_assets
from dt2it_pipeline.orchestrate.assets.export import build_export_asset
from dt2it_pipeline.orchestrate.assets.raw import build_raw_assets
from dt2it_pipeline.orchestrate.assets.report import build_report_asset
from dt2it_pipeline.orchestrate.assets.rounds import build_round_assets
from dt2it_pipeline.orchestrate.assets.voters import build_voter_assets
from dt2it_pipeline.orchestrate.console import tell_mistakes_plainly
from dt2it_pipeline.orchestrate.executor import one_process_executor
from dt2it_pipeline.orchestrate.io_manager import ArtifactIOManager
from dt2it_pipeline.orchestrate.jobs import build_jobs
from dt2it_pipeline.orchestrate.partitions import rounds_partitions
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.sensors import build_schedules, build_sensors


def build_defs(recipe: Recipe, home: Path) -> dg.Definitions:
    """Everything for one recipe, with artifacts below `home`; tests call it with a recipe and a folder of their own."""
    require_files(recipe)
    rounds = rounds_partitions(recipe)
    jobs = build_jobs(rounds)
    return dg.Definitions(
        assets=[
            *build_raw_assets(recipe),
            *build_construction_assets(recipe),
            *build_round_assets(recipe, rounds),
            *build_voter_assets(recipe, rounds),
            *build_curation_assets(recipe, rounds),
            *build_evaluation_assets(recipe, rounds),
            build_report_asset(recipe, rounds),
            build_export_asset(recipe, rounds),
        ],
        jobs=list(jobs),
        sensors=build_sensors(recipe, jobs, home),
        schedules=build_schedules(recipe, jobs, home),
        executor=one_process_executor,
        resources={
            "io_manager": ArtifactIOManager(home=str(home)),
            "store": StoreResource(home=str(home)),
            "children": ChildProcesses(),
        },
    )


tell_mistakes_plainly()
defs = build_defs(load_recipe(), artifact_home())
