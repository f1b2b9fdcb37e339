"""The process group of a training job."""

from __future__ import annotations

import pytest


@pytest.mark.heavy
def test_a_group_of_one_that_another_library_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM begins one in its own process, and leaves none of the variables that DeepSpeed asks for."""
    import torch.distributed as dist

    from dt2it_pipeline.reward.training.distributed import Group

    for name in ("MASTER_ADDR", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")  # so that what the group sets does not outlive the test
        monkeypatch.delenv(name)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = Group()
    assert (group.rank, group.size, group.leader, group.local_size) == (0, 1, 0, 1)
    assert group.sum([1.5, 2.0]) == [1.5, 2.0]
