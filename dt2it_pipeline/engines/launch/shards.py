"""The one place that decides who does the shards of a job: workers of this machine, or those of a Ray cluster."""

from __future__ import annotations

from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.engines.launch.launcher import Resources, ShardLauncher
from dt2it_pipeline.engines.launch.local_shards import LocalShards
from dt2it_pipeline.engines.launch.ray_shards import RayShards


def shard_launcher(ray: RaySettings | None, local: Resources, *, fork: bool = False) -> ShardLauncher:
    """Who does a job's shards.

    Args:
        ray: the recipe's section `ray`, which says what its workers have; None: this machine.
        local: workers of this machine.
        fork: whether what a worker loads survives a fork; see `LocalShards`.
    """
    return LocalShards(local, fork) if ray is None else RayShards(ray)
