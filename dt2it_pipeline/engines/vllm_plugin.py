"""The entry point `vllm.general_plugins`: what is done in each of vLLM's processes before a model is loaded."""

from __future__ import annotations

from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.observe.logs import configure_logs


def prepare_process() -> None:
    """Make transformers import beside this torch, and let the process's log lines go where the environment says."""
    ensure_torchvision()
    configure_logs()
