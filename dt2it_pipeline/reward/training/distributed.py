"""The process group of a training job, as the launcher set it up, and the few exchanges that training needs."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dt2it_pipeline.engines.device import DeviceError, finds_gpu


class Alone:
    """A group of one process, for scoring and for tests."""

    rank = 0
    size = 1
    leader = 0

    def barrier(self) -> None:
        """Nobody to wait for."""

    def gather(self, value: Any) -> list[Any]:
        """The one value."""
        return [value]


class Group:
    """All ranks of a job (engines/launch/ranks.py); a process that was not started as one is a group of one.

    As a context it is left at the end; after an error only where it has one rank, since others may wait in it.
    """

    def __init__(self) -> None:
        import deepspeed

        self.cuda = finds_gpu()
        backend = "nccl" if self.cuda else "gloo"
        self._alone = False  # a group of one that began here
        self._environment: dict[str, str | None] = {}  # what `close` sets back
        self.size = 1
        try:
            self._begin(backend)
        except BaseException:
            if self._alone and dist.is_initialized() and not deepspeed.comm.is_initialized():
                dist.destroy_process_group()  # DeepSpeed knows none yet that it could end
            self.close()
            raise

    def _begin(self, backend: str) -> None:
        import deepspeed

        if "MASTER_ADDR" not in os.environ:
            # DeepSpeed asks for them. Other libraries take them for a launcher's, so they go when the group does.
            alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
            self._environment = {name: os.environ.get(name) for name in alone}
            os.environ |= alone
            if not dist.is_initialized():  # vLLM may have begun a group of one in this process
                self._alone = True
                _begin_alone(backend)
                if deepspeed.comm.is_initialized():
                    # DeepSpeed still holds groups of a world that vLLM ended since. Only its own end makes it let go.
                    deepspeed.comm.destroy_process_group()
                    _begin_alone(backend)

        # DeepSpeed would compile an operator for shared-memory collectives at first use (40 s, and a compiler). Gloo
        # does the same job for the few processes of one machine; without a GPU that is what we take.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        local = int(os.environ["LOCAL_RANK"])
        if self.cuda:
            _require_gpu(local)
        self.device = torch.device("cuda", local) if self.cuda else torch.device("cpu")
        if self.cuda:
            torch.cuda.set_device(self.device)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.local_size = int(os.environ.get("LOCAL_SIZE", self.size))
        self.leader = self.rank - local  # launchers number the ranks of a machine one after the other

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (a Python object), by rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all ranks, in double precision."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(v) for v in tensor.tolist()]

    def close(self) -> None:
        """Leave the group. One that another library began in this process stays."""
        import deepspeed

        if dist.is_initialized() and (self._alone or self.size > 1):
            deepspeed.comm.destroy_process_group()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or self.size == 1:
            self.close()


def _require_gpu(local: int) -> None:
    """Check that rank `local` of this machine (from 0) has a GPU; CUDA's own error says `invalid device ordinal`.

    Raises:
        DeviceError: it has none.
    """
    count = torch.cuda.device_count()
    if local >= count:
        raise DeviceError(
            f"training.processes: rank {local} of this machine has no GPU of its own, since {count} GPU(s) are visible "
            f"here; set training.processes to {count}"
        )


def _begin_alone(backend: str) -> None:
    """A group of one. Its store is in memory: no other process joins, so no port has to be free."""
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def flush_denormals() -> None:
    """Treat numbers below 1e-38 as zero on this thread: the CPU is many times slower on them."""
    for kind in (np.float32, np.float64):
        np.finfo(kind).smallest_subnormal  # noqa: B018  (NumPy probes its limits at first use)
    torch.set_flush_denormal(True)
