"""Group `evaluation`: benchmark accuracy of every round, beside control arms, and the report across rounds."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
from pydantic import Field

from dt2it_pipeline.config.sections.cleaning import DecontaminationSettings
from dt2it_pipeline.config.sections.evaluation import EvaluationSettings
from dt2it_pipeline.curate.tables import to_frame, to_table
from dt2it_pipeline.evaluate.benchmarks.metrics import ALL, MACRO, OVERALL, ItemScores, score_items
from dt2it_pipeline.evaluate.benchmarks.reference_results import comparison, comparison_markdown
from dt2it_pipeline.evaluate.benchmarks.spec import load_entries
from dt2it_pipeline.evaluate.report.formatting import percent
from dt2it_pipeline.orchestrate.arms import arms
from dt2it_pipeline.orchestrate.assets.rounds import trained_on
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.sections import ModelSections
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage
from dt2it_pipeline.orchestrate.stage.checks import BENCHMARKS_GIVEN, NO_REGRESSION
from dt2it_pipeline.orchestrate.stage.metadata import markdown_of
from dt2it_pipeline.orchestrate.stage.model_jobs import ModelJobs, responses_of, training_metadata
from dt2it_pipeline.orchestrate.stage.stage_asset import StageResult, stage_asset
from dt2it_pipeline.reward.scoring.any_model import is_url
from dt2it_pipeline.reward.scoring.image_size import image_size_line
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, model_digest

GROUP = "evaluation"
ON_DEMAND = "on_demand"
CHECKPOINT_SCORES = "checkpoint_scores"


_TABLES = ("benchmark_scores", "benchmark_figures", "benchmark_results", "scores", "quarantine")


def build_evaluation_assets(
    sections: ModelSections,
    decontamination: DecontaminationSettings,
    settings: EvaluationSettings,
    trusted: int,
    rounds: dg.PartitionsDefinition,
) -> list[dg.AssetsDefinition]:
    """Benchmark scores of the rounds, and a model with its scores for every arm that the recipe asks for.

    Arms leave out the `trusted` pairs that the rounds' models leave out.
    """
    made = [_benchmark_scores(sections, rounds), _checkpoint_scores(sections)]
    for arm, preferences in arms(settings).items():
        made += [_arm_model(sections, decontamination, arm, preferences, trusted), _arm_scores(sections, arm)]
    return made


def benchmarked(models: ModelJobs, model: Artifact, benchmarks: Artifact, name: str) -> Artifact:
    """A model's accuracy per benchmark group (`benchmark_scores`) with the scores behind it, as the step's stage."""

    def score(work: Path) -> Artifact:
        items = benchmarks["benchmark_items"]
        scored = models.score(model, responses_of(items), benchmarks["prompts"], name, work)
        found = score_items(to_frame(items), to_frame(scored["scores"]), model=name)
        return Artifact({**benchmark_tables(found), **scored.tables}, scored.metadata)

    artifact = run_stage(
        models.context,
        models.store.open(),
        score,
        inputs={"model": model, "raw_benchmarks": benchmarks, "name": name},
        settings={"scoring": models.scoring, "entries": entry_hashes()},
    )
    _log_accuracy(models.context, artifact)
    return artifact


def accuracy_lines(scores: pd.DataFrame) -> list[str]:
    """Rows of `benchmark_scores` in words, a line per model and benchmark: in a terminal nobody sees the tables."""
    lines = []
    for (model, benchmark), rows in scores[scores["group"] != MACRO].groupby(["model", "benchmark"], sort=True):
        overall, groups = rows[rows["group"] == OVERALL].iloc[0], rows[rows["group"] != OVERALL]
        parts = [f"{group} {percent(share)}%" for group, share in zip(groups["group"], groups["accuracy"], strict=True)]
        by_group = f" ({', '.join(parts)})" if parts else ""
        right = f"{percent(overall['accuracy'])}% of {overall['pairs']:,} pairs"
        lines.append(f"{model} is right in {right} of {benchmark}{by_group}")
    return lines


def benchmark_tables(found: ItemScores) -> dict[str, pa.Table]:
    """The results as tables, by kind."""
    return {field.name: to_table(getattr(found, field.name), field.name) for field in fields(found)}


def _benchmark_scores(sections: ModelSections, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @stage_asset(
        group=GROUP,
        part="evaluation",
        stage="benchmark",
        code_version="3",
        kinds={"pytorch"},
        tables=_TABLES,
        gpu=True,
        reconciles=False,
        checks=(NO_REGRESSION, BENCHMARKS_GIVEN),
        partitions_def=rounds,
    )
    def benchmark_scores(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        reward_model: Artifact,
        raw_benchmarks: Artifact,
    ) -> StageResult:
        """Accuracy of the round's reward model on every benchmark group; a tie counts as wrong."""
        opened, number = store.open(), int(context.partition_key)
        models = ModelJobs(context, store, children, *sections)
        artifact = benchmarked(models, reward_model, raw_benchmarks, f"round {number}")
        before = None
        if number > 0 and opened.current("benchmark_scores", str(number - 1)) is not None:
            before = _pooled(opened.read("benchmark_scores", str(number - 1)))
        now = _pooled(artifact)
        items = raw_benchmarks["benchmark_items"].num_rows
        accuracy = {"accuracy": now} if items else {}
        given = dg.AssetCheckResult(
            check_name=BENCHMARKS_GIVEN.name,
            passed=items > 0,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"pairs": items},
            description=None
            if items
            else "no accuracy is measured: the recipe's `datasets` name no source of kind "
            "`benchmark` or `t2i_benchmark` with a usable row",
        )
        regression = dg.AssetCheckResult(
            check_name=NO_REGRESSION.name,
            passed=before is None or not items or now >= before,
            severity=dg.AssetCheckSeverity.WARN,
            metadata=accuracy | ({} if before is None else {"round_before": before}),
        )
        return StageResult(artifact, checks=(regression, given), metadata=_headline(artifact))

    return benchmark_scores


class CheckpointConfig(dg.Config):
    """Which reward model is benchmarked."""

    model: str = Field(
        description="Checkpoint folder of ours or of another trainer, Hub id, or URL of a pooling server."
    )
    name: str = Field("", description="Name of the model in the tables; by default the model itself.")
    system_prompt: str | None = Field(
        None, description="System prompt that the model was trained with, where its files do not name it."
    )


def _checkpoint_scores(sections: ModelSections) -> dg.AssetsDefinition:
    @stage_asset(
        name=CHECKPOINT_SCORES,
        group=ON_DEMAND,
        part="evaluation",
        stage="benchmark",
        code_version="2",
        kinds={"pytorch"},
        tables=_TABLES,
        gpu=True,
        reconciles=False,
    )
    def checkpoint_scores(
        context: dg.AssetExecutionContext,
        config: CheckpointConfig,
        store: StoreResource,
        children: ChildProcesses,
        raw_benchmarks: Artifact,
    ) -> StageResult:
        """Accuracy of any reward model on the recipe's benchmarks, beside published systems where there are some."""
        models, opened = ModelJobs(context, store, children, *sections), store.open()
        name, items = config.name or config.model, raw_benchmarks["benchmark_items"]

        def score(work: Path) -> Artifact:
            scored = models.score_any(
                config.model, config.system_prompt, responses_of(items), raw_benchmarks["prompts"], name, work
            )
            found = score_items(to_frame(items), to_frame(scored["scores"]), model=name)
            return Artifact({**benchmark_tables(found), **scored.tables}, scored.metadata)

        # What stands behind a URL may change from run to run, so that its scores are never taken from the store.
        identity = f"{config.model} in run {context.run_id}" if is_url(config.model) else model_digest(config.model)
        artifact = run_stage(
            context,
            opened,
            score,
            inputs={"model": identity, "raw_benchmarks": raw_benchmarks, "name": name},
            settings={"scoring": sections.scoring, "system_prompt": config.system_prompt, "entries": entry_hashes()},
        )
        _log_accuracy(context, artifact)
        return StageResult(artifact, metadata=_headline(artifact))

    return checkpoint_scores


def _log_accuracy(context: dg.AssetExecutionContext, artifact: Artifact) -> None:
    for line in (*accuracy_lines(to_frame(artifact["benchmark_scores"])), image_size_line(artifact.metadata)):
        context.log.info(line)


def _headline(artifact: Artifact) -> dict[str, Any]:
    """Accuracy over all pairs and per group, and published systems beside it where a benchmark is one of theirs."""
    pooled = _pooled(artifact)
    accuracy = {} if math.isnan(pooled) else {"accuracy": float(f"{pooled:.4g}")}
    table = comparison(to_frame(artifact["benchmark_figures"]))
    compared = {} if table.empty else {"published_systems": dg.MetadataValue.md(comparison_markdown(table))}
    size = {"image_size": image_size_line(artifact.metadata)}
    return {**accuracy, "accuracy_table": markdown_of(artifact["benchmark_scores"]), **size, **compared}


def entry_hashes() -> dict[str, str]:
    """What the entries of configs/benchmarks say, for the keys of stages."""
    return {name: entry.hash for name, entry in load_entries().items()}


def _arm_model(
    sections: ModelSections, decontamination: DecontaminationSettings, arm: str, preferences: str, trusted: int
) -> dg.AssetsDefinition:
    @stage_asset(
        name=f"{arm}_model",
        description=f"Arm for comparison: trained on D0 and {preferences} as they are, uncurated.",
        group=GROUP,
        part="evaluation",
        stage="train",
        code_version="3",
        kinds={"deepspeed", "pytorch"},
        tables=("quarantine",),
        gpu=True,
        reconciles=False,
        ins={"preferences": dg.AssetIn(preferences)},
    )
    def arm_model(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        debiased_pairs: Artifact,
        t2i_pairs: Artifact,
        raw_benchmarks: Artifact,
        preferences: Artifact,
    ) -> StageResult:
        if not raw_benchmarks["benchmark_items"].num_rows:
            return StageResult(_no_arm(context, store, ("quarantine",)))
        parts = {"debiased_pairs": debiased_pairs, "t2i_pairs": t2i_pairs, "preferences": preferences}
        models = ModelJobs(context, store, children, *sections)
        artifact = trained_on(models, parts, raw_benchmarks, decontamination, trusted)
        return StageResult(artifact, metadata=training_metadata(artifact))

    return arm_model


def _arm_scores(sections: ModelSections, arm: str) -> dg.AssetsDefinition:
    @stage_asset(
        name=f"{arm}_scores",
        description=f"Benchmark accuracy of the {arm} arm.",
        group=GROUP,
        part="evaluation",
        stage="benchmark",
        code_version="3",
        kinds={"pytorch"},
        tables=_TABLES,
        gpu=True,
        reconciles=False,
        ins={"model": dg.AssetIn(f"{arm}_model")},
    )
    def arm_scores(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        model: Artifact,
        raw_benchmarks: Artifact,
    ) -> StageResult:
        if "not_trained" in model.metadata:
            return StageResult(_no_arm(context, store, _TABLES))
        models = ModelJobs(context, store, children, *sections)
        artifact = benchmarked(models, model, raw_benchmarks, arm)
        return StageResult(artifact, metadata=_headline(artifact))

    return arm_scores


def _no_arm(context: dg.AssetExecutionContext, store: StoreResource, tables: tuple[str, ...]) -> Artifact:
    """What stands for an arm that is not trained: it is there to be compared, and no benchmark could do that."""
    empty = {kind: schemas.table([], kind) for kind in tables}
    why = "the recipe has no benchmark to compare it by"
    return run_stage(
        context, store.open(), lambda work: Artifact(empty, {"not_trained": why}), inputs={}, settings={"why": why}
    )


def _pooled(artifact: Artifact) -> float:
    """Accuracy over all pairs of all benchmarks."""
    rows = [
        row for row in artifact["benchmark_scores"].to_pylist() if row["group"] == OVERALL and row["benchmark"] != ALL
    ]
    pairs = sum(row["pairs"] for row in rows)
    return sum(row["correct"] for row in rows) / pairs if pairs else float("nan")
