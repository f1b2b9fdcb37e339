"""Installs the RL libraries that `make test-rl` tests against: `.venv/bin/python scripts/install_rl.py .venv/rl`.

verl, OpenRLHF and ms-swift each pin other versions of torch, transformers and TRL than the project and than each other,
so they cannot share an environment. Their reward interfaces need few of their dependencies. So each package comes
without any, with those named here that its imports need and the environment lacks, into a folder that only the test's
PYTHONPATH names.
"""

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    "verl==0.9.1",
    *("codetiming==1.4.0", "omegaconf==2.4.0", "orjson==3.13.0", "pyvers==0.2.3", "tensordict==0.10.0"),
    "openrlhf==0.11.2",
    "pylatexenc==2.11",
    "ms-swift==4.6.0",
    *("dacite==1.9.2", "json-repair==0.64.6", "modelscope==1.40.2", "modelscope-hub==0.5.1"),
)


def install(folder: Path) -> str | None:
    """Install the packages into a folder, which is made anew; returns why that failed, in plain sentences, or None.

    pip is asked, since it knows the index, proxy and certificates of this machine.
    """
    if folder.exists():
        shutil.rmtree(folder)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile")
    found = subprocess.run([*pip, "--no-deps", "--target", str(folder), *PACKAGES], stderr=subprocess.PIPE, text=True)
    if found.returncode == 0:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    reasons = [line for line in found.stderr.splitlines() if line.startswith("ERROR")] or found.stderr.splitlines()
    return "\n".join(
        [
            "The RL libraries could not be installed, so nothing of them was tested. No test failed.",
            "The package index that pip is set up to ask (PyPI by default) did not give: " + ", ".join(PACKAGES),
            "pip said:",
            *reasons[-5:],
        ]
    )


if __name__ == "__main__":
    sys.exit(install(Path(sys.argv[1]).absolute()))
