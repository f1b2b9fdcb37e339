"""The child process of a heavy step: runs one job function and reports through Dagster Pipes.

    python -m dt2it_pipeline.orchestrate.child package.module:function job.json

Under the DeepSpeed launcher every rank runs this; only rank 0 opens the Pipes session. The process group ends itself
when the step that started it is gone, so that no rank outlives a run that was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from dt2it_pipeline.engines.jobs import load_run, read_job

PARENT_PID = "DT2IT_PARENT_PID"  # set by the step; ranks are grandchildren, so that their own parent tells nothing
_WATCH_SECONDS = 2.0


def main(arguments: list[str]) -> None:
    """Run the job that the command line names."""
    target, path = (a for a in arguments if not a.startswith("--local_rank"))
    _end_with_parent()
    if int(os.environ.get("RANK", "0")) != 0:
        load_run(target)(read_job(path), lambda progress: None)
        return
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:

        def report(progress: Mapping[str, Any]) -> None:
            shown = (
                f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in progress.items()
            )
            pipes.log.info(", ".join(shown))

        pipes.report_custom_message({"summary": load_run(target)(read_job(path), report)})


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
