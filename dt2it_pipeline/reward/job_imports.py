"""What the processes of training and scoring import while they work, for a process that forks for several of them.

See `Job.imports`. What is missing here is imported by each process for itself, and costs time alone.
"""

from __future__ import annotations

import importlib
import os

from dt2it_pipeline.engines import lean_processes
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.reward.families import FAMILIES

_SCORING = ("dt2it_pipeline.reward.scoring.scorer", "dt2it_pipeline.reward.checkpoints.checkpoint")
_TRAINING = (
    "dt2it_pipeline.reward.training.trainer",
    "dt2it_pipeline.reward.training.distributed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # DeepSpeed imports it for any optimiser, and it torch's compiler
)


def scoring() -> None:
    """Import what scoring with transformers does."""
    lean_processes.skip_unused()
    ensure_torchvision()
    for module in _SCORING:
        importlib.import_module(module)
    for family in FAMILIES.values():
        family.backbone_class()
        family.processor_class()


def training() -> None:
    """Import what training does, and scoring."""
    scoring()
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    for module in _TRAINING:
        importlib.import_module(module)
