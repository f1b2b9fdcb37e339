"""What runs inside the process of a launched job: it ends with its starter, and leaves its end as a file.

    python -m dt2it_pipeline.engines.launch.worker job.json

Several ranks may run the same job; each calls `run_file`. The summary (rank 0) or the first rank's error lies beside
the job file then, where whoever launched the job finds it, on this machine or on another that shares the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from dt2it_pipeline.engines.jobs import Job, Reporter, Summary, import_for, job_path, print_progress
from dt2it_pipeline.engines.launch.deaths import killed_rank, note_running
from dt2it_pipeline.engines.lean_processes import leave
from dt2it_pipeline.errors import UserError, WorkerError
from dt2it_pipeline.observe.logs import configure_logs, wants_json
from dt2it_pipeline.storage.atomic import write_json_atomic

PARENT_PID = "DT2IT_PARENT_PID"  # set by the launcher; ranks are its grandchildren, so their own parent says nothing
_WATCH_SECONDS = 2.0
_DEATH_SECONDS = 0.5


def main(arguments: list[str] | None = None) -> None:
    """Run the job that the command line names; progress is printed."""
    end_with_parent()
    configure_logs()
    with plain_errors():
        run_file(job_path(sys.argv[1:] if arguments is None else arguments), print_progress)


def run_file(path: str | Path, report: Reporter) -> Summary:
    """Run the job in a file. What came of it is written beside the file: `summary.json`, or `error.txt`.

    Args:
        path: the job file.
        report: called by rank 0 alone.

    Raises:
        JobError: the file holds no job.
        Exception: whatever the job raises; `error.txt` has the class and message of the first rank that fails.
    """
    rank = int(os.environ.get("RANK", "0"))
    first = rank == 0
    note = note_running(Path(path).parent, rank)
    try:
        job = Job.read(path)
        import_for(job)
        summary = job.run(report if first else _silent)
    except Exception as error:
        # A rank that lost its connection to one that was killed names that one.
        line = killed_rank(note.parent, wait=_DEATH_SECONDS) or "".join(traceback.format_exception_only(error)).strip()
        with contextlib.suppress(OSError), error_file(path).open("x", encoding="utf-8") as file:
            file.write(line)
        raise
    finally:
        note.unlink(missing_ok=True)
    if first:
        write_json_atomic(summary, summary_file(path))
    return summary


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Let an error of ours end this process with its sentence: a traceback through our code helps nobody to mend it.

    Raises:
        SystemExit: in the place of a UserError or WorkerError.
    """
    try:
        yield
    except (UserError, WorkerError) as error:
        if wants_json():
            raise  # lines are JSON objects, and so is this one; see observe/logs.py
        raise SystemExit(f"error: {error}") from None


def error_file(job: str | Path) -> Path:
    """Where the ranks of a job say why it failed."""
    return Path(job).with_name("error.txt")


def summary_file(job: str | Path) -> Path:
    """Where rank 0 leaves the summary of a job that has come to its end."""
    return Path(job).with_name("summary.json")


def read_summary(job: str | Path) -> Summary | None:
    """The summary of a job; None where the job did not come to its end."""
    try:
        summary: Summary = json.loads(summary_file(job).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary


def end_with_parent() -> None:
    """End this process group when a process that started it is gone; nothing where PARENT_PID is not set.

    These are the launcher, which PARENT_PID names, and this process's own parent: where it is another process, it
    starts ranks or forks for jobs, and nobody would tell the launcher how this one ends.
    """
    parent, own_parent = os.environ.get(PARENT_PID), os.getppid()
    if parent is None:
        return

    def watch() -> None:
        while True:
            try:
                os.kill(int(parent), 0)
            except ProcessLookupError:
                os.killpg(os.getpgid(0), signal.SIGKILL)
            except PermissionError:
                pass
            if os.getppid() != own_parent:
                os.killpg(os.getpgid(0), signal.SIGKILL)
            time.sleep(_WATCH_SECONDS)

    threading.Thread(target=watch, daemon=True).start()


def _silent(progress: object) -> None:
    """The reporter of every rank but the first."""


if __name__ == "__main__":
    main()
    leave()
