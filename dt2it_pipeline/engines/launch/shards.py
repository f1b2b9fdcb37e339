"""The one place that decides who does the shards of a job: workers of this machine, or those of a Ray cluster."""

from __future__ import annotations

from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.engines.launch.launcher import Resources, ShardLauncher
from dt2it_pipeline.engines.launch.local_shards import LocalShards, visible_gpus
from dt2it_pipeline.engines.launch.ray_shards import RayShards


def shard_launcher(ray: RaySettings | None, local: Resources, *, fork: bool = False) -> ShardLauncher:
    """Who does a job's shards.

    Args:
        ray: the recipe's section `ray`, which says what its workers have; None: this machine.
        local: workers of this machine.
        fork: whether what a worker loads survives a fork; see `LocalShards`.
    """
    return LocalShards(local, fork) if ray is None else RayShards(ray)


def model_launcher(ray: RaySettings | None, processes: int, gpus: int = 1) -> ShardLauncher:
    """Who holds models that take a GPU each, or several: judges, rewriters, and reward models that vLLM runs.

    Args:
        ray: the recipe's section `ray`.
        processes: the recipe's `scoring.processes`. On a machine with GPUs there are no more workers than have their
            own: a second copy may not fit beside the first.
        gpus: GPUs of each worker, where the machine has any.
    """
    if ray is not None:
        return RayShards(ray)
    if seen := len(visible_gpus()):
        processes = max(1, min(processes, seen // gpus))
    return LocalShards(Resources(processes, gpus, settings="scoring.processes, tensor_parallel"))
