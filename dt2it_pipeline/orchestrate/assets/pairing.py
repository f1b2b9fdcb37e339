"""Group `construction`, continued: pairs of judged answers, rewritten where the recipe asks, balanced in style."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.pairing import PairingSettings, RestyleSettings
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.construct.debias import debias
from dt2it_pipeline.construct.generators import Models, models_of, with_models
from dt2it_pipeline.construct.pairs import form_pairs_with_spares
from dt2it_pipeline.construct.restyle import RESTYLE, SAME, RestyleJob
from dt2it_pipeline.engines.launch.fork_server import available_processes
from dt2it_pipeline.judges import templates
from dt2it_pipeline.orchestrate.assets.construction import GROUP, template_versions
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage, step_reporter
from dt2it_pipeline.orchestrate.stage.checks import (
    REWRITING_KEEPS_PAIRS,
    STYLE_PROBE,
    rewriting_keeps_pairs,
    style_below_bound,
)
from dt2it_pipeline.orchestrate.stage.metadata import judge_table, markdown_of
from dt2it_pipeline.orchestrate.stage.stage_asset import StageResult, stage_asset
from dt2it_pipeline.storage.artifacts import Artifact, model_digest
from dt2it_pipeline.storage.atomic import read_parquet, write_parquet
from dt2it_pipeline.style.probe import leak_table, source_probe, style_probe


def build_debiased_pairs(
    pairing: PairingSettings, folds: int, processes: int, ray: RaySettings | None, seed: int
) -> dg.AssetsDefinition:
    """The asset `debiased_pairs`; `folds` are those of the style probe's cross-validation.

    `processes`, or the workers of `ray`, hold the models that rewrite.
    """
    restyle = pairing.restyle
    heavy = restyle is not None and restyle.heavy

    @stage_asset(
        group=GROUP,
        part="construction",
        stage="pair",
        code_version="3",
        kinds={"vllm"} if heavy else {"python"},
        tables=("pairs", "prompts", "quarantine"),
        gpu=heavy,
        checks=(STYLE_PROBE,) if restyle is None else (STYLE_PROBE, REWRITING_KEEPS_PAIRS),
    )
    def debiased_pairs(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        raw_prompts: Artifact,
        candidate_responses: Artifact,
        judged_responses: Artifact,
    ) -> StageResult:
        """Pairs on whose order both judgements agree, over a spread of strengths, balanced in style."""
        opened = store.open()

        def pair(work: Path) -> Artifact:
            prompts, cores = raw_prompts["prompts"], available_processes()
            formed, spares, unused = form_pairs_with_spares(
                prompts, judged_responses["responses"], judged_responses["judgements"], pairing, seed, cores
            )
            candidates = formed.num_rows + unused.num_rows
            rewriting: dict[str, Any] = {}
            rewritten: dict[str, pa.Table] = {}
            if pairing.restyle is not None:
                write_parquet(formed, work / "formed.parquet")
                write_parquet(prompts, work / "prompts.parquet")
                job = RestyleJob(
                    pairs=work / "formed.parquet",
                    prompts=work / "prompts.parquet",
                    responses=judged_responses.table_path("responses"),
                    media_root=opened.media,
                    output=work / "restyled",
                    cache=opened.cache / "judge_replies.sqlite",
                    settings=pairing.restyle,
                    near_identical=pairing.near_identical,
                    processes=processes,
                    ray=ray,
                )
                rewriting = children.run(context, job, work) if heavy else job.run(step_reporter(context))
                names = ("pairs", "responses", "quarantine")
                made = {name: read_parquet(job.output / f"{name}.parquet", name) for name in names}
                formed, rewritten["responses"] = made["pairs"], made["responses"]
                unused = pa.concat_tables([unused, made["quarantine"]])
                spares = spares.slice(0, 0)  # they are as sampled
            chosen = debias(
                formed,
                spares,
                pairing.style_probe_bound,
                pairing.max_pairs_per_prompt,
                folds,
                seed,
                _writers(pairing, judged_responses, rewritten),
                cores,
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
            settings={"pairing": pairing, "folds": folds, "seed": seed},
        )
        writers = _writers(pairing, judged_responses, artifact.tables)
        probe = style_probe(with_models(artifact["pairs"], writers), folds, seed)
        checks = [style_below_bound(probe, pairing.style_probe_bound)]
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
        return StageResult(artifact, checks=checks, metadata=metadata)

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
    return {"rewriter": digest, **template_versions((RESTYLE, SAME, templates.IS_SAME, templates.IS_RIGHT))}
