"""How long a stage waits for one small job: by DeepSpeed's launcher, in fresh processes, in forked ones.

    python -m benchmarks.job_starts

Jobs are those of the pipeline: a training of four steps in two ranks, and a scoring of 32 responses in one process,
with the demo's base model. So nearly all that is measured is start and end. The ways take turns; ratios are taken
within a turn. "deepspeed" starts the ranks by `deepspeed.launcher.launch`; a scoring has no ranks. The first turn, in
which the forked way still imports, is not counted.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from benchmarks.environment import spread
from benchmarks.scoring import make_rows
from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.engines.jobs import WORKER_ENVIRONMENT, Job
from dt2it_pipeline.engines.launch import local_launcher
from dt2it_pipeline.engines.launch.job_forks import JobForks
from dt2it_pipeline.engines.launch.launcher import ONE_PROCESS, Resources
from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher
from dt2it_pipeline.engines.launch.ranks import free_port, rank_environment
from dt2it_pipeline.reward.scoring.job import ScoreJob
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.storage import atomic, records, schemas

WAYS = ("deepspeed", "fresh", "forked")
Jobs = Callable[[str, Path], tuple[Job, Resources]]


def write_world(folder: Path) -> Jobs:
    """Sixteen prompts of two responses and a pair each; makes the jobs on them by kind and work folder."""
    rows, responses = make_rows(folder, 16, 2)
    both = [responses[number : number + 2] for number in range(0, len(responses), 2)]
    pairs = [records.make_pair(one[1], one[2], f"{other[2]} too", source="made") for one, other in both]
    named = [
        dict(zip(("response_id", "prompt_id", "text"), each, strict=True)) | {"generator": ""} for each in responses
    ]
    for kind, table in (
        ("prompts", [row | {"source": "made", "language": "en", "meta": "{}"} for row in rows.values()]),
        ("responses", named),
        ("pairs", pairs),
    ):
        atomic.write_parquet(schemas.table(table, kind), folder / f"{kind}.parquet")

    def job(kind: str, work: Path) -> tuple[Job, Resources]:
        shared = {"prompts": folder / "prompts.parquet", "media_root": folder}
        if kind == "score":
            checkpoint = next(folder.glob("*/checkpoint"))
            settings = ScoringSettings(processes=1)
            given = {"responses": folder / "responses.parquet", "output": work / "scores.parquet", "voter": "one"}
            return ScoreJob(
                checkpoint=str(checkpoint), settings=settings, work=work / "shards", **given, **shared
            ), ONE_PROCESS  # fmt: skip
        training = TrainingSettings(processes=2, global_batch_size=4, micro_batch_size=2, epochs=1, save_steps=100)
        paths = {"pairs": folder / "pairs.parquet", "output": work / "checkpoint", "work": work / "training"}
        base = model_path(DEMO_BASE_MODEL)
        return TrainJob(base_model=base, settings=training, seed=0, **paths, **shared), Resources(
            2, environment=rank_environment(2)
        )

    return job


def by_deepspeed(module: list[str], processes: int, **_other: object) -> list[str]:
    """The command that DeepSpeed documents for the ranks of one machine, without the step that finds the machine."""
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(processes))}).encode()).decode()
    command = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    command += ["--master_addr=127.0.0.1", f"--master_port={free_port()}", "--log_level=warning"]
    return [*command, "--no_local_rank", "--module", *module]


def seconds(kind: str, way: str, jobs: Jobs, forks: JobForks, work: Path) -> float:
    """Launch one job and wait for it."""
    work.mkdir()
    job, resources = jobs(kind, work)
    launcher = LocalLauncher(forks=forks if way == "forked" else None, on_line=lambda line: None)
    command = by_deepspeed if way == "deepspeed" else local_launcher.ranks_command
    with patch.object(local_launcher, "ranks_command", command):
        started = time.perf_counter()
        launcher.launch(job, work=work, resources=resources)
        return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    forks = JobForks(WORKER_ENVIRONMENT)
    with tempfile.TemporaryDirectory() as name:
        jobs = write_world(Path(name))
        for kind in ("train", "score"):
            ways = [way for way in WAYS if kind == "train" or way != "deepspeed"]
            measured: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(given.turns + 1):
                for way in ways:
                    taken = seconds(kind, way, jobs, forks, Path(name) / f"{kind}-{way}-{turn}")
                    if turn:
                        measured[way].append(taken)
            for way, values in measured.items():
                gain = [before / now for before, now in zip(measured[ways[0]], values, strict=True)]
                print(f"{kind:6} {way:10} {spread(values)} s, {spread(gain)} times as fast as {ways[0]}", flush=True)
    forks.close()


if __name__ == "__main__":
    main()
