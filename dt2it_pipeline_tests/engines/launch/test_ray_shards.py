"""Shards on a local Ray: done once, done again where a worker died, and errors that say what to do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dt2it_pipeline.config.base import DEMO_BASE_MODEL
from dt2it_pipeline.config.paths import model_path
from dt2it_pipeline.config.recipe import RecipeError, load_recipe, parse_recipe
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.config.sections.sampling import SamplingSettings
from dt2it_pipeline.config.sections.scoring import ScoringSettings
from dt2it_pipeline.construct import sample
from dt2it_pipeline.engines.launch import ray_shards
from dt2it_pipeline.engines.launch.ray_shards import RayShards, RayShardsError
from dt2it_pipeline.reward.scoring import job
from dt2it_pipeline.reward.scoring.job import ScoreJob
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support import ray_jobs
from dt2it_pipeline_tests.support.construct_world import COLORS, prompt_row
from dt2it_pipeline_tests.support.tiny import make_tables

TWO = RaySettings(workers=2, retries=1, wait_seconds=60)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """Two workers' room; the tests' own code lies in the project's root."""
    root = str(Path(__file__).resolve().parents[3])
    before = dict(os.environ)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    import ray

    ray.init(num_cpus=max(2, os.cpu_count() or 2), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ |= before


def done(settings: RaySettings, job: ray_jobs.SquaresJob, shared: Any = None) -> dict[int, Any]:
    found: dict[int, Any] = {}
    RayShards(settings).run(job, {n: n for n in range(6)}, found.__setitem__, shared)
    return found


@pytest.mark.heavy
@pytest.mark.usefixtures("two_workers")
def test_every_shard_is_done_once_by_two_workers(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3]})
    assert done(TWO, ray_jobs.SquaresJob(folder=tmp_path), table) == {n: n * n + 3 for n in range(6)}
    marks = list(tmp_path.iterdir())
    assert len(marks) == 6
    assert len({path.read_text() for path in marks}) <= 2


@pytest.mark.heavy
@pytest.mark.usefixtures("two_workers")
def test_workers_that_are_kept_take_shards_again(tmp_path: Path) -> None:
    with RayShards(TWO).workers(ray_jobs.SquaresJob(folder=tmp_path), 6) as kept:
        assert dict(kept.do({n: n for n in range(6)})) == {n: n * n for n in range(6)}
        first = {path.read_text() for path in tmp_path.iterdir()}
        assert dict(kept.do({7: 7, 9: 9})) == {7: 49, 9: 81}
        assert {path.read_text() for path in tmp_path.iterdir()} <= first or len(first) < 2


@pytest.mark.heavy
@pytest.mark.usefixtures("two_workers")
def test_a_shard_whose_worker_died_is_done_again(tmp_path: Path) -> None:
    job = ray_jobs.SquaresJob(folder=tmp_path, deadly=1, times=1)
    assert done(TWO, job) == {n: n * n for n in range(6)}
    assert ray_jobs.tries(tmp_path, 1) == 2
    assert all(ray_jobs.tries(tmp_path, n) == 1 for n in (0, 2, 3, 4, 5))


@pytest.mark.heavy
@pytest.mark.usefixtures("two_workers")
def test_a_shard_that_always_ends_its_worker_is_an_error_after_the_retries(tmp_path: Path) -> None:
    job = ray_jobs.SquaresJob(folder=tmp_path, deadly=1, times=99)
    with pytest.raises(RayShardsError, match=r"shard 1 failed .* ended the worker 2 times \(ray.retries: 1\)"):
        done(TWO, job)
    assert ray_jobs.tries(tmp_path, 1) == 2


@pytest.mark.heavy
@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ray_jobs.SquaresJob, "shard 4 failed on a Ray worker: ValueError: 4 is no good"),
        (ray_jobs.UnloadableJob, "OSError: no such"),
    ],
)
def test_an_error_of_a_shard_is_one_line_and_not_retried(
    tmp_path: Path, kind: type[ray_jobs.SquaresJob], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RayShardsError, match=words) as caught:
        done(TWO, kind(folder=tmp_path, faulty=4))
    assert "\n" not in str(caught.value)
    assert ray_jobs.tries(tmp_path, 4) <= 1
    printed = capsys.readouterr().err  # what the code did on the worker; the error alone would not say
    assert "ray_jobs.py" in printed and words.rpartition(": ")[2] in printed


@pytest.mark.heavy
@pytest.mark.usefixtures("two_workers")
def test_a_cluster_without_room_for_a_worker_is_told(tmp_path: Path) -> None:
    greedy = RaySettings(workers=1, gpus_per_worker=8, wait_seconds=0.5)
    with pytest.raises(RayShardsError, match=r"1 CPUs and 8 GPUs .* the cluster has [0-9]+ CPUs and 0 GPUs"):
        done(greedy, ray_jobs.SquaresJob(folder=tmp_path))


@pytest.mark.heavy
@pytest.mark.usefixtures("two_workers")
def test_more_workers_than_there_is_room_for_do_the_work_all_the_same(tmp_path: Path) -> None:
    assert (
        len(
            done(
                TWO.model_copy(update={"workers": 2 * (os.cpu_count() or 2) + 1}), ray_jobs.SquaresJob(folder=tmp_path)
            )
        )
        == 6
    )


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_shards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RayShardsError, match=r"pip install -e '\.\[ray\]'"):
        done(TWO, ray_jobs.SquaresJob(folder=tmp_path))


def test_no_cluster_at_the_address_is_told() -> None:
    """In a process of its own: this one has a Ray already."""
    code = (
        "from dt2it_pipeline.engines.launch.ray_shards import RayShards, RaySettings\n"
        "RayShards(RaySettings(address='127.0.0.1:1')).run(None, {0: 0}, print)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    last = found.stderr.strip().splitlines()[-1]
    assert last.endswith("no Ray cluster answers at ray.address 127.0.0.1:1: [Errno 111] Connection refused")


def test_a_worker_must_hold_a_model_that_several_gpus_share() -> None:
    text = Path("configs/recipes/demo.yaml").read_text(encoding="utf-8")
    wide = text.replace("sampling:\n", "ray: {workers: 1, gpus_per_worker: 1}\n\nsampling:\n  tensor_parallel: 2\n")
    with pytest.raises(RecipeError, match=r"ray.gpus_per_worker \(1\) is below sampling.tensor_parallel \(2\)"):
        parse_recipe(wide)
    assert load_recipe("configs/recipes/demo.yaml").ray is None


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a Ray worker has: sums are split by threads, and rounded so."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def scoring(tmp_path: Path) -> ScoreJob:
    """A scoring job of the demo's base model with a head that spreads its scores."""
    import torch

    from dt2it_pipeline.reward.reward_model import RewardModel

    torch.manual_seed(0)
    model = RewardModel.from_pretrained(model_path(DEMO_BASE_MODEL), new_head_seed=0)
    model.card["system_prompt"] = "You judge."
    (tmp_path / "checkpoint").mkdir()
    model.save_pretrained(tmp_path / "checkpoint")
    tables = make_tables(tmp_path / "tables", 48)
    return ScoreJob(
        **{name: Path(tables[name]) for name in ("prompts", "responses", "media_root")},
        checkpoint=str(tmp_path / "checkpoint"),
        output=tmp_path / "local" / "scores.parquet",
        work=tmp_path / "local",
        settings=ScoringSettings(shard_responses=8, processes=1),
        voter="round-0",
    )


@pytest.mark.heavy
@pytest.mark.usefixtures("two_workers")
def test_scores_are_those_of_one_local_process_though_a_worker_is_killed(
    scoring: ScoreJob, one_thread: None, tmp_path: Path
) -> None:
    shards = job.run(scoring, lambda progress: None)["shards"]
    there = scoring.model_copy(
        update={"work": tmp_path / "ray", "output": tmp_path / "ray" / "scores.parquet", "ray": TWO}
    )
    (tmp_path / "ray").mkdir()
    for table in (tmp_path / "local").glob("shard-000002.*"):  # as if an earlier run had made it
        shutil.copy(table, tmp_path / "ray")
    killed: list[int] = []

    def kill_one(progress: Mapping[str, Any]) -> None:
        if not killed:
            killed.append(_worker_pids()[0])
            os.kill(killed[0], signal.SIGKILL)

    summary = job.run(there, kill_one)
    assert killed
    assert summary["scored"] == summary["responses"] > 0
    assert summary["shards"] == shards > 8 and summary["shards_resumed"] == 1
    for name in ("scores.parquet", "scores.quarantine.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


@pytest.mark.heavy
@pytest.mark.usefixtures("two_workers")
def test_answers_are_those_of_one_local_copy_of_the_model(tmp_path: Path) -> None:
    from dt2it_pipeline.storage import schemas

    rows = [prompt_row(tmp_path, color, "what color is the shape?") for color in COLORS[:4]]
    atomic.write_parquet(schemas.table(rows, "prompts"), tmp_path / "prompts.parquet")
    job = sample.SampleJob(
        model=model_path(DEMO_BASE_MODEL),
        prompts=tmp_path / "prompts.parquet",
        media_root=tmp_path,
        output=tmp_path / "local.parquet",
        work=tmp_path / "local",
        settings=SamplingSettings(samples=2, mismatched_samples=0, shard_prompts=1, max_new_tokens=24),
        seed=0,
    )
    sample.run(job, lambda progress: None)
    one = TWO.model_copy(update={"workers": 1})
    there = job.model_copy(update={"output": tmp_path / "ray.parquet", "work": tmp_path / "ray", "ray": one})
    summary = sample.run(there, lambda progress: None)
    assert summary["rows_out"] == 4
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()


def _worker_pids() -> list[int]:
    """Processes of Ray actors on this machine, busy ones first."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found: list[int] = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                name = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if name.startswith("ray::_Worker"):
                found.insert(0 if name.startswith("ray::_Worker.do") else len(found), int(path.parent.name))
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("no Ray worker runs")
