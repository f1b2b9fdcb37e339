"""Training entry point: Bradley-Terry training of backbone and head under DeepSpeed ZeRO.

    deepspeed --num_accelerators 2 --module dt2it_pipeline.reward.training.train job.json
    python -m dt2it_pipeline.reward.training.train job.json            # one process

job: {base_model, pairs, prompts, media_root, output, work, settings (TrainingSettings), seed, name}. The checkpoint
folder `output` appears whole or not at all; `work` holds what a killed run needs to go on to the same weights.

What a recipe may ask for under `training:`, beside sizes and rates (each setting is described in recipe.py):
- `loss`: a margin or a soft label by the pair's strength, and centring of the scores; formulas in loss.py.
- `micro_batch_tokens`: bounds a forward pass by its tokens, padding included. A step's pairs stay the same, so results
  differ by rounding alone. The summary's `padding_share` says which share of all cells was padding.
- `validation_fraction` or `validation_pairs`: prompts held out by seed and evaluated on the way; `keep: best` makes the
  weights of lowest held-out loss the checkpoint. Evaluations stand in the checkpoint's validation_log.jsonl.
- `lora`: low-rank adapters; the checkpoint holds merged weights in the ordinary layout.
- `tensorboard`, `wandb_project`: curves, see tracking.py.

A state to resume from is written every `save_steps` steps. It belongs to the pairs, their labels and strengths,
the base model, the settings, the seed and the number of ranks; with any other, training starts anew. On a full disk
training ends with an error that names the path, the last whole state is kept, and a new start goes on from it.
"""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from dt2it_pipeline.config.recipe_files import read_deepspeed_config
from dt2it_pipeline.config.training import TrainingSettings
from dt2it_pipeline.engines import lean_imports
from dt2it_pipeline.errors import UserError

GIB = 2**30


class TrainingError(UserError, RuntimeError):
    """Training cannot start or go on; the message says what to change."""

    help_page: ClassVar[str] = "troubleshooting#training"


def deepspeed_config(settings: TrainingSettings, decay: float) -> dict[str, Any]:
    """The DeepSpeed configuration: the file that the recipe names, completed with the recipe's own settings."""
    config = read_deepspeed_config(settings.deepspeed_config)
    optimizer = config.setdefault("optimizer", {"type": "AdamW", "params": {}})
    optimizer["params"] = {"lr": settings.learning_rate, "weight_decay": decay} | optimizer.get("params", {})
    return config | {
        "train_micro_batch_size_per_gpu": 1,  # nominal: the schedule says how many pairs a pass holds
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": settings.precision == "bfloat16"},
        # Sums over the passes of a step: in bfloat16, a pass that adds less than 1/256 of the sum would be lost.
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31 - 1,
    }


def run(job: Mapping[str, Any], report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Train one reward model. Every rank calls this; rank 0 reports and writes.

    Raises:
        TrainingError: no pair can be used, a setting does not fit, or loss or gradient stopped being a number.
        CheckpointError: the base model is not one that a reward model can be made from.
    """
    settings = TrainingSettings.model_validate(dict(job["settings"]))
    lean_imports.skip_unused()
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    from dt2it_pipeline.reward.training.distributed import Group, flush_denormals
    from dt2it_pipeline.reward.training.trainer import Trainer

    group = Group()
    if not group.cuda:
        local = int(os.environ.get("LOCAL_SIZE", group.size))
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // local)))
    flush_denormals()
    trainer = Trainer(job, settings, group, report if group.rank == 0 else _silent)
    summary = trainer.fit()
    output = Path(job["output"])
    trainer.save(output, summary)
    if group.rank == 0:
        summary["weights_sha256"] = weights_digest(output)
    peaks = group.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    summary["peak_memory_gib"] = round(sum(peaks) / GIB, 3)
    group.close()
    return summary


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


if __name__ == "__main__":
    from dt2it_pipeline.engines.jobs import main

    main(run)
