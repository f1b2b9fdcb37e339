"""Starts a case in a process of its own, and ends it with all that it started; which commit is measured."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.environment import WORKER_ENVIRONMENT
from benchmarks.gpu.case import Case
from benchmarks.gpu.cases import RESULT
from benchmarks.gpu.figures import Result

OVER, NOT_BEGUN = "stopped when --minutes were over", "not begun when --minutes were over"
_ROOT = Path(__file__).resolve().parents[2]


def log_of(case: Case) -> Path:
    """Where a case prints to."""
    name = re.sub(r"[^\w.]+", "-", f"{case.shape} {case.label or case.kind}").strip("-")
    return Path(case.work) / "logs" / f"{name}.txt"


def start(case: Case, until: float | None = None) -> dict[str, Any]:
    """Run a case in a process of its own; returns what it wrote, or a result with the error that ended it.

    Args:
        case: what to run.
        until: of `time.monotonic`, when it is stopped with all that it has started; None: never.
    """
    if until is not None and time.monotonic() >= until:
        return asdict(Result(case.label, case.shape, error=NOT_BEGUN))
    place = Path(case.work) / "run"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    log = log_of(case)
    log.parent.mkdir(exist_ok=True)
    case = replace(case, place=str(place), started=time.time())
    (place / "case.json").write_text(json.dumps(asdict(case)), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.gpu.cases", str(place / "case.json")]
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # What is kept between starts lies in --work, too, where the variable names no other home.
    environment = {"DT2IT_HOME": str(Path(case.work) / "home")} | os.environ | WORKER_ENVIRONMENT
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    with log.open("w", encoding="utf-8") as output:
        code = _ended(
            subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True),
            until,
        )
    if code is None:
        return asdict(Result(case.label, case.shape, error=OVER))
    result = place / RESULT
    if not result.exists():
        ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return asdict(Result(case.label, case.shape, error=ended + ("; memory may have run out" if code == -9 else "")))
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    shutil.rmtree(place, ignore_errors=True)
    return found


def _ended(process: subprocess.Popen[bytes], until: float | None) -> int | None:
    """The code that a process ends with; None where it was stopped since its time was over."""
    try:
        return process.wait(None if until is None else max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    finally:  # also where the command is ended: whatever the case has started would keep the GPU
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def commit() -> str | None:
    """Of the project, with + where files were changed since; None without git."""
    git = ["git", "-C", str(_ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed.strip() else "")
