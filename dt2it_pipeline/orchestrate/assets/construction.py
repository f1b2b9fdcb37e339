"""Group `construction`: answers sampled and judged (part 1). Pairs: pairing.py; two-image pairs: reformulation.py."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.judging import JudgingSettings
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.config.sections.sampling import SamplingSettings
from dt2it_pipeline.construct.judge import JudgeJob
from dt2it_pipeline.construct.sample import SampleJob, join
from dt2it_pipeline.judges import templates
from dt2it_pipeline.orchestrate.resources import ChildProcesses, StoreResource
from dt2it_pipeline.orchestrate.stage.cached_stage import run_stage, step_reporter
from dt2it_pipeline.orchestrate.stage.checks import JUDGES_ANSWER, judges_answer
from dt2it_pipeline.orchestrate.stage.metadata import judge_table, markdown_of
from dt2it_pipeline.orchestrate.stage.stage_asset import StageResult, stage_asset
from dt2it_pipeline.storage.artifacts import Artifact, model_digest
from dt2it_pipeline.storage.atomic import read_parquet

GROUP = "construction"


def build_answer_assets(
    sampling: SamplingSettings, judging: JudgingSettings, processes: int, ray: RaySettings | None, seed: int
) -> list[dg.AssetsDefinition]:
    """The assets `candidate_responses` and `judged_responses`; `processes` hold the models of judges."""
    return [_candidate_responses(sampling, ray, seed), _judged_responses(judging, processes, ray, seed)]


def _candidate_responses(settings: SamplingSettings, ray: RaySettings | None, seed: int) -> dg.AssetsDefinition:
    @stage_asset(
        group=GROUP,
        part="construction",
        stage="sample",
        code_version="1",
        kinds={"vllm"},
        tables=("responses", "quarantine"),
        gpu=True,
    )
    def candidate_responses(
        context: dg.AssetExecutionContext, store: StoreResource, children: ChildProcesses, raw_prompts: Artifact
    ) -> StageResult:
        """Several answers per prompt from one pool of models with one style, sampled by vLLM."""
        opened = store.open()

        pool = [model_path(name) for name in settings.pool]

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
                    settings=settings,
                    seed=seed,
                    ray=ray,
                )
                summary = children.run(context, job, folder)
                quarantined = read_parquet(folder / "responses.quarantine.parquet", "quarantine")
                parts.append((read_parquet(job.output, "responses"), quarantined, summary))
            responses, quarantine, summary = join(parts)
            return Artifact({"responses": responses, "quarantine": quarantine}, summary)

        artifact = run_stage(
            context,
            opened,
            sample,
            inputs={"raw_prompts": raw_prompts, "model": " ".join(model_digest(model) for model in pool)},
            settings={"sampling": settings, "seed": seed},
        )
        metadata = {}
        if len(pool) > 1:
            writers = Counter(generator.split("|")[0] for generator in artifact["responses"]["generator"].to_pylist())
            metadata["answers_by_model"] = markdown_of(pa.table({"model": [*writers], "answers": [*writers.values()]}))
        return StageResult(artifact, metadata=metadata)

    return candidate_responses


def _judged_responses(
    settings: JudgingSettings, processes: int, ray: RaySettings | None, seed: int
) -> dg.AssetsDefinition:
    heavy = settings.heavy

    @stage_asset(
        group=GROUP,
        part="construction",
        stage="judge",
        code_version="3",
        kinds={"vllm"} if heavy else {"python"},
        tables=("judgements", "responses", "quarantine"),
        gpu=heavy,
        checks=(JUDGES_ANSWER,),
    )
    def judged_responses(
        context: dg.AssetExecutionContext,
        store: StoreResource,
        children: ChildProcesses,
        raw_prompts: Artifact,
        candidate_responses: Artifact,
    ) -> StageResult:
        """Every answer judged in a shuffled list with the others and by itself, by each of the recipe's judges."""
        opened = store.open()

        def judge(work: Path) -> Artifact:
            job = JudgeJob(
                prompts=raw_prompts.table_path("prompts"),
                responses=candidate_responses.table_path("responses"),
                media_root=opened.media,
                output=work / "judged",
                cache=opened.cache / "judge_replies.sqlite",
                settings=settings,
                seed=seed,
                processes=processes,
                ray=ray,
            )
            # Without a model to load there is no process to give its memory back.
            metadata = children.run(context, job, work) if heavy else job.run(step_reporter(context))
            names = ("judgements", "responses", "quarantine")
            return Artifact({name: read_parquet(work / "judged" / f"{name}.parquet", name) for name in names}, metadata)

        artifact = run_stage(
            context,
            opened,
            judge,
            inputs={
                "raw_prompts": raw_prompts,
                "candidate_responses": candidate_responses,
                "models": _model_digests(settings),
                **template_versions(_modes_asked(settings)),
            },
            settings={"judging": settings, "seed": seed},
        )
        judges: dict[str, dict[str, Any]] = artifact.metadata["judges"]
        return StageResult(artifact, checks=(judges_answer(judges),), metadata={"judges": judge_table(judges)})

    return judged_responses


def _model_digests(settings: JudgingSettings) -> str:
    """What stands for the weights of the judges that run here; the settings name the others."""
    local = [judge.model for judge in settings.judges if judge.kind in ("vllm", "likelihood")]
    return " ".join(model_digest(model_path(model)) for model in local)


def _modes_asked(judging: JudgingSettings) -> tuple[str, ...]:
    """Names of the templates that judges are asked with."""
    modes: tuple[str, ...] = judging.modes if judging.in_words else ()
    return (*modes, templates.IS_RIGHT) if judging.yes_or_no else modes


def template_versions(modes: Iterable[str]) -> dict[str, str]:
    """What stands for the templates of the modes that a model is asked in; nothing where none is."""
    asked = tuple(modes)
    return {"templates": templates.version(asked)} if asked else {}
