"""Which rank was killed, on a system with /proc and on one without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dt2it_pipeline.engines.launch import deaths
from dt2it_pipeline.engines.launch.local_shards import share_of_cores
from dt2it_pipeline.observe.cores import usable_cores


@pytest.mark.parametrize("proc", [True, False])
def test_a_rank_that_runs_was_not_killed_and_one_that_is_gone_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proc: bool
) -> None:
    if not proc:
        monkeypatch.setattr(deaths, "_PROC", tmp_path / "none")
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / f"rank-1-{rank.pid}.running").touch()
    assert deaths.killed_rank(tmp_path) is None
    rank.kill()
    rank.wait()
    assert deaths.killed_rank(tmp_path) == f"rank 1 (process {rank.pid}) was killed by signal 9 (SIGKILL)"


def test_cores_are_counted_where_the_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process to cores")
def test_workers_share_the_cores_that_their_process_may_use() -> None:
    """As in an allocation of Slurm or under `taskset`, where the machine has more."""
    own = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(own)})
        assert (usable_cores(), share_of_cores(1), share_of_cores(2)) == (1, 1, 1)
    finally:
        os.sched_setaffinity(0, own)
    assert share_of_cores(1) == len(own)
