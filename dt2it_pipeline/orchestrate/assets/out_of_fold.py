"""Group `rounds`, continued: voters for feedback pairs that were not trained on them, where the recipe wants some."""

import shutil
from pathlib import Path

import dagster as dg
import pyarrow as pa

from dt2it_pipeline import records
from dt2it_pipeline.curate.out_of_fold import judged_by, learned_by, voter_name
from dt2it_pipeline.orchestrate.checks import reconcile
from dt2it_pipeline.orchestrate.heavy import Heavy, responses_of
from dt2it_pipeline.orchestrate.partitions import GROUP
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.stage import result, run_stage
from dt2it_pipeline.recipe import Recipe, model_path
from dt2it_pipeline.recipe_files import read_deepspeed_config
from dt2it_pipeline.store import Bundle, model_digest, read_parquet, write_parquet

FOLD_SCORES = "fold_scores"
_RECONCILE = "rows_reconcile"


def build_out_of_fold_assets(recipe: Recipe, rounds: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """The asset `fold_scores`, or nothing where the recipe has no `curation.out_of_fold`."""
    return [] if recipe.curation.out_of_fold is None else [_fold_scores(recipe, rounds)]


def _fold_scores(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        name=FOLD_SCORES,
        partitions_def=rounds,
        group_name=GROUP,
        code_version="1",
        pool="gpu",
        kinds={"deepspeed", "pytorch"},
        check_specs=[dg.AssetCheckSpec(_RECONCILE, asset=FOLD_SCORES, blocking=True)],
    )
    def fold_scores(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        training_pairs: Bundle,
        raw_preferences: Bundle,
    ) -> dg.MaterializeResult:
        """The noisy pairs' responses, scored by models trained without the pairs' prompts; none in round 0."""
        opened, number = store.open(), int(context.partition_key)
        heavy, settings = Heavy(context, store, children, recipe), recipe.curation.out_of_fold
        assert settings is not None
        folds = settings.folds

        def score(work: Path) -> Bundle:
            parts = [_one_fold(heavy, training_pairs, raw_preferences, number, k, folds, work) for k in range(folds)]
            tables = {
                "scores": pa.concat_tables([part["scores"] for part in parts]).combine_chunks(),
                "set_aside": pa.concat_tables([part["set_aside"] for part in parts]).combine_chunks(),
            }
            return Bundle(tables, {key: sum(part.facts[key] for part in parts) for key in _COUNTS})

        inputs: dict[str, Bundle | str] = {"round": str(number)}
        if number > 0:
            base = model_digest(model_path(recipe.training.base_model))
            inputs |= {"training_pairs": training_pairs, "raw_preferences": raw_preferences, "base_model": base}
        bundle = run_stage(
            context,
            opened,
            score if number > 0 else lambda work: _none(),
            inputs=inputs,
            settings={
                "out_of_fold": settings,
                "training": recipe.training,
                "deepspeed_config": read_deepspeed_config(recipe.training.deepspeed_config),
                "scoring": recipe.scoring,
                "seed": recipe.seed,
            },
        )
        return result(context, opened, bundle, checks=(reconcile(bundle),))

    return fold_scores


_COUNTS = ("rows_in", "rows_out", "rows_set_aside")


def _one_fold(heavy: Heavy, training: Bundle, pool: Bundle, number: int, fold: int, folds: int, work: Path) -> Bundle:
    """Scores of one fold's responses; kept in `work`, so that a killed run does not train a fold again."""
    folder = work / f"fold-{fold}"
    done = folder / "scores.done.parquet"
    judged = judged_by(pool["pairs"], fold, folds)
    responses = responses_of(judged)
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pairs, prompts = learned_by(training["pairs"], training["prompts"], judged)
        heavy.train_in(folder, pairs, prompts)
        checkpoint = Bundle({}, {}, folder / "checkpoint")
        scored = heavy.score(checkpoint, responses, pool["prompts"], voter_name(number, fold), folder)
        write_parquet(scored["set_aside"], folder / "set_aside.done.parquet")
        write_parquet(scored["scores"], done)  # last: it says that the fold is finished
        shutil.rmtree(folder / "checkpoint")
    tables = {
        "scores": read_parquet(done, "scores"),
        "set_aside": read_parquet(folder / "set_aside.done.parquet", "set_aside"),
    }
    counts = (responses.num_rows, tables["scores"].num_rows, tables["set_aside"].num_rows)
    return Bundle(tables, dict(zip(_COUNTS, counts, strict=True)))


def _none() -> Bundle:
    tables = {kind: records.table([], kind) for kind in ("scores", "set_aside")}
    facts = dict.fromkeys(_COUNTS, 0) | {
        "not_trained": "round 0 learns from no feedback: its model may judge all pairs"
    }
    return Bundle(tables, facts)
