"""Group `rounds`, continued: vote and flip, verify, merge (part 3, steps 1 and 2). Step 3 is annotation.py."""

from pathlib import Path

import dagster as dg
import pyarrow as pa

from dt2it_pipeline.config.sections.curation import CurationSettings
from dt2it_pipeline.curate.pair_frames import select_rows
from dt2it_pipeline.curate.policies.choice import make_policy
from dt2it_pipeline.curate.policies.policy import Anchor
from dt2it_pipeline.curate.published_algorithm import merge
from dt2it_pipeline.curate.tables import quarantine_table, to_frame, to_table
from dt2it_pipeline.curate.voters.margins import name_causes
from dt2it_pipeline.orchestrate.assets.anchors import audit_digest, audit_of
from dt2it_pipeline.orchestrate.assets.voters import ENSEMBLE_SCORES, FOLD_SCORES, voter_assets
from dt2it_pipeline.orchestrate.partitions import GROUP, earlier_round
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.sections import ModelSections
from dt2it_pipeline.orchestrate.stage.cached_stage import Settings, run_stage
from dt2it_pipeline.orchestrate.stage.checks import ROWS_RECONCILE
from dt2it_pipeline.orchestrate.stage.model_jobs import ModelJobs, responses_of
from dt2it_pipeline.orchestrate.stage.stage_asset import GPU_POOL, StageResult, materialized, stage_asset, stage_spec
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact


def build_curation_assets(
    sections: ModelSections, curation: CurationSettings, rounds: dg.PartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """The assets of steps 1 and 2, and `curated_pairs`."""
    return [
        _voted_pairs(curation, rounds),
        _verified_and_contested(sections, curation, rounds),
        _curated_pairs(rounds),
    ]


def _voted_pairs(curation: CurationSettings, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    more = voter_assets(curation)

    @stage_asset(
        group=GROUP,
        part="curation",
        stage="vote",
        code_version="10",
        kinds={"pandas"},
        tables=("pairs", "prompts", "trusted_pairs", "quarantine"),
        partitions_def=rounds,
        ins={name: dg.AssetIn(name) for name in ("response_scores", "raw_preferences", "training_pairs", *more)},
    )
    def voted_pairs(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        response_scores: Artifact,
        raw_preferences: Artifact,
        training_pairs: Artifact,
        **own: Artifact,
    ) -> StageResult:
        """Step 1: the reward models of this and earlier rounds vote, and labels that they find wrong are flipped.

        Where the policy `joint` has no anchor, none is flipped; `trusted_pairs` and people's audits are anchors.
        """
        opened, number = store.open(), int(context.partition_key)
        policy = make_policy(curation)
        voters = {
            f"response_scores/{k}": earlier_round(opened, "response_scores", k, needed_by=number) for k in range(number)
        }
        voters[f"response_scores/{number}"] = response_scores
        for name, since in ((ENSEMBLE_SCORES, 0), (FOLD_SCORES, 1)):  # the first round that has such voters
            if name in more and number >= since:
                voters |= {f"{name}/{k}": earlier_round(opened, name, k, number) for k in range(since, number)}
                voters[f"{name}/{number}"] = own[name]
        training: dict[str, Artifact] = {}
        if policy.takes_anchor:
            training = {
                f"training_pairs/{k}": earlier_round(opened, "training_pairs", k, needed_by=number)
                for k in range(number)
            } | {f"training_pairs/{number}": training_pairs}
        audit = audit_of(opened, policy)

        def flip(work: Path) -> Artifact:
            scores = to_frame(pa.concat_tables([voter["scores"] for voter in voters.values()]))
            trained_on = {
                f"reward_model/{name.rpartition('/')[2]}": frozenset(artifact["pairs"]["pair_id"].to_pylist())
                for name, artifact in training.items()
            }
            trusted = training_pairs["trusted_pairs"] if policy.takes_anchor else schemas.table([], "trusted_pairs")
            vote = policy.vote(to_frame(raw_preferences["pairs"]), scores, trained_on, Anchor(to_frame(trusted), audit))
            voted = vote.result
            tables = {
                "pairs": to_table(voted.voted, "pairs"),
                "prompts": raw_preferences["prompts"],
                "trusted_pairs": to_table(vote.trusted, "trusted_pairs")
                if len(vote.trusted)
                else schemas.table([], "trusted_pairs"),
                "quarantine": quarantine_table(name_causes(voted.unscored, _faults(*voters.values())), "voted_pairs"),
            }
            metadata = {
                "rows_in": raw_preferences["pairs"].num_rows,
                "rows_out": len(voted.voted),
                "rows_dropped": len(voted.unscored),
                "voters": len(voted.voters),
                "negative": voted.negative,
                "flipped": voted.flipped,
                "policy": policy.name,
            }
            return Artifact(tables, metadata | dict(vote.metadata) | {"warnings": list(vote.warnings)})

        artifact = run_stage(
            context,
            opened,
            flip,
            inputs={**voters, **training, "raw_preferences": raw_preferences, **audit_digest(audit)},
            settings={"curation": curation.deciding()},
        )
        for warning in artifact.metadata["warnings"]:
            context.log.warning(warning)
        return StageResult(artifact)

    return voted_pairs


def _faults(*scored: Artifact) -> dict[str, str]:
    """Why responses were not scored, by their ids; of several reasons the last one."""
    faults: dict[str, str] = {}
    for artifact in scored:
        if (aside := artifact.tables.get("quarantine")) is not None:
            faults |= dict(zip(aside["row_id"].to_pylist(), aside["reason"].to_pylist(), strict=True))
    return faults


def _verified_and_contested(
    sections: ModelSections, curation: CurationSettings, rounds: dg.PartitionsDefinition
) -> dg.AssetsDefinition:
    upstream = ("verifier_model", "voted_pairs", "reward_model")
    tables = {"verified_pairs": ("pairs", "prompts", "scores", "quarantine"), "contested_pairs": ("pairs", "prompts")}

    def spec(name: str, description: str) -> dg.AssetSpec:
        return stage_spec(
            name,
            _verified_and_contested,
            part="curation",
            stage="verify",
            tables=tables[name],
            description=description,
            code_version="3",
            kinds={"pytorch"},
            deps=upstream,
        )

    @dg.multi_asset(
        name="verify_pairs",
        partitions_def=rounds,
        group_name=GROUP,
        pool=GPU_POOL,
        specs=[
            spec("verified_pairs", "Step 2: pairs whose labels a verifier confirms, or that are sure enough."),
            spec(
                "contested_pairs",
                "Step 2: pairs that go to the judges: not confirmed by the verifier, or not sure enough.",
            ),
        ],
        ins={name: dg.AssetIn(name) for name in upstream},
        check_specs=[ROWS_RECONCILE.spec("verified_pairs")],
    )
    def verify_pairs(  # type: ignore[no-untyped-def]  # Dagster takes no annotation for several results
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        verifier_model: Artifact,
        voted_pairs: Artifact,
        reward_model: Artifact,
    ):
        opened, voter = store.open(), f"verifier_model/{context.partition_key}"
        models, policy = ModelJobs(context, store, children, *sections), make_policy(curation)
        verifier = reward_model if curation.reuse_reward_model else verifier_model
        inputs: dict[str, Artifact | str] = {"voted_pairs": voted_pairs}
        settings: dict[str, Settings] = {"curation": curation.deciding()}
        if policy.has_verifier:
            inputs |= {"verifier": verifier, "voter": voter}
            settings = {"scoring": sections.scoring}

        def check(work: Path) -> Artifact:
            scored = Artifact({"scores": schemas.table([], "scores")}, {})
            if policy.has_verifier:
                scored = models.score(verifier, responses_of(voted_pairs["pairs"]), voted_pairs["prompts"], voter, work)
            checked = policy.check(to_frame(voted_pairs["pairs"]), to_frame(scored["scores"]))
            tables = {
                "pairs": to_table(checked.verified, "pairs"),
                "prompts": voted_pairs["prompts"],
                "scores": scored["scores"],
                "quarantine": pa.concat_tables(
                    [
                        quarantine_table(name_causes(checked.unscored, _faults(scored)), "verified_pairs"),
                        quarantine_table(checked.contested.assign(reason="contested", detail=""), "verified_pairs"),
                    ]
                ),
            }
            metadata = {
                "rows_in": voted_pairs["pairs"].num_rows,
                "rows_out": len(checked.verified),
                "rows_contested": len(checked.contested),
                "rows_dropped": len(checked.unscored),
            }
            return Artifact(tables, metadata | {"scoring": dict(scored.metadata)})

        verified = run_stage(context, opened, check, inputs=inputs, settings=settings, name="verified_pairs")

        def contest(work: Path) -> Artifact:
            checked = policy.check(to_frame(voted_pairs["pairs"]), to_frame(verified["scores"]))
            pairs = to_table(checked.contested, "pairs")
            return Artifact({"pairs": pairs, "prompts": voted_pairs["prompts"]}, {"rows_out": pairs.num_rows})

        contested = run_stage(
            context,
            opened,
            contest,
            inputs={"verified_pairs": verified, "voted_pairs": voted_pairs},
            settings={},
            name="contested_pairs",
        )
        for name, made, reconciles in (("verified_pairs", verified, True), ("contested_pairs", contested, False)):
            yield materialized(context, opened, StageResult(made), tables[name], name=name, reconciles=reconciles)

    return verify_pairs


def _curated_pairs(rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @stage_asset(
        group=GROUP,
        part="curation",
        stage="merge",
        code_version="2",
        kinds={"pandas"},
        tables=("pairs", "prompts"),
        reconciles=False,
        partitions_def=rounds,
    )
    def curated_pairs(
        context: dg.AssetExecutionContext, store: StoreResource, verified_pairs: Artifact, annotated_pairs: Artifact
    ) -> StageResult:
        """The round's result: annotated pairs, and the verified ones not reopened; they train the next round."""
        opened, number = store.open(), int(context.partition_key)

        def join(work: Path) -> Artifact:
            verified = to_frame(verified_pairs["pairs"])
            ended = {key for name in ("pairs", "quarantine") for key in annotated_pairs[name]["pair_id"].to_pylist()}
            left_alone = select_rows(verified, ~verified["pair_id"].isin(ended).to_numpy(dtype=bool))
            merged = merge(left_alone, to_frame(annotated_pairs["pairs"]), number)
            tables = {"pairs": to_table(merged, "pairs"), "prompts": verified_pairs["prompts"]}
            return Artifact(tables, {"rows_out": len(merged)})

        artifact = run_stage(
            context,
            opened,
            join,
            inputs={"verified_pairs": verified_pairs, "annotated_pairs": annotated_pairs},
            settings={"round": number},
        )
        return StageResult(artifact)

    return curated_pairs
