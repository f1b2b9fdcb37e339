"""Group `rounds`, continued: vote and flip, verify, annotate, merge (part 3, steps 1 to 3)."""

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.recipe import Recipe
from dt2it_pipeline.curate.annotation.resolution import decide_pairs
from dt2it_pipeline.curate.pair_frames import select_rows, stack
from dt2it_pipeline.curate.policies import make_policy
from dt2it_pipeline.curate.published_algorithm import merge
from dt2it_pipeline.curate.tables import quarantine_table, to_frame, to_table
from dt2it_pipeline.human_review.answers import people_votes
from dt2it_pipeline.orchestrate.assets.voters import ENSEMBLE_SCORES, FOLD_SCORES, voter_assets
from dt2it_pipeline.orchestrate.cached_stage import Settings, result, run_stage
from dt2it_pipeline.orchestrate.checks import reconcile
from dt2it_pipeline.orchestrate.model_jobs import Heavy, responses_of
from dt2it_pipeline.orchestrate.partitions import GROUP, earlier_round
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.storage import schemas
from dt2it_pipeline.storage.artifacts import Artifact, model_digest
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet
from dt2it_pipeline.storage.content_ids import content_hash

_RECONCILE = "rows_reconcile"


def build_curation_assets(recipe: Recipe, rounds: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """Assets of steps 1 to 3."""
    return [
        _voted_pairs(recipe, rounds),
        _verified_and_contested(recipe, rounds),
        _annotated_pairs(recipe, rounds),
        _curated_pairs(recipe, rounds),
    ]


def _voted_pairs(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    more = voter_assets(recipe)

    @dg.asset(
        partitions_def=rounds,
        group_name=GROUP,
        code_version="4",
        kinds={"pandas"},
        ins={name: dg.AssetIn(name) for name in ("response_scores", "raw_preferences", *more)},
        check_specs=[dg.AssetCheckSpec(_RECONCILE, asset="voted_pairs", blocking=True)],
    )
    def voted_pairs(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        response_scores: Artifact,
        raw_preferences: Artifact,
        **own: Artifact,
    ) -> dg.MaterializeResult:
        """Step 1: the reward models of this and earlier rounds vote, and labels that they find wrong are flipped."""
        opened, number = store.open(), int(context.partition_key)
        policy = make_policy(recipe.curation)
        voters = {
            f"response_scores/{k}": earlier_round(opened, "response_scores", k, needed_by=number) for k in range(number)
        }
        voters[f"response_scores/{number}"] = response_scores
        for name, since in ((ENSEMBLE_SCORES, 0), (FOLD_SCORES, 1)):  # the first round that has such voters
            if name in more and number >= since:
                voters |= {f"{name}/{k}": earlier_round(opened, name, k, number) for k in range(since, number)}
                voters[f"{name}/{number}"] = own[name]
        training = {
            f"training_pairs/{k}": earlier_round(opened, "training_pairs", k, needed_by=number)
            for k in range(number + 1)
            if policy.heeds_training
        }

        def vote(work: Path) -> Artifact:
            scores = to_frame(pa.concat_tables([voter["scores"] for voter in voters.values()]))
            trained_on = {
                f"reward_model/{name.rpartition('/')[2]}": frozenset(artifact["pairs"]["pair_id"].to_pylist())
                for name, artifact in training.items()
            }
            voted, policy_metadata = policy.vote(to_frame(raw_preferences["pairs"]), scores, trained_on)
            tables = {
                "pairs": to_table(voted.voted, "pairs"),
                "prompts": raw_preferences["prompts"],
                "quarantine": quarantine_table(voted.unscored, "voted_pairs"),
            }
            metadata = {
                "rows_in": raw_preferences["pairs"].num_rows,
                "rows_out": len(voted.voted),
                "rows_quarantined": len(voted.unscored),
                "voters": len(voted.voters),
                "negative": voted.negative,
                "flipped": voted.flipped,
                "policy": policy.name,
            }
            return Artifact(tables, metadata | policy_metadata)

        artifact = run_stage(
            context,
            opened,
            vote,
            inputs={**voters, **training, "raw_preferences": raw_preferences},
            settings={"curation": recipe.curation.deciding()},
        )
        weights = artifact.metadata.get("voter_weights") or {"-": 1.0}
        if not any(weights.values()):
            context.log.warning(
                "no voter agrees with the labels more often than a coin would, so nothing is relabelled and every pair "
                "is contested, for the judges alone to decide, who can be measured by nothing then; look at the "
                "benchmark of the rounds before: " + ", ".join(weights)
            )
        return result(context, opened, artifact, checks=(reconcile(artifact),))

    return voted_pairs


def _verified_and_contested(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    upstream = ("verifier_model", "voted_pairs", "reward_model")

    @dg.multi_asset(
        name="verify_pairs",
        partitions_def=rounds,
        group_name=GROUP,
        pool="gpu",
        specs=[
            dg.AssetSpec(
                "verified_pairs",
                description="Step 2: pairs whose labels a verifier confirms, or that are sure enough.",
                code_version="1",
                kinds={"pytorch"},
                deps=upstream,
            ),
            dg.AssetSpec(
                "contested_pairs",
                description="Step 2: pairs that go to the judges: not confirmed by the verifier, or not sure enough.",
                code_version="1",
                kinds={"pytorch"},
                deps=upstream,
            ),
        ],
        ins={name: dg.AssetIn(name) for name in upstream},
        check_specs=[dg.AssetCheckSpec(_RECONCILE, asset="verified_pairs", blocking=True)],
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
        heavy, policy = Heavy(context, store, children, recipe), make_policy(recipe.curation)
        verifier = reward_model if recipe.curation.reuse_reward_model else verifier_model
        inputs: dict[str, Artifact | str] = {"voted_pairs": voted_pairs}
        settings: dict[str, Settings] = {"curation": recipe.curation.deciding()}
        if policy.has_verifier:
            inputs |= {"verifier": verifier, "voter": voter}
            settings = {"scoring": recipe.scoring}

        def check(work: Path) -> Artifact:
            scored = Artifact({"scores": schemas.table([], "scores")}, {})
            if policy.has_verifier:
                scored = heavy.score(verifier, responses_of(voted_pairs["pairs"]), voted_pairs["prompts"], voter, work)
            checked = policy.check(to_frame(voted_pairs["pairs"]), to_frame(scored["scores"]))
            tables = {
                "pairs": to_table(checked.verified, "pairs"),
                "prompts": voted_pairs["prompts"],
                "scores": scored["scores"],
                "quarantine": pa.concat_tables(
                    [
                        quarantine_table(checked.unscored, "verified_pairs"),
                        quarantine_table(checked.contested.assign(reason="contested", detail=""), "verified_pairs"),
                    ]
                ),
            }
            metadata = {
                "rows_in": voted_pairs["pairs"].num_rows,
                "rows_out": len(checked.verified),
                "rows_quarantined": len(checked.contested) + len(checked.unscored),
                "contested": len(checked.contested),
            }
            return Artifact(tables, metadata | {"scoring": dict(scored.metadata)})

        verified = run_stage(
            context,
            opened,
            check,
            inputs=inputs,
            settings=settings,
            name="verified_pairs",
        )

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
        yield result(context, opened, verified, name="verified_pairs", checks=(reconcile(verified),))
        yield result(context, opened, contested, name="contested_pairs")

    return verify_pairs


def _annotated_pairs(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        partitions_def=rounds,
        group_name=GROUP,
        code_version="7",
        pool="gpu",
        kinds={"pytorch"},
        check_specs=[dg.AssetCheckSpec(_RECONCILE, asset="annotated_pairs", blocking=True)],
    )
    def annotated_pairs(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        verified_pairs: Artifact,
        contested_pairs: Artifact,
    ) -> dg.MaterializeResult:
        """Step 3: judges vote on contested pairs; what they leave undecided, or the budget unasked, is dropped.

        Pairs that people have voted on are theirs to decide. Verified pairs that people voted on, or that the judges'
        verdicts on others shake (`recalled`), are decided here too. What verdicts teach: the vote's log-odds count
        times `vote_slope` (1: as they are) plus `vote_style` per unit of log(length of chosen / length of rejected);
        judges lean by `judge_length_bias` per unit to the longer side, and are right in `estimated_verdict_accuracy` of
        pairs with sides of one length. `swapped`: judges exchanged the sides.
        """
        opened, policy = store.open(), make_policy(recipe.curation)
        own = [judge for judge in recipe.annotation.judges if judge.kind != "endpoint"]
        models = " ".join(model_digest(model_path(judge.model)) for judge in own)
        verified, contested = (to_frame(artifact["pairs"]) for artifact in (verified_pairs, contested_pairs))
        told = people_votes(opened.home, stack(verified, contested))
        people = {"people": content_hash(told.to_pylist())} if told.num_rows else {}

        def annotate(work: Path) -> Artifact:
            settings = recipe.annotation.model_dump(mode="json")
            for judge in settings["judges"]:
                if judge["kind"] != "endpoint":
                    judge["model"] = model_path(judge["model"])
            summaries: list[dict[str, Any]] = []

            def ask(pairs: pd.DataFrame) -> pd.DataFrame:
                folder = work / f"judging-{len(summaries)}"
                folder.mkdir(exist_ok=True)
                write_parquet(to_table(pairs, "pairs"), folder / "pairs.parquet")
                job = {
                    "pairs": str(folder / "pairs.parquet"),
                    "prompts": str(contested_pairs.table_path("prompts")),
                    "media_root": str(opened.media),
                    "output": str(folder / "votes.parquet"),
                    "work": str(folder),
                    "cache": str(opened.cache / "judge_replies.sqlite"),
                    "settings": settings,
                    "seed": recipe.seed,
                }
                summaries.append(children.run(context, "dt2it_pipeline.curate.annotation.annotate:run", job, folder))
                return to_frame(read_parquet(folder / "votes.parquet", "votes"))

            decision = decide_pairs(
                policy,
                verified,
                contested,
                to_frame(told),
                ask,
                len(recipe.annotation.judges),
                recipe.annotation.budget_calls,
            )
            tables = {
                "pairs": to_table(decision.annotated, "pairs"),
                "prompts": contested_pairs["prompts"],
                "votes": pa.concat_tables([to_table(decision.votes, "votes"), told]).combine_chunks(),
                "quarantine": quarantine_table(decision.dropped, "annotated_pairs"),
            }
            metadata = {
                "rows_in": len(verified) + len(contested) - len(decision.kept),
                "rows_out": tables["pairs"].num_rows,
                "rows_quarantined": tables["quarantine"].num_rows,
                "swapped": decision.swapped,
                "reopened": decision.reopened,
                "people_votes": told.num_rows,
                "judge_calls": sum(summary["calls"] for summary in summaries),
                "beyond_budget": decision.beyond_budget,
            }
            return Artifact(tables, {"judging": summaries} | metadata | decision.metadata)

        artifact = run_stage(
            context,
            opened,
            annotate,
            inputs={"verified_pairs": verified_pairs, "contested_pairs": contested_pairs, "models": models, **people},
            settings={"annotation": recipe.annotation, "seed": recipe.seed, "curation": recipe.curation.deciding()},
        )
        return result(context, opened, artifact, checks=(reconcile(artifact),))

    return annotated_pairs


def _curated_pairs(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=rounds, group_name=GROUP, code_version="2", kinds={"pandas"})
    def curated_pairs(
        context: dg.AssetExecutionContext, store: StoreResource, verified_pairs: Artifact, annotated_pairs: Artifact
    ) -> dg.MaterializeResult:
        """The round's result: annotated pairs, and verified ones that step 3 left alone; they train the next round."""
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
        return result(context, opened, artifact)

    return curated_pairs
