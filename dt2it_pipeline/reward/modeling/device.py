"""What suits the device that a model computes on: attention, compiled layers.

Does not belong here: the device itself (engines/device.py), how attention is computed (attention.py), and how layers
are compiled (compilation.py).
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Literal

import torch

from dt2it_pipeline.engines.device import DeviceError
from dt2it_pipeline.reward.modeling.attention import BLOCKS, FLEX

_LEAST_CAPABILITY = (7, 0)  # of a card that Triton makes kernels for
# Of a card for which PyTorch has block sizes of FlexAttention. Cards before Ampere have no bfloat16 either, and for
# float32 the sizes that PyTorch 2.13 takes there need 192 KiB of shared memory, of which they have 64 or 96.
_LEAST_FOR_FLEX = (8, 0)
_TOO_LARGE = re.compile(r"out of resource: .*?Required: ?(\d+),? ?Hardware limit: ?(\d+)", re.DOTALL)


def attention_for(wanted: str | None, device: torch.device, *, compiled: bool = False, trains: bool = False) -> str:
    """Name of the attention implementation: `wanted`, or, for None and auto, the one that suits the device.

    Args:
        wanted: the setting `attention`.
        device: where the model lies.
        compiled: whether its layers are put through torch.compile.
        trains: whether gradients go through it.

    Raises:
        DeviceError: it cannot be had there.
    """
    if wanted not in (None, "auto"):
        if wanted == FLEX and trains and device.type == "cpu":
            raise DeviceError("attention: flex has no gradient on a CPU; set sdpa_blocks (or auto)")
        if wanted in (FLEX, BLOCKS) and compiled and device.type == "cpu":
            raise DeviceError(f"attention: {wanted} cannot be compiled on a CPU; set compile: false or attention: sdpa")
        if wanted == FLEX and device.type == "cuda" and (fault := compile_fault(device.type)):
            raise DeviceError(f"attention: flex is compiled on a GPU, and cannot be here: {fault}; set sdpa (or auto)")
        return str(wanted)
    if device.type != "cuda":
        return "sdpa" if compiled else BLOCKS
    old = torch.cuda.is_available() and torch.cuda.get_device_capability() < _LEAST_FOR_FLEX
    return "sdpa" if old or compile_fault(device.type) else FLEX


def kernel_fault(error: BaseException, section: str) -> DeviceError | None:
    """What to set where a compiled kernel needs more shared memory than the GPU has; None for any other error.

    Args:
        error: of a forward or backward pass, as Triton 3.9 or PyTorch 2.13 words it.
        section: of the recipe, which has the settings.

    Examples:
        >>> words = "out of resource: shared memory, Required: 131074, Hardware limit: 101376. Reducing block sizes"
        >>> str(kernel_fault(RuntimeError(words), "training")).partition(":")[0]
        'a compiled kernel needs 129 KiB of shared memory, and this GPU has 99'
        >>> kernel_fault(RuntimeError("out of memory"), "training")
    """
    found = _TOO_LARGE.search(str(error))
    if found is None:
        return None
    needed, there = (int(number) / 1024 for number in found.groups())
    return DeviceError(
        f"a compiled kernel needs {math.ceil(needed)} KiB of shared memory, and this GPU has {there:.0f}: set "
        f"{section}.attention: sdpa; where it is another kernel than that of attention, {section}.compile: false"
    )


def compiles(wanted: Literal["auto"] | bool, device: torch.device) -> bool:
    """Whether layers are to be put through torch.compile.

    Args:
        wanted: the setting `compile`.
        device: where the model lies.

    Raises:
        DeviceError: it is wanted and cannot be had.
    """
    if wanted is False or (wanted == "auto" and device.type != "cuda"):
        return False
    fault = compile_fault(device.type)
    if fault and wanted is True:
        raise DeviceError(f"compile: true does not work here: {fault}; set false (or auto)")
    if fault:
        _say_once(f"layers are not compiled, and attention is sdpa unless set: {fault}")
    return not fault


@functools.cache
def compile_fault(kind: str) -> str | None:
    """Why torch.compile makes no kernels for a kind of device, `cuda` or `cpu`; None where it does.

    Compilers are looked for as Triton 3.9 (runtime/build.py) and PyTorch 2.13 (_inductor/cpp_builder.py) do. Triton
    takes what CC names and no other; PyTorch takes g++ only where CXX is not set. Both compile against Python's header.
    """
    compilers: tuple[str, ...]
    if kind == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if torch.cuda.is_available() and torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
            return f"{torch.cuda.get_device_name()} is older than what Triton makes kernels for"
        variable, compilers = "CC", ("gcc", "clang")
    else:
        variable, compilers = "CXX", ("clang++" if sys.platform == "darwin" else "g++",)
    named = os.environ.get(variable)
    if named is not None and not shutil.which(named):
        return f"{variable} is {named!r}, which is not the name of a program; correct it, or unset it"
    if named is None and not any(map(shutil.which, compilers)):
        return f"there is no compiler ({', '.join(compilers)}, or what {variable} names)"
    header = Path(_python_headers(), "Python.h")
    return None if header.is_file() else f"there is no {header}; install Python's headers (such as python3-dev)"


def _python_headers() -> str:
    """The folder that Triton and PyTorch name to the compiler; not below /usr/local, where Debian installs others'."""
    scheme = sysconfig.get_default_scheme()
    return sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)


@functools.cache
def _say_once(line: str) -> None:
    logging.getLogger(__name__).warning(line)
