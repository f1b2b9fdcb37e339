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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from dt2it_pipeline.engines.device import DeviceError
from dt2it_pipeline.observe.memory import ran_out
from dt2it_pipeline.reward.modeling.attention import BLOCKS, FLEX
from dt2it_pipeline.reward.modeling.compile_cache import inner_errors, of_compiler, write_fault

_LEAST_CAPABILITY = (7, 0)  # of a card that Triton makes kernels for
# Of a card for which PyTorch has block sizes of FlexAttention. Cards before Ampere have no bfloat16 either, and for
# float32 the sizes that PyTorch 2.13 takes there need 192 KiB of shared memory, of which they have 64 or 96.
_LEAST_FOR_FLEX = (8, 0)
# As Triton 3.9 words it, and PyTorch 2.13 where it has loaded a kernel by itself: then the kernel is named.
_TOO_LARGE = re.compile(r"out of resource: (.*?),?\s+Required: ?(\d+),? ?Hardware limit: ?(\d+)", re.DOTALL)
_UNITS = {"threads": "threads", "tensor memory": "columns of tensor memory"}  # bytes of shared memory otherwise
_MOST_CHARACTERS = 200  # of an error that a message quotes
_FAILED = "No valid triton configs"  # of PyTorch, whatever stood in the way of a kernel
_BROKEN = "CUDA error:"  # of PyTorch, where what ran before has ended the use of a GPU


@dataclass(frozen=True)
class Kernels:
    """What a model computes with.

    Attributes:
        attention: implementation of the language model's attention, by its name in transformers.
        compiled: whether layers are put through torch.compile.
        small_blocks: whether FlexAttention works in blocks that fit any GPU, which are slower.
    """

    attention: str
    compiled: bool
    small_blocks: bool = False

    def lesser(self, attention: str | None, compile: Literal["auto"] | bool) -> Kernels | None:
        """What asks less of a GPU, where a kernel did not fit it; None where the settings leave nothing.

        FlexAttention works in smaller blocks first. Then what a setting leaves open is done without kernels of Triton.

        Args:
            attention: the setting; None and auto leave it open.
            compile: the setting; auto leaves it open.
        """
        if self.attention == FLEX and not self.small_blocks:
            return replace(self, small_blocks=True)
        opened = attention in (None, "auto") and self.attention == FLEX
        less = Kernels(
            attention="sdpa" if opened else self.attention,
            compiled=self.compiled and compile != "auto",
            small_blocks=self.small_blocks and not opened,
        )
        return None if less == self else less

    def in_words(self) -> str:
        """For a message.

        >>> Kernels("flex", True, small_blocks=True).in_words(), Kernels("sdpa", False).in_words()
        ('attention flex in small blocks, compiled layers', 'attention sdpa, layers that are not compiled')
        """
        blocks = " in small blocks" if self.small_blocks else ""
        layers = "compiled layers" if self.compiled else "layers that are not compiled"
        return f"attention {self.attention}{blocks}, {layers}"


def kernels_for(
    attention: str | None,
    compile: Literal["auto"] | bool,
    device: torch.device,
    *,
    trains: bool = False,
    fallbacks: int = 0,
) -> Kernels:
    """What a model computes with on a device.

    Args:
        attention: the setting.
        compile: the setting.
        device: where the model lies.
        trains: whether gradients go through it.
        fallbacks: how often kernels did not fit the GPU, each time with what `Kernels.lesser` had given.

    Raises:
        DeviceError: a setting cannot be met there.
    """
    compiled = compiles(compile, device)
    found = Kernels(attention_for(attention, device, compiled=compiled, trains=trains), compiled)
    for _ in range(fallbacks):
        less = found.lesser(attention, compile)
        if less is None:
            break
        found = less
    return found


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
        if wanted == FLEX and device.type == "cuda" and (fault := compile_fault(device)):
            raise DeviceError(f"attention: flex is compiled on a GPU, and cannot be here: {fault}; set sdpa (or auto)")
        return str(wanted)
    if device.type != "cuda":
        return "sdpa" if compiled else BLOCKS
    old = torch.cuda.is_available() and torch.cuda.get_device_capability(device) < _LEAST_FOR_FLEX
    return "sdpa" if old or compile_fault(device) else FLEX


def kernel_error(reason: str, section: str) -> DeviceError:
    """The error where settings leave nothing that asks less of the GPU.

    Args:
        reason: of `kernel_fault`.
        section: of the recipe, which has the settings.
    """
    return DeviceError(
        f"{reason}: set {section}.attention: sdpa; where it is another kernel than that of attention, "
        f"{section}.compile: false"
    )


def kernel_fault(error: BaseException) -> str | None:
    """Why a kernel cannot be had for the GPU; None for any other error, such as of a full disk inside the compiler.

    Args:
        error: of a forward or backward pass.

    Examples:
        >>> words = "out of resource: shared memory, Required: 131074, Hardware limit: 101376. Reducing block sizes"
        >>> kernel_fault(RuntimeError(words))
        'a compiled kernel needs 129 KiB of shared memory, and this GPU has 99'
        >>> kernel_fault(RuntimeError("out of memory"))
    """
    if found := _TOO_LARGE.search(str(error)):
        name, needed, there = found.group(1), int(found.group(2)), int(found.group(3))
        if unit := _UNITS.get(name):
            return f"a compiled kernel needs {needed:,} {unit}, and this GPU has {there:,}"
        return (
            f"a compiled kernel needs {math.ceil(needed / 1024)} KiB of shared memory, and this GPU has {there // 1024}"
        )
    if _FAILED not in str(error) and not of_compiler(error) and type(error).__name__ != "PTXASError":
        return None
    # What passes is no reason to compute with less from here on: memory, a disk, a process whose CUDA is broken.
    broken = any(_BROKEN in str(inner) for inner in inner_errors(error))
    if broken or ran_out(error) or write_fault(error):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith("backend=")), type(error).__name__)
    return f"PyTorch cannot compile a kernel for this device ({first[:_MOST_CHARACTERS]})"


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
    fault = compile_fault(device)
    if fault and wanted is True:
        raise DeviceError(f"compile: true does not work here: {fault}; set false (or auto)")
    if fault:
        _say_once(f"layers are not compiled, and attention is sdpa unless set: {fault}")
    return not fault


@functools.cache
def compile_fault(device: torch.device) -> str | None:
    """Why torch.compile makes no kernels for a device; None where it does.

    Compilers are looked for as Triton 3.9 (runtime/build.py) and PyTorch 2.13 (_inductor/cpp_builder.py) do. Triton
    takes what CC names and no other; PyTorch takes g++ only where CXX is not set. Both compile against Python's header.
    """
    compilers: tuple[str, ...]
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
            return f"{torch.cuda.get_device_name(device)} is older than what Triton makes kernels for"
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
