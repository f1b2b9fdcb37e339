"""Training entry point: Bradley-Terry training of backbone and head under DeepSpeed ZeRO.

    python -m dt2it_pipeline.engines.jobs job.json            # one process
    deepspeed --num_accelerators 2 --module dt2it_pipeline.engines.jobs job.json

The job is a `TrainJob` (job.py).

What a recipe may ask for under `training:`, beside sizes and rates (config/sections/training.py describes each
setting):
- `loss`: a margin, a soft label or ties by the pair's strength, and centring of the scores; formulas in loss.py. A list
  of answers is one sequence; losses of lists are in list_loss.py, and what makes a list in data/lists.py.
- `micro_batch_tokens`: bounds a forward pass by its tokens, padding included. A step's pairs stay the same, so results
  differ by rounding alone. The summary's `padding_share` says which share of all cells was padding.
- `validation_fraction` or `validation_pairs`: prompts held out by seed and evaluated on the way; `keep: best` makes the
  weights of lowest held-out loss the checkpoint. Evaluations stand in the checkpoint's validation_log.jsonl.
- `lora`: low-rank adapters; the checkpoint holds merged weights in the ordinary layout.
- `tensorboard`, `wandb_project`, `mlflow_experiment`: curves, see tracking.py.

A state to resume from is written every `save_steps` steps. It belongs to the pairs, their labels, strengths and lists,
the base model, the settings, the seed and the number of ranks; with any other, training starts anew. On a full disk
training ends with an error that names the path, the last whole state is kept, and a new start goes on from it. Where
memory runs out, or a compiled kernel does not fit the GPU, whoever launches trainings starts it again, with half the
micro-batch or with what asks less of the GPU: restarts.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dt2it_pipeline.config.recipe_files import read_deepspeed_config
from dt2it_pipeline.engines import lean_processes
from dt2it_pipeline.engines.jobs import Reporter, Summary
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.observe.cores import usable_cores
from dt2it_pipeline.observe.memory import peak_memory, ran_out
from dt2it_pipeline.reward.errors import TrainingError
from dt2it_pipeline.reward.training.job import TrainJob
from dt2it_pipeline.reward.training.memory import count_parameters, training_memory
from dt2it_pipeline.reward.training.restarts import Place, memory_error, note_fallback

_logger = logging.getLogger(__name__)


def run(job: TrainJob, report: Reporter) -> Summary:
    """Train one reward model. Every rank calls this; rank 0 reports and writes.

    Args:
        job: what to train on, with which settings.
        report: called every `logging_steps` steps with the row of the training log (step, epoch, loss, accuracy,
            learning_rate, grad_norm, pairs_per_second) and `steps`, and after each evaluation of held-out pairs.

    Returns:
        steps, resumed_from_step, pairs, pairs_quarantined, samples_seen (pairs, repetitions included), last loss and
        accuracy, pairs_per_second, padding_share, seconds, memory in GiB (`peak_memory_gib` of the host, all ranks
        together; on GPUs also `peak_gpu_memory_gib`, the most that tensors of one rank took at once, which compares
        with the estimate that is logged), and `weights_sha256`; where there are lists, also `lists` and what became of
        them (data/lists.py, `TrainingExamples.report`). Where layers or attention are compiled, what that took the rank
        that it took longest, in this start (modeling/compile_time.py).

    Raises:
        TrainingError: no pair can be used, a setting does not fit, loss or gradient stopped being a number, memory
            ran out, or what is written, or compiled, finds a full disk.
        DeviceError: PyTorch cannot use the machine's GPU, there are fewer GPUs than ranks, or a kernel does not fit it.
        CheckpointError: the base model is not one that a reward model can be made from.
    """
    lean_processes.skip_unused()
    import torch

    from dt2it_pipeline.engines.device import finds_gpu

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if finds_gpu() else "cpu")
    from dt2it_pipeline.reward.modeling.compile_cache import write_fault
    from dt2it_pipeline.reward.modeling.device import kernel_error, kernel_fault, kernels_for
    from dt2it_pipeline.reward.training.distributed import Group, flush_denormals
    from dt2it_pipeline.reward.training.trainer import Trainer

    with Group() as group:
        if not group.cuda:
            cores = max(1, usable_cores() // group.local_size)
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or cores))
        else:
            torch.cuda.reset_peak_memory_stats(group.device)  # another training in this process may have taken more
        flush_denormals()
        if group.rank == 0:
            log_estimate(job, group.size)
        place = Place()
        try:
            trainer = Trainer(job, group, report if group.rank == 0 else _silent, place)
            summary = trainer.fit()
            place.saves("the checkpoint")
            trainer.save(job.output, summary)
        except Exception as error:
            if reason := kernel_fault(error):
                asked = job.settings.attention, job.settings.compile
                now = kernels_for(*asked, group.device, trains=True, fallbacks=job.fallbacks)
                if less := now.lesser(*asked):
                    note_fallback(job, reason, less.in_words())
                raise kernel_error(reason, "training") from error
            if fault := write_fault(error):
                raise TrainingError(fault) from error
            if not ran_out(error):
                raise
            raise memory_error(job, place, group.rank, group.size, error) from error
        if group.rank == 0:
            summary["weights_sha256"] = weights_digest(job.output)
        peaks = group.gather(peak_memory())
        if group.cuda:
            seconds = summary["preparation_seconds"] + summary["training_seconds"]
            summary["gpu_seconds"] = round(group.size * seconds, 1)
            most = max(group.gather(torch.cuda.max_memory_allocated(group.device)))
            summary["peak_gpu_memory_gib"] = round(most / 2**30, 3)
        summary["peak_memory_gib"] = round(sum(peaks) / 2**30, 3)
    return summary


def log_estimate(job: TrainJob, ranks: int) -> None:
    """Log in one line the memory that a training is estimated to take, as `dt2it check` reports it.

    Nothing is logged where a base model is not found or has no safetensors: loading it says so.

    Args:
        job: to do.
        ranks: that there are, on all machines.
    """
    from dt2it_pipeline.reward.checkpoints.adapters import find_parts

    with contextlib.suppress(UserError, OSError):
        parameters = count_parameters(find_parts(job.base_model).backbone)
        zero = read_deepspeed_config(job.settings.deepspeed_config).get("zero_optimization") or {}
        settings = job.settings.model_copy(update={"processes": ranks})
        estimate = training_memory(parameters, settings, zero)
        _logger.info("%s", estimate.in_words(parameters, settings, int(zero.get("stage", 0))))


def weights_digest(folder: Path) -> str:
    """SHA-256 over the weight files of a checkpoint, in name order."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            while block := handle.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _silent(progress: Mapping[str, Any]) -> None:
    """The reporter of every rank but the first."""
