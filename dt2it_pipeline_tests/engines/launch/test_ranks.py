from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dt2it_pipeline.engines.launch.ranks import free_port, rank_environment, ranks_command


def test_one_machine() -> None:
    command = ranks_command(["some.module", "job.json"], 3, port=1234)
    assert command[:3] == [sys.executable, "-m", "dt2it_pipeline.engines.launch.rank_starter"]
    assert command[3:] == ["1234", "3", "some.module", "job.json"]


def test_several_machines_go_through_the_ranks_command() -> None:
    command = ranks_command(["some.module", "job.json"], 8, hostfile="hosts")
    assert command[2] == "deepspeed.launcher.runner"
    assert command[command.index("--hostfile") + 1] == "hosts"
    assert command[-4:] == ["--no_local_rank", "--module", "some.module", "job.json"]


def test_nothing_to_start_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one process"):
        ranks_command(["m"], 0)


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert int(rank_environment(1)["OMP_NUM_THREADS"]) >= int(rank_environment(2)["OMP_NUM_THREADS"]) >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in rank_environment(2)


def test_a_free_port_is_none_that_an_outgoing_connection_may_take() -> None:
    low = Path("/proc/sys/net/ipv4/ip_local_port_range")
    found = {free_port() for _ in range(50)}
    assert max(found) < (int(low.read_text().split()[0]) if low.exists() else 32_768)
    assert len(found) > 45  # drawn at random: jobs that start at once do not meet
