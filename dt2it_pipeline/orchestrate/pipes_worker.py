"""The process of a job that a step has launched: runs it and reports its progress through Dagster Pipes.

    python -m dt2it_pipeline.orchestrate.pipes_worker job.json

Of several ranks each runs this; only rank 0 opens the Pipes session. What is the same without Dagster (the end of the
process, its summary and its error) stands in engines/launch/worker.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from dt2it_pipeline.engines.jobs import job_path
from dt2it_pipeline.engines.launch.worker import end_with_parent, plain_errors, run_file
from dt2it_pipeline.engines.lean_processes import leave
from dt2it_pipeline.observe.logs import configure_logs
from dt2it_pipeline.observe.progress import in_words, now_and_then

PROGRESS = "… "  # begins every report of progress, so that a terminal can show them as such


def main(arguments: list[str]) -> None:
    """Run the job that the command line names."""
    path = job_path(arguments)
    end_with_parent()
    configure_logs()
    with plain_errors():
        _run(path)


def _run(path: str) -> None:
    if int(os.environ.get("RANK", "0")) != 0:
        run_file(path, lambda progress: None)
        return
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:

        def report(state: Mapping[str, Any]) -> None:
            pipes.log.info(PROGRESS + in_words(state))

        run_file(path, now_and_then(report))


if __name__ == "__main__":
    main(sys.argv[1:])
    leave()
