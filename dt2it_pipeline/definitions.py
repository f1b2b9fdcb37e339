"""The code location: everything that Dagster shows and runs, for one recipe and one artifact home."""

from __future__ import annotations

from pathlib import Path

from dt2it_pipeline.engines.lean_processes import quick_imports, search_rarely

search_rarely()  # each process of Dagster that loads the code location does so here
with quick_imports():
    import dagster as dg

    from dt2it_pipeline.config.paths import artifact_home
    from dt2it_pipeline.config.recipe import Recipe, load_recipe
    from dt2it_pipeline.config.recipe_files import require_files
    from dt2it_pipeline.orchestrate.assets.annotation import build_annotated_pairs
    from dt2it_pipeline.orchestrate.assets.construction import build_answer_assets
    from dt2it_pipeline.orchestrate.assets.curation import build_curation_assets
    from dt2it_pipeline.orchestrate.assets.evaluation import build_evaluation_assets
    from dt2it_pipeline.orchestrate.assets.export import build_exported_pairs
    from dt2it_pipeline.orchestrate.assets.pairing import build_debiased_pairs
    from dt2it_pipeline.orchestrate.assets.raw import build_raw_assets
    from dt2it_pipeline.orchestrate.assets.reformulation import build_t2i_pairs
    from dt2it_pipeline.orchestrate.assets.report import build_round_report
    from dt2it_pipeline.orchestrate.assets.rounds import build_round_assets
    from dt2it_pipeline.orchestrate.assets.voters import build_voter_assets
    from dt2it_pipeline.orchestrate.console import print_mistakes_plainly
    from dt2it_pipeline.orchestrate.executor import one_process_executor
    from dt2it_pipeline.orchestrate.freshness import freshness
    from dt2it_pipeline.orchestrate.io_manager import ArtifactIOManager
    from dt2it_pipeline.orchestrate.jobs import build_jobs
    from dt2it_pipeline.orchestrate.partitions import rounds_partitions
    from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
    from dt2it_pipeline.orchestrate.sections import ModelSections, ReportSections
    from dt2it_pipeline.orchestrate.sensors import build_schedules, build_sensors


def build_defs(recipe: Recipe, home: Path) -> dg.Definitions:
    """Everything for one recipe, with artifacts below `home`; tests call it with a recipe and a folder of their own."""
    require_files(recipe)
    rounds, models = rounds_partitions(recipe.rounds), ModelSections.of(recipe)
    jobs = build_jobs()
    return dg.Definitions(
        assets=[
            *build_raw_assets(recipe.name, recipe.datasets, recipe.cleaning, recipe.landing, recipe.demo, recipe.seed),
            *build_answer_assets(recipe.sampling, recipe.judging, recipe.scoring.processes, recipe.ray, recipe.seed),
            build_debiased_pairs(
                recipe.pairing, recipe.evaluation.style_probe_folds, recipe.scoring.processes, recipe.ray, recipe.seed
            ),
            build_t2i_pairs(recipe.t2i, recipe.seed),
            *build_round_assets(models, recipe.decontamination, recipe.curation, rounds),
            *build_voter_assets(models, recipe.curation, rounds),
            *build_curation_assets(models, recipe.curation, rounds),
            build_annotated_pairs(recipe.annotation, recipe.curation, models, rounds),
            *build_evaluation_assets(
                models, recipe.decontamination, recipe.evaluation, recipe.curation.trusted_pairs, rounds
            ),
            build_round_report(ReportSections.of(recipe), rounds, freshness(recipe.landing)),
            build_exported_pairs(rounds),
        ],
        jobs=list(jobs),
        sensors=build_sensors(recipe.rounds, recipe.evaluation.patience, recipe.landing, jobs, home),
        schedules=build_schedules(recipe.landing, jobs),
        executor=one_process_executor,
        resources={
            "io_manager": ArtifactIOManager(home=str(home)),
            "store": StoreResource(home=str(home)),
            "children": ChildProcesses.of(recipe.launcher),
        },
    )


print_mistakes_plainly()
defs = build_defs(load_recipe(), artifact_home())
