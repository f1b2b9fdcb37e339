"""Judges whose models are held by several worker processes, by those that score for reward models.

What goes to a worker and back is small: requests (rows of tables, whose images the worker opens) and replies. So kept
replies, attempts and budgets stay with whoever asks, and a judge that is shared is asked like any other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dt2it_pipeline.config.sections.annotation import AnnotationSettings
from dt2it_pipeline.config.sections.judging import JudgingSettings
from dt2it_pipeline.config.sections.pairing import RestyleSettings
from dt2it_pipeline.config.sections.ray import RaySettings
from dt2it_pipeline.engines.jobs import ShardedJob
from dt2it_pipeline.engines.launch import fork_server
from dt2it_pipeline.engines.launch.launcher import ShardLauncher, ShardWorkers, WorkerPlace
from dt2it_pipeline.engines.launch.local_shards import InThisProcess, Load
from dt2it_pipeline.engines.launch.shards import model_launcher
from dt2it_pipeline.judges.ask import asked_one_by_one
from dt2it_pipeline.judges.protocol import Judge, JudgeError, JudgeRequest, Reply
from dt2it_pipeline.judges.rubric import SIX_CRITERIA

# Requests of a shard, about. Few enough that many workers have some; enough to fill the forward passes of a model whose
# probabilities are read, and of vLLM, which writes that many replies at once.
_READ, _WRITTEN = 64, 256
_SHARDS = 4  # that a worker has of what it is handed together: none waits long for the last

Shard = tuple[int, list[JudgeRequest]]  # which of the job's judges is asked, and what
Answers = list[Reply | JudgeError]


class JudgingJob(ShardedJob):
    """A job that asks judges, whose models worker processes hold.

    Attributes:
        settings: the recipe's section that names the judges.
        processes: the recipe's `scoring.processes`: how many hold the models, on this machine.
        ray: the recipe's section `ray`, whose workers hold them instead; None: on this machine.
    """

    settings: AnnotationSettings | JudgingSettings | RestyleSettings
    processes: int = 1
    ray: RaySettings | None = None

    @property
    def preloaded(self) -> str | None:
        """See `ShardedJob`."""
        return fork_server.VLLM if self.settings.runs_vllm else fork_server.TRANSFORMERS

    def launcher(self, gpus: int) -> ShardLauncher:
        """Who starts the workers; `gpus` are those of each, where the machine has any."""
        return model_launcher(self.ray, self.processes, gpus)


class JudgeWorkers:
    """The workers that hold the models of a job's judges: a context, in which they are started when one is asked.

    Args:
        job: whose `shard_worker` returns what `answering` makes.
        gpus: of each worker, where the machine has any.
        requests: about how many there will be; where they make one shard, one worker does them.
        load: stands in for the function that the job names, in this process alone; for tests.
    """

    def __init__(self, job: JudgingJob, gpus: int, requests: int, load: Load | None = None) -> None:
        self._job, self._gpus, self._load, self._most = job, gpus, load, -(-requests // _READ)
        self.processes = job.processes if job.ray is None else job.ray.workers
        self._started = 0.0
        self._workers: ShardWorkers | None = None
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> JudgeWorkers:
        return self

    def __exit__(self, *error: Any) -> None:
        self._ending.__exit__(*error)

    @property
    def gpu_seconds(self) -> float:
        """GPUs of the workers times seconds since they were started; 0 where none was."""
        return 0.0 if self._workers is None else round(self._workers.gpus * (time.monotonic() - self._started), 1)

    def do(self, place: int, shards: Sequence[list[JudgeRequest]]) -> Iterator[tuple[int, Answers]]:
        """Put shards of requests to the judge in a place of the job; their numbers and answers, as they come."""
        if self._workers is None:
            self._started = time.monotonic()
            launcher = self._job.launcher(self._gpus) if self._load is None else InThisProcess(self._load)
            self._workers = self._ending.enter_context(launcher.workers(self._job, max(1, self._most)))
        given: dict[int, Shard] = {number: (place, shard) for number, shard in enumerate(shards)}
        yield from self._workers.do(given)


class SharedJudge:
    """A judge of a job whose model the workers hold.

    Args:
        front: the same judge without its model, which names and words things.
        place: of the judge in its job.
        workers: who answers.
    """

    isolates = True

    def __init__(self, front: Judge, place: int, workers: JudgeWorkers) -> None:
        self.name, self.modes, self.attempts, self.max_runs = front.name, front.modes, front.attempts, front.max_runs
        self.rubric, self.writes = getattr(front, "rubric", SIX_CRITERIA), getattr(front, "writes", False)
        self._front, self._place, self._workers = front, place, workers
        self._size = _WRITTEN if self.writes else _READ
        self.at_once = _SHARDS * self._size * workers.processes

    def template_hash(self, mode: str, language: str) -> str:
        """See Judge."""
        return self._front.template_hash(mode, language)

    def fingerprint(self) -> Any:
        """See Judge."""
        return self._front.fingerprint()

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, Reply | JudgeError]]:
        """See Judge.

        Raises:
            ShardsError: a worker died, cannot load its model, or its model can answer no more.
        """
        shards = _shards(requests, self._size)
        for number, answers in self._workers.do(self._place, [[requests[i] for i in shard] for shard in shards]):
            yield from zip(shards[number], answers, strict=True)


def answering(make: Callable[[int], Judge], where: WorkerPlace) -> Callable[[Shard], Answers]:
    """What a worker does with a shard.

    Args:
        make: builds the judge in a place of the job; it is kept.
        where: the worker's place.
    """
    judges: dict[int, Judge] = {}
    if where.threads is not None:  # a process of the worker's own, whose state is nobody else's
        import torch

        torch.set_num_threads(where.threads)

    def do(shard: Shard) -> Answers:
        place, requests = shard
        if place not in judges:
            judges[place] = make(place)
        found = dict(asked_one_by_one(judges[place], requests))
        return [found[place] for place in range(len(requests))]

    return do


def _shards(requests: Sequence[JudgeRequest], size: int) -> list[list[int]]:
    """Places of requests in shards of about `size`; neighbours about one prompt, whose images are then read once,
    stay together.
    """
    shards: list[list[int]] = []
    before = None
    for place, request in enumerate(requests):
        prompt = request.prompt["prompt_id"]
        if not shards or (len(shards[-1]) >= size and prompt != before):
            shards.append([])
        shards[-1].append(place)
        before = prompt
    return shards
