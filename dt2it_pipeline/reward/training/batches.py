"""Batches of a training, made ahead of the step that needs them: examples, collation, and images as patches.

What belongs here: how a micro-batch is made and comes to the device. What does not: which examples it holds
(schedule.py).

Processes that read ahead come from the fork server (data/fork_server.py). They have no CUDA: a batch travels through
shared memory and goes to the GPU in the training process. Batches come in the order of the plan and hold the same
values whoever made them, so results do not depend on the number of processes.

An image that cannot be read when its turn comes is black in its batch, at its own size, so that shapes stay as they
were planned on every rank; pairs that show it are reported, and the loss leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dt2it_pipeline.engines.device import read_ahead, threads_for
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.observe.cores import usable_cores
from dt2it_pipeline.reward.data import fork_server
from dt2it_pipeline.reward.data.collation import collate, unpack, with_pixels
from dt2it_pipeline.reward.data.encoding import PromptLayout
from dt2it_pipeline.reward.data.images import ImageRegistry
from dt2it_pipeline.reward.data.lists import TrainingExamples
from dt2it_pipeline.reward.data.vision_features import Features
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.modeling.batch import Batch

Fault = tuple[str, str]  # reason and whole message of why a pair cannot be used

_AHEAD = 2  # batches per process
_MOST_BY_DEFAULT = 8  # processes per rank
_SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class LoadedBatch:
    """One forward pass, ready.

    Attributes:
        members: its examples, int64.
        batch: their rows, with pixels unless the vision encoder's output is cached.
        faults: by pair, why one of its prompt's images could not be read.
        features: rows of the vision encoder's output for its image tokens, where that is cached.
    """

    members: np.ndarray
    batch: Batch
    faults: dict[int, Fault]
    features: torch.Tensor | None = None

    def pin_memory(self) -> LoadedBatch:
        """The same in page-locked memory, from which copies to a GPU need not be waited for."""
        values = ((field.name, getattr(self.batch, field.name)) for field in fields(self.batch))
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in values if isinstance(value, torch.Tensor)}
        return replace(self, batch=replace(self.batch, **pinned))


class ExampleBatches(Dataset[LoadedBatch]):
    """Makes the batch of some examples; it travels to other processes, which map the same files.

    Args:
        examples: of the training.
        layout: of the model's prompts.
        registry: that has adopted the images of the pairs' table.
        shared: a prompt once for all its responses; else each response has a row of its own.
        pixels: decode images; not where the vision encoder's output is cached.
        one_row: all examples one after the other in one row.
    """

    def __init__(
        self,
        examples: TrainingExamples,
        layout: PromptLayout,
        registry: ImageRegistry,
        *,
        shared: bool,
        pixels: bool,
        one_row: bool,
    ) -> None:
        self.examples, self.layout, self.registry = examples, layout, registry
        self.shared, self.pixels, self.one_row = shared, pixels, one_row

    def __getitem__(self, members: np.ndarray) -> LoadedBatch:
        packed = [self.examples.packed(member, self.layout, self.registry) for member in members.tolist()]
        batch = collate(packed if self.shared else unpack(packed), one_row=self.one_row)
        broken: dict[int, MediaError] = {}
        if self.pixels:
            batch = with_pixels(batch, self.registry, once=self.shared, faults=broken)
        faults: dict[int, Fault] = {}
        for member, example in zip(members.tolist(), packed, strict=True):
            error = next((broken[image] for image in example.prompt.images if image in broken), None)
            if error is not None:
                faults |= {pair: (error.reason, str(error)) for pair in self.examples.pairs_of([member]).tolist()}
        return LoadedBatch(members, batch, faults)


class BatchStream:
    """All batches of a training, in the order of the plan.

    Args:
        batches: makes them.
        plan: the examples of every forward pass, in order; read a little ahead.
        workers: processes that read ahead; 0: every batch is made when it is asked for.
        pinned: put batches into page-locked memory.
        features: the vision encoder's output, where it is cached. On a GPU, a thread copies the rows of a batch out of
            it while the one before is computed.
    """

    def __init__(
        self,
        batches: ExampleBatches,
        plan: Iterable[np.ndarray],
        workers: int,
        *,
        pinned: bool,
        features: Features | None = None,
    ) -> None:
        self.workers = workers
        loader: DataLoader[LoadedBatch] = DataLoader(
            batches,
            batch_size=None,
            sampler=plan,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            multiprocessing_context=fork_server.context() if workers else None,
            worker_init_fn=_start if workers else None,
            pin_memory=pinned,
            generator=torch.Generator(),  # else a loader draws a seed from torch's own
        )

        def complete(loaded: LoadedBatch) -> LoadedBatch:
            if features is None or not loaded.batch.images:
                return loaded
            rows = features.gather(batches.registry, loaded.batch.images)
            return replace(loaded, features=rows.pin_memory() if pinned else rows)

        threads = min(1, threads_for(torch.device("cuda" if pinned else "cpu")))
        ahead = read_ahead(loader, complete, threads if features is not None else 0)
        self._loader: Iterator[LoadedBatch] | None = (loaded for _, loaded in ahead)

    def take(self, members: np.ndarray) -> LoadedBatch:
        """The next batch, which must be that of `members`.

        Raises:
            TrainingError: a process that reads ahead ended.
        """
        assert self._loader is not None
        try:
            loaded = next(self._loader)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"one of {self.workers} processes that read images ahead ended before its work was done "
                f"({str(error).strip()}), often because memory ran out, or shared memory ({_SHARED_MEMORY}); free "
                "some, or lower training.loader_workers (0: no such processes), and start again: training goes on from "
                "its last saved state"
            ) from error
        assert np.array_equal(loaded.members, members), "a batch out of turn"
        return loaded

    def close(self) -> None:
        """End the processes."""
        self._loader = None


@dataclass(frozen=True)
class Planned:
    """The passes of a plan, made as they are asked for, anew for whoever asks."""

    make: Callable[[], Iterator[np.ndarray]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.make()


def loader_workers(setting: int | None, cuda: bool, ranks: int) -> int:
    """Processes of one rank that read ahead.

    Args:
        setting: of the recipe; None: none without CUDA, else what cores are left beside the ranks, 8 at most.
        cuda: whether batches go to a GPU. Without one, computation takes all cores, and none is left to read ahead.
        ranks: of this machine.
    """
    if setting is not None:
        return setting
    return max(0, min(_MOST_BY_DEFAULT, usable_cores() // ranks - 1)) if cuda else 0


def _start(number: int) -> None:
    fork_server.end_with_parent()


def _as_it_is(loaded: Any) -> Any:
    return loaded
