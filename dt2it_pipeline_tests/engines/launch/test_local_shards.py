"""Shards in this process and in worker processes of this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.engines.launch import fork_server, local_shards
from dt2it_pipeline.engines.launch.launcher import Resources, ShardsError
from dt2it_pipeline.engines.launch.local_shards import LocalShards
from dt2it_pipeline.engines.launch.ray_shards import RayShards
from dt2it_pipeline.engines.launch.shards import shard_launcher
from dt2it_pipeline_tests.support.ray_jobs import SquaresJob, UnloadableJob, tries

_PRELOADED = """
import json, os, sys
from pathlib import Path
from dt2it_pipeline.engines.launch.launcher import Resources, ShardsError
from dt2it_pipeline.engines.launch.local_shards import LocalShards
from dt2it_pipeline_tests.support.processes import alive, wait_until
from dt2it_pipeline_tests.support.ray_jobs import PreloadedJob

def seen(value):
    os.environ["A_VARIABLE"] = value
    found = {}
    LocalShards(Resources(2)).run(PreloadedJob(folder=Path(sys.argv[1])), {n: n for n in range(6)}, found.__setitem__)
    return list(found.values())

if __name__ == "__main__":
    workers = [seen("first"), seen("second")]
    print(json.dumps([os.getpid(), os.environ.get("OMP_NUM_THREADS"), workers]))
    for fault in ({"deadly": 9, "times": 99}, {"orphaned": 9}):
        try:
            job = PreloadedJob(folder=Path(sys.argv[1]), **fault)
            LocalShards(Resources(2)).run(job, {8: 8, 9: 9}, lambda *_: None)
        except ShardsError as error:
            print(error)
    processes = [int(path.read_text()) for path in Path(sys.argv[1]).iterdir()] + [workers[0][0]["parent"]]
    wait_until(lambda: not any(alive(process) for process in processes), 60)
    print(json.dumps(seen("third")))
"""

SHARDS = {number: number for number in range(6)}


def done(workers: int, job: SquaresJob, shared: Any = None) -> dict[int, Any]:
    found: dict[int, Any] = {}
    LocalShards(Resources(workers)).run(job, SHARDS, found.__setitem__, shared)
    return found


def pids(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_shard_is_done_once(tmp_path: Path, workers: int) -> None:
    table = pa.table({"a": [1, 2, 3]})
    assert done(workers, SquaresJob(folder=tmp_path), table) == {n: n * n + 3 for n in SHARDS}
    assert all(tries(tmp_path, n) == 1 for n in SHARDS)
    assert (str(os.getpid()) in pids(tmp_path)) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_are_kept_load_once_and_take_shards_again(tmp_path: Path, workers: int) -> None:
    job = SquaresJob(folder=tmp_path)
    with LocalShards(Resources(workers)).workers(job, 6) as kept:
        assert dict(kept.do(SHARDS)) == {n: n * n for n in SHARDS}
        first = pids(tmp_path)
        assert dict(kept.do({})) == {}
        assert dict(kept.do({7: 7, 9: 9})) == {7: 49, 9: 81}
    assert len(first | pids(tmp_path)) <= workers


def test_workers_whose_results_nobody_took_do_no_more(tmp_path: Path) -> None:
    with LocalShards(Resources(2)).workers(SquaresJob(folder=tmp_path), 6) as kept:
        next(kept.do(SHARDS))
        with pytest.raises(ShardsError, match="were left to the workers"):
            next(kept.do({7: 7}))


def test_a_worker_that_dies_with_nothing_to_do_is_named_when_it_is_handed_a_shard(tmp_path: Path) -> None:
    with (
        pytest.raises(ShardsError, match=r"the worker process [0-9]+ ended with exit code -9 at shard"),
        LocalShards(Resources(2)).workers(SquaresJob(folder=tmp_path), 6) as kept,
    ):
        list(kept.do(SHARDS))
        for pid in pids(tmp_path):
            os.kill(int(pid), signal.SIGKILL)
        list(kept.do({7: 7}))


def test_an_error_in_a_worker_is_one_sentence_and_one_here_is_raised_as_it_is(tmp_path: Path) -> None:
    job = SquaresJob(folder=tmp_path, faulty=4)
    with pytest.raises(ShardsError, match=r"^shard 4 failed in a worker process: ValueError: 4 is no good$"):
        done(2, job)
    with pytest.raises(ValueError, match=r"^4 is no good$"):
        done(1, job)


def test_workers_end_where_they_ignore_the_signal_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in the background may ignore SIGINT; Dagster then ignores SIGTERM, too, and so do its children."""
    monkeypatch.setattr(local_shards, "_GRACE", 0.2)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(ShardsError, match="shard 4 failed in a worker process"):
            done(2, SquaresJob(folder=tmp_path, faulty=4))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_worker_that_cannot_load_is_named_with_its_shard(tmp_path: Path) -> None:
    with pytest.raises(ShardsError, match=r"^shard [01] failed in a worker process: OSError: no such checkpoint$"):
        done(2, UnloadableJob(folder=tmp_path))


def test_a_worker_that_dies_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ShardsError, match=r"the worker process [0-9]+ ended with exit code -9 at shard 2"):
        done(2, SquaresJob(folder=tmp_path, deadly=2, times=9))


@pytest.mark.skipif(not fork_server.is_safe(), reason="nothing is forked with a GPU")
def test_workers_are_forked_by_a_server_that_has_imported_what_they_need(tmp_path: Path) -> None:
    """In a process of its own, whose server it is; its end would be waited for by whoever reads its output."""
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    (tmp_path / "main.py").write_text(_PRELOADED)
    (tmp_path / "marks").mkdir()
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "marks")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=own | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
    seen, *errors, third = done.stdout.splitlines()
    process, threads_here, (first, second) = json.loads(seen)
    (server,) = {worker["parent"] for worker in first + second}
    assert {worker["imported_by"] for worker in first + second} == {server} != {process}
    assert {worker["variable"] for worker in first} == {"first"}
    assert {worker["variable"] for worker in second} == {"second"}
    assert {worker["openmp"] for worker in first + second} == {str(local_shards.share_of_cores(2))}
    assert threads_here is None  # the server's variables are not this process's
    assert {worker["variable"] for worker in json.loads(third)} == {"third"}
    (another,) = {worker["parent"] for worker in json.loads(third)}
    ended = r"the worker process [0-9]+ ended with exit code "
    assert re.fullmatch(ended + r"-9 at shard 9 \(signal SIGKILL.*\)", errors[0])
    assert re.match(ended + "255 at shard [89]", errors[1])
    assert another != server


def test_too_few_gpus_are_reported_before_any_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_shards, "visible_gpus", lambda: ["0", "1", "2"])
    wanted = Resources(2, gpus=2, settings="sampling.data_parallel, sampling.tensor_parallel")
    with pytest.raises(
        ShardsError, match=r"2 GPUs each need 4 GPUs, and this machine shows 3: .*\(sampling\.data_para"
    ):
        LocalShards(wanted).run(SquaresJob(folder=tmp_path), SHARDS, lambda number, value: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("own", "masks"), [(1, ["GPU-a", "1", "2"]), (0, ["GPU-a", "1", "2", "GPU-a", "1"])])
def test_workers_see_gpus_of_their_own_or_share_them_in_turn(own: int, masks: list[str]) -> None:
    launcher = LocalShards(Resources(len(masks), gpus=own))
    assert [launcher._gpus_of(n, len(masks), ["GPU-a", "1", "2"]) for n in range(len(masks))] == masks


@pytest.mark.parametrize(("workers", "own", "used"), [(3, 0, 2), (2, 1, 2), (1, 2, 2), (1, 0, 1)])
def test_gpus_that_were_used_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, own: int, used: int
) -> None:
    import torch  # noqa: F401  (a process that has not imported it uses no GPU)

    def run() -> float:
        return LocalShards(Resources(workers, gpus=own)).run(SquaresJob(folder=tmp_path), SHARDS, lambda *_: None)

    monkeypatch.setattr(local_shards, "visible_gpus", list)
    assert run() == 0
    monkeypatch.setattr(local_shards, "visible_gpus", lambda: ["0", "1"])
    assert run() == used


def test_the_section_ray_alone_decides_who_does_the_shards() -> None:
    settings, local = RaySettings(workers=3), Resources(2)
    assert shard_launcher(settings, local) == RayShards(settings)
    assert shard_launcher(None, local, fork=True) == LocalShards(local, fork=True)
