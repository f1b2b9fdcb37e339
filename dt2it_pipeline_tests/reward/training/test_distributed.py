"""The process group of a training job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dt2it_pipeline.reward.training.job import TrainJob

pytestmark = pytest.mark.heavy


def in_a_process_of_its_own(*arguments: Path | str) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "RANK", "LOCAL_RANK")}
    command = [sys.executable, "-m", "dt2it_pipeline_tests.support.process_groups", *map(str, arguments)]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-3000:]


def test_a_group_of_one_that_another_library_began() -> None:
    in_a_process_of_its_own()


def test_a_group_that_fails_to_begin_leaves_nothing_behind() -> None:
    in_a_process_of_its_own("in vain")


def test_training_again_in_one_process_whatever_vllm_did_to_its_group(job: TrainJob, tmp_path: Path) -> None:
    job.write(tmp_path / "job.json")
    in_a_process_of_its_own(tmp_path / "job.json")
