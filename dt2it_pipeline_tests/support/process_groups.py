"""What test_distributed.py runs in processes of its own: groups that end there would end those of other tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch.distributed as dist

from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.training.distributed import Group
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.train import run, weights_digest
from dt2it_pipeline_tests.support.training_jobs import changed


def begin() -> None:
    """Begin a group of one, as vLLM does in its own process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def within_a_group_of_another_library() -> None:
    """vLLM leaves none of the variables that DeepSpeed asks for."""
    begin()
    with Group() as group:
        assert (group.rank, group.size, group.leader, group.local_size) == (0, 1, 0, 1)
        assert group.sum([1.5, 2.0]) == [1.5, 2.0]
    assert dist.is_initialized() and "LOCAL_RANK" not in os.environ


def begin_in_vain() -> None:
    """A group that fails to begin, in torch or after DeepSpeed has it, leaves nothing behind: another one begins."""
    import deepspeed  # its import may set variables of its own

    assert deepspeed is not None
    before = dict(os.environ)
    for name in ("GLOO_SOCKET_IFNAME", "LOCAL_SIZE"):
        os.environ[name] = "two"
        try:
            Group()
        except (RuntimeError, ValueError):
            pass
        else:
            raise AssertionError(f"a group begins with {name}=two")
        del os.environ[name]
        assert not dist.is_initialized() and dict(os.environ) == before, set(os.environ) ^ set(before)
    within_a_group_of_another_library()


def train_again_and_again(job: TrainJob, folder: Path) -> None:
    """Alone, alone again, within a group of another library, and after that library has ended it."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    def trained(name: str) -> str:
        this = changed(job, name, folder, max_steps=2)
        run(this, [].append)
        return weights_digest(this.output)

    first = trained("first")
    assert not dist.is_initialized() and "LOCAL_RANK" not in os.environ  # or other libraries look for a launcher
    try:
        run(changed(job, "nothing", folder, max_length=16), [].append)
        raise AssertionError("no pair is that short")
    except TrainingError:
        pass
    assert not dist.is_initialized() and "LOCAL_RANK" not in os.environ and trained("second") == first
    begin()
    assert trained("within a group") == first and dist.is_initialized()
    cleanup_dist_env_and_memory()  # what vLLM calls where its engine ends
    assert not dist.is_initialized() and trained("after it") == first


if __name__ == "__main__":
    if len(sys.argv) == 1:
        within_a_group_of_another_library()
    elif sys.argv[1] == "in vain":
        begin_in_vain()
    else:
        given = TrainJob.read(Path(sys.argv[1]))
        assert isinstance(given, TrainJob)
        train_again_and_again(given, Path(sys.argv[1]).parent)
    print("done")
