"""Group `rounds`: train on D0 and the feedback of the round before, and score (part 3). Its steps: curation.py."""

from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.config.sections.cleaning import DecontaminationSettings
from dt2it_pipeline.config.sections.curation import CurationSettings
from dt2it_pipeline.curate.policies.choice import make_policy
from dt2it_pipeline.curate.tables import quarantine_table, to_frame
from dt2it_pipeline.engines.launch.fork_server import available_processes
from dt2it_pipeline.ingest.decontaminate import benchmark_content, contaminated_pairs, decontaminate
from dt2it_pipeline.ingest.sources import unique_prompts
from dt2it_pipeline.media.index import MediaIndex
from dt2it_pipeline.orchestrate.assets.anchors import hold_out, trusted_digest, with_trusted
from dt2it_pipeline.orchestrate.partitions import FEEDBACK, GROUP, earlier_round
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.sections import ModelSections
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage
from dt2it_pipeline.orchestrate.stage.checks import NO_CONTAMINATION
from dt2it_pipeline.orchestrate.stage.metadata import histogram, markdown_of
from dt2it_pipeline.orchestrate.stage.model_jobs import ModelJobs, training_metadata
from dt2it_pipeline.orchestrate.stage.stage_asset import OWNERS, PART, STAGE, StageResult, stage_asset
from dt2it_pipeline.reward.few_pairs import few_pairs
from dt2it_pipeline.storage.artifacts import Artifact

_REMOVED = pa.schema(
    [("reason", pa.string()), ("benchmark", pa.string()), ("source", pa.string()), ("pairs", pa.int64())]
)


def build_round_assets(
    sections: ModelSections,
    decontamination: DecontaminationSettings,
    curation: CurationSettings,
    rounds: dg.PartitionsDefinition,
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """Assets that train and score, and the external asset that brings the feedback of the round before."""
    feedback = dg.AssetSpec(
        FEEDBACK,
        partitions_def=rounds,
        group_name=GROUP,
        owners=OWNERS,
        tags={PART: "curation", STAGE: "merge"},
        kinds={"parquet"},
        description="Curated pairs of the round before. Recorded when a round succeeds; round 0 has none.",
    )
    return [
        feedback,
        _training_pairs(decontamination, curation.trusted_pairs, rounds),
        _reward_model(sections, rounds),
        _response_scores(sections, rounds),
        _verifier_model(sections, decontamination, curation, rounds),
    ]


def joined_pairs(
    parts: Mapping[str, Artifact],
    benchmarks: Artifact,
    settings: DecontaminationSettings,
    media_root: Path,
    trusted: int = 0,
) -> Artifact:
    """Pairs of several artifacts as one training set, decontaminated against the benchmarks.

    The metadata `decontamination` says what was removed: reason, benchmark, source and pairs. A pair that several parts
    hold is taken from the first of them; the others are counted as quarantined.

    Of the part `debiased_pairs`, about `trusted` pairs are held out, as whole prompts, the same in all rounds: they are
    the table `trusted_pairs`. Other pairs of their prompts are held out too, so that no model has seen the question.
    """
    pairs = pa.concat_tables([part["pairs"] for part in parts.values()])
    prompts = unique_prompts([part["prompts"] for part in parts.values()])
    seen: set[str] = set()
    first = pa.array([not (key in seen or seen.add(key)) for key in pairs["pair_id"].to_pylist()], pa.bool_())  # type: ignore[func-returns-value]
    repeated = to_frame(pairs.filter(pc.invert(first))).assign(reason="pair is in an earlier part", detail="")
    content = benchmark_content(benchmarks["benchmark_items"], benchmarks["prompts"])
    hashes = image_hashes(prompts, benchmarks, settings, media_root)
    clean, contaminated, report = decontaminate(
        pairs.filter(first), prompts, content, settings, hashes, available_processes()
    )
    used = prompts.filter(pc.is_in(prompts["prompt_id"], value_set=clean["prompt_id"].combine_chunks()))
    kept, held_out = hold_out(clean, parts["debiased_pairs"]["pairs"], trusted) if trusted else (clean, clean[:0])
    quarantine = pa.concat_tables([quarantine_table(repeated, "training_pairs"), contaminated])
    metadata = {"rows_in": pairs.num_rows, "rows_out": kept.num_rows, "rows_quarantined": quarantine.num_rows}
    metadata |= {"rows_held_out": clean.num_rows - kept.num_rows} if trusted else {}
    metadata["decontamination"] = report
    tables = {"pairs": kept, "prompts": used.combine_chunks(), "quarantine": quarantine}
    return Artifact({**tables, "trusted_pairs": held_out}, metadata)


def trained_on(
    models: ModelJobs,
    parts: Mapping[str, Artifact],
    benchmarks: Artifact,
    settings: DecontaminationSettings,
    trusted: int = 0,
) -> Artifact:
    """A model trained on several artifacts, joined as `joined_pairs` does, as the step's stage."""
    joined = joined_pairs(parts, benchmarks, settings, models.store.open().media, trusted)
    inputs: dict[str, Artifact | str] = {
        **parts,
        "raw_benchmarks": benchmarks,
        "decontamination": settings.model_dump_json(),
        "trusted_pairs": str(trusted),
    }
    return models.train(joined["pairs"], joined["prompts"], inputs)


def image_hashes(
    prompts: pa.Table, benchmarks: Artifact, settings: DecontaminationSettings, media_root: Path
) -> dict[str, int]:
    """Perceptual hashes of the media of prompts and benchmarks, by content hash; none where the recipe wants none."""
    if settings.perceptual_distance is None:
        return {}
    tables = (prompts, benchmarks["prompts"])
    media = (medium for table in tables for row in table["media"].to_pylist() for medium in row)
    return MediaIndex(media_root).perceptual_hashes(media)


def no_contamination(
    artifact: Artifact, benchmarks: Artifact, settings: DecontaminationSettings, media_root: Path
) -> dg.AssetCheckResult:
    """Check `no_contamination`: no pair that is trained on holds what a benchmark holds."""
    content = benchmark_content(benchmarks["benchmark_items"], benchmarks["prompts"])
    hashes = image_hashes(artifact["prompts"], benchmarks, settings, media_root)
    left = contaminated_pairs(artifact["pairs"], artifact["prompts"], content, settings, hashes, available_processes())
    examples = [f"{key}: {fault.reason} ({fault.benchmark})" for key, fault in sorted(left.items())[:5]]
    return dg.AssetCheckResult(
        check_name=NO_CONTAMINATION.name, passed=not left, metadata={"pairs": len(left), "examples": examples}
    )


def _training_pairs(
    settings: DecontaminationSettings, trusted: int, rounds: dg.PartitionsDefinition
) -> dg.AssetsDefinition:
    @stage_asset(
        group=GROUP,
        part="training",
        stage="join",
        code_version="6",
        kinds={"python"},
        tables=("pairs", "prompts", "trusted_pairs", "quarantine"),
        checks=(NO_CONTAMINATION,),
        partitions_def=rounds,
        op_tags={"dagster/priority": "1"},  # before the arms train: a missing earlier round is to be reported at once
        deps=[FEEDBACK],
    )
    def training_pairs(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        debiased_pairs: Artifact,
        t2i_pairs: Artifact,
        raw_benchmarks: Artifact,
    ) -> StageResult:
        """D0 (debiased and two-image pairs) plus the curated pairs of the round before, decontaminated.

        `trusted_pairs` are left out: debiased pairs that no model is trained on, as the recipe's `curation` asks.
        """
        opened, number = store.open(), int(context.partition_key)
        parts = {"debiased_pairs": debiased_pairs, "t2i_pairs": t2i_pairs}
        if number > 0:
            parts[FEEDBACK] = earlier_round(opened, "curated_pairs", number - 1, needed_by=number)
        artifact = run_stage(
            context,
            opened,
            lambda work: joined_pairs(parts, raw_benchmarks, settings, opened.media, trusted),
            inputs={**parts, "raw_benchmarks": raw_benchmarks},
            settings={"decontamination": settings, "trusted_pairs": trusted},
        )
        if sentence := few_pairs(number, artifact["pairs"].num_rows):
            context.log.warning(sentence)
        clean = no_contamination(artifact, raw_benchmarks, settings, opened.media)
        removed = pa.Table.from_pylist(artifact.metadata["decontamination"], schema=_REMOVED)
        return StageResult(artifact, checks=(clean,), metadata={"removed_by_decontamination": markdown_of(removed)})

    return training_pairs


def _reward_model(sections: ModelSections, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @stage_asset(
        group=GROUP,
        part="training",
        stage="train",
        code_version="3",
        kinds={"deepspeed", "pytorch"},
        tables=("quarantine",),
        gpu=True,
        reconciles=False,
        partitions_def=rounds,
    )
    def reward_model(
        context: dg.AssetExecutionContext, store: StoreResource, children: ChildProcesses, training_pairs: Artifact
    ) -> StageResult:
        """The round's reward model: base model and linear head, Bradley-Terry loss, DeepSpeed ZeRO."""
        artifact = ModelJobs(context, store, children, *sections).train(
            training_pairs["pairs"], training_pairs["prompts"], {"training_pairs": training_pairs}
        )
        return StageResult(artifact, metadata=training_metadata(artifact))

    return reward_model


def _response_scores(sections: ModelSections, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @stage_asset(
        group=GROUP,
        part="curation",
        stage="score",
        code_version="3",
        kinds={"pytorch"},
        tables=("scores", "quarantine"),
        gpu=True,
        partitions_def=rounds,
    )
    def response_scores(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        reward_model: Artifact,
        raw_preferences: Artifact,
        training_pairs: Artifact,
    ) -> StageResult:
        """Every unique response of the noisy preferences and trusted pairs, scored by the round's reward model."""
        opened, voter = store.open(), f"reward_model/{context.partition_key}"
        models = ModelJobs(context, store, children, *sections)
        responses, prompts = with_trusted(raw_preferences["pairs"], raw_preferences["prompts"], training_pairs)
        artifact = run_stage(
            context,
            opened,
            lambda work: models.score(reward_model, responses, prompts, voter, work),
            inputs={
                "reward_model": reward_model,
                "raw_preferences": raw_preferences,
                "trusted_pairs": trusted_digest(training_pairs),
                "voter": voter,
            },
            settings={"scoring": sections.scoring},
        )
        scores = [value for value in artifact["scores"]["score"].to_pylist() if value is not None]
        metadata = {"score_histogram": histogram(scores, "score", "responses")} if scores else {}
        return StageResult(artifact, metadata=metadata)

    return response_scores


def _verifier_model(
    sections: ModelSections,
    decontamination: DecontaminationSettings,
    curation: CurationSettings,
    rounds: dg.PartitionsDefinition,
) -> dg.AssetsDefinition:
    @stage_asset(
        group=GROUP,
        part="curation",
        stage="train",
        code_version="3",
        kinds={"deepspeed", "pytorch"},
        tables=("quarantine",),
        gpu=True,
        reconciles=False,
        partitions_def=rounds,
    )
    def verifier_model(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        voted_pairs: Artifact,
        debiased_pairs: Artifact,
        t2i_pairs: Artifact,
        raw_benchmarks: Artifact,
        reward_model: Artifact,
    ) -> StageResult:
        """Step 2's model: trained on D0 and voted pairs; or, as the recipe says, the round's reward model or none."""
        parts = {"debiased_pairs": debiased_pairs, "t2i_pairs": t2i_pairs, "voted_pairs": voted_pairs}
        policy = make_policy(curation)
        if not policy.has_verifier:
            artifact = run_stage(
                context,
                store.open(),
                lambda work: Artifact({}, {"not_trained": f"the policy `{policy.name}` has no verifier"}),
                inputs={},
                settings={"policy": policy.name},
            )
            return StageResult(artifact)
        if curation.reuse_reward_model:
            artifact = run_stage(
                context,
                store.open(),
                lambda work: Artifact({}, {"reused": str(reward_model.folder)}),
                inputs={"reward_model": reward_model},
                settings={"reused": "reward_model"},
            )
            return StageResult(artifact)
        artifact = trained_on(ModelJobs(context, store, children, *sections), parts, raw_benchmarks, decontamination)
        return StageResult(artifact, metadata=training_metadata(artifact))

    return verifier_model
