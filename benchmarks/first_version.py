"""The steps of `benchmarks.ingest` with the package as it was at commit a0306ca, of which others have measured rates.

Its modules have other names than today's, so that its own benchmark runs each step. It is started by
`python -m benchmarks.ingest --against` for a checkout of that time, and takes as many threads as there are cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.watched import Watched, put_aside

STEPS = {
    "read and adapt": "read and adapt",
    "import images": "import pictures",
    "source and images": "whole source",
    "whole source": "whole source",
    "clean": "clean",
    "decontaminate": "decontaminate",
}


def is_first(checkout: Path) -> bool:
    """Whether a checkout is of that time."""
    return (checkout / "dt2it_pipeline/ingest/media_import.py").is_file()


def main() -> None:
    """Run one step and print what it took, as `benchmarks.ingest --step` does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", choices=STEPS, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--processes", help="it has none to be set")
    given = parser.parse_args()
    if given.step in ("import images", "source and images"):
        put_aside(given.folder / "store")
    step = _benchmark().STEPS[STEPS[given.step]]
    watched, started = Watched(), time.monotonic()
    count, of = step(given.folder)
    print(json.dumps({"count": count, "of": of, "wall": time.monotonic() - started, **watched.end()}))


def _benchmark() -> Any:
    """That checkout's own benchmark; its package is the one that can be imported here."""
    import dt2it_pipeline

    file = Path(str(dt2it_pipeline.__file__)).resolve().parents[1] / "benchmarks/ingest.py"
    spec = importlib.util.spec_from_file_location("first_benchmark", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look it up
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
