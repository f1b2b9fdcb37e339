"""Scores of a responses table by any reward model: our checkpoints, LLaMA-Factory's, or a server behind a URL.

    python -m dt2it_pipeline.evaluate.benchmarks.model_scores job.json

job: that of `reward.score` with `model` (folder, Hub id or URL) in the place of `checkpoint`, and optionally
`system_prompt` (of a server, or of a model of LLaMA-Factory, whose files do not say it). A killed run goes on where it
stopped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dt2it_pipeline.engines.jobs import main
from dt2it_pipeline.storage import atomic, records, schemas

Report = Callable[[Mapping[str, Any]], None]
_URL = re.compile(r"https?://", re.IGNORECASE)
_VALUE_HEADS = ("value_head.safetensors", "value_head.bin")
_SHARD = 512  # responses


def is_url(model: str) -> bool:
    """Whether a model is named by the URL of a server."""
    return _URL.match(model) is not None


def run(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Score all responses; tables and summary are those of `reward.score.run`.

    Raises:
        CheckpointError, ScoringError, EngineError: as there, or the server cannot be used.
    """
    model = str(job["model"])
    if is_url(model):
        return _by_server(job, report)
    from dt2it_pipeline.reward.scoring import job as scoring_job

    folder, imported = Path(model), Path(job["work"]) / "imported"
    if any((folder / name).is_file() for name in _VALUE_HEADS):
        from dt2it_pipeline.reward.modeling.llamafactory import import_llamafactory

        if not imported.exists():
            import_llamafactory(folder, imported, system_prompt=job.get("system_prompt") or "")
        model = str(imported)
    return scoring_job.run({**job, "checkpoint": model}, report)


def _by_server(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    from dt2it_pipeline.engines.score_endpoint import EndpointScorer
    from dt2it_pipeline.reward.data.preparation import prompt_rows
    from dt2it_pipeline.reward.scoring.job import plan_shards

    started = time.perf_counter()
    prompts, responses = (
        atomic.read_parquet(job["prompts"], "prompts"),
        atomic.read_parquet(job["responses"], "responses"),
    )
    scorer = EndpointScorer(job["model"], job["media_root"], system_prompt=job.get("system_prompt"))
    work = Path(job["work"])
    work.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(responses, prompts, _SHARD)
    done = 0
    for number, shard in enumerate(shards):
        path = work / f"shard-{number:06d}.parquet"
        if not path.exists():
            scores, faults = scorer.score(prompt_rows(prompts, {prompt for _, prompt, _ in shard}), shard)
            aside = [records.quarantine_row(name, "scoring", *fault) for name, fault in sorted(faults.items())]
            atomic.write_parquet(schemas.table(aside, "quarantine"), path.with_suffix(".quarantine.parquet"))
            rows = [{"response_id": n, "voter": job["voter"], "score": s} for n, s in sorted(scores.items())]
            atomic.write_parquet(schemas.table(rows, "scores"), path)  # last: it says that the shard is finished
        done += len(shard)
        report({"responses": done, "responses_total": sum(map(len, shards))})
    tables = {}
    for kind, suffix in (("scores", ".parquet"), ("quarantine", ".quarantine.parquet")):
        files = [work / f"shard-{number:06d}{suffix}" for number in range(len(shards))]
        tables[kind] = pa.concat_tables([schemas.table([], kind), *(atomic.read_parquet(file, kind) for file in files)])
    output = Path(job["output"])
    atomic.write_parquet(tables["quarantine"], output.with_name(f"{output.stem}.quarantine.parquet"))
    atomic.write_parquet(tables["scores"], output)
    return {
        "responses": done,
        "scored": tables["scores"].num_rows,
        "quarantine": tables["quarantine"].num_rows,
        "served_model": scorer.model,
        "system_prompt": scorer.system_prompt,
        "seconds": round(time.perf_counter() - started, 2),
    }


if __name__ == "__main__":
    main(run)
