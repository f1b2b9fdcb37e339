"""The report across the rounds so far: accuracy beside the control arms, data quality, counts, examples."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from dt2it_pipeline.orchestrate.arms import arms
from dt2it_pipeline.orchestrate.assets.evaluation import GROUP
from dt2it_pipeline.orchestrate.assets.voters import voter_assets
from dt2it_pipeline.orchestrate.partitions import ROUND_JOB, announce_feedback, earlier_round
from dt2it_pipeline.orchestrate.report.data import report_data
from dt2it_pipeline.orchestrate.report.sources import BEFORE, IN_ROUND, UNTABLED, ReportSources
from dt2it_pipeline.orchestrate.resources import StoreResource
from dt2it_pipeline.orchestrate.sections import ReportSections
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage
from dt2it_pipeline.orchestrate.stage.stage_asset import StageResult, stage_asset
from dt2it_pipeline.storage.artifacts import Artifact, Store
from dt2it_pipeline.storage.atomic import write_json_atomic
from dt2it_pipeline.storage.content_ids import content_hash

REPORT_FILES = ("report.html", "report.md")
_COUNTED = "cached_replies"  # of annotated_pairs; a version without it does not say its audit either


def build_round_report(
    sections: ReportSections, rounds: dg.PartitionsDefinition, freshness: dg.FreshnessPolicy | None
) -> dg.AssetsDefinition:
    """The asset `round_report`. It is the last of its round, so it also records the feedback for the next one."""
    before = (*BEFORE, *(["demo_truth"] if sections.has_truth else []))
    own = ("benchmark_scores", "curated_pairs")
    others = [f"{arm}_{what}" for arm in arms(sections.evaluation) for what in ("scores", "model")]

    @stage_asset(
        group=GROUP,
        part="evaluation",
        stage="report",
        code_version="12",
        kinds={"html"},
        tables=("benchmark_scores",),
        reconciles=False,
        partitions_def=rounds,
        ins={name: dg.AssetIn(name) for name in (*before, *own, *others)},
        freshness_policy=freshness,
    )
    def round_report(context: dg.AssetExecutionContext, store: StoreResource, **inputs: Artifact) -> StageResult:
        """One self-contained HTML page and its tables: all rounds so far, beside the arms for comparison."""
        opened, last = store.open(), int(context.partition_key)
        stages = (*IN_ROUND, *voter_assets(sections.curation))
        rounds_so_far = [_round_artifacts(opened, number, last, stages) for number in range(last + 1)]
        untabled = _untabled(opened, sections.sources)
        sources = ReportSources(sections, inputs, rounds_so_far, opened.media, untabled)

        def write(work: Path) -> Artifact:
            # Imported here: matplotlib takes seconds, and Dagster loads this module in every process.
            from dt2it_pipeline.evaluate.report.facts import FACTS_FILE, facts_of
            from dt2it_pipeline.evaluate.report.html import write_report
            from dt2it_pipeline.evaluate.report.markdown import report_markdown, report_text

            data = report_data(sources)
            folder = work / "report"
            write_report(data, folder / "report.html")
            (folder / "report.md").write_text(report_text(data), encoding="utf-8")
            write_json_atomic(list(report_markdown(data).items()), folder / "parts.json")
            preferences = inputs["raw_preferences"].digest
            facts = [facts_of(data, k, dict(sections.settings), preferences) for k in range(len(data.rounds))]
            write_json_atomic(facts[-1].model_dump(mode="json"), folder / FACTS_FILE)
            _track(sources, [one.numbers() for one in facts], folder)
            table = pa.concat_tables([artifact["benchmark_scores"] for artifact in sources.score_artifacts()])
            return Artifact({"benchmark_scores": table}, {"rounds": last + 1}, folder)

        parts = {f"{name}/{k}": artifact for k, found in enumerate(sources.rounds) for name, artifact in found.items()}
        read: dict[str, Artifact | str] = {**inputs, **parts}
        artifact = run_stage(context, opened, write, inputs=read, settings=report_settings(sections))
        for name in REPORT_FILES:
            opened.publish(artifact.folder / name, name)
        if last + 1 < sections.rounds:
            announce_feedback(context, inputs["curated_pairs"], last + 1)
        written = json.loads((artifact.folder / "parts.json").read_text(encoding="utf-8"))
        metadata: dict[str, dg.MetadataValue] = {
            "report": dg.MetadataValue.path(str(opened.home / "report.html")),
            **{name.replace(" ", "_"): dg.MetadataValue.md(text) for name, text in written},
        }
        return StageResult(artifact, metadata=metadata)

    return round_report


def _track(sources: ReportSources, numbers: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Send the numbers of every round so far to the trackers that the recipe asks for; a step is a round."""
    from dt2it_pipeline.reward.training.tracking import Tracker, require_packages

    recipe = sources.recipe
    require_packages(recipe.training)
    run_id = content_hash("rounds", recipe.settings, sources.before["raw_preferences"].digest)
    tracker = Tracker(recipe.training, folder, name=f"{recipe.name}: rounds", run_id=run_id)
    for number, (found, values) in enumerate(zip(sources.rounds, numbers, strict=True)):
        rows = found["benchmark_scores"]["benchmark_scores"].to_pylist()
        accuracy = {f"accuracy/{row['benchmark']}/{row['group']}": row["accuracy"] for row in rows if row["pairs"]}
        tracker.round(number, {**values, **accuracy})
    tracker.close()


def report_settings(sections: ReportSections) -> dict[str, Any]:
    """What of the recipe the report prints or computes by, as its key counts it."""
    return {
        "evaluation": sections.evaluation,
        "curation": sections.curation,
        "annotation": sections.annotation,
        "printed": [sections.name, sections.seed, sections.rounds, sections.has_truth, sections.settings],
    }


def _round_artifacts(store: Store, number: int, needed_by: int, names: Sequence[str]) -> dict[str, Artifact]:
    found = {name: earlier_round(store, name, number, needed_by) for name in names}
    if _COUNTED not in found["annotated_pairs"].metadata:
        raise dg.Failure(
            f"the report of round {needed_by} needs annotated_pairs of round {number}, which another version of "
            f"this project made. Make it anew, from the replies that are kept: dt2it run {ROUND_JOB} --round {number}",
            allow_retries=False,
        )
    return found


def _untabled(store: Store, sources: Sequence[str]) -> dict[str, Artifact]:
    """Metadata of the stages whose tables the report does not show; one that has not been timed is left out."""
    names = (*(f"source.{name}" for name in sources), *UNTABLED)
    found = {name: store.metadata(name) for name in names}
    return {name: Artifact({}, metadata) for name, metadata in found.items() if metadata and "seconds" in metadata}
