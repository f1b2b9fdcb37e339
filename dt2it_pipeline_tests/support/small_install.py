"""The small install, without the extras `cpu` and `gpu`: code in a process of its own that finds no engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_WITHOUT_ENGINES = """
import sys

class Refused:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "vllm", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refused)
"""


def run_without_engines(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in `folder`, to whatever end it comes."""
    return subprocess.run([sys.executable, "-c", _WITHOUT_ENGINES + code], cwd=folder, capture_output=True, text=True)
