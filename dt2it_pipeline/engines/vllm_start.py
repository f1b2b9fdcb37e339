"""What every start of vLLM needs before it is imported and before it loads a model."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from dt2it_pipeline.engines.lean_processes import quick_imports
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision
from dt2it_pipeline.observe.logs import configure_vllm_logs


@contextlib.contextmanager
def vllm_for(model: str) -> Iterator[tuple[Any, bool]]:
    """Import vLLM so that it can load a model; in the block, make the engine.

    What was there before the block is not searched for garbage in it. Behind the block everything is again, what the
    engine consists of included: vLLM exempts it when it runs in this process, and nobody would collect it then.
    The first import is not searched before the block either: there can be no engine yet.

    Yields:
        The module, and whether it computes on a CPU.

    Raises:
        ImportError: vLLM is not installed, or not what it needs.
        OSError, ValueError: there is no such model.
    """
    was_imported = "vllm" in sys.modules
    with quick_imports():
        on_cpu = prepare_environment()
        vllm = importlib.import_module("vllm")
        _ = vllm.LLM  # it is imported when it is asked for
        if on_cpu:
            register_in_process(model)
        _let_callers_go()
        if was_imported:  # an engine that nobody holds ends the process groups of a later one when it goes
            gc.unfreeze()
            gc.collect()
        gc.freeze()  # vLLM looks for garbage six times while it starts
    try:
        yield vllm, on_cpu
    finally:
        gc.unfreeze()


def _let_callers_go() -> None:
    """Take the tracebacks from errors that modules of vLLM keep of their own import, as of a package that is missing.

    A traceback holds all functions that were running then with their variables, and so the engine that was being made.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "vllm":
            for kept in list(vars(module).values()):
                if issubclass(type(kept), BaseException):  # not what only says so, as lazy modules do
                    kept.__traceback__ = None


def prepare_environment() -> bool:
    """Set, where the environment does not, what vLLM reads when it is imported; returns whether it computes on a CPU.

    On a CPU the engine runs inside this process: it starts in seconds instead of half a minute.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    configure_vllm_logs()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # small kernels: waiting threads would spin most of the time
    # For the question below; see jobs.WORKER_ENVIRONMENT, which a process that is no worker of ours does not have.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    ensure_torchvision()
    from dt2it_pipeline.engines.device import finds_gpu

    if finds_gpu():
        return False
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # binding starves whoever shares the cores
    return True


def weight_format(precision: str, on_cpu: bool) -> str:
    """Type of the weights, as vLLM takes it.

    vLLM says what a GPU computes in, from the driver. PyTorch would start CUDA in this process for that, and vLLM could
    no longer fork its own.

    Args:
        precision: float32, bfloat16, or auto: bfloat16 on a GPU that computes in it, float32 elsewhere.
        on_cpu: whether vLLM computes on a CPU; see `prepare_environment`.

    Raises:
        DeviceError: the GPU does not compute in bfloat16.
    """
    if on_cpu or precision == "float32":
        return "float32" if precision == "auto" else precision
    import torch
    from vllm.platforms import current_platform

    from dt2it_pipeline.engines.device import DeviceError

    if torch.bfloat16 in current_platform.supported_dtypes:
        return "bfloat16"
    if precision == "bfloat16":
        raise DeviceError(
            f"precision: bfloat16 does not run on {current_platform.get_device_name()}, which has no such arithmetic; "
            "set float32 (or auto)"
        )
    return "float32"


def register_in_process(model: str) -> None:
    """Inspect the model's class here rather than in vLLM's helper process.

    The helper imports transformers before it loads any plugin, so a torchvision that does not fit the torch beside it
    (see torchvision_shim) ends it. It exists to keep CUDA out of this process, which on a CPU nothing would bring in.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry

    for architecture in AutoConfig.from_pretrained(model).architectures or []:
        # vLLM makes a classifier from the generating class of the same name.
        architecture = architecture.replace("ForSequenceClassification", "ForConditionalGeneration")
        known = ModelRegistry.models.get(architecture)
        if known is not None:
            ModelRegistry.register_model(architecture, known.load_model_cls())


def request_errors() -> tuple[type[Exception], ...]:
    """What vLLM raises for one request that it cannot take. Its own class for that is newer than vLLM 0.25."""
    import vllm.exceptions

    return ValueError, getattr(vllm.exceptions, "VLLMClientError", ValueError)
