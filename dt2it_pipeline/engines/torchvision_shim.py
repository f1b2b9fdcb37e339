"""Lets transformers and vLLM import beside a CPU-only torch when its sister packages are CUDA builds.

The torchvision, torchaudio and torchcodec of PyPI are built against CUDA; beside a CPU torch their C++ libraries cannot
load, and `import transformers` fails with them.

- torchvision fails because the operators `torchvision::nms` and `torchvision::qnms` do not exist when it registers
  their fake kernels. Declaring the two schemas first is enough: the Qwen processors use only its transforms.
- torchaudio and torchcodec fail while they load their libraries. Nothing here needs audio or a video decoder of theirs,
  so they are hidden: transformers and vLLM then take the same path as where they are not installed.

Where the three import by themselves, nothing is declared or hidden. Call `ensure_torchvision()` before the first import
of transformers; vLLM's own processes get it through the `vllm.general_plugins` entry point of this package (see
`vllm_plugin.py`).
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

_declared: list[Any] = []  # a torch.library.Library forgets its schemas when it is collected


def ensure_torchvision() -> None:
    """Make `import transformers` work in this process; changes nothing where the sister packages load."""
    _declare_torchvision_schemas()
    for package in ("torchaudio", "torchcodec"):
        _hide_if_broken(package)


def _declare_torchvision_schemas() -> None:
    if "torchvision" in sys.modules or _declared:
        return
    import torch

    try:
        importlib.import_module("torchvision")
        return
    except ModuleNotFoundError:
        return  # not installed: whoever needs it says so
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    _forget("torchvision")
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    importlib.import_module("torchvision")


def _hide_if_broken(package: str) -> None:
    if package in sys.modules:
        return
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        return
    except (OSError, RuntimeError):  # a shared library that this machine lacks
        _forget(package)
        sys.modules[package] = None  # type: ignore[assignment]  # find_spec then answers "not installed"
        config: Any = sys.modules.get("datasets.config")
        if config is not None:  # it asked before, and would import what is hidden now
            config.TORCHCODEC_AVAILABLE = config.TORCHCODEC_AVAILABLE and package != "torchcodec"


def _forget(package: str) -> None:
    """Drop the half-initialised modules that a failed import leaves behind, which a second import would reuse."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
