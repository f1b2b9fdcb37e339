"""Runs the tests marked `numerics` as other processors would: with their vector instructions, and other thread counts.

    python -m dt2it_pipeline_tests.support.processor_matrix [--testers N] [CAPABILITY:THREADS ...]

Every cell is a pytest run of its own, since libraries choose their kernels when they are loaded. A cell whose
instructions this processor lacks is skipped with a line that says so. Ends with code 1 where a cell has failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

# What makes each library compute as on a processor of that kind; None takes away what the caller has set.
CAPABILITIES: dict[str, dict[str, str | None]] = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": None,
        "MKL_ENABLE_INSTRUCTIONS": None,
    },
}
THREADS = (1, 2, 4)
TESTS = Path(__file__).parent.parent


def best_capability() -> str:
    """The highest capability that torch finds in this processor, as it is spelled in ATEN_CPU_CAPABILITY."""
    os.environ.pop("ATEN_CPU_CAPABILITY", None)  # torch would report what it says, even where it cannot be
    import torch

    return torch.backends.cpu.get_cpu_capability().lower()


def run_cell(capability: str, threads: int, testers: int) -> int:
    """Run the tests of one cell; returns pytest's exit code."""
    # There may be more threads than cores: one that waits for others is not to spin on a core that these need.
    wanted = CAPABILITIES[capability] | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    kept = {name: value for name, value in os.environ.items() if name not in wanted}
    environment = kept | {name: value for name, value in wanted.items() if value is not None}
    shared = ["-n", str(testers), "--dist", "loadfile"] if testers > 1 else []
    command = [sys.executable, "-m", "pytest", "-m", "numerics and not heavy", *shared, *marked_files()]
    return subprocess.run(command, env=environment).returncode


def marked_files() -> list[str]:
    """The files with such tests: to import all the others takes longer than some cells."""
    texts = ((file, file.read_text(encoding="utf-8")) for file in sorted(TESTS.rglob("test_*.py")))
    return [str(file) for file, text in texts if "pytest.mark.numerics" in text]


def main() -> int:
    """Run the cells that are asked for, by default all."""
    every = [f"{capability}:{threads}" for capability in CAPABILITIES for threads in THREADS]
    parser = argparse.ArgumentParser(description="Run the tests marked `numerics` as other processors would.")
    parser.add_argument("cells", nargs="*", default=every, help="such as default:1 (default: all)")
    parser.add_argument("--testers", type=int, default=2, help="processes that share the tests of a cell")
    given = parser.parse_args()
    kinds = list(CAPABILITIES)
    best = best_capability()
    print(f"This processor has {best}.", flush=True)
    failed = []
    for cell in given.cells:
        capability, _, threads = cell.partition(":")
        if capability not in kinds or not threads.isdecimal() or int(threads) < 1:
            parser.error(f"{cell}: expected one of {', '.join(kinds)}, a colon and a number of threads")
        if capability != "default" and (best not in kinds or kinds.index(best) < kinds.index(capability)):
            print(f"{cell}: skipped, this processor lacks {capability}", flush=True)
            continue
        start = time.monotonic()
        code = run_cell(capability, int(threads), given.testers)
        print(f"{cell}: {'passed' if code == 0 else 'failed'} in {time.monotonic() - start:.0f} s", flush=True)
        failed += [cell] if code else []
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
