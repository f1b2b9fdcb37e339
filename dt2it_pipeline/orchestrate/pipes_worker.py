"""The child process of a heavy step: runs one job function and reports through Dagster Pipes.

    python -m dt2it_pipeline.orchestrate.pipes_worker package.module:function job.json

Under the DeepSpeed launcher every rank runs this; only rank 0 opens the Pipes session. The process group ends itself
when the step that started it is gone, so that no rank outlives a run that was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dt2it_pipeline.engines.jobs import Reporter, load_run, read_job

PROGRESS = "… "  # begins every report of progress, so that the console can thin them out

PARENT_PID = "DT2IT_PARENT_PID"  # set by the step; ranks are grandchildren, so that their own parent tells nothing
_WATCH_SECONDS = 2.0


def main(arguments: list[str]) -> None:
    """Run the job that the command line names."""
    target, path = (a for a in arguments if not a.startswith("--local_rank"))
    _end_with_parent()
    if int(os.environ.get("RANK", "0")) != 0:
        _run(target, path, lambda progress: None)
        return
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:

        def report(progress: Mapping[str, Any]) -> None:
            shown = (
                f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in progress.items()
            )
            pipes.log.info(PROGRESS + ", ".join(shown))

        pipes.report_custom_message({"summary": _run(target, path, report)})


def _run(target: str, path: str, report: Reporter) -> dict[str, Any]:
    """Run the job; where it fails, the error goes into a file beside the job, from the first rank that has one."""
    try:
        return load_run(target)(read_job(path), report)
    except Exception as error:
        line = "".join(traceback.format_exception_only(error)).strip()
        with contextlib.suppress(OSError), error_file(path).open("x", encoding="utf-8") as file:
            file.write(line)
        raise


def error_file(job: str | Path) -> Path:
    """Where the ranks of a job say why it failed."""
    return Path(job).with_name("error.txt")


def _end_with_parent() -> None:
    parent = os.environ.get(PARENT_PID)
    if parent is None:
        return

    def watch() -> None:
        while True:
            try:
                os.kill(int(parent), 0)
            except ProcessLookupError:
                os.killpg(os.getpgid(0), signal.SIGKILL)
            except PermissionError:
                return
            time.sleep(_WATCH_SECONDS)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
