"""How much memory reading a source takes, in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path

from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.reading import read_rows
from dt2it_pipeline.ingest.rows import SourceError

_PATIENCE = 300  # seconds


def peak_mib(bomb: Path, harmless: Path, format: str | None = None) -> tuple[float, str]:
    """MiB that reading a bomb takes beyond a harmless file of its format, and the error that it ends with.

    The process is forked from one that has done nothing but import what reads, and that serves all tests of this
    process: to import it takes most of a second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "pyarrow.parquet"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_read, args=(bomb, harmless, format, there))
    process.start()
    there.close()
    try:
        assert here.poll(_PATIENCE), "it reads on and on"
        kib, words = here.recv()
    except EOFError as error:
        process.join()
        raise AssertionError(f"the process that reads ended with {process.exitcode}") from error
    finally:
        process.kill()
        process.join()
    return kib / 1024, words


def _read(bomb: Path, harmless: Path, format: str | None, results: Connection) -> None:
    given = {"name": "own", "kind": "preferences", "path": str(bomb), "format": format, "licence": "MIT"}
    made = Manifest.model_validate(given)
    list(read_rows(made.model_copy(update={"path": str(harmless)}), bomb.parent))
    before, words = _peak_kib(), ""
    try:
        for _ in read_rows(made, bomb.parent):
            pass
    except SourceError as error:
        words = str(error)
    results.send((_peak_kib() - before, words))


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
