"""Group `rounds`: train on D0 and the feedback of the round before, score, vote, verify, annotate, merge (part 3)."""

from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.curate.steps import merge, resolve_annotations, verify, vote_and_flip
from dt2it_pipeline.curate.tables import set_aside_table, to_frame, to_table
from dt2it_pipeline.ingest.decontaminate import contaminated_prompts, decontaminate
from dt2it_pipeline.ingest.sources import unique_prompts
from dt2it_pipeline.orchestrate.checks import reconcile
from dt2it_pipeline.orchestrate.heavy import Heavy, responses_of, training_metadata
from dt2it_pipeline.orchestrate.metadata import histogram
from dt2it_pipeline.orchestrate.partitions import FEEDBACK, earlier_round
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.stage import CODE_VERSION, result, run_stage
from dt2it_pipeline.recipe import Recipe, model_path
from dt2it_pipeline.store import Bundle, read_parquet, write_parquet

GROUP = "rounds"
_RECONCILE = "rows_reconcile"


def build_round_assets(recipe: Recipe, rounds: dg.PartitionsDefinition) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """Assets of one round, and the external asset that brings the feedback of the round before."""
    feedback = dg.AssetSpec(
        FEEDBACK,
        partitions_def=rounds,
        group_name=GROUP,
        description="Curated pairs of the round before. Recorded when a round succeeds; round 0 has none.",
    )
    return [
        feedback,
        _training_pairs(recipe, rounds),
        _reward_model(recipe, rounds),
        _response_scores(recipe, rounds),
        _voted_pairs(recipe, rounds),
        _verifier_model(recipe, rounds),
        _verified_and_contested(recipe, rounds),
        _annotated_pairs(recipe, rounds),
        _curated_pairs(recipe, rounds),
    ]


def joined_pairs(parts: Mapping[str, Bundle], benchmarks: Bundle) -> Bundle:
    """Pairs of several bundles as one training set, decontaminated against the benchmarks.

    A pair that several parts hold is taken from the first of them; the others are counted as set aside.
    """
    pairs = pa.concat_tables([part["pairs"] for part in parts.values()])
    prompts = unique_prompts([part["prompts"] for part in parts.values()])
    seen: set[str] = set()
    first = pa.array([not (key in seen or seen.add(key)) for key in pairs["pair_id"].to_pylist()], pa.bool_())  # type: ignore[func-returns-value]
    repeated = to_frame(pairs.filter(pc.invert(first))).assign(reason="pair is in an earlier part", detail="")
    clean, contaminated = decontaminate(pairs.filter(first), prompts, benchmarks["prompts"])
    used = prompts.filter(pc.is_in(prompts["prompt_id"], value_set=clean["prompt_id"].combine_chunks()))
    set_aside = pa.concat_tables([set_aside_table(repeated, "training_pairs"), contaminated])
    facts = {"rows_in": pairs.num_rows, "rows_out": clean.num_rows, "rows_set_aside": set_aside.num_rows}
    return Bundle({"pairs": clean, "prompts": used.combine_chunks(), "set_aside": set_aside}, facts)


def _training_pairs(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        partitions_def=rounds,
        group_name=GROUP,
        code_version=CODE_VERSION,
        kinds={"python"},
        deps=[FEEDBACK],
        check_specs=[
            dg.AssetCheckSpec(_RECONCILE, asset="training_pairs", blocking=True),
            dg.AssetCheckSpec("no_contamination", asset="training_pairs", blocking=True),
        ],
    )
    def training_pairs(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        debiased_pairs: Bundle,
        t2i_pairs: Bundle,
        raw_benchmarks: Bundle,
    ) -> dg.MaterializeResult:
        """D0 (debiased and two-image pairs) plus the curated pairs of the round before, decontaminated."""
        opened, number = store.open(), int(context.partition_key)
        parts = {"debiased_pairs": debiased_pairs, "t2i_pairs": t2i_pairs}
        if number > 0:
            parts[FEEDBACK] = earlier_round(opened, "curated_pairs", number - 1, needed_by=number)
        bundle = run_stage(
            context,
            opened,
            lambda work: joined_pairs(parts, raw_benchmarks),
            inputs={**parts, "raw_benchmarks": raw_benchmarks},
            settings={},
        )
        remaining = contaminated_prompts(bundle["prompts"], raw_benchmarks["prompts"])
        clean = dg.AssetCheckResult(
            check_name="no_contamination", passed=not remaining, metadata={"prompts": len(remaining)}
        )
        return result(context, opened, bundle, checks=(reconcile(bundle), clean))

    return training_pairs


def _reward_model(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        partitions_def=rounds, group_name=GROUP, code_version=CODE_VERSION, pool="gpu", kinds={"deepspeed", "pytorch"}
    )
    def reward_model(
        context: dg.AssetExecutionContext, store: StoreResource, children: ChildProcesses, training_pairs: Bundle
    ) -> dg.MaterializeResult:
        """The round's reward model: base model and linear head, Bradley-Terry loss, DeepSpeed ZeRO."""
        bundle = Heavy(context, store, children, recipe).train(
            training_pairs["pairs"], training_pairs["prompts"], {"training_pairs": training_pairs}
        )
        return result(context, store.open(), bundle, metadata=training_metadata(bundle))

    return reward_model


def _response_scores(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        partitions_def=rounds,
        group_name=GROUP,
        code_version=CODE_VERSION,
        pool="gpu",
        kinds={"pytorch"},
        check_specs=[dg.AssetCheckSpec(_RECONCILE, asset="response_scores", blocking=True)],
    )
    def response_scores(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        reward_model: Bundle,
        raw_preferences: Bundle,
    ) -> dg.MaterializeResult:
        """Every unique response of the noisy preferences, scored once by the round's reward model."""
        opened, voter = store.open(), f"reward_model/{context.partition_key}"
        heavy = Heavy(context, store, children, recipe)
        bundle = run_stage(
            context,
            opened,
            lambda work: heavy.score(
                reward_model, responses_of(raw_preferences["pairs"]), raw_preferences["prompts"], voter, work
            ),
            inputs={"reward_model": reward_model, "raw_preferences": raw_preferences, "voter": voter},
            settings={"scoring": recipe.scoring, "system_prompt": recipe.training.system_prompt},
        )
        scores = [value for value in bundle["scores"]["score"].to_pylist() if value is not None]
        metadata = {"score_histogram": histogram(scores, "score", "responses")} if scores else {}
        return result(context, opened, bundle, checks=(reconcile(bundle),), metadata=metadata)

    return response_scores


def _voted_pairs(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        partitions_def=rounds,
        group_name=GROUP,
        code_version=CODE_VERSION,
        kinds={"pandas"},
        check_specs=[dg.AssetCheckSpec(_RECONCILE, asset="voted_pairs", blocking=True)],
    )
    def voted_pairs(
        context: dg.AssetExecutionContext, store: StoreResource, response_scores: Bundle, raw_preferences: Bundle
    ) -> dg.MaterializeResult:
        """Step 1: the reward models of this and earlier rounds vote, and the most negative pairs are flipped."""
        opened, number = store.open(), int(context.partition_key)
        voters = {
            f"response_scores/{k}": earlier_round(opened, "response_scores", k, needed_by=number) for k in range(number)
        }
        voters[f"response_scores/{number}"] = response_scores

        def vote(work: Path) -> Bundle:
            scores = to_frame(pa.concat_tables([voter["scores"] for voter in voters.values()]))
            voted = vote_and_flip(to_frame(raw_preferences["pairs"]), scores, recipe.curation.flip_fraction)
            tables = {
                "pairs": to_table(voted.voted, "pairs"),
                "prompts": raw_preferences["prompts"],
                "set_aside": set_aside_table(voted.unscored, "voted_pairs"),
            }
            facts = {
                "rows_in": raw_preferences["pairs"].num_rows,
                "rows_out": len(voted.voted),
                "rows_set_aside": len(voted.unscored),
                "voters": len(voted.voters),
                "negative": voted.negative,
                "flipped": voted.flipped,
            }
            return Bundle(tables, facts)

        bundle = run_stage(
            context,
            opened,
            vote,
            inputs={**voters, "raw_preferences": raw_preferences},
            settings={"curation": recipe.curation},
        )
        return result(context, opened, bundle, checks=(reconcile(bundle),))

    return voted_pairs


def _verifier_model(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        partitions_def=rounds, group_name=GROUP, code_version=CODE_VERSION, pool="gpu", kinds={"deepspeed", "pytorch"}
    )
    def verifier_model(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        voted_pairs: Bundle,
        debiased_pairs: Bundle,
        t2i_pairs: Bundle,
        raw_benchmarks: Bundle,
        reward_model: Bundle,
    ) -> dg.MaterializeResult:
        """Step 2's model: trained on D0 and the voted pairs, or the round's reward model if the recipe says so."""
        parts = {"debiased_pairs": debiased_pairs, "t2i_pairs": t2i_pairs, "voted_pairs": voted_pairs}
        if recipe.curation.reuse_reward_model:
            bundle = run_stage(
                context,
                store.open(),
                lambda work: Bundle({}, {"reused": str(reward_model.folder)}),
                inputs={"reward_model": reward_model},
                settings={"reused": "reward_model"},
            )
            return result(context, store.open(), bundle)
        joined = joined_pairs(parts, raw_benchmarks)
        bundle = Heavy(context, store, children, recipe).train(
            joined["pairs"], joined["prompts"], {**parts, "raw_benchmarks": raw_benchmarks}
        )
        return result(context, store.open(), bundle, metadata=training_metadata(bundle))

    return verifier_model


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
                description="Step 2: pairs whose chosen side the verifier prefers.",
                code_version=CODE_VERSION,
                kinds={"pytorch"},
                deps=upstream,
            ),
            dg.AssetSpec(
                "contested_pairs",
                description="Step 2: pairs that the verifier does not confirm, ties included.",
                code_version=CODE_VERSION,
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
        verifier_model: Bundle,
        voted_pairs: Bundle,
        reward_model: Bundle,
    ):
        opened, voter = store.open(), f"verifier_model/{context.partition_key}"
        heavy = Heavy(context, store, children, recipe)
        verifier = reward_model if recipe.curation.reuse_reward_model else verifier_model
        inputs: dict[str, Bundle | str] = {"verifier": verifier, "voted_pairs": voted_pairs, "voter": voter}

        def check(work: Path) -> Bundle:
            scored = heavy.score(verifier, responses_of(voted_pairs["pairs"]), voted_pairs["prompts"], voter, work)
            checked = verify(to_frame(voted_pairs["pairs"]), to_frame(scored["scores"]))
            tables = {
                "pairs": to_table(checked.verified, "pairs"),
                "prompts": voted_pairs["prompts"],
                "scores": scored["scores"],
                "set_aside": pa.concat_tables(
                    [
                        set_aside_table(checked.unscored, "verified_pairs"),
                        set_aside_table(checked.contested.assign(reason="contested", detail=""), "verified_pairs"),
                    ]
                ),
            }
            facts = {
                "rows_in": voted_pairs["pairs"].num_rows,
                "rows_out": len(checked.verified),
                "rows_set_aside": len(checked.contested) + len(checked.unscored),
                "contested": len(checked.contested),
            }
            return Bundle(tables, facts | {"scoring": dict(scored.facts)})

        verified = run_stage(
            context,
            opened,
            check,
            inputs=inputs,
            settings={"scoring": recipe.scoring, "system_prompt": recipe.training.system_prompt},
            name="verified_pairs",
        )

        def contest(work: Path) -> Bundle:
            checked = verify(to_frame(voted_pairs["pairs"]), to_frame(verified["scores"]))
            pairs = to_table(checked.contested, "pairs")
            return Bundle({"pairs": pairs, "prompts": voted_pairs["prompts"]}, {"rows_out": pairs.num_rows})

        contested = run_stage(
            context, opened, contest, inputs={"verified_pairs": verified}, settings={}, name="contested_pairs"
        )
        yield result(context, opened, verified, name="verified_pairs", checks=(reconcile(verified),))
        yield result(context, opened, contested, name="contested_pairs")

    return verify_pairs


def _annotated_pairs(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        partitions_def=rounds,
        group_name=GROUP,
        code_version=CODE_VERSION,
        pool="gpu",
        kinds={"pytorch"},
        check_specs=[dg.AssetCheckSpec(_RECONCILE, asset="annotated_pairs", blocking=True)],
    )
    def annotated_pairs(
        context: dg.AssetExecutionContext, store: StoreResource, children: ChildProcesses, contested_pairs: Bundle
    ) -> dg.MaterializeResult:
        """Step 3: two judges decide every contested pair; pairs without two agreeing votes are dropped."""
        opened = store.open()

        def annotate(work: Path) -> Bundle:
            write_parquet(contested_pairs["pairs"], work / "pairs.parquet")
            settings = recipe.annotation.model_dump(mode="json")
            for judge in settings["judges"]:
                judge["model"] = model_path(judge["model"])
            job = {
                "pairs": str(work / "pairs.parquet"),
                "prompts": str(contested_pairs.table_path("prompts")),
                "media_root": str(opened.media),
                "output": str(work / "votes.parquet"),
                "work": str(work / "judging"),
                "settings": settings,
                "seed": recipe.seed,
            }
            summary = children.run(context, "dt2it_pipeline.curate.annotate:run", job, work)
            votes = read_parquet(work / "votes.parquet", "votes")
            resolved = resolve_annotations(to_frame(contested_pairs["pairs"]), to_frame(votes))
            tables = {
                "pairs": to_table(resolved.annotated, "pairs"),
                "prompts": contested_pairs["prompts"],
                "votes": votes,
                "set_aside": set_aside_table(resolved.dropped, "annotated_pairs"),
            }
            facts = {
                "rows_in": contested_pairs["pairs"].num_rows,
                "rows_out": len(resolved.annotated),
                "rows_set_aside": len(resolved.dropped),
                "swapped": resolved.swapped,
                "judge_calls": votes.num_rows,
            }
            return Bundle(tables, {"judging": summary} | facts)

        bundle = run_stage(
            context,
            opened,
            annotate,
            inputs={"contested_pairs": contested_pairs},
            settings={"annotation": recipe.annotation, "seed": recipe.seed},
        )
        return result(context, opened, bundle, checks=(reconcile(bundle),))

    return annotated_pairs


def _curated_pairs(recipe: Recipe, rounds: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=rounds, group_name=GROUP, code_version=CODE_VERSION, kinds={"pandas"})
    def curated_pairs(
        context: dg.AssetExecutionContext, store: StoreResource, verified_pairs: Bundle, annotated_pairs: Bundle
    ) -> dg.MaterializeResult:
        """The round's result: verified and annotated pairs, which train the next round's reward model."""
        opened, number = store.open(), int(context.partition_key)

        def join(work: Path) -> Bundle:
            merged = merge(to_frame(verified_pairs["pairs"]), to_frame(annotated_pairs["pairs"]), number)
            tables = {"pairs": to_table(merged, "pairs"), "prompts": verified_pairs["prompts"]}
            return Bundle(tables, {"rows_out": len(merged)})

        bundle = run_stage(
            context,
            opened,
            join,
            inputs={"verified_pairs": verified_pairs, "annotated_pairs": annotated_pairs},
            settings={"round": number},
        )
        return result(context, opened, bundle)

    return curated_pairs
