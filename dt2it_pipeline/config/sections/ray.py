"""Section `ray`: sampling, judging, rewriting and scoring on the workers of a Ray cluster."""

from __future__ import annotations

from pydantic import Field, field_validator

from dt2it_pipeline.config.base import Settings, unit

_LEAST = 1e-4  # of a CPU or GPU; Ray counts in such parts


class RaySettings(Settings):
    """Models on the workers of a Ray cluster instead of local processes (extra `ray`): all but training.

    `scoring.processes` and `sampling.data_parallel` then do not count; endpoints are asked from this machine. All
    machines need the artifact home, the models, the project and Python under the same paths, on file systems that they
    share. Results are those of local processes with as many threads each.
    """

    address: str | None = Field(
        None,
        pattern=r"^(auto|[^\s/]+:[0-9]{1,5})$",
        description="host:port of the cluster that this machine belongs to, or `auto` to find it. null: Ray is started "
        "on this machine for the step",
    )
    workers: int = Field(
        2,
        ge=1,
        le=4096,
        json_schema_extra=unit("workers"),
        description="most workers at once; each holds a copy of the model",
    )
    cpus_per_worker: float = Field(
        1, ge=_LEAST, le=1024, json_schema_extra=unit("CPU cores"), description="CPU cores, and threads, of a worker"
    )
    gpus_per_worker: float = Field(
        0,
        ge=0,
        le=64,
        json_schema_extra=unit("GPUs"),
        description="GPUs of a worker, whole ones or a share of one. 0: it computes on its CPU",
    )
    retries: int = Field(
        3,
        ge=0,
        le=100,
        json_schema_extra=unit("retries"),
        description="how often a shard is started again after its worker has died",
    )
    wait_seconds: float = Field(
        600, gt=0, le=86_400, json_schema_extra=unit("seconds"), description="longest wait for the first worker"
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _ray_has_so_many(cls, value: float) -> float:
        if 0 < value < _LEAST or (value > 1 and value != int(value)):
            raise ValueError(f"Ray gives a worker whole GPUs, or a share of one, at least {_LEAST:g}")
        return value
