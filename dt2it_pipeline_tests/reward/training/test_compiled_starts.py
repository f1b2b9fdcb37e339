"""A second start of a training or a scoring finds what the first one compiled."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.engines.jobs import Job
from dt2it_pipeline.engines.launch.worker import read_summary
from dt2it_pipeline.reward.scoring.job import ScoreJob
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.training_jobs import changed, start

pytestmark = pytest.mark.heavy


def run(job: Job, folder: Path) -> tuple[dict[str, Any], str]:
    """The summary of a job that a process of its own has done as the pipeline starts it, and what that logged."""
    file = folder / "job.json"
    job.write(file)
    process = start("dt2it_pipeline.engines.launch.worker", file, 1, DT2IT_HOME=str(folder / "home"), DT2IT_LOG="json")
    log = file.with_suffix(".log")
    assert process.wait(500) == 0, log.read_text()[-3000:]
    summary = read_summary(file)
    assert summary is not None
    return summary, log.read_text()


def line_about_compiling(log: str) -> str:
    lines = [json.loads(line)["message"] for line in log.splitlines() if line.startswith("{")]
    (found,) = [line for line in lines if line.startswith("torch.compile: ")]
    return str(found)


def test_a_second_start_finds_what_the_first_compiled(
    job: TrainJob, tables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    settings = {"compile": True, "attention": "sdpa", "cache_vision": False, "max_steps": 3}
    (first, first_log), (second, second_log) = (
        run(changed(job, name, tmp_path, **settings), tmp_path) for name in ("one", "two")
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

    # Scoring with the checkpoint has the same layers, without gradients.
    scoring = ScoreJob(
        checkpoint=str(tmp_path / "one"), prompts=Path(tables["prompts"]), responses=Path(tables["responses"]),
        media_root=Path(tables["media_root"]), output=tmp_path / "scores.parquet", work=tmp_path / "scoring",
        voter="round-0", settings=ScoringSettings(processes=1, shard_responses=10, compile=True, attention="sdpa"),
    )  # fmt: skip
    summary, log = run(scoring, tmp_path)
    assert summary["shards"] > 2 and summary["scored"] == summary["responses"] > 0
    assert summary["compile_graphs"] >= 2 and summary["compile_graph_breaks"] == summary["compile_given_up"] == 0
    logged = line_about_compiling(log).removeprefix("torch.compile: ").partition(" s for ")[0]
    assert float(logged) == pytest.approx(summary["compile_seconds"], abs=0.06)  # one has a digit less

    settings_without = scoring.settings.model_copy(update={"compile": False})
    plain = scoring.model_copy(
        update={"output": tmp_path / "plain.parquet", "work": tmp_path / "plain", "settings": settings_without}
    )
    plain.run(lambda progress: None)
    compiled_scores, scores = (
        atomic.read_parquet(each.output, "scores").column("score").to_numpy() for each in (scoring, plain)
    )
    assert compiled_scores == pytest.approx(scores, abs=1e-4) and scores.std() > 1e-3
