"""Group `evaluation`: benchmark accuracy of every round, beside control arms, and the report across rounds."""

from pathlib import Path

import dagster as dg

from dt2it_pipeline.curate.tables import to_frame, to_table
from dt2it_pipeline.evaluate.benchmarks import ALL, OVERALL, score_benchmark
from dt2it_pipeline.orchestrate.assets.rounds import joined_pairs
from dt2it_pipeline.orchestrate.heavy import Heavy, responses_of, training_metadata
from dt2it_pipeline.orchestrate.metadata import markdown_of
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.stage import result, run_stage
from dt2it_pipeline.recipe import Recipe
from dt2it_pipeline.store import Bundle

GROUP = "evaluation"
CONTROL, CEILING = "control", "ceiling"


def arms(recipe: Recipe) -> dict[str, str]:
    """Arms that the recipe asks for: name -> the asset whose preferences join D0 in its training set."""
    asked = {CONTROL: recipe.evaluation.control_arm, CEILING: recipe.evaluation.ceiling_arm}
    preferences = {CONTROL: "raw_preferences", CEILING: "demo_truth"}
    return {arm: preferences[arm] for arm, wanted in asked.items() if wanted}


def build_evaluation_assets(recipe: Recipe, rounds: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """Benchmark scores of the rounds, and a model with its scores for every arm that the recipe asks for."""
    made = [_benchmark_scores(recipe, rounds)]
    for arm, preferences in arms(recipe).items():
        made += [_arm_model(recipe, arm, preferences), _arm_scores(recipe, arm)]
    return made


def benchmarked(heavy: Heavy, model: Bundle, benchmarks: Bundle, name: str) -> Bundle:
    """A model's accuracy per benchmark group (`benchmark_scores`) with the scores behind it, as the step's stage."""

    def score(work: Path) -> Bundle:
        items = benchmarks["benchmark_items"]
        scored = heavy.score(model, responses_of(items), benchmarks["prompts"], name, work)
        table = score_benchmark(to_frame(items), to_frame(scored["scores"]), model=name)
        return Bundle({"benchmark_scores": to_table(table, "benchmark_scores"), **scored.tables}, scored.facts)

    recipe = heavy.recipe
    return run_stage(
        heavy.context,
        heavy.store.open(),
        score,
        inputs={"model": model, "raw_benchmarks": benchmarks, "name": name},
        settings={"scoring": recipe.scoring},
    )


def _benchmark_scores(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        partitions_def=rounds,
        group_name=GROUP,
        code_version="1",
        pool="gpu",
        kinds={"pytorch"},
        check_specs=[dg.AssetCheckSpec("no_regression", asset="benchmark_scores")],
    )
    def benchmark_scores(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        reward_model: Bundle,
        raw_benchmarks: Bundle,
    ) -> dg.MaterializeResult:
        """Accuracy of the round's reward model on every benchmark group; a tie counts as wrong."""
        opened, number = store.open(), int(context.partition_key)
        heavy = Heavy(context, store, children, recipe)
        bundle = benchmarked(heavy, reward_model, raw_benchmarks, f"round {number}")
        before = None
        if number > 0 and opened.current("benchmark_scores", str(number - 1)) is not None:
            before = _pooled(opened.read("benchmark_scores", str(number - 1)))
        now = _pooled(bundle)
        regression = dg.AssetCheckResult(
            check_name="no_regression",
            passed=before is None or now >= before,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"accuracy": now} | ({} if before is None else {"round_before": before}),
        )
        table = {"accuracy_table": markdown_of(bundle["benchmark_scores"]), "accuracy": now}
        return result(context, opened, bundle, checks=(regression,), metadata=table)

    return benchmark_scores


def _arm_model(recipe: Recipe, arm: str, preferences: str) -> dg.AssetsDefinition:
    @dg.asset(
        name=f"{arm}_model",
        group_name=GROUP,
        code_version="2",
        pool="gpu",
        kinds={"deepspeed", "pytorch"},
        description=f"Arm for comparison: trained on D0 and {preferences} as they are.",
        ins={"preferences": dg.AssetIn(preferences)},
    )
    def arm_model(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        debiased_pairs: Bundle,
        t2i_pairs: Bundle,
        raw_benchmarks: Bundle,
        preferences: Bundle,
    ) -> dg.MaterializeResult:
        parts = {"debiased_pairs": debiased_pairs, "t2i_pairs": t2i_pairs, "preferences": preferences}
        joined = joined_pairs(parts, raw_benchmarks, recipe.decontamination, store.open().media)
        bundle = Heavy(context, store, children, recipe).train(
            joined["pairs"],
            joined["prompts"],
            {
                **parts,
                "raw_benchmarks": raw_benchmarks,
                "decontamination": recipe.decontamination.model_dump_json(),
            },
        )
        return result(context, store.open(), bundle, metadata=training_metadata(bundle))

    return arm_model


def _arm_scores(recipe: Recipe, arm: str) -> dg.AssetsDefinition:
    @dg.asset(
        name=f"{arm}_scores",
        group_name=GROUP,
        code_version="1",
        pool="gpu",
        kinds={"pytorch"},
        description=f"Benchmark accuracy of the {arm} arm.",
        ins={"model": dg.AssetIn(f"{arm}_model")},
    )
    def arm_scores(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        model: Bundle,
        raw_benchmarks: Bundle,
    ) -> dg.MaterializeResult:
        bundle = benchmarked(Heavy(context, store, children, recipe), model, raw_benchmarks, arm)
        return result(
            context, store.open(), bundle, metadata={"accuracy_table": markdown_of(bundle["benchmark_scores"])}
        )

    return arm_scores


def _pooled(bundle: Bundle) -> float:
    """Accuracy over all pairs of all benchmarks."""
    rows = [
        row for row in bundle["benchmark_scores"].to_pylist() if row["group"] == OVERALL and row["benchmark"] != ALL
    ]
    pairs = sum(row["pairs"] for row in rows)
    return sum(row["correct"] for row in rows) / pairs if pairs else float("nan")
