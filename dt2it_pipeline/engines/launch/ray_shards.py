"""Shards of a job on Ray workers: the same shard code as in local processes, on the machines of a cluster.

A worker (a Ray actor) loads its model once and takes one shard after the other, whichever worker is free. Shards leave
their results as files where the job says; so all machines need the paths of the job (artifact home, checkpoint,
project and Python) on a file system that they share. What a shard computes depends on the shard alone, so that the
files are those of a local run with as many threads per process.

A worker that dies (a lost machine, memory run out) is started again by Ray, and the shard that it had in hand is done
anew, at most `retries` times. An error that the shard's code raises is not retried.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dt2it_pipeline.config.paths import project_root
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.engines.jobs import WORKER_ENVIRONMENT, ShardedJob, load_function
from dt2it_pipeline.engines.launch.launcher import ShardLauncher, ShardsError, ShardWorkers, WorkerPlace
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.observe.logs import configure_logs

_LOOK_SECONDS, _CONNECT_SECONDS = 10.0, 10.0
_PASSED_ON = ("DT2IT_", "HF_HUB_OFFLINE", "PYTHONPATH", "TOKENIZERS_PARALLELISM")


class RayShardsError(ShardsError):
    """Shards cannot be done on Ray; the message says why."""


class RayTokenError(RayShardsError):
    """The cluster does not take the token of this process."""


class _Worker:
    """One Ray actor. The model is loaded with the first shard, so that a failure to load counts as that shard's."""

    def __init__(self, job: ShardedJob, place: WorkerPlace) -> None:
        self._job, self._place = job, place
        self._do: Callable[[Any], Any] | None = None
        configure_logs()

    def ready(self) -> None:
        """Return once the worker has a machine."""

    def do(self, shard: Any, shared: Any) -> Any:
        """Do one shard."""
        if self._do is None:
            self._do = load_function(self._job.shard_worker)(self._job, shared, self._place)
        return self._do(shard)


@dataclass(frozen=True)
class RayShards(ShardLauncher):
    """Workers on a Ray cluster.

    Attributes:
        settings: the recipe's section `ray`.
    """

    settings: RaySettings

    @contextlib.contextmanager
    def workers(self, job: ShardedJob, most: int, shared: Any = None) -> Iterator[ShardWorkers]:
        """See `ShardLauncher`. `shared` is sent to each machine once.

        Raises:
            RayShardsError: Ray is not installed or not reached; in the block, no worker could be started, a shard
                failed, or it ended its worker more than `retries` times.
        """
        with _connected(self.settings) as ray:
            actors = _Actors(ray, self.settings, job, min(self.settings.workers, most), ray.put(shared))
            try:
                yield actors
            finally:
                actors.end()


def require_ray(settings: RaySettings) -> tuple[str, int]:
    """Make sure that the cluster at `ray.address` is there; no worker is started on it.

    Returns:
        What the cluster has, in words, and how many workers have room on its machines when nothing else runs there.

    Raises:
        RayTokenError: the cluster does not take the token of this process.
        RayShardsError: Ray is not installed, or no cluster answers.
    """
    with _connected(settings) as ray:
        room = 0
        for node in ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            cpus = int(has.get("CPU", 0) / settings.cpus_per_worker)
            # A worker's share of a GPU lies on one GPU.
            gpus = has.get("GPU", 0) * max(1, int(1 / settings.gpus_per_worker)) if settings.gpus_per_worker else 0
            whole = math.ceil(settings.gpus_per_worker)
            room += min(cpus, int(gpus / whole)) if whole else cpus
        return _resources(ray), room


class _Actors:
    """Ray actors that do shards. They are started when there are shards, as many as there is work for."""

    def __init__(self, ray: Any, settings: RaySettings, job: ShardedJob, most: int, shared: Any) -> None:
        self._ray, self._settings, self._job, self._most, self._shared = ray, settings, job, most, shared
        self._idle: list[Any] = []  # those that are there and have nothing to do
        self._pending: dict[Any, tuple[Any, int | None]] = {}  # task -> its worker and shard; None: it is being started
        self._begun = False
        self._started = 0

    @property
    def gpus(self) -> float:
        """See ShardWorkers."""
        return self._started * self._settings.gpus_per_worker

    def do(self, shards: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """See ShardWorkers: give every worker a shard once it is there, and another when it is done with that."""
        if any(number is not None for _, number in self._pending.values()):
            raise RayShardsError("shards were left to the workers, which can do no more")
        ray, settings, todo = self._ray, self._settings, iter(shards.items())
        self._start(len(shards))
        for worker in [self._idle.pop() for _ in range(len(self._idle))]:
            self._give(worker, todo)
        left, waited_since = len(shards), time.monotonic()
        while left:
            done, _ = ray.wait(list(self._pending), num_returns=1, timeout=min(_LOOK_SECONDS, settings.wait_seconds))
            if not done:
                if not self._begun and time.monotonic() - waited_since > settings.wait_seconds:
                    raise RayShardsError(
                        f"no Ray worker with {settings.cpus_per_worker:g} CPUs and {settings.gpus_per_worker:g} GPUs "
                        f"could be started within ray.wait_seconds ({settings.wait_seconds:g}); the cluster has "
                        f"{_resources(ray)}: ask for less per worker, or add machines"
                    )
                if self._idle:
                    ray.kill(self._idle.pop())  # its place may be what another one waits for to be started again
                continue
            worker, number = self._pending.pop(done[0])
            value = _value(ray, done[0], number, settings)
            self._begun = True
            self._give(worker, todo)
            if number is not None:
                left -= 1
                yield number, value

    def _start(self, shards: int) -> None:
        """Start as many workers as there are shards for, beside those that are there or about to be."""
        settings = self._settings
        remote = self._ray.remote(_Worker).options(
            num_cpus=settings.cpus_per_worker,
            num_gpus=settings.gpus_per_worker,
            max_restarts=-1,  # the retries of its shard bound how often it dies
            max_task_retries=settings.retries,
            runtime_env={"env_vars": _environment(settings)},
        )
        place = WorkerPlace("cuda" if settings.gpus_per_worker else "cpu", threads_of(settings))
        wanted = min(self._most, shards)
        for _ in range(wanted - len(self._idle) - len(self._pending)):
            worker = remote.remote(self._job, place)
            self._pending[worker.ready.remote()] = (worker, None)
        self._started = max(self._started, wanted)

    def _give(self, worker: Any, todo: Iterator[tuple[int, Any]]) -> None:
        following = next(todo, None)
        if following is None:
            self._idle.append(worker)
        else:
            self._pending[worker.do.remote(following[1], self._shared)] = (worker, following[0])

    def end(self) -> None:
        """End all workers."""
        for worker in [*self._idle, *(worker for worker, _ in self._pending.values())]:
            self._ray.kill(worker)


def _value(ray: Any, reference: Any, number: int | None, settings: RaySettings) -> Any:
    """What a worker returned; its failure as an error of ours in one sentence."""
    what = "a Ray worker could not be started" if number is None else f"shard {number} failed on a Ray worker"
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if error.cause is not None else error
        if not isinstance(cause, UserError):  # Ray's error has the worker's traceback, which nobody else prints
            print(error, file=sys.stderr)
        raise RayShardsError(f"{what}: {type(cause).__name__}: {cause}") from error
    except ray.exceptions.RayActorError as error:
        first = str(error).strip().splitlines()[0]
        raise RayShardsError(
            f"{what}: it ended the worker {settings.retries + 1} times (ray.retries: {settings.retries}); where "
            f"memory ran out, ask for more per worker or smaller shards. Ray says: {first}"
        ) from error


@contextlib.contextmanager
def _connected(settings: RaySettings) -> Iterator[Any]:
    """Ray, connected as the settings say; a connection that was there before is used and left."""
    if importlib.util.find_spec("ray") is None:
        raise RayShardsError("the recipe has a section `ray`, and Ray is not installed: pip install -e '.[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    new: dict[str, Any] = {}
    if settings.address is not None:
        _reach(settings.address)
        _require_access(settings.address)
    if settings.address is None:
        needed = math.ceil(settings.workers * settings.cpus_per_worker)
        new = {"num_cpus": max(needed, 1), "include_dashboard": False}
    try:
        ray.init(address=settings.address or "local", log_to_driver=False, logging_level=logging.ERROR, **new)
    except Exception as error:  # whatever Ray raises where it cannot connect
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RayShardsError(
            f"Ray cannot be started here: {first}"
            if settings.address is None
            else f"no Ray cluster is found at ray.address {settings.address}: {first}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_access(address: str) -> None:
    """Raise where a cluster does not take this process's token.

    Ray itself tries for ten seconds and more, and then says that it cannot connect. Its first request says why.
    """
    import ray

    try:
        from ray._private.authentication import authentication_token_setup as tokens
        from ray._private.services import canonicalize_bootstrap_address

        client: Any = importlib.import_module("ray._raylet").GcsClient  # compiled: mypy knows no names of it
    except (ImportError, AttributeError):  # they are not Ray's public ones; ray.init fails, too, if later
        return
    try:
        if address == "auto":
            tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        tokens.ensure_token_if_auth_enabled(create_token_if_missing=False)  # the request would end this process
        found = canonicalize_bootstrap_address(address)
        if found is not None:  # else ray.init says that there is none
            _reach(found)
            client(address=found)
    except ray.exceptions.AuthenticationError as error:
        raise RayTokenError(
            f"the Ray cluster at ray.address {address} asks for a token, and this process has none or another one: "
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own"
        ) from error
    except ray.exceptions.RpcError as error:
        raise RayShardsError(f"no Ray cluster is found at ray.address {address}: {error}") from error


def _reach(address: str) -> None:
    """Raise at once where nothing answers at an address: Ray's client would end this process without an error."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise RayShardsError(f"no Ray cluster answers at ray.address {address}: {error}") from error


def _environment(settings: RaySettings) -> dict[str, str]:
    """Variables of a worker: those of every worker process of ours, and its share of the cores."""
    own = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    threads = {"OMP_NUM_THREADS": str(threads_of(settings))}
    own["DT2IT_PROJECT"] = str(project_root())  # a worker's working directory need not lie in the project
    return own | WORKER_ENVIRONMENT | threads | {"RAY_USAGE_STATS_ENABLED": "0"}


def threads_of(settings: RaySettings) -> int:
    """Threads that a worker computes with."""
    return max(1, int(settings.cpus_per_worker))


def _resources(ray: Any) -> str:
    found = ray.cluster_resources()
    return f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs"
