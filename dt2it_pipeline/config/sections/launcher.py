"""Section `launcher`: jobs that run models on other machines, through Slurm or Kubernetes."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from dt2it_pipeline.config.base import Settings, unit

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$"


class ClusterSettings(Settings):
    """What each job asks of a cluster: sampling, models that judge or restyle, training, scoring.

    All nodes need the artifact home, models, project and Python under the same paths.
    """

    gpus: int = Field(
        0,
        ge=0,
        le=64,
        json_schema_extra=unit("GPUs"),
        description="GPUs of each job, at least training.processes, scoring.processes and what sampling uses",
    )
    cpus: int = Field(4, ge=1, le=1024, json_schema_extra=unit("CPU cores"), description="CPU cores of each job")
    memory: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]*[MG]$",
        description="main memory of each job, such as 64G. null: what the cluster gives by default",
    )


class SlurmSettings(ClusterSettings):
    """Jobs through `srun`, which must be on this machine, as it is on a login node."""

    kind: Literal["slurm"] = Field(description="Slurm: one node, through srun")
    partition: str | None = Field(None, pattern=_NAME, description="partition. null: the cluster's default")
    account: str | None = Field(None, pattern=_NAME, description="account that is charged. null: your default")
    time_limit: str | None = Field(
        None,
        pattern=r"^([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}$",
        description="longest time of a job as Slurm writes it, such as 24:00:00. null: the partition's",
    )
    options: tuple[str, ...] = Field(
        (), strict=False, description="further options of srun, such as --qos=high; they win over those above"
    )


class KubernetesSettings(ClusterSettings):
    """Jobs as Kubernetes Jobs, through `kubectl`, which must be on this machine and know the cluster."""

    kind: Literal["kubernetes"] = Field(description="Kubernetes: one pod, through kubectl")
    image: str = Field(pattern=_NAME, description="container image that has the project at the same paths as here")
    namespace: str = Field("default", pattern=r"^[a-z0-9-]+$", description="namespace of the jobs")
    volume_claim: str = Field(
        pattern=r"^[a-z0-9.-]+$",
        description="claim of the volume that holds the artifact home, which this machine has mounted, too "
        "(ReadWriteMany)",
    )
    mount_path: str = Field(pattern=r"^/[^:]*$", description="where that volume is mounted, here and in the pods")
    secret: str | None = Field(
        None, pattern=r"^[a-z0-9.-]+$", description="secret whose keys become variables of the pods. null: none"
    )
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels that the nodes must have")


LauncherSettings: TypeAlias = Annotated[SlurmSettings | KubernetesSettings, Field(discriminator="kind")]
