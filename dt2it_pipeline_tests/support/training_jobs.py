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
from dt2it_pipeline.engines.jobs import WORKER_ENVIRONMENT
from dt2it_pipeline.engines.launch.job_fork_server import Request
from dt2it_pipeline.engines.launch.job_forks import ForkedJob, JobForks
from dt2it_pipeline.engines.launch.ranks import free_port, rank_environment, ranks_command
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.storage import atomic, records, schemas

SMALL = {
    "global_batch_size": 8, "micro_batch_size": 4, "micro_batch_tokens": None, "epochs": 3.0, "logging_steps": 2,
    "save_steps": 2, "learning_rate": 2e-3, "system_prompt": "You judge.",
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


class Forks(JobForks):
    """One server for all tests of a file: that pytest names the running one in a variable needs no new server."""

    def start(self, request: Request, files: Sequence[int]) -> ForkedJob | None:
        """See `JobForks`."""
        test = os.environ.pop("PYTEST_CURRENT_TEST", None)
        try:
            return super().start(request, files)
        finally:
            if test is not None:
                os.environ["PYTEST_CURRENT_TEST"] = test


FORKS = Forks(WORKER_ENVIRONMENT)


def environment() -> dict[str, str]:
    """Environment of two ranks with one thread each."""
    return os.environ | rank_environment(2) | {"OMP_NUM_THREADS": "1"}


def start(worker: str, file: Path, processes: int, **variables: str) -> ForkedJob | subprocess.Popen[bytes]:
    """Start a module's `main` with a file, in processes that are forked as those of a run are.

    They lead a group of their own, and print into a file beside the other one, with the ending `.log`.
    """
    request = Request(
        imports="dt2it_pipeline.reward.job_imports:training", worker=worker, arguments=(str(file),),
        environment=environment() | variables, folder=str(project_root()), files=2,
        ranks=processes if processes > 1 else 0, port=free_port() if processes > 1 else 0,
    )  # fmt: skip
    with file.with_suffix(".log").open("wb") as log:
        forked = FORKS.start(request, [log.fileno()] * 2)
        if forked is not None:
            return forked
        module = [worker, str(file)]  # there is a GPU
        line = ranks_command(module, processes) if processes > 1 else [sys.executable, "-m", *module]
        return subprocess.Popen(
            line, env=request.environment, cwd=request.folder, start_new_session=True, stdout=log, stderr=log
        )


def start_training(job: TrainJob, folder: Path, processes: int) -> ForkedJob | subprocess.Popen[bytes]:
    """Start a job, whose file is `folder`/job.json."""
    job.write(folder / "job.json")
    return start("dt2it_pipeline.engines.launch.worker", folder / "job.json", processes)


def train_several(jobs: Sequence[TrainJob], path: Path, processes: int) -> None:
    """Run jobs one after the other in the same processes; see several.py for what they leave."""
    files = [path.with_name(f"{path.stem}-{number}.json") for number in range(len(jobs))]
    for job, file in zip(jobs, files, strict=True):
        job.write(file)
    path.write_text(json.dumps([str(file) for file in files]))
    ended = start("dt2it_pipeline_tests.support.several", path, processes).wait(600)
    assert ended == 0, path.with_suffix(".log").read_text()[-3000:]


def log_of(folder: str | Path, name: str = "training_log") -> list[dict[str, Any]]:
    """Rows of a log in a checkpoint folder, without what differs from run to run."""
    lines = (Path(folder) / f"{name}.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "pairs_per_second"} for line in lines]
