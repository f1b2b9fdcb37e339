"""Group `rounds`, continued: voters beside the rounds' own models, where the recipe wants some.

`ensemble_scores` are of voters that learn from no feedback and judge all pairs of all rounds; `fold_scores` of voters
of one round, each for the pairs that it was not trained on.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import dagster as dg
import pyarrow as pa

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.recipe_files import read_deepspeed_config
from dt2it_pipeline.config.sections.curation import CurationSettings, EnsembleSettings, OutOfFoldSettings
from dt2it_pipeline.curate.voters.ensemble import checkpoint_voters, seed_voters
from dt2it_pipeline.curate.voters.out_of_fold import judged_by, learned_by, voter_name
from dt2it_pipeline.orchestrate.assets.anchors import trusted_digest, with_trusted
from dt2it_pipeline.orchestrate.partitions import GROUP
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.sections import ModelSections
from dt2it_pipeline.orchestrate.stage.cached_stage import Settings, run_stage
from dt2it_pipeline.orchestrate.stage.model_jobs import ModelJobs
from dt2it_pipeline.orchestrate.stage.stage_asset import StageResult, stage_asset
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, model_digest
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet

FOLD_SCORES = "fold_scores"
ENSEMBLE_SCORES = "ensemble_scores"
_COUNTS = ("rows_in", "rows_out", "rows_quarantined")


def voter_assets(curation: CurationSettings) -> tuple[str, ...]:
    """Names of the assets that `build_voter_assets` makes."""
    asked = {ENSEMBLE_SCORES: curation.ensemble, FOLD_SCORES: curation.out_of_fold}
    return tuple(name for name, settings in asked.items() if settings is not None)


def build_voter_assets(
    sections: ModelSections, curation: CurationSettings, rounds: dg.PartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """`ensemble_scores` and `fold_scores`, each where the recipe's `curation` asks for it."""
    made = []
    if curation.ensemble is not None:
        made.append(_ensemble_scores(sections, curation.ensemble, rounds))
    if curation.out_of_fold is not None:
        made.append(_fold_scores(sections, curation.out_of_fold, rounds))
    return made


def _ensemble_scores(
    sections: ModelSections, settings: EnsembleSettings, rounds: dg.PartitionsDefinition
) -> dg.AssetsDefinition:
    @stage_asset(
        name=ENSEMBLE_SCORES,
        group=GROUP,
        part="curation",
        stage="score",
        code_version="3",
        kinds={"deepspeed", "pytorch"},
        tables=("scores", "quarantine"),
        gpu=True,
        partitions_def=rounds,
    )
    def ensemble_scores(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        training_pairs: Artifact,
        raw_preferences: Artifact,
    ) -> StageResult:
        """Responses of noisy and trusted pairs, scored by models of further seeds and given checkpoints, in round 0."""
        opened, first = store.open(), context.partition_key == "0"
        models = ModelJobs(context, store, children, *sections)
        seeds, checkpoints = seed_voters(settings, sections.seed), checkpoint_voters(settings)
        responses, prompts = with_trusted(raw_preferences["pairs"], raw_preferences["prompts"], training_pairs)

        def score(work: Path) -> Artifact:
            def one(voter: str) -> Artifact:
                folder = work / voter.replace("/", "-")

                def checkpoint() -> Path:
                    if voter in checkpoints:
                        return Path(checkpoints[voter])
                    models.train_in(folder, training_pairs["pairs"], training_pairs["prompts"], seeds[voter])
                    return folder / "checkpoint"

                return _voter_scores(models, folder, voter, responses, prompts, checkpoint)

            return _joined(one(voter) for voter in (*seeds, *checkpoints))

        inputs: dict[str, Artifact | str] = {"round": context.partition_key}
        made_from: dict[str, Settings] = {"ensemble": settings}
        if first:
            inputs |= {"raw_preferences": raw_preferences, "trusted_pairs": trusted_digest(training_pairs)}
            inputs |= {voter: model_digest(path) for voter, path in checkpoints.items()}
            made_from["scoring"] = sections.scoring
            if seeds:
                base = model_digest(model_path(sections.training.base_model))
                inputs |= {"training_pairs": training_pairs, "base_model": base}
                made_from |= _trained_by(sections)
        none = "round 0's ensemble votes in all rounds: it learns from no feedback"
        artifact = run_stage(
            context, opened, score if first else lambda work: _none(none), inputs=inputs, settings=made_from
        )
        return StageResult(artifact)

    return ensemble_scores


def _fold_scores(
    sections: ModelSections, settings: OutOfFoldSettings, rounds: dg.PartitionsDefinition
) -> dg.AssetsDefinition:
    @stage_asset(
        name=FOLD_SCORES,
        group=GROUP,
        part="curation",
        stage="score",
        code_version="3",
        kinds={"deepspeed", "pytorch"},
        tables=("scores", "quarantine"),
        gpu=True,
        partitions_def=rounds,
    )
    def fold_scores(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        training_pairs: Artifact,
        raw_preferences: Artifact,
    ) -> StageResult:
        """Responses of noisy and trusted pairs, scored by models trained without their prompts; none in round 0."""
        opened, number = store.open(), int(context.partition_key)
        models = ModelJobs(context, store, children, *sections)
        folds = settings.folds

        def one_fold(fold: int, work: Path) -> Artifact:
            folder = work / f"fold-{fold}"
            judged = judged_by(raw_preferences["pairs"], fold, folds)

            def trained() -> Path:
                pairs, prompts = learned_by(training_pairs["pairs"], training_pairs["prompts"], judged)
                models.train_in(folder, pairs, prompts, sections.seed)
                return folder / "checkpoint"

            asked, prompts = with_trusted(judged, raw_preferences["prompts"], training_pairs)
            return _voter_scores(models, folder, voter_name(number, fold), asked, prompts, trained)

        inputs: dict[str, Artifact | str] = {"round": str(number)}
        if number > 0:
            base = model_digest(model_path(sections.training.base_model))
            inputs |= {"training_pairs": training_pairs, "raw_preferences": raw_preferences, "base_model": base}
        none = "round 0 learns from no feedback: its model may judge all pairs"
        artifact = run_stage(
            context,
            opened,
            lambda work: _joined(one_fold(fold, work) for fold in range(folds)) if number > 0 else _none(none),
            inputs=inputs,
            settings={"out_of_fold": settings, **_trained_by(sections), "scoring": sections.scoring},
        )
        return StageResult(artifact)

    return fold_scores


def _trained_by(sections: ModelSections) -> dict[str, Settings]:
    """What of the recipe decides about a training, as a stage's key counts it."""
    deepspeed = read_deepspeed_config(sections.training.deepspeed_config)
    return {"training": sections.training, "deepspeed_config": deepspeed, "seed": sections.seed}


def _voter_scores(
    models: ModelJobs, folder: Path, voter: str, responses: pa.Table, prompts: pa.Table, checkpoint: Callable[[], Path]
) -> Artifact:
    """Scores of one voter, kept in `folder`, so that a killed run does not make them again.

    `checkpoint` gives the folder of its model, and is not called where the scores are there.
    """
    done = folder / "scores.done.parquet"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scored = models.score(Artifact({}, {}, checkpoint()), responses, prompts, voter, folder)
        write_parquet(scored["quarantine"], folder / "quarantine.done.parquet")
        write_parquet(scored["scores"], done)  # last: it says that the voter is finished
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    tables = {
        "scores": read_parquet(done, "scores"),
        "quarantine": read_parquet(folder / "quarantine.done.parquet", "quarantine"),
    }
    counts = (responses.num_rows, tables["scores"].num_rows, tables["quarantine"].num_rows)
    return Artifact(tables, dict(zip(_COUNTS, counts, strict=True)))


def _joined(voters: Iterable[Artifact]) -> Artifact:
    parts = list(voters)
    tables = {
        name: pa.concat_tables([part[name] for part in parts]).combine_chunks() for name in ("scores", "quarantine")
    }
    return Artifact(tables, {key: sum(part.metadata[key] for part in parts) for key in _COUNTS})


def _none(why: str) -> Artifact:
    tables = {kind: schemas.table([], kind) for kind in ("scores", "quarantine")}
    return Artifact(tables, dict.fromkeys(_COUNTS, 0) | {"not_trained": why})
