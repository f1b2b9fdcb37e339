"""Group `rounds`, continued: judges and people decide contested pairs (part 3, step 3)."""

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.annotation import AnnotationSettings
from dt2it_pipeline.config.sections.curation import CurationSettings
from dt2it_pipeline.curate.annotation.annotate import AnnotateJob
from dt2it_pipeline.curate.pair_frames import stack
from dt2it_pipeline.curate.policies.choice import make_policy
from dt2it_pipeline.curate.policies.policy import Anchor
from dt2it_pipeline.curate.tables import quarantine_table, to_frame, to_table
from dt2it_pipeline.human_review.answers import people_votes
from dt2it_pipeline.orchestrate.assets.anchors import audit_digest, audit_of, prompts_with_trusted
from dt2it_pipeline.orchestrate.partitions import GROUP
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.sections import ModelSections
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage
from dt2it_pipeline.orchestrate.stage.stage_asset import StageResult, stage_asset
from dt2it_pipeline.storage.artifacts import Artifact, model_digest
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet
from dt2it_pipeline.storage.content_ids import content_hash


def build_annotated_pairs(
    settings: AnnotationSettings, curation: CurationSettings, sections: ModelSections, rounds: dg.PartitionsDefinition
) -> dg.AssetsDefinition:
    """The asset `annotated_pairs`."""

    @stage_asset(
        group=GROUP,
        part="curation",
        stage="annotate",
        code_version="14",
        kinds={"pytorch"},
        tables=("pairs", "prompts", "votes", "quarantine"),
        gpu=True,
        partitions_def=rounds,
    )
    def annotated_pairs(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        verified_pairs: Artifact,
        contested_pairs: Artifact,
        voted_pairs: Artifact,
        training_pairs: Artifact,
    ) -> StageResult:
        """Step 3: judges vote on contested and trusted pairs; what is not sure enough then is dropped.

        Rows in are the contested pairs, and the verified ones that people or judges voted on or that verdicts on other
        pairs turned (`reopened`). Where people voted on a pair, they decide it. Under the policy `joint` all evidence
        of all pairs is fitted again with the verdicts: `label_accuracy_before` and `label_accuracy_after` have the
        estimate and its 95% interval, `claimed_and_observed` how far it holds on pairs whose truth is known.
        `swapped`: pairs whose sides changed.
        """
        opened, policy = store.open(), make_policy(curation)
        own = [judge for judge in settings.judges if judge.kind != "endpoint"]
        models = " ".join(model_digest(model_path(judge.model)) for judge in own)
        verified, contested = (to_frame(artifact["pairs"]) for artifact in (verified_pairs, contested_pairs))
        from_people = people_votes(opened.home, stack(verified, contested))
        people = {"people": content_hash(from_people.to_pylist())} if from_people.num_rows else {}
        audit = audit_of(opened, policy)
        prompts = prompts_with_trusted(contested_pairs["prompts"], training_pairs)
        anchored = {"trusted_pairs": content_hash(voted_pairs["trusted_pairs"].to_pylist())}

        def annotate(work: Path) -> Artifact:
            given = _with_model_folders(settings)
            summaries: list[dict[str, Any]] = []

            def ask(pairs: pd.DataFrame) -> pd.DataFrame:
                folder = work / f"judging-{len(summaries)}"
                folder.mkdir(exist_ok=True)
                write_parquet(to_table(pairs, "pairs"), folder / "pairs.parquet")
                write_parquet(prompts, folder / "prompts.parquet")
                job = AnnotateJob(
                    pairs=folder / "pairs.parquet",
                    prompts=folder / "prompts.parquet",
                    media_root=opened.media,
                    output=folder / "votes.parquet",
                    work=folder,
                    cache=opened.cache / "judge_replies.sqlite",
                    settings=given,
                    seed=sections.seed,
                    processes=sections.scoring.processes,
                    ray=sections.ray,
                )
                summaries.append(children.run(context, job, folder))
                return to_frame(read_parquet(job.output, "votes"))

            decision = policy.decide(
                verified,
                contested,
                to_frame(from_people),
                ask,
                len(settings.judges),
                settings.budget_calls,
                Anchor(to_frame(voted_pairs["trusted_pairs"]), audit),
            )
            tables = {
                "pairs": to_table(decision.annotated, "pairs"),
                "prompts": contested_pairs["prompts"],
                "votes": pa.concat_tables([to_table(decision.votes, "votes"), from_people]).combine_chunks(),
                "quarantine": quarantine_table(decision.dropped, "annotated_pairs"),
            }
            metadata = {
                "rows_in": len(verified) + len(contested) - len(decision.kept),
                "rows_out": tables["pairs"].num_rows,
                "rows_dropped": tables["quarantine"].num_rows,
                "swapped": decision.swapped,
                "reopened": decision.reopened,
                "people_votes": from_people.num_rows,
                "judge_calls": sum(summary["calls"] for summary in summaries),
                "cached_replies": sum(summary["cached"] for summary in summaries),
                "beyond_budget": decision.beyond_budget,
            }
            calibration = decision.calibration().round(4).to_dict("records")
            metadata |= {"claimed_and_observed": calibration} if calibration else {}
            if len(audit):  # a report decides the round again, when the home may keep another audit
                metadata["audit"] = audit.astype(object).where(audit.notna(), None).to_numpy().tolist()
            return Artifact(tables, {"judging": summaries} | metadata | dict(decision.metadata))

        artifact = run_stage(
            context,
            opened,
            annotate,
            inputs={
                "verified_pairs": verified_pairs,
                "contested_pairs": contested_pairs,
                "models": models,
                **people,
                **anchored,
                **audit_digest(audit),
            },
            settings={"annotation": settings, "seed": sections.seed, "curation": curation.deciding()},
        )
        context.log.info(annotated_in_words(contested_pairs["pairs"].num_rows, artifact))
        for note in further_notes(artifact, voted_pairs):
            context.log.info(note)
        return StageResult(artifact)

    return annotated_pairs


def further_notes(annotated: Artifact, voted: Artifact) -> list[str]:
    """Notes of the policy that the log of its votes does not have already."""
    return [note for note in annotated.metadata.get("notes", ()) if note not in voted.metadata["warnings"]]


def _with_model_folders(annotation: AnnotationSettings) -> AnnotationSettings:
    """The section with the folder of every model that runs here, in the place of the recipe's name for it."""
    judges = tuple(
        judge if judge.kind == "endpoint" else judge.model_copy(update={"model": model_path(judge.model)})
        for judge in annotation.judges
    )
    return annotation.model_copy(update={"judges": judges})


def annotated_in_words(contested: int, artifact: Artifact) -> str:
    """Where the pairs of step 3 come from and where they go, so that its counts add up with those of step 2."""
    metadata = artifact.metadata
    others = int(metadata["rows_in"]) - contested
    came = f"{contested:,} contested pairs"
    if others:
        came += f" and {others:,} verified ones that were asked about or that verdicts turned"
    return (
        f"of {came}, {metadata['rows_out']:,} are decided (labels flipped: {metadata['swapped']:,}) and "
        f"{metadata['rows_dropped']:,} dropped, after {metadata['judge_calls']:,} judge calls "
        f"and {metadata['cached_replies']:,} replies from the cache"
    )
