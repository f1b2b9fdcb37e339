"""Jobs in child processes, without Dagster; orchestrate/test_pipes_worker.py has them with it, and their kills."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dt2it_pipeline.engines.launch import deaths
from dt2it_pipeline.engines.launch.launcher import JobFailed, Resources
from dt2it_pipeline.engines.launch.local_launcher import LocalLauncher
from dt2it_pipeline_tests.support.child_jobs import Crash, Echo, Killed, KilledRank, Rank, Variables


def test_a_job_returns_its_summary_from_a_process_of_its_own(tmp_path: Path) -> None:
    summary = LocalLauncher().launch(Echo(value=21), work=tmp_path)
    assert summary["doubled"] == 42
    assert summary["pid"] != os.getpid()


def test_a_worker_can_ask_whether_there_is_a_gpu_without_starting_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first line on: the engine that vLLM forks in it cannot use a GPU where CUDA runs already."""
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    summary = LocalLauncher().launch(Variables(), work=tmp_path)
    assert summary["environment"]["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1" and not summary["torch"]
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "0")  # whoever sets it decides
    summary = LocalLauncher().launch(Variables(), work=tmp_path)
    assert summary["environment"]["PYTORCH_NVML_BASED_CUDA_CHECK"] == "0"


def test_an_error_is_brought_back_and_the_next_launch_starts_clean(tmp_path: Path) -> None:
    with pytest.raises(
        JobFailed, match=r"child_jobs:crash ended with code 1: ValueError: the job's own words$"
    ) as caught:
        LocalLauncher().launch(Crash(attempts=tmp_path / "attempts"), work=tmp_path)
    assert not caught.value.was_killed and caught.value.job_file == tmp_path / "job.json"
    assert LocalLauncher().launch(Echo(value=1), work=tmp_path)["doubled"] == 2
    assert not (tmp_path / "error.txt").exists()


def test_a_summary_of_an_earlier_launch_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    LocalLauncher().launch(Echo(value=1), work=tmp_path)
    with pytest.raises(JobFailed, match="signal SIGKILL") as caught:
        LocalLauncher().launch(Killed(attempts=tmp_path / "attempts"), work=tmp_path)
    assert caught.value.was_killed
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.heavy
def test_ranks_run_one_job_and_the_first_rank_that_fails_is_heard(tmp_path: Path) -> None:
    job = Rank(folder=tmp_path)
    assert LocalLauncher().launch(job, work=tmp_path, resources=Resources(2)) == {"from": "0"}
    assert [(tmp_path / f"rank-{number}").read_text() for number in (0, 1)] == ["2", "2"]
    (tmp_path / "fail").touch()
    with pytest.raises(JobFailed, match="ValueError: rank 1 has seen enough"):
        LocalLauncher().launch(job, work=tmp_path, resources=Resources(2))


@pytest.mark.heavy
def test_a_killed_rank_is_named_and_not_the_connection_that_it_closed(tmp_path: Path) -> None:
    """The survivor fails first, with Gloo's words about a peer."""
    with pytest.raises(JobFailed, match=r"signal SIGKILL; .*: rank 1 \(process \d+\) was killed by signal 9") as caught:
        LocalLauncher().launch(KilledRank(), work=tmp_path, resources=Resources(2))
    assert caught.value.was_killed and "closed" not in str(caught.value)
    assert LocalLauncher().launch(Echo(value=1), work=tmp_path)["doubled"] == 2
    assert not list(tmp_path.glob("*.running"))


def test_memory_that_ran_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("low 0\noom_kill 3\n")
    monkeypatch.setattr(deaths, "_COUNTERS", ((counter, "oom_kill"), (tmp_path / "none", "oom_kill")))
    before = deaths.memory_kills()
    assert "may have run out" in deaths.why_killed(9, before)
    counter.write_text("low 0\noom_kill 4\n")
    assert deaths.why_killed(9, before).startswith("signal SIGKILL: memory ran out, and the kernel ended it")
    assert deaths.why_killed(15, before) == "signal SIGTERM"
