"""A second start of a training or a scoring finds what the first one compiled."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.engines.jobs import Job
from dt2it_pipeline.reward.scoring.job import ScoreJob
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline_tests.support.training_jobs import changed

pytestmark = pytest.mark.heavy


def start(job: Job, folder: Path) -> tuple[dict[str, Any], str]:
    """The summary of a job that a process of its own has done as the pipeline starts it, and what that logged."""
    job.write(folder / "job.json")
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"DT2IT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    line = (
        "import json, sys; from dt2it_pipeline.observe.logs import configure_logs; configure_logs(); "
        "from dt2it_pipeline.engines.jobs import Job; "
        "print(json.dumps(Job.read(sys.argv[1]).run(lambda state: None)))"
    )
    command = [sys.executable, "-c", line, str(folder / "job.json")]
    environment["DT2IT_LOG"] = "json"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary, done.stderr


def line_about_compiling(log: str) -> str:
    lines = [json.loads(line)["message"] for line in log.splitlines() if line.startswith("{")]
    (found,) = [line for line in lines if line.startswith("torch.compile: ")]
    return str(found)


def test_a_second_start_finds_what_the_first_compiled(job: TrainJob, tables: dict[str, str], tmp_path: Path) -> None:
    settings = {"compile": True, "attention": "sdpa", "cache_vision": False, "max_steps": 3}
    (first, first_log), (second, second_log) = (
        start(changed(job, name, tmp_path, **settings), tmp_path) for name in ("one", "two")
    )
    for summary in (first, second):  # a decoder layer and a block of the vision encoder
        assert (summary["compile_graphs"], summary["compile_recompilations"]) == (2, 0)
        assert (summary["compile_graph_breaks"], summary["compile_given_up"]) == (0, 0)
    pieces = 3  # the decoder layer has a backward pass
    assert (first["compile_cached"], first["compile_compiled"]) == (0, pieces)
    assert (second["compile_cached"], second["compile_compiled"]) == (pieces, 0)
    assert second["compile_seconds"] < first["compile_seconds"]
    assert second["weights_sha256"] == first["weights_sha256"]
    assert line_about_compiling(first_log).endswith("0 of 3 pieces of code came from the cache")
    assert line_about_compiling(second_log).endswith("3 of 3 pieces of code came from the cache")
    (folder,) = (tmp_path / "home" / "cache" / "compiled").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and any(folder.iterdir())

    # Scoring with the checkpoint has the same layers, without gradients and in two workers.
    scoring = ScoreJob(
        checkpoint=str(tmp_path / "one"), prompts=Path(tables["prompts"]), responses=Path(tables["responses"]),
        media_root=Path(tables["media_root"]), output=tmp_path / "scores.parquet", work=tmp_path / "scoring",
        voter="round-0", settings=ScoringSettings(processes=2, shard_responses=10, compile=True, attention="sdpa"),
    )  # fmt: skip
    summary, log = start(scoring, tmp_path)
    assert summary["shards"] > 2 and summary["scored"] == summary["responses"] > 0
    assert summary["compile_graphs"] >= 2 and summary["compile_graph_breaks"] == summary["compile_given_up"] == 0
    logged = line_about_compiling(log).removeprefix("torch.compile: ").partition(" s for ")[0]
    assert float(logged) == pytest.approx(summary["compile_seconds"], abs=0.06)  # one has a digit less
