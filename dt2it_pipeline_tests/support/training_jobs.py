"""A small training job and the ways to start it, for the tests of training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.engines.launch.ranks import rank_environment, ranks_command
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.storage import atomic, records, schemas

SMALL = {
    "global_batch_size": 8, "micro_batch_size": 4, "epochs": 3.0, "logging_steps": 2, "save_steps": 2,
    "learning_rate": 2e-3, "system_prompt": "You judge.",
}  # fmt: skip


def small_job(base: Path, tables: Mapping[str, str], folder: Path) -> TrainJob:
    """A job that trains a tiny model for nine steps of eight pairs."""
    paths = {name: Path(tables[name]) for name in ("pairs", "prompts", "media_root")}
    return TrainJob(
        base_model=str(base), output=folder / "out", work=folder / "work", settings=TrainingSettings(**SMALL), seed=5,
        name="test", **paths,
    )  # fmt: skip


def changed(job: TrainJob, name: str, folder: Path, **settings: Any) -> TrainJob:
    """The job with other settings and folders of its own."""
    return with_settings(job, **settings).model_copy(update={"output": folder / name, "work": folder / f"work-{name}"})


def with_settings(job: TrainJob, **settings: Any) -> TrainJob:
    """The job with other settings."""
    return job.model_copy(update={"settings": TrainingSettings(**job.settings.model_dump() | settings)})


def poisoned(job: TrainJob, folder: Path) -> tuple[TrainJob, str]:
    """The job with one more pair, whose score alone is not a number, and that pair's id."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    shutil.copytree(job.base_model, folder / "base")
    token = Tokenizer.from_file(str(folder / "base" / "tokenizer.json")).encode("Z").ids
    weights = load_file(folder / "base" / "model.safetensors")
    weights["model.language_model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    prompts = atomic.read_parquet(job.prompts, "prompts").to_pylist()
    pair = records.make_pair(prompts[0]["prompt_id"], "Z", "no", source="test")
    pairs = [*atomic.read_parquet(job.pairs, "pairs").to_pylist(), pair]
    atomic.write_parquet(schemas.table(pairs, "pairs"), folder / "pairs.parquet")
    changes = {"base_model": str(folder / "base"), "pairs": folder / "pairs.parquet"}
    return job.model_copy(update=changes), pair["pair_id"]


def command(job: TrainJob, path: Path, processes: int) -> list[str]:
    """Write the job and give the command line that runs it."""
    job.write(path)
    return ranks_command(["dt2it_pipeline.engines.jobs", str(path)], processes)


def environment() -> dict[str, str]:
    """Environment of two ranks with one thread each."""
    return os.environ | rank_environment(2) | {"OMP_NUM_THREADS": "1"}


def train(job: TrainJob, folder: Path, processes: int, limit: str = "") -> subprocess.CompletedProcess[str]:
    """Run a job in processes of its own; `limit` is a shell command that runs before, such as `ulimit -f 64`."""
    line = command(job, folder / "job.json", processes)
    if limit:
        line = ["bash", "-c", f'{limit}; exec "$@"', "bash", *line]
    return subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300)


def train_several(jobs: Sequence[TrainJob], path: Path, processes: int) -> None:
    """Run jobs one after the other in the same processes; see several.py for what they leave."""
    files = [path.with_name(f"{path.stem}-{number}.json") for number in range(len(jobs))]
    for job, file in zip(jobs, files, strict=True):
        job.write(file)
    path.write_text(json.dumps([str(file) for file in files]))
    module = ["dt2it_pipeline_tests.support.several", str(path)]
    line = ranks_command(module, processes) if processes > 1 else [sys.executable, "-m", *module]
    done = subprocess.run(line, env=environment(), cwd=project_root(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def log_of(folder: str | Path, name: str = "training_log") -> list[dict[str, Any]]:
    """Rows of a log in a checkpoint folder, without what differs from run to run."""
    lines = (Path(folder) / f"{name}.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "pairs_per_second"} for line in lines]
