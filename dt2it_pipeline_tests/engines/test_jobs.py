"""Jobs as files, and their command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dt2it_pipeline.config.sections.training import TrainingSettings
from dt2it_pipeline.curate.annotation.annotate import AnnotateJob
from dt2it_pipeline.engines.jobs import Job, JobError, main
from dt2it_pipeline.reward.scoring.job import ScoreJob
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline_tests.support.child_jobs import Echo

TRAIN = TrainJob(
    name="reward_model",
    base_model="org/model",
    pairs=Path("/w/pairs.parquet"),
    prompts=Path("/w/prompts.parquet"),
    media_root=Path("/w/media"),
    output=Path("/w/checkpoint"),
    work=Path("/w/training"),
    settings=TrainingSettings(epochs=1, max_steps=3, lora={"target_modules": ["q_proj"]}),
    seed=7,
)


def altered(path: Path, **changes: Any) -> Path:
    """The file of TRAIN with other keys; None: without the key."""
    TRAIN.write(path)
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")
    return path


def test_a_job_is_read_as_what_it_was_written(tmp_path: Path) -> None:
    TRAIN.write(tmp_path / "job.json")
    assert json.loads((tmp_path / "job.json").read_text())["job"] == "dt2it_pipeline.reward.training.job:TrainJob"
    for read in (Job.read, TrainJob.read):
        found = read(tmp_path / "job.json")
        assert type(found) is TrainJob and found == TRAIN
        assert isinstance(found.settings, TrainingSettings) and isinstance(found.pairs, Path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": None}, "`seed` is missing"),
        ({"sead": 7}, "`sead` is unknown"),
        ({"seed": "7"}, "`seed`: Input should be a valid integer"),
        ({"settings": {"epoch": 2}}, "`settings.epoch` is unknown"),
        ({"seed": None, "pairs": None}, "`pairs` is missing; `seed` is missing"),
    ],
)
def test_a_wrong_key_is_one_sentence_that_names_it(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = altered(tmp_path / "job.json", **changes)
    with pytest.raises(JobError) as caught:
        Job.read(path)
    assert str(caught.value).startswith(f"the job file {path} is no TrainJob: {words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (None, "does not say whose job it is"),
        ("no.such.module:Job", "names no.such.module:Job, which is not there"),
        ("dt2it_pipeline.reward.training.job:NoJob", "which is not there"),
        ("json:JSONDecoder", "names json:JSONDecoder, which is no Job"),
        ("dt2it_pipeline.engines.jobs:main", "which is no Job"),
    ],
)
def test_the_class_of_a_job_must_be_there_and_be_one(tmp_path: Path, name: str | None, words: str) -> None:
    with pytest.raises(JobError, match=words):
        Job.read(altered(tmp_path / "job.json", job=name))


def test_a_job_of_another_class_is_refused_where_one_is_expected(tmp_path: Path) -> None:
    TRAIN.write(tmp_path / "job.json")
    for expected in (ScoreJob, AnnotateJob):
        with pytest.raises(JobError, match=rf"TrainJob, which is no {expected.__name__}$"):
            expected.read(tmp_path / "job.json")


def test_a_job_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TRAIN.seed = 8  # type: ignore[misc]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["one.json", "two.json"]])
def test_what_names_no_one_job_is_answered_by_the_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^usage: python -m dt2it_pipeline\.engines\.jobs job\.json"):
        main(arguments)


@pytest.mark.parametrize("text", [None, "{", "\udcff", "[]"])
def test_a_job_that_cannot_be_read_is_one_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "job.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(
        SystemExit, match=r"^error: the job file .*job\.json (cannot be read: |must hold a JSON object)"
    ):
        main([str(tmp_path / "job.json")])


def test_a_job_runs_and_its_summary_is_printed(tmp_path: Path) -> None:
    Echo(value=2).write(tmp_path / "job.json")
    command = [sys.executable, "-m", "dt2it_pipeline.engines.jobs", "--local_rank=0", str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    progress, summary = done.stdout.splitlines()
    assert progress == "step=1 loss=0.5"
    assert json.loads(summary)["doubled"] == 4
