"""Real training and scoring in processes that are forked with their imports, against fresh ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.engines.jobs import WORKER_ENVIRONMENT
from dt2it_pipeline.engines.launch import job_forks
from dt2it_pipeline.engines.launch.job_forks import JobForks
from dt2it_pipeline.engines.launch.launcher import Resources
from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher
from dt2it_pipeline.engines.launch.ranks import rank_environment
from dt2it_pipeline.reward.scoring.job import ScoreJob
from dt2it_pipeline.reward.training.job import TrainJob

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(any(Path(each).exists() for each in job_forks._DEVICES), reason="nothing is forked with a GPU"),
]


def test_forked_ranks_and_scorers_give_the_bytes_of_fresh_processes(job: TrainJob, tables, tmp_path):
    forks = JobForks(WORKER_ENVIRONMENT)
    tables_of_scores = []
    digests = []
    # Two: forked once more, from the process that loads the model.
    for launcher, counts in ((LocalLauncher(), (1,)), (LocalLauncher(forks=forks), (1, 2))):
        work = tmp_path / f"run-{len(digests)}"
        ranks = Resources(2, environment=rank_environment(2))
        trained = job.model_copy(update={"output": work / "checkpoint", "work": work / "training"})
        work.mkdir()
        digests.append(launcher.launch(trained, work=work, resources=ranks)["weights_sha256"])
        for processes in counts:
            scored = ScoreJob(
                checkpoint=str(work / "checkpoint"),
                output=work / "scores.parquet",
                work=work / f"shards-{processes}",
                settings=ScoringSettings(processes=processes, shard_responses=10),
                voter="round-0",
                prompts=Path(tables["prompts"]),
                responses=Path(tables["responses"]),
                media_root=Path(tables["media_root"]),
            )
            launcher.launch(scored, work=work)
            tables_of_scores.append((work / "scores.parquet").read_bytes())
    server = forks._server
    assert server is not None and server.poll() is None  # all three jobs were forked, and it is still there
    forks.close()
    assert digests[0] == digests[1]
    assert len(tables_of_scores) == 3 and len(set(tables_of_scores)) == 1
    shutil.rmtree(tmp_path)
