"""The process group of a training job."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from dt2it_pipeline.reward.training.distributed import Group
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run, weights_digest
from dt2it_pipeline_tests.support.training_jobs import changed


@pytest.fixture(autouse=True)
def no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """None to begin with, as in a fresh process; what a group sets does not outlive the test."""
    for name in ("MASTER_ADDR", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.heavy
def test_a_group_of_one_that_another_library_began() -> None:
    """vLLM begins one in its own process, and leaves none of the variables that DeepSpeed asks for."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = Group()
    assert (group.rank, group.size, group.leader, group.local_size) == (0, 1, 0, 1)
    assert group.sum([1.5, 2.0]) == [1.5, 2.0]
    group.close()
    assert dist.is_initialized()


@pytest.mark.heavy
def test_training_again_in_one_process_whatever_vllm_did_to_its_group(job: TrainJob, tmp_path: Path) -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    def trained(name: str) -> str:
        this = changed(job, name, tmp_path, max_steps=2)
        run(this, [].append)
        return weights_digest(this.output)

    first = trained("first")
    assert not dist.is_initialized() and trained("second") == first
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert trained("within a group") == first and dist.is_initialized()
    cleanup_dist_env_and_memory()  # what vLLM calls where its engine ends
    assert not dist.is_initialized() and trained("after it") == first
