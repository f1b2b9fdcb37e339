"""What one rank trains on: pairs and lists, which of them are held out, and the batches of every step."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dt2it_pipeline.engines.device import copied
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.observe.logs import MOST_ROW_IDS
from dt2it_pipeline.reward.data import preparation
from dt2it_pipeline.reward.data.encoding_workers import EncoderSource
from dt2it_pipeline.reward.data.kept_features import FeatureStore
from dt2it_pipeline.reward.data.lists import TrainingExamples
from dt2it_pipeline.reward.data.preparation import PreparedPairs
from dt2it_pipeline.reward.data.table_building import TableSource
from dt2it_pipeline.reward.data.vision_features import Features, survey_images
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.modeling.batch import Batch
from dt2it_pipeline.reward.modeling.list_loss import Comparisons
from dt2it_pipeline.reward.modeling.model import RewardNetwork
from dt2it_pipeline.reward.too_long import length_limit
from dt2it_pipeline.reward.training import checkpointing, validation
from dt2it_pipeline.reward.training.batches import BatchStream, ExampleBatches, Fault, Planned, loader_workers
from dt2it_pipeline.reward.training.distributed import Group
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.restarts import Place
from dt2it_pipeline.reward.training.schedule import Schedule, micro_batches
from dt2it_pipeline.reward.training.step_metrics import ExampleSizes

_logger = logging.getLogger(__name__)
_GIB = 2**30


@dataclass(frozen=True)
class Pass:
    """What one forward pass takes.

    Attributes:
        members: examples of the batch, int64.
        counts: which of them count, bool [members].
        batch: on the device.
        comparisons: of those that count, or of all where none does; on the device.
        features: rows of the vision encoder's output for its image tokens, where that is cached.
    """

    members: np.ndarray
    counts: np.ndarray
    batch: Batch
    comparisons: Comparisons
    features: torch.Tensor | None


class TrainingData:
    """Pairs of a job on one rank; every rank makes one at the same time.

    Args:
        job: what is trained on.
        model: whose vision encoder's output is cached where the settings ask for it.
        source: how prompts and responses are encoded.
        group: the process group.
        shared: a prompt once for both responses.

    Attributes:
        prepared: the pairs.
        examples: pairs alone and lists, which batches are made of.
        sizes: cells that each takes.
        strengths: float32 [pairs], NaN where unknown.
        trained, held_out: examples of either kind, int64.
        vision_cached: whether the vision encoder's output is.

    Raises:
        TrainingError: no pair is left to train on, or the work folder cannot be written.
    """

    def __init__(
        self, job: TrainJob, model: RewardNetwork, source: EncoderSource, group: Group, *, shared: bool
    ) -> None:
        self.job, self.settings, self.group, self.shared = job, job.settings, group, shared
        encoder = source.encoder()
        assert encoder.registry is not None
        self.layout, self.registry = encoder.layout, encoder.registry
        longest = length_limit(self.settings.max_length, model.config.text_config)
        uses_strength = self.settings.loss.kind != "bradley_terry"
        tables = TableSource(job.pairs, job.prompts, source, longest, uses_strength)
        with checkpointing.writing("the prepared pairs in", job.work):
            self.prepared = PreparedPairs(preparation.prepare(tables, job.work, encoder, group))
        self._features, faults = self._encode_images(model)
        self.vision_cached = self._features is not None
        self.prepared.drop_images(faults)
        if not len(self.prepared):
            quarantined = self.prepared.quarantine()
            reasons = sorted(set(quarantined.column("reason").to_pylist()))
            raise TrainingError(
                f"no pair to train on: {quarantined.num_rows} in {job.pairs}, {quarantined.num_rows} quarantined"
                + (f" ({'; '.join(reasons)})" if reasons else "")
            )
        self.one_row = model.takes_one_row
        self.examples = examples = TrainingExamples(self.prepared, self.settings.loss.lists)
        prompts = self.prepared.prompt_lengths()[examples.first_pairs()]
        counts = examples.response_counts
        self.sizes = ExampleSizes(prompts, *examples.response_lengths(), counts, shared, one_row=self.one_row)
        self.strengths = torch.tensor(self.prepared.strengths(), dtype=torch.float32)
        self.trained, self.held_out = self._split()
        self._faults: dict[int, Fault] = {}  # pairs that this rank could not read since the last saved state
        self._stream: BatchStream | None = None

    def _encode_images(self, model: RewardNetwork) -> tuple[Features | None, dict[int, MediaError]]:
        """Features of all images, on disk or in memory where that is set and has room; and damaged images."""
        settings, group = self.settings, self.group
        if settings.vision_disk_gib:
            store = FeatureStore(model, group.device, settings.vision_disk_gib * _GIB)
            kept, faults = store.keep(self.registry, self.prepared.images(), group)
            if kept is not None:
                return kept, faults
        with checkpointing.writing("the vision encoder's features in", self.job.work):
            return survey_images(
                model,
                self.registry,
                self.prepared.images() if settings.cache_vision else (),
                most_bytes=settings.vision_cache_gib * _GIB,
                work=self.job.work,
                ranks=group,
                device=group.device,
            )

    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        settings, pairs = self.settings, len(self.prepared)
        count = validation.held_out_pairs(pairs, settings.validation_fraction, settings.validation_pairs)
        trained, held_out = preparation.split_by_prompt(self.prepared.prompt_ranks(), count, self.job.seed)
        # All pairs of a list have one prompt, and so are on one side.
        aside = np.isin(self.examples.first_pairs(), held_out)
        if not len(trained):
            raise TrainingError(
                f"no pair is left to train on: {len(held_out)} of {pairs} pairs are held out, all pairs of a prompt "
                "together; lower training.validation_pairs or training.validation_fraction"
            )
        return np.flatnonzero(~aside), np.flatnonzero(aside)

    def passes(self, examples: np.ndarray) -> list[np.ndarray]:
        """Forward passes of this rank over `examples`; one is empty where there are fewer than ranks."""
        most = self.job.most_per_pass.pairs, self.job.most_per_pass.tokens
        places, sizes = (self.group.rank, self.group.size), self.sizes
        return micro_batches(
            examples, sizes.lengths, *places, *most, sizes.widths, responses=sizes.counts, one_row=self.one_row
        )

    def show(self, run: np.ndarray, place: Place) -> None:
        """Note in `place` what a pass over `run` holds."""
        place.examples, place.cells = len(run), int(self.sizes.cells(run)[0])
        place.pairs = math.ceil(int(self.sizes.counts[run].sum()) / 2)

    def start(self, schedule: Schedule, first: int) -> None:
        """Begin to make the batches of all passes from step `first` on, evaluations among them."""

        def plan() -> Iterator[np.ndarray]:
            for step in range(first, schedule.steps):
                due = validation.is_due(step + 1, schedule.steps, self.settings.eval_steps)
                for some in (self.trained[schedule.step(step)], self.held_out if due else self.held_out[:0]):
                    yield from (_members(run, some) for run in (self.passes(some) if len(some) else ()))

        pixels = not self.vision_cached
        batches = ExampleBatches(
            self.examples, self.layout, self.registry, shared=self.shared, pixels=pixels, one_row=self.one_row
        )
        workers = loader_workers(self.settings.loader_workers, self.group.cuda, self.group.local_size)
        self._stream = BatchStream(batches, Planned(plan), workers, pinned=self.group.cuda, features=self._features)

    def take(self, run: np.ndarray, examples: np.ndarray) -> Pass:
        """The next pass of the plan: that of `run`, one of the passes over `examples`.

        A run that is empty takes the first of `examples`, which then does not count; nor does one that cannot be read.

        Raises:
            TrainingError: a process that reads ahead ended.
        """
        assert self._stream is not None, "start() begins it"
        members = _members(run, examples)
        loaded = self._stream.take(members)
        self._faults |= loaded.faults
        batch = loaded.batch.to(self.group.device)
        features = None if loaded.features is None else copied(loaded.features, self.group.device)
        first = self.examples.first_pairs()[members]
        counts = self.prepared.usable[first] & ~np.isin(first, list(loaded.faults)) & bool(len(run))
        shown = counts if counts.any() else np.ones_like(counts)
        comparisons = self.examples.comparisons(members, shown, self.strengths).to(self.group.device)
        return Pass(members, counts, batch, comparisons, features)

    def share_faults(self) -> None:
        """Leave out, on every rank alike, the pairs that any rank could not read. Call it when the state is saved.

        What a rank finds counts for its own step until then, so that a run which goes on from the state does what this
        one does.
        """
        for found in self.group.gather(self._faults):
            new = sorted(pair for pair in found if self.prepared.usable[pair])
            self.prepared.leave_out(found)
            if new and self.group.rank == 0:
                row_ids = [self.prepared.pair_id(pair) for pair in new[:MOST_ROW_IDS]]
                why = found[new[0]][1]
                _logger.warning(
                    "pairs that cannot be read: %d; the first: %s", len(new), why, extra={"row_ids": row_ids}
                )
        self._faults = {}

    def all_unreadable(self, step: int, pairs: int, state_step: int) -> TrainingError:
        """The error where none of so many pairs could be read; every rank calls this."""
        found = sorted({why[1] for part in self.group.gather(self._faults) for why in part.values()})
        named = f" ({'; '.join(found[:3])})" if found else ""
        return TrainingError(
            f"none of the {pairs} pairs at step {step} can be read{named}; make {self.job.media_root} readable and "
            f"start again: training then goes on from step {state_step}"
        )

    def close(self) -> None:
        """End the processes that read ahead."""
        if self._stream is not None:
            self._stream.close()


def _members(run: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Examples of a forward pass: those of the run, or the first of `examples` where it has none."""
    return run if len(run) else examples[:1]
