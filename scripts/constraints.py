"""Writes constraints.txt: the versions in this environment, once the tests have passed with them.

    make clean && NEWEST=1 make test && make constraints

The engines are left out: pyproject.toml names their versions, and their builds differ between CPU and CUDA.
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

ENGINES = re.compile(r"(torch|vllm|triton|nvidia|cuda|dt2it|flashinfer|uv$|pip$|setuptools$)")
HEAD = """# Versions with which the tests passed: scripts/install.py installs them, `make constraints` writes this file.
# torch, vLLM and what comes with them are in pyproject.toml.
"""


def lines(installed):
    """Lines of the file from pairs of name and version: sorted, each name once, without the engines."""
    known = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in installed}
    return [f"{name}=={version}" for name, version in sorted(known.items()) if not ENGINES.match(name)]


if __name__ == "__main__":
    found = lines((each.metadata["Name"], each.version) for each in distributions(path=sys.path[1:]))
    Path("constraints.txt").write_text(HEAD + "\n".join(found) + "\n", encoding="utf-8")
