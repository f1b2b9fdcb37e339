"""How much memory reading a source takes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PEAK = """
import resource, sys
from pathlib import Path
from typing import Any
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.reading import read_rows
from dt2it_pipeline.ingest.rows import SourceError
file = Path(sys.argv[1])
made = Manifest.model_validate({"name": "own", "kind": "preferences", "path": str(file), "licence": "MIT"})
list(read_rows(made.model_copy(update={"path": sys.argv[2]}), file.parent))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for row in read_rows(made, file.parent):
        pass
except SourceError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


def peak_mib(bomb: Path, harmless: Path) -> tuple[float, str]:
    """MiB that reading a bomb takes beyond a harmless file of its format, and the error that it ends with."""
    done = subprocess.run([sys.executable, "-c", _PEAK, bomb, harmless], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kib, _, words = done.stdout.partition(" ")
    return int(kib) / 1024, words
