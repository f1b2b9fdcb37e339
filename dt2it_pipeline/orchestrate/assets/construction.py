"""Group `construction`: debiased pairs from sampled answers (part 1), two-image pairs from T2I preferences (part 2)."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.config.judging import JudgingSettings
from dt2it_pipeline.config.pairing import PairingSettings, RestyleSettings
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.recipe import Recipe
from dt2it_pipeline.construct.debias import debias
from dt2it_pipeline.construct.generators import Models, models_of, with_models
from dt2it_pipeline.construct.judge import JudgeJob
from dt2it_pipeline.construct.pairs import form_pairs_with_spares
from dt2it_pipeline.construct.restyle import RESTYLE, SAME, RestyleJob
from dt2it_pipeline.construct.sample import SampleJob, join
from dt2it_pipeline.judges import templates
from dt2it_pipeline.orchestrate.cached_stage import result, run_stage
from dt2it_pipeline.orchestrate.checks import judges_answer, reconcile, rewriting_keeps_pairs, style_below_bound
from dt2it_pipeline.orchestrate.metadata import judge_table, markdown_of
from dt2it_pipeline.orchestrate.pipes_worker import PROGRESS
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.reformulate.phrasings import load_phrasings, version
from dt2it_pipeline.reformulate.t2i import reformulate
from dt2it_pipeline.storage.artifacts import Artifact, Store, model_digest
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet
from dt2it_pipeline.style.probe import leak_table, source_probe, style_probe

GROUP = "construction"
_RECONCILE = "rows_reconcile"


def build_construction_assets(recipe: Recipe) -> list[dg.AssetsDefinition]:
    """Assets of parts 1 and 2."""
    return [_candidate_responses(recipe), _judged_responses(recipe), _debiased_pairs(recipe), _t2i_pairs(recipe)]


def _candidate_responses(recipe: Recipe) -> dg.AssetsDefinition:
    @dg.asset(
        group_name=GROUP,
        code_version="1",
        pool="gpu",
        kinds={"vllm"},
        check_specs=[dg.AssetCheckSpec(_RECONCILE, asset="candidate_responses", blocking=True)],
    )
    def candidate_responses(
        context: dg.AssetExecutionContext, store: StoreResource, children: ChildProcesses, raw_prompts: Artifact
    ) -> dg.MaterializeResult:
        """Several answers per prompt from one pool of models with one style, sampled by vLLM."""
        opened = store.open()

        pool = [model_path(name) for name in recipe.sampling.pool]

        def sample(work: Path) -> Artifact:
            parts = []
            for place, model in enumerate(pool):  # a process each, so that its memory is free for the next
                folder = work if len(pool) == 1 else work / f"model-{place}"
                job = SampleJob(
                    model=model,
                    place=place,
                    prompts=raw_prompts.table_path("prompts"),
                    media_root=opened.media,
                    output=folder / "responses.parquet",
                    work=folder / "shards",
                    settings=recipe.sampling,
                    seed=recipe.seed,
                    ray=recipe.ray,
                )
                summary = children.run(context, job, folder)
                quarantine = read_parquet(folder / "responses.quarantine.parquet", "quarantine")
                parts.append((read_parquet(job.output, "responses"), quarantine, summary))
            responses, quarantine, summary = join(parts)
            return Artifact({"responses": responses, "quarantine": quarantine}, summary)

        artifact = run_stage(
            context,
            opened,
            sample,
            inputs={"raw_prompts": raw_prompts, "model": " ".join(model_digest(model) for model in pool)},
            settings={"sampling": recipe.sampling, "seed": recipe.seed},
        )
        metadata = {}
        if len(pool) > 1:
            writers = Counter(generator.split("|")[0] for generator in artifact["responses"]["generator"].to_pylist())
            metadata["answers_by_model"] = markdown_of(pa.table({"model": [*writers], "answers": [*writers.values()]}))
        return result(context, opened, artifact, checks=(reconcile(artifact),), metadata=metadata)

    return candidate_responses


def _judged_responses(recipe: Recipe) -> dg.AssetsDefinition:
    heavy = recipe.judging.heavy

    @dg.asset(
        group_name=GROUP,
        code_version="3",
        pool="gpu" if heavy else None,
        kinds={"vllm"} if heavy else {"python"},
        check_specs=[
            dg.AssetCheckSpec(_RECONCILE, asset="judged_responses", blocking=True),
            dg.AssetCheckSpec("judges_answer", asset="judged_responses"),
        ],
    )
    def judged_responses(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        raw_prompts: Artifact,
        candidate_responses: Artifact,
    ) -> dg.MaterializeResult:
        """Every answer judged in a shuffled list with the others and by itself, by each of the recipe's judges."""
        opened = store.open()

        def judge(work: Path) -> Artifact:
            job = JudgeJob(
                prompts=raw_prompts.table_path("prompts"),
                responses=candidate_responses.table_path("responses"),
                media_root=opened.media,
                output=work / "judged",
                cache=opened.cache / "judge_replies.sqlite",
                settings=recipe.judging,
                seed=recipe.seed,
            )
            # Without a model to load there is no process to give its memory back.
            metadata = children.run(context, job, work) if heavy else job.run(_logger(context))
            names = ("judgements", "responses", "quarantine")
            return Artifact({name: read_parquet(work / "judged" / f"{name}.parquet", name) for name in names}, metadata)

        artifact = run_stage(
            context,
            opened,
            judge,
            inputs={
                "raw_prompts": raw_prompts,
                "candidate_responses": candidate_responses,
                "models": _model_digests(recipe),
                **_words(_asked(recipe.judging)),
            },
            settings={"judging": recipe.judging, "seed": recipe.seed},
        )
        judges: dict[str, dict[str, Any]] = artifact.metadata["judges"]
        checks = (reconcile(artifact), judges_answer(judges))
        return result(context, opened, artifact, checks=checks, metadata={"judges": judge_table(judges)})

    return judged_responses


def _logger(context: dg.AssetExecutionContext) -> Callable[[Mapping[str, Any]], None]:
    """A reporter that writes to the step's log, for jobs that run in the step itself."""
    return lambda progress: context.log.info(PROGRESS + ", ".join(f"{key} {value}" for key, value in progress.items()))


def _model_digests(recipe: Recipe) -> str:
    """What stands for the weights of the judges that run here; the settings name the others."""
    local = [judge.model for judge in recipe.judging.judges if judge.kind in ("vllm", "likelihood")]
    return " ".join(model_digest(model_path(model)) for model in local)


def _asked(judging: JudgingSettings) -> tuple[str, ...]:
    """Names of the templates that judges are asked with."""
    modes: tuple[str, ...] = judging.modes if judging.in_words else ()
    return (*modes, templates.IS_RIGHT) if judging.yes_or_no else modes


def _words(modes: Iterable[str]) -> dict[str, str]:
    """What stands for the templates of the modes that a model is asked in; nothing where none is."""
    asked = tuple(modes)
    return {"templates": templates.version(asked)} if asked else {}


def _debiased_pairs(recipe: Recipe) -> dg.AssetsDefinition:
    restyle = recipe.pairing.restyle
    heavy = restyle is not None and restyle.heavy
    rewriting_checks = [dg.AssetCheckSpec("rewriting_keeps_pairs", asset="debiased_pairs", blocking=True)]
    if restyle is None:
        rewriting_checks = []

    @dg.asset(
        group_name=GROUP,
        code_version="3",
        pool="gpu" if heavy else None,
        kinds={"vllm"} if heavy else {"python"},
        check_specs=[
            dg.AssetCheckSpec(_RECONCILE, asset="debiased_pairs", blocking=True),
            dg.AssetCheckSpec("style_probe", asset="debiased_pairs"),
            *rewriting_checks,
        ],
    )
    def debiased_pairs(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        raw_prompts: Artifact,
        candidate_responses: Artifact,
        judged_responses: Artifact,
    ) -> dg.MaterializeResult:
        """Pairs on whose order both judgements agree, over a spread of strengths, balanced in style."""
        opened = store.open()

        def pair(work: Path) -> Artifact:
            prompts, pairing = raw_prompts["prompts"], recipe.pairing
            formed, spares, unused = form_pairs_with_spares(
                prompts, judged_responses["responses"], judged_responses["judgements"], pairing, recipe.seed
            )
            candidates = formed.num_rows + unused.num_rows
            rewriting: dict[str, Any] = {}
            rewritten: dict[str, pa.Table] = {}
            if pairing.restyle is not None:
                made, rewriting = _rewritten(
                    context, opened, children, work, pairing, formed, prompts, judged_responses
                )
                formed, rewritten["responses"] = made["pairs"], made["responses"]
                unused = pa.concat_tables([unused, made["quarantine"]])
                spares = spares.slice(0, 0)  # they are as sampled
            chosen = debias(
                formed,
                spares,
                pairing.style_probe_bound,
                pairing.max_pairs_per_prompt,
                recipe.evaluation.style_probe_folds,
                recipe.seed,
                _writers(pairing, judged_responses, rewritten),
            )
            swapped = pa.array(sorted(chosen.swapped_in), pa.string())
            quarantine = pa.concat_tables(
                [unused.filter(pc.invert(pc.is_in(unused["row_id"], value_set=swapped))), chosen.quarantine]
            )
            used = prompts.filter(pc.is_in(prompts["prompt_id"], value_set=chosen.pairs["prompt_id"].combine_chunks()))
            metadata = {
                "rows_in": candidates,
                "rows_out": chosen.pairs.num_rows,
                "rows_quarantined": quarantine.num_rows,
                "formed": formed.num_rows,
                "swapped_in": len(chosen.swapped_in),
                "kept_of_formed": round(chosen.pairs.num_rows / max(1, formed.num_rows), 4),
                "style_auc_before": chosen.before.auc,
                "style_auc_after": chosen.after.auc,
                "style_curve": list(chosen.curve),
                "restyle": rewriting,
            }
            return Artifact({"pairs": chosen.pairs, "prompts": used, "quarantine": quarantine, **rewritten}, metadata)

        artifact = run_stage(
            context,
            opened,
            pair,
            inputs={
                "raw_prompts": raw_prompts,
                "candidate_responses": candidate_responses,
                "judged_responses": judged_responses,
                **_rewriter(restyle),
            },
            settings={
                "pairing": recipe.pairing,
                "folds": recipe.evaluation.style_probe_folds,
                "seed": recipe.seed,
            },
        )
        writers = _writers(recipe.pairing, judged_responses, artifact.tables)
        probe = style_probe(with_models(artifact["pairs"], writers), recipe.evaluation.style_probe_folds, recipe.seed)
        checks = [reconcile(artifact), style_below_bound(probe, recipe.pairing.style_probe_bound)]
        curve = pa.Table.from_pylist(artifact.metadata["style_curve"]).select(["kept", "auc", "ci_low", "ci_high"])
        metadata = {
            "pairs_kept_against_style": markdown_of(curve),
            "style_leaks": markdown_of(leak_table(probe)),
        }
        responses = judged_responses["responses"]
        if restyle is not None:
            rewriting = artifact.metadata["restyle"]
            checks.append(rewriting_keeps_pairs(rewriting))
            metadata["rewriting"] = judge_table({mode: rewriting[mode] for mode in (RESTYLE, SAME)})
            responses = pa.concat_tables([responses, artifact["responses"]])
        by_model = source_probe(with_models(artifact["pairs"], models_of(responses)))
        if by_model.leaks:  # several models: does one of them always win?
            metadata["source_model_leaks"] = markdown_of(leak_table(by_model))
            figures = ("auc", "ci_low", "ci_high")
            metadata |= {f"source_model_{name}": value for name in figures if (value := getattr(by_model, name))}
        return result(context, opened, artifact, checks=tuple(checks), metadata=metadata)

    return debiased_pairs


def _writers(settings: PairingSettings, judged: Artifact, tables: Mapping[str, Any]) -> Models:
    """Who wrote the sides as far as it counts as style: what was rewritten was written by the one rewriter."""
    if not settings.balance_models:
        return {}
    if settings.restyle is None:
        return models_of(judged["responses"])
    return dict.fromkeys(tables["responses"]["response_id"].to_pylist(), settings.restyle.rewriter.name)


def _rewriter(restyle: RestyleSettings | None) -> dict[str, str]:
    """What stands for the rewriter's weights and words; nothing where pairs stay as sampled."""
    if restyle is None:
        return {}
    local = [each.model for each in (restyle.rewriter, restyle.check) if each and each.kind in ("vllm", "likelihood")]
    digest = " ".join(model_digest(model_path(model)) for model in local)
    return {"rewriter": digest, **_words((RESTYLE, SAME, templates.IS_SAME, templates.IS_RIGHT))}


def _rewritten(
    context: dg.AssetExecutionContext,
    store: Store,
    children: ChildProcesses,
    work: Path,
    settings: PairingSettings,
    pairs: pa.Table,
    prompts: pa.Table,
    judged: Artifact,
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """The tables of `restyle.run` by name, and what rewriting came to."""
    restyle = settings.restyle
    assert restyle is not None
    write_parquet(pairs, work / "formed.parquet")
    write_parquet(prompts, work / "prompts.parquet")
    job = RestyleJob(
        pairs=work / "formed.parquet",
        prompts=work / "prompts.parquet",
        responses=judged.table_path("responses"),
        media_root=store.media,
        output=work / "restyled",
        cache=store.cache / "judge_replies.sqlite",
        settings=restyle,
        near_identical=settings.near_identical,
    )
    metadata = children.run(context, job, work) if restyle.heavy else job.run(_logger(context))
    names = ("pairs", "responses", "quarantine")
    return {name: read_parquet(work / "restyled" / f"{name}.parquet", name) for name in names}, metadata


def _t2i_pairs(recipe: Recipe) -> dg.AssetsDefinition:
    @dg.asset(
        group_name=GROUP,
        code_version="3",
        kinds={"python"},
        check_specs=[
            dg.AssetCheckSpec(_RECONCILE, asset="t2i_pairs", blocking=True),
            dg.AssetCheckSpec("positions_balanced", asset="t2i_pairs", blocking=True),
        ],
    )
    def t2i_pairs(
        context: dg.AssetExecutionContext, store: StoreResource, raw_t2i_preferences: Artifact
    ) -> dg.MaterializeResult:
        """Human T2I preferences as two-image questions; the preferred image stands first in exactly half of them."""
        opened = store.open()
        artifact = run_stage(
            context,
            opened,
            lambda work: reformulate(raw_t2i_preferences["t2i_preferences"], recipe.t2i, recipe.seed),
            inputs={"raw_t2i_preferences": raw_t2i_preferences, "phrasings": version(load_phrasings())},
            settings={"t2i": recipe.t2i, "seed": recipe.seed},
        )
        first, pairs = int(artifact.metadata["preferred_first"]), artifact["pairs"].num_rows
        balanced = dg.AssetCheckResult(
            check_name="positions_balanced",
            passed=first == pairs // 2,
            metadata={"preferred_first": first, "pairs": pairs},
        )
        return result(context, opened, artifact, checks=(reconcile(artifact), balanced))

    return t2i_pairs
