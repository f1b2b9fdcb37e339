from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.reward.reward_model import RewardModel
from dt2it_pipeline.reward.scoring import job as scoring_job
from dt2it_pipeline.reward.scoring.job import ScoreJob
from dt2it_pipeline.storage import atomic, schemas
from dt2it_pipeline_tests.support.processes import alive_in_group, wait_until
from dt2it_pipeline_tests.support.tolerance import score_tolerance


@pytest.fixture(scope="session")
def checkpoint(base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = RewardModel.from_pretrained(base(), new_head_seed=0)
    model.card["system_prompt"] = "You judge."
    model.head.weight.data *= 30  # spread the scores
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def job(checkpoint: Path, tables: dict[str, str], tmp_path: Path) -> ScoreJob:
    paths = {name: Path(tables[name]) for name in ("prompts", "responses", "media_root")}
    return ScoreJob(
        checkpoint=str(checkpoint), output=tmp_path / "scores.parquet", work=tmp_path / "work",
        settings=ScoringSettings(processes=1, shard_responses=10), voter="round-0", **paths,
    )  # fmt: skip


def with_settings(job: ScoreJob, **settings: Any) -> ScoreJob:
    return job.model_copy(update={"settings": job.settings.model_copy(update=settings)})


def within(job: Mapping[str, Any]) -> float:
    """By how much two scores of the same response may differ."""
    return score_tolerance(RewardModel.from_pretrained(job.checkpoint), tokens=128)


def silent(progress: Mapping[str, Any]) -> None:
    pass


def scores(job: ScoreJob) -> dict[str, float]:
    table = atomic.read_parquet(job.output, "scores")
    return dict(zip(table.column("response_id").to_pylist(), table.column("score").to_pylist(), strict=True))


def test_every_response_once_in_table_order(job: ScoreJob) -> None:
    reports: list[Mapping[str, Any]] = []
    summary = scoring_job.run(job, reports.append)
    ids = atomic.read_parquet(job.responses, "responses").column("response_id").to_pylist()
    assert list(scores(job)) == ids
    assert summary["scored"] == summary["responses"] == len(ids)
    assert summary["quarantined"] == 0
    assert reports[-1]["done"] == reports[-1]["total"] == len(ids)
    assert atomic.read_parquet(job.output, "scores").column("voter").unique().to_pylist() == ["round-0"]


@pytest.mark.numerics
def test_numbers_do_not_depend_on_batches(job: ScoreJob, tmp_path: Path) -> None:
    scoring_job.run(job, silent)
    lone = with_settings(job, tokens_per_batch=64, shard_responses=3)
    lone = lone.model_copy(update={"work": tmp_path / "other", "output": tmp_path / "other.parquet"})
    scoring_job.run(lone, silent)
    first, second = scores(job), scores(lone)
    assert first.keys() == second.keys()
    assert max(abs(first[name] - second[name]) for name in first) < within(job)
    assert max(first.values()) - min(first.values()) > 1e-3


def test_a_killed_run_goes_on_to_the_same_bytes(job: ScoreJob, tmp_path: Path) -> None:
    scoring_job.run(job, silent)
    whole = job.output.read_bytes()
    shards = sorted(job.work.glob("shard-??????.parquet"))
    assert len(shards) > 2
    shards[1].unlink()
    (job.work / ".shard-000001.parquet.half").write_bytes(b"PAR1")
    before = shards[0].stat().st_mtime_ns
    summary = scoring_job.run(job, silent)
    assert summary["shards_resumed"] == len(shards) - 1
    assert shards[0].stat().st_mtime_ns == before
    assert job.output.read_bytes() == whole


@pytest.mark.numerics
def test_several_processes_give_the_same_scores(job: ScoreJob, tmp_path: Path) -> None:
    scoring_job.run(job, silent)
    both = with_settings(job, processes=2)
    both = both.model_copy(update={"work": tmp_path / "w2", "output": tmp_path / "two.parquet"})
    assert as_a_program(both, tmp_path).returncode == 0
    one, two = (atomic.read_parquet(path, "scores") for path in (job.output, both.output))
    assert one.drop_columns(["score"]).equals(two.drop_columns(["score"]))
    # Not the same bytes: a process with more threads splits its sums in another way.
    np.testing.assert_allclose(one["score"], two["score"], rtol=0, atol=within(job))


def test_what_cannot_be_scored_is_quarantined(job: ScoreJob, tables: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(tables["media_root"], tmp_path / "media")
    prompts = atomic.read_parquet(tables["prompts"], "prompts").to_pylist()
    shown = [p["media"][0]["path"] for p in prompts if p["media"]]
    (tmp_path / "media" / shown[0]).unlink()
    cut = next(path for path in shown if path != shown[0])
    data = (tmp_path / "media" / cut).read_bytes()
    (tmp_path / "media" / cut).write_bytes(data[:60])
    rows = atomic.read_parquet(tables["responses"], "responses").to_pylist()
    stray = {"response_id": "r-stray", "prompt_id": "p-unknown", "text": "x", "generator": "t"}
    long = {"response_id": "r-long", "prompt_id": prompts[0]["prompt_id"], "text": "red " * 600, "generator": "t"}
    atomic.write_parquet(schemas.table([*rows, stray, long, rows[0]], "responses"), tmp_path / "responses.parquet")
    job = job.model_copy(update={"media_root": tmp_path / "media", "responses": tmp_path / "responses.parquet"})
    job = with_settings(job, max_length=512)
    summary = scoring_job.run(job, silent)
    aside = atomic.read_parquet(tmp_path / "scores.quarantine.parquet", "quarantine").to_pylist()
    reasons = {row["reason"] for row in aside}
    assert reasons == {"missing image", "unreadable image", "prompt not in the table", "longer than max_length"}
    assert summary["scored"] + summary["quarantined"] == summary["responses"] == len(rows) + 2
    assert {row["row_id"] for row in aside}.isdisjoint(scores(job))


def test_a_shard_that_is_damaged_is_scored_again(
    job: ScoreJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scoring_job.run(job, silent)
    whole, markers = job.output.read_bytes(), sorted(job.work.glob("shard-*.json"))
    assert len(markers) >= 2
    shard = markers[0].with_suffix(".parquet")
    changed = bytearray(shard.read_bytes())
    changed[len(changed) // 3] ^= 4  # a bit of a score, which Parquet does not miss
    shard.write_bytes(changed)
    markers[1].write_text("{")
    summary = scoring_job.run(job, silent)
    assert summary["shards"] - summary["shards_resumed"] == 2
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and str(shard) in lines[0] and str(markers[1]) in lines[1]
    assert job.output.read_bytes() == whole


def test_a_failing_worker_is_reported(job: ScoreJob, tmp_path: Path) -> None:
    (tmp_path / "work" / "shard-000001.quarantine.parquet").mkdir(parents=True)  # a folder where a file is to be
    done = as_a_program(with_settings(job, processes=2), tmp_path)
    assert done.returncode != 0
    assert "ShardsError: shard 1 failed in a worker process: IsADirectoryError" in done.stderr
    assert not job.output.exists()


def test_workers_end_with_a_killed_parent(job: ScoreJob, tmp_path: Path) -> None:
    rows = atomic.read_parquet(job.responses, "responses").to_pylist()
    many = [row | {"response_id": f"{row['response_id']}-{copy}"} for copy in range(2000) for row in rows]
    atomic.write_parquet(schemas.table(many, "responses"), tmp_path / "many.parquet")
    job = with_settings(job, processes=2).model_copy(update={"responses": tmp_path / "many.parquet"})
    job.write(tmp_path / "job.json")
    command = [sys.executable, "-m", "dt2it_pipeline.engines.jobs", str(tmp_path / "job.json")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as parent:
        try:
            wait_until(lambda: len(list(job.work.glob("shard-??????.parquet"))) > 1, 120)
            assert len(alive_in_group(parent.pid)) >= 3  # where workers are spawned, Python's own tracker too
            parent.kill()
            parent.wait()
            wait_until(lambda: not alive_in_group(parent.pid), 20)
        finally:
            for process in alive_in_group(parent.pid):
                os.kill(process, signal.SIGKILL)
    assert not job.output.exists()


def as_a_program(job: ScoreJob, folder: Path) -> subprocess.CompletedProcess[str]:
    """Score as stages do, in a process of its own, whose workers are forked; those of this one would start anew."""
    job.write(folder / "job.json")
    command = [sys.executable, "-m", "dt2it_pipeline.engines.jobs", str(folder / "job.json")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_an_empty_table_gives_an_empty_table(job: ScoreJob, tmp_path: Path) -> None:
    atomic.write_parquet(schemas.table([], "responses"), tmp_path / "none.parquet")
    summary = scoring_job.run(job.model_copy(update={"responses": tmp_path / "none.parquet"}), silent)
    assert summary["scored"] == 0
    assert atomic.read_parquet(job.output, "scores").num_rows == 0
